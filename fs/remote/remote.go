// Package remote is a tree of fs.Nodes that lies on a server of 9P2000 or
// 9P2000.u: what is looked up, read, written and changed here is there.
//
// It trusts the server with what the tree says, and with nothing else. A
// message's size is held against what was agreed on before memory is set
// aside for it, its fields against its size, and its answer against what was
// asked; a server that breaks the rules is hung up on. One that does not
// answer holds nobody who is interrupted: what waits here ends with its
// context, within a second at most.
//
// Whoever the server takes the connection for looks up, lists and stats; who
// opens or changes something attaches as himself first, if he is another user
// than the one of this process. What he then may is the server's to check, and
// whether it takes the connection's word for who he is.
//
// A Node is known by its path and by the number of its qid, which is its inode
// number too: of one that is renamed by others this package knows when it is
// looked up again.
//
// When the connection is lost, what is open is lost with it, and what is asked
// meanwhile is refused; a new one is tried for until there is one. Nothing is
// asked twice: of a request that was on its way nobody knows if it was done.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"weak"

	"vmfs/ctl"
	"vmfs/fs"
)

// Dial connects to the server, before ctx ends.
type Dial func(ctx context.Context) (net.Conn, error)

// Options are what a Tree may be told.
type Options struct {
	// UID is who the connection is said to be. A server that knows better
	// who is at its other end does not look at it.
	UID uint32

	Log func(format string, args ...any) // of lost connections; nil for stderr
}

// How long things may take.
const (
	connectTime = 10 * time.Second // to connect, agree on a version and attach
	firstPause  = 100 * time.Millisecond
	lastPause   = 5 * time.Second // between two attempts
	lostGrace   = time.Second     // for which requests wait for a lost connection to come back
)

// Tree is a remote tree.
type Tree struct {
	dial   Dial
	uid    uint32
	logf   func(format string, args ...any)
	cache  cache
	owners owners
	root   *node

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	ended  chan struct{} // closed when nothing connects any more

	mu      sync.Mutex
	conn    *conn         // nil while there is none
	lost    time.Time     // when that began
	changed chan struct{} // closed when there is one again

	places sync.RWMutex // for where every node is
	nodes  map[uint64]weak.Pointer[node]
}

// New connects to a server; the error says why that was not possible. From
// then on it connects by itself, until Close.
func New(ctx context.Context, dial Dial, o Options) (*Tree, error) {
	t := &Tree{dial: dial, uid: o.UID, logf: o.Log, ended: make(chan struct{}), nodes: map[uint64]weak.Pointer[node]{}}
	if t.logf == nil {
		t.logf = log.New(os.Stderr, "", 0).Printf
	}
	t.root = &node{tree: t, dir: true}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	c, err := t.connect(ctx)
	if err != nil {
		t.cancel()
		return nil, err
	}
	t.conn = c
	go t.keep(c)
	return t, nil
}

// Root is the directory that was attached to.
func (t *Tree) Root() fs.Dir { return dir{t.root} }

// Close hangs up. Whoever waits gets an error.
func (t *Tree) Close() {
	t.cancel()
	<-t.ended
}

func (t *Tree) connect(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	nc, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	c, err := newConn(nc, t.uid)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("9P with %s: %w", nc.RemoteAddr(), err)
	}
	c.start()
	return c, nil
}

// keep sees to it that there is a connection: c at first.
func (t *Tree) keep(c *conn) {
	defer close(t.ended)
	for {
		select {
		case <-c.dead:
		case <-t.ctx.Done():
			c.die(errClosed)
			<-c.dead
			return
		}
		t.lose(c)
		if c = t.again(); c == nil {
			return
		}
		t.find(c)
	}
}

// lose notes that c is dead; who comes upon that first does.
func (t *Tree) lose(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != c {
		return
	}
	t.logf("the connection is lost: %v", c.why())
	t.cache.forget()
	t.conn, t.lost, t.changed = nil, time.Now(), make(chan struct{})
}

func (t *Tree) find(c *conn) {
	t.logf("the connection is back")
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn = c
	close(t.changed)
}

// again connects, however long that takes; nil after Close.
func (t *Tree) again() *conn {
	said := ""
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
			return nil
		}
		c, err := t.connect(t.ctx)
		switch {
		case err == nil:
			return c
		case t.ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			t.logf("%v", err)
		}
	}
}

var (
	errClosed = errors.New("closed")
	errDown   = ctl.Errorf(syscall.EHOSTDOWN, "there is no connection to the server")
)

// connection is the one that there is. If it was lost a moment ago, a new one
// is waited for.
func (t *Tree) connection(ctx context.Context) (*conn, error) {
	c, lost, changed := t.present()
	if c != nil {
		return c, nil
	}
	wait := time.Until(lost.Add(lostGrace))
	if wait <= 0 {
		return nil, errDown
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-t.ctx.Done():
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if c, _, _ = t.present(); c == nil {
		return nil, errDown
	}
	return c, nil
}

// present is the living connection, or nil, since when that is so, and what
// is closed when there is one.
func (t *Tree) present() (c *conn, lost time.Time, changed <-chan struct{}) {
	t.mu.Lock()
	c = t.conn
	t.mu.Unlock()
	if c != nil && !c.alive() {
		t.lose(c)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.conn, t.lost, t.changed
}
