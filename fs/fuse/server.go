// Package fuse serves a tree of fs.Nodes to the kernel.
//
// It trusts the kernel: who asks is the uid and gid of a request's header, and
// that he may is what the kernel found in the mode bits, for the file system
// is mounted with default_permissions. It does not trust the tree to be quick
// or right: whatever waits ends when the kernel interrupts it, and a panic is
// one EIO.
//
// It cannot mount: it gets a /dev/fuse that is mounted already. A session
// cannot be taken up by another process; when one dies, its mount is dead.
package fuse

import (
	"fmt"
	"io"
	"log"
	"runtime/debug"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"vmfs/fs"
)

// MaxRead is what the mount option max_read has to be, in bytes. Requests
// are up to that long, so that a write that is too long comes as one message
// and can be refused as one.
const MaxRead = 128 << 10

// timeout is how long the kernel believes names and attributes. A name that
// does not exist is not believed at all. Tests make it longer.
var timeout = time.Second

// Options are what a Server may be told.
type Options struct {
	Log func(format string, args ...any) // for the operator

	// NoCache makes the kernel ask for names and attributes each time: for
	// a tree of which nobody knows what changes.
	NoCache bool
}

// Server serves one mount.
type Server struct {
	bridge *bridge
	server *gofuse.Server
	done   chan struct{}
}

// Serve begins to serve root on dev, a path /dev/fd/N of a /dev/fuse that is
// mounted with default_permissions and max_read=MaxRead. It takes the
// descriptor. It returns when the kernel's first request was answered.
func Serve(dev string, root fs.Dir, o Options) (*Server, error) {
	b := newBridge(root)
	if o.NoCache {
		b.timeout = 0
	}
	server, err := gofuse.NewServer(b, dev, &gofuse.MountOptions{
		MaxWrite:          MaxRead,
		DisableXAttrs:     true,
		ExtraCapabilities: gofuse.CAP_ATOMIC_O_TRUNC, // > means nothing: one request less
		DisableSplice:     true,
		PanicHandler:      panicHandler(o.Log),
		Logger:            log.New(io.Discard, "", 0), // its lines are about single requests of clients
	})
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", dev, err)
	}
	s := &Server{bridge: b, server: server, done: make(chan struct{})}
	go s.run()
	go b.notifier.run(s.done)
	return s, nil
}

func (s *Server) run() {
	defer close(s.done)
	s.server.Serve()
}

// Wait returns when the mount is gone and every open file is closed.
func (s *Server) Wait() { <-s.done }

// Done is closed then.
func (s *Server) Done() <-chan struct{} { return s.done }

// Changed makes the kernel forget what it knows and is no longer so. When it
// returns, no stat shows an attribute from before; names follow shortly.
func (s *Server) Changed(changes []fs.Change) { s.bridge.changed(changes) }

// panicsLogged is how many panics are written to the log: whoever can cause
// one can cause many.
const panicsLogged = 16

func panicHandler(logf func(string, ...any)) func(any) gofuse.Status {
	var count atomic.Int32
	return func(v any) gofuse.Status {
		if count.Add(1) <= panicsLogged {
			logf("fuse: panic in a request: %v\n%s", v, debug.Stack())
		}
		return gofuse.EIO
	}
}
