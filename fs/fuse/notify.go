package fuse

import (
	"cmp"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"vmfs/fs"
)

// notifier tells the kernel what it has to forget.
//
// That attributes changed is said at once, in whatever goroutine the change
// comes: the kernel takes no lock for it that a request could hold, and a
// stat that follows a write is right. That a name is gone takes the lock of
// its directory, which the kernel holds over every mkdir and rmdir that we
// have not answered yet: it is said by a goroutine of its own, for which
// requests wait that hold no directory (settle).
type notifier struct {
	inodes *inodes
	server atomic.Pointer[gofuse.Server]

	mu    sync.Mutex
	gone  map[entry]bool
	owned map[entry]int // the kernel itself is about to forget them
	wake  chan struct{}

	// Closed when the kernel was told of what is in gone, and of those before.
	told, telling chan struct{}
}

// settleTime bounds settle: a directory may be held by a request that waits. No
// interrupt ends it sooner, since any signal is one, and who had one would then
// be led to what is gone.
const settleTime = time.Second

func newNotifier(t *inodes) *notifier {
	return &notifier{inodes: t, gone: map[entry]bool{}, owned: map[entry]int{}, wake: make(chan struct{}, 1)}
}

func (n *notifier) changed(changes []fs.Change) {
	server := n.server.Load()
	if server == nil {
		return
	}
	known, gone := n.inodes.stale(changes)
	for _, id := range known {
		server.InodeNotify(id, -1, 0) // an error is that it is forgotten already, or the mount gone
	}
	n.add(gone)
}

// stale are the changes of what the kernel knows.
func (t *inodes) stale(changes []fs.Change) (known []uint64, gone []entry) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, c := range changes {
		in := t.byID[c.Ino]
		switch {
		case in == nil:
		case c.Name == "":
			known = append(known, c.Ino)
		case in.entry == entry{c.Dir, c.Name}:
			gone = append(gone, in.entry)
		}
	}
	return known, gone
}

func (n *notifier) add(gone []entry) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range gone {
		if n.owned[e] == 0 {
			n.gone[e] = true
		}
	}
	if len(n.gone) == 0 {
		return
	}
	if n.told == nil {
		n.told = make(chan struct{})
	}
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// settle waits until the kernel was told of the names that are gone now. Who
// removed one, or made something of the same name, would otherwise be led to
// what was there before. No request for which the kernel holds a directory
// may wait for it.
func (n *notifier) settle() {
	n.mu.Lock()
	told := cmp.Or(n.told, n.telling)
	n.mu.Unlock()
	if told == nil {
		return
	}
	limit := time.NewTimer(settleTime)
	defer limit.Stop()
	select {
	case <-told:
	case <-limit.C:
	}
}

// own keeps a name from being notified until the returned function is
// called: the kernel asked for its end and does the rest itself. Telling it
// afterwards could hit a new directory of that name.
func (n *notifier) own(dir uint64, name string) (release func()) {
	e := entry{dir, name}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.owned[e]++
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.owned[e]--; n.owned[e] == 0 {
			delete(n.owned, e)
		}
	}
}

// run tells of names until done is closed.
func (n *notifier) run(done <-chan struct{}) {
	for {
		select {
		case <-n.wake:
		case <-done:
			return
		}
		n.mu.Lock()
		gone, told := n.gone, n.told
		n.gone, n.told, n.telling = map[entry]bool{}, nil, told
		n.mu.Unlock()
		for e := range gone {
			n.server.Load().EntryNotify(e.dir, e.name)
		}
		if told != nil {
			close(told)
		}
	}
}
