package fuse

import (
	"sync"

	"vmfs/fs"
)

// inodes are the nodes that the kernel knows, by inode number, which is also
// the number that requests name them by. One is forgotten when the kernel
// says that it has forgotten every lookup of it.
type inodes struct {
	mu   sync.RWMutex
	byID map[uint64]*inode
}

type inode struct {
	node    fs.Node
	lookups uint64
	entry   // where the kernel found it last
}

// entry is a name in a directory.
type entry struct {
	dir  uint64
	name string
}

const rootID = 1

func newInodes(root fs.Dir) inodes {
	// The kernel never looks the root up, and never forgets it.
	return inodes{byID: map[uint64]*inode{rootID: {node: root, lookups: 1}}}
}

// get is nil for a node that the kernel cannot know.
func (t *inodes) get(id uint64) fs.Node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if in := t.byID[id]; in != nil {
		return in.node
	}
	return nil
}

// remember counts a lookup of n.
func (t *inodes) remember(id uint64, n fs.Node, dir uint64, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byID[id]
	if in == nil {
		in = &inode{node: n}
		t.byID[id] = in
	}
	in.lookups++
	in.entry = entry{dir, name}
}

func (t *inodes) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byID[id]
	if in == nil || id == rootID {
		return
	}
	if in.lookups > lookups {
		in.lookups -= lookups
		return
	}
	delete(t.byID, id)
}

// moved notes that the kernel finds id under another name.
func (t *inodes) moved(id, dir uint64, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if in := t.byID[id]; in != nil {
		in.entry = entry{dir, name}
	}
}

// handles are what is open, by the number that requests name it by.
type handles[T any] struct {
	mu   sync.RWMutex
	open []slot[T]
	free []uint64
}

type slot[T any] struct {
	value T
	used  bool
}

func (h *handles[T]) add(v T) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.free); n > 0 {
		id := h.free[n-1]
		h.free = h.free[:n-1]
		h.open[id] = slot[T]{v, true}
		return id
	}
	h.open = append(h.open, slot[T]{v, true})
	return uint64(len(h.open) - 1)
}

func (h *handles[T]) get(id uint64) (T, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if id >= uint64(len(h.open)) {
		var none T
		return none, false
	}
	return h.open[id].value, h.open[id].used
}

func (h *handles[T]) remove(id uint64) (T, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var none slot[T]
	if id >= uint64(len(h.open)) || !h.open[id].used {
		return none.value, false
	}
	s := h.open[id]
	h.open[id] = none
	h.free = append(h.free, id)
	return s.value, true
}

// each removes all and calls f of each.
func (h *handles[T]) each(f func(T)) {
	h.mu.Lock()
	open := h.open
	h.open, h.free = nil, nil
	h.mu.Unlock()
	for _, s := range open {
		if s.used {
			f(s.value)
		}
	}
}
