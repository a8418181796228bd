package fuse

import (
	"context"
	"sync"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"vmfs/fs"
)

// dirHandle is an open directory: the entries as they were at its first
// read, or after a rewind.
type dirHandle struct {
	id  uint64
	dir fs.Dir

	mu      sync.Mutex
	entries []fs.Entry
}

func (b *bridge) OpenDir(_ <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	d, code := b.dir(in.NodeId)
	if d == nil {
		return code
	}
	out.Fh = b.dirs.add(&dirHandle{id: in.NodeId, dir: d})
	return gofuse.OK
}

// The offset of an entry counts from 1: first . and .., then the entries.
const dots = 2

// from gives the entries from offset off on.
func (h *dirHandle) from(ctx context.Context, off uint64) ([]fs.Entry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 {
		entries, err := h.dir.List(ctx)
		if err != nil {
			return nil, err
		}
		h.entries = entries
	}
	if off < dots {
		return h.entries, nil
	}
	return h.entries[min(off-dots, uint64(len(h.entries))):], nil
}

// ReadDirPlus gives names with their attributes, so that ls -l asks no more.
func (b *bridge) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return b.readDir(cancel, in, out, func(h *dirHandle, e fs.Entry, attr *fs.Attr, off uint64) bool {
		entry := out.AddDirLookupEntry(gofuse.DirEntry{Name: e.Name, Ino: attr.Ino, Mode: typeBits(attr), Off: off})
		if entry == nil {
			return false
		}
		b.fillEntry(h.id, e.Name, e.Node, attr, entry)
		return true
	}, func(e gofuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
}

// ReadDir gives names only.
func (b *bridge) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	return b.readDir(cancel, in, out, func(_ *dirHandle, e fs.Entry, attr *fs.Attr, off uint64) bool {
		return out.AddDirEntry(gofuse.DirEntry{Name: e.Name, Ino: attr.Ino, Mode: typeBits(attr), Off: off})
	}, out.AddDirEntry)
}

// readDir goes through an open directory from in.Offset on, until add or
// addDot reports that the answer is full.
func (b *bridge) readDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList,
	add func(h *dirHandle, e fs.Entry, attr *fs.Attr, off uint64) bool, addDot func(gofuse.DirEntry) bool) gofuse.Status {

	h, ok := b.dirs.get(in.Fh)
	if !ok {
		return gofuse.Status(syscall.EBADF)
	}
	ctx := newContext(cancel)
	entries, err := h.from(ctx, in.Offset)
	if err != nil {
		return status(err)
	}
	off := in.Offset
	for ; off < dots; off++ {
		if !addDot(gofuse.DirEntry{Name: ".."[:off+1], Ino: h.id, Mode: syscall.S_IFDIR, Off: off + 1}) {
			return gofuse.OK
		}
	}
	for _, e := range entries {
		off++
		attr, err := e.Node.Attr(ctx)
		if err != nil {
			continue // removed meanwhile
		}
		if !add(h, e, &attr, off) {
			break
		}
	}
	return gofuse.OK
}
