package ninep

import (
	"context"
	"sync"
	"syscall"

	"vmfs/ctl"
	"vmfs/fs"
)

// place is where a walk came to: a node under the name by which it was found.
type place struct {
	node fs.Node
	name string
	up   *place // nil of the root
}

// fid is what a client has a number for. Its fields do not change: what is
// opened, or walked from in place, is a new one under the old number.
type fid struct {
	id uint32
	by ctl.Cred
	at *place

	// Of one that is open.
	flags  fs.Flags
	handle fs.Handle // of a file
	list   *listing  // of a directory
	room   int       // bytes set aside for a read of it
	quick  bool      // a read does not wait

	// Under conn.mu.
	users int  // requests
	gone  bool // no number is its any more
}

func (f *fid) open() bool { return f.handle != nil || f.list != nil }

// release may be called with nil.
func (s *session) release(f *fid) {
	if f == nil {
		return
	}
	s.conn.mu.Lock()
	f.users--
	last := f.gone && f.users == 0
	s.conn.mu.Unlock()
	if last {
		f.close()
	}
}

// drop takes a fid's number from it and reports whether nobody uses it, so
// that it has to be closed. conn.mu is held.
func (f *fid) drop() bool {
	f.gone = true
	return f.users == 0
}

func (f *fid) close() {
	if f.handle != nil {
		f.handle.Close()
	}
}

// add gives a new fid its number. EBADF if it is another's.
func (s *session) add(f *fid) error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	limit := c.server.limits.Fids
	switch {
	case f.id == noID || s.fids[f.id] != nil:
		return syscall.EBADF
	case s.over:
		return context.Canceled
	case len(s.fids) >= limit || !c.user.take(&c.user.fids, 4*limit):
		return syscall.EMFILE
	}
	s.fids[f.id] = f
	return nil
}

// replace puts f in the place of old, which nobody else may have replaced or
// clunked meanwhile: EBADF.
func (s *session) replace(old, f *fid) error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.fids[old.id] != old {
		return syscall.EBADF
	}
	old.drop() // the request that replaces it uses it; release closes it
	s.fids[old.id] = f
	return nil
}

// clunk ends the fid of a request, and interrupts what else uses it.
func (s *session) clunk(by *request) error {
	c, f := s.conn, by.fid
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.fids[f.id] != f {
		return syscall.EBADF
	}
	delete(s.fids, f.id)
	c.user.fids.Add(-1)
	f.drop()
	if f.users > 1 {
		for _, r := range s.tags {
			if r.fid == f && r != by {
				r.cancel()
			}
		}
	}
	return nil
}

// listing is an open directory: its entries as they were when it was read
// from the beginning.
type listing struct {
	mu      sync.Mutex
	entries []fs.Entry // those not given yet
	next    uint64     // the offset of the first of them
}
