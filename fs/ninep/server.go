// Package ninep serves a tree of fs.Nodes over 9P2000 and 9P2000.u.
//
// It trusts nobody's bytes. A frame's size is held against what was agreed on
// before memory is set aside for it, and its fields against its size before
// anything reads them. Who asks is who the connection is: the credentials of
// a socket, the name of a certificate, or nobody; a client's word counts only
// where the connection is root's. That he may is checked here, by the mode
// bits that the tree shows at that moment, as Linux checks them.
//
// It does not trust the tree to be quick or right either: whatever waits ends
// when the client flushes it, clunks its file or hangs up, and a panic is one
// error.
//
// A connection is bounded in what it can hold: files, requests, memory, time.
// There is no authentication by Tauth, no remove-on-close, and no word by
// which a file could be opened so that its reads do not wait.
package ninep

import (
	"context"
	"errors"
	"log"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vmfs/ctl"
	"vmfs/fs"
)

// MaxMessage is the longest message, in bytes, that a connection can agree
// on. A write of fs.MaxWrite bytes fits, and one that is too long can come
// whole and be refused whole.
const MaxMessage = 128 << 10

// minMessage is the shortest that is agreed on: an entry of a directory has
// to fit.
const minMessage = 1024

// Limits bound what clients can hold. Zero is the default. Root has those of
// a connection only.
type Limits struct {
	Fids     int // of a connection; a user has four times as many; 8192
	Requests int // that a connection waits for at once; a user twice as many; 2048
	Held     int // bytes of writes that a connection waits for; 1 MiB
	Conns    int // connections of a user; 64
	AllConns int // connections of all, beside which root may have as many as a user; 1024

	Attach time.Duration // from connecting to Tattach; 10 s
	Frame  time.Duration // from the first byte of a message to its last; 30 s
	Write  time.Duration // for a client to take an answer that cannot be sent at once; 30 s
	Flush  time.Duration // for what is flushed to end by itself; 50 ms
}

func (l Limits) orDefault() Limits {
	set := func(n *int, def int) {
		if *n == 0 {
			*n = def
		}
	}
	set(&l.Fids, 8192)
	set(&l.Requests, 2048)
	set(&l.Held, 1<<20)
	set(&l.Conns, 64)
	set(&l.AllConns, 1024)
	wait := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	wait(&l.Attach, 10*time.Second)
	wait(&l.Frame, 30*time.Second)
	wait(&l.Write, 30*time.Second)
	wait(&l.Flush, 50*time.Millisecond)
	return l
}

// Options are what a Server may be told.
type Options struct {
	Limits Limits
	Log    func(format string, args ...any) // for the operator; nil for stderr
}

// Server serves one tree to any number of connections.
type Server struct {
	root   fs.Dir
	limits Limits
	logf   func(format string, args ...any)
	names  names
	panics atomic.Int32
	turns  chan struct{} // full of connections that have much to do

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wait   sync.WaitGroup // for connections

	mu    sync.Mutex
	conns map[net.Conn]bool
	users map[uint32]*account
}

// New makes a Server of a tree.
func New(root fs.Dir, o Options) *Server {
	s := &Server{root: root, limits: o.Limits.orDefault(), logf: o.Log, conns: map[net.Conn]bool{}, users: map[uint32]*account{}}
	s.turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))
	if s.logf == nil {
		s.logf = log.New(os.Stderr, "", 0).Printf
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// acceptPause is how long nobody is let in after that failed.
const acceptPause = 100 * time.Millisecond

// maxStrangers is how many connections of a listener may be on their way to say
// who they are.
const maxStrangers = 64

// strangers are those of one listener. If one comes who is too many, the oldest
// is given up: who has something to say has mostly said it by then, and a few
// who say nothing keep nobody out.
type strangers struct {
	mu  sync.Mutex
	all []*stranger // in the order in which they came
}

type stranger struct{ giveUp context.CancelFunc }

func (s *strangers) come(giveUp context.CancelFunc) *stranger {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == maxStrangers {
		s.all[0].giveUp()
		s.all = slices.Delete(s.all, 0, 1)
	}
	one := &stranger{giveUp}
	s.all = append(s.all, one)
	return one
}

func (s *strangers) part(one *stranger) {
	one.giveUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(other *stranger) bool { return other == one })
}

// Serve lets in whoever connects to l, as who says he is, until l is closed.
// It returns why that was; net.ErrClosed if the caller did it.
func (s *Server) Serve(l net.Listener, who Who) error {
	strangers := &strangers{}
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			s.admit(c, who, strangers)
		case errors.Is(err, net.ErrClosed):
			return net.ErrClosed
		case passes(err) && s.ctx.Err() == nil:
			time.Sleep(acceptPause)
		default:
			return err
		}
	}
}

// passes reports whether accept can work again after err: what was wrong is
// one connection, or the process has no descriptor or memory left.
func passes(err error) bool {
	for _, e := range []error{syscall.ECONNABORTED, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPROTO, syscall.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// admit serves a connection in goroutines of its own, and closes it. One that
// is too many it closes at once.
func (s *Server) admit(c net.Conn, who Who, strangers *strangers) {
	if !s.enter(c) {
		c.Close()
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.limits.Attach)
	one := strangers.come(cancel)
	go func() {
		defer s.leave(c)
		peer, err := who(ctx, c)
		strangers.part(one)
		if err == nil { // to whom else should it be said
			s.serve(c, peer)
		}
	}()
}

func (s *Server) enter(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || len(s.conns) >= s.limits.AllConns+s.limits.Conns {
		return false
	}
	s.conns[c] = true
	s.wait.Add(1)
	return true
}

func (s *Server) leave(c net.Conn) {
	c.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wait.Done()
}

// serve serves a connection until its client hangs up or breaks the rules.
func (s *Server) serve(nc net.Conn, p Peer) {
	u := s.come(p.UID)
	if u == nil {
		return
	}
	defer s.part(u)
	newConn(s, nc, p, u).serve()
}

// Close hangs up on everybody and returns when nobody is served any more. It
// does not close listeners.
func (s *Server) Close() {
	s.mu.Lock()
	s.cancel()
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wait.Wait()
}

// account counts what the connections of one user hold.
type account struct {
	uid      uint32
	conns    int // under Server.mu
	fids     atomic.Int64
	requests atomic.Int64
}

// come counts a connection of uid. It is nil if those are too many.
func (s *Server) come(uid uint32) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[uid]
	if u == nil {
		u = &account{uid: uid}
	}
	if !(ctl.Cred{UID: uid}).Rules() && (u.conns >= s.limits.Conns || len(s.conns) > s.limits.AllConns) {
		return nil
	}
	s.users[uid] = u
	u.conns++
	return u
}

func (s *Server) part(u *account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.conns--; u.conns == 0 {
		delete(s.users, u.uid)
	}
}

// take counts one more of n, of which a user may have most, and reports
// whether he may.
func (u *account) take(n *atomic.Int64, most int) bool {
	if n.Add(1) > int64(most) && !(ctl.Cred{UID: u.uid}).Rules() {
		n.Add(-1)
		return false
	}
	return true
}

// panicsLogged is how many panics are written to the log: whoever can cause
// one can cause many.
const panicsLogged = 16

// caught makes an error of a panic in a request.
func (s *Server) caught(v any) error {
	if s.panics.Add(1) <= panicsLogged {
		s.logf("9p: panic in a request: %v\n%s", v, debug.Stack())
	}
	return ctl.Errorf(syscall.EIO, "the request failed in a way that nobody foresaw")
}
