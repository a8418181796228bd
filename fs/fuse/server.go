// Package fuse serves a tree of fs.Nodes to the kernel.
//
// It trusts the kernel: who asks is the uid and gid of a request's header, and
// that he may is what the kernel found in the mode bits, for the file system
// is mounted with default_permissions. It does not trust the tree to be quick
// or right: whatever waits ends when the kernel interrupts it, and a panic is
// one EIO.
//
// It cannot mount, but for tests and ordinary users: the daemon gets a
// /dev/fuse that is mounted already. A session cannot be taken up by another
// process; when one dies, its mount is dead.
package fuse

import (
	"fmt"
	"io"
	"log"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

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
	Log func(format string, args ...any) // for the operator; nil for stderr

	// NoCache makes the kernel ask for names and attributes each time: for
	// a tree of which nobody knows what changes.
	NoCache bool
}

// Server serves one mount.
type Server struct {
	bridge *bridge
	server *gofuse.Server
	dir    string // that Mount mounted by itself
	done   chan struct{}
}

// Serve begins to serve root on dev, a path /dev/fd/N of a /dev/fuse that is
// mounted with default_permissions and max_read=MaxRead. It takes the
// descriptor. It returns when the kernel's first request was answered.
func Serve(dev string, root fs.Dir, o Options) (*Server, error) {
	return serve(dev, root, o, &gofuse.MountOptions{})
}

// Mount mounts root on a directory and serves it there: with mount(2) for
// root, for all users; else through fusermount3, for this user alone.
func Mount(dir string, root fs.Dir, o Options) (*Server, error) {
	if os.Getuid() != 0 {
		return serve(dir, root, o, &gofuse.MountOptions{Options: []string{"default_permissions"}})
	}
	// Not by the library's own mount, whose descriptor children inherit: a
	// child that outlives the server would keep a dead mount waiting.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d,default_permissions,allow_other", fd, MaxRead)
	if err := unix.Mount("vmfs", dir, "fuse.vmfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	s, err := Serve(fmt.Sprintf("/dev/fd/%d", fd), root, o)
	if err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		return nil, err
	}
	s.dir = dir
	return s, nil
}

func serve(where string, root fs.Dir, o Options, m *gofuse.MountOptions) (*Server, error) {
	logf := o.Log
	if logf == nil {
		logf = log.New(os.Stderr, "", 0).Printf
	}
	b := newBridge(root)
	if o.NoCache {
		b.timeout = 0
	}
	m.FsName, m.Name = "vmfs", "vmfs"
	m.MaxWrite = MaxRead
	m.DisableXAttrs = true
	m.ExtraCapabilities = gofuse.CAP_ATOMIC_O_TRUNC // > means nothing: one request less
	m.DisableSplice = true
	m.PanicHandler = panicHandler(logf)
	// The library's own lines are about single requests of clients.
	m.Logger = log.New(io.Discard, "", 0)
	server, err := gofuse.NewServer(b, where, m)
	if err != nil {
		return nil, fmt.Errorf("serve %s: %w", where, err)
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

// Unmount ends what Mount began. EBUSY while somebody uses it.
func (s *Server) Unmount() error {
	err := s.unmount()
	if err == nil {
		s.Wait()
	}
	return err
}

func (s *Server) unmount() error {
	if s.dir == "" {
		return s.server.Unmount()
	}
	if err := unix.Unmount(s.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", s.dir, err)
	}
	return nil
}

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
