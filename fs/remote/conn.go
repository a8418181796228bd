package remote

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
)

// How long a server may take, and how much may wait for it.
const (
	patience   = time.Second      // to answer, interrupted, what waits for nothing
	flushTime  = time.Second      // to say what became of what was interrupted
	writeTime  = 30 * time.Second // to take what is sent
	aliveEvery = 15 * time.Second // to say anything at all, twice
	mostUnsent = 16 << 20         // bytes that it has not taken yet
)

// conn is one connection. One goroutine reads answers, one writes requests,
// and one looks after the server.
type conn struct {
	nc    net.Conn
	in    *bufio.Reader
	dotu  bool
	most  uint32 // bytes of a message
	heard atomic.Bool

	dead  chan struct{} // closed when it is over
	wake  chan struct{} // there is something to send
	cause error         // why it is over; set before dead is closed

	mu     sync.Mutex
	over   bool
	unsent []byte
	calls  map[uint16]*call
	tags   []uint16          // free ones, of those up to last
	fids   []uint32          // the same, up to lastID
	last   uint16            // the highest tag so far
	lastID uint32            // the highest fid so far
	roots  map[uint32]uint32 // the fids of those who attached, by uid
}

// call is a request, or a flush of one, until its tag is free again.
type call struct {
	tag    uint16
	kind   uint8
	answer chan answer  // has room for it
	then   func(answer) // or this, called with conn.mu held

	flushed bool // the server was asked to forget it; the tag is free when it has
	over    bool // it is answered all the same
}

var (
	errAborted = ctl.Errorf(syscall.ECONNABORTED, "the connection to the server was lost")
	errFull    = ctl.Errorf(syscall.EAGAIN, "too much is waiting for the server")
)

// The fid of what was attached to.
const rootFid = 0

// newConn agrees with the server on what is spoken, and attaches. Nothing
// is read or written when it returns.
func newConn(nc net.Conn, uid uint32) (*conn, error) {
	c := &conn{
		nc: nc, in: bufio.NewReaderSize(nc, 16<<10), most: leastMessage,
		dead: make(chan struct{}), wake: make(chan struct{}, 1), calls: map[uint16]*call{}, lastID: rootFid,
		roots: map[uint32]uint32{uid: rootFid},
	}
	if err := c.version(); err != nil {
		return nil, err
	}
	body, err := c.ask(c.attach(rootFid, uid))
	if err == nil {
		err = c.attached(body)
	}
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return c, nil
}

// version asks for 9P2000.u, and then for 9P2000.
func (c *conn) version() error {
	for _, want := range []string{"9P2000.u", "9P2000"} {
		frame := (&proto.TRVersion{Header: header(proto.Tversion), Msize: mostMessage, Version: want}).Compose()
		setTag(frame, noTag)
		body, err := c.ask(frame)
		if err != nil {
			return fmt.Errorf("version: %w", err)
		}
		f := fields{p: body}
		most, got := f.u32(), f.text()
		switch {
		case !f.whole() || most > mostMessage:
			return broken("an answer to Tversion that cannot be")
		case got != "9P2000" && got != want:
			continue
		case most < leastMessage:
			return fmt.Errorf("the server takes messages of %d bytes at most, %d are needed", most, leastMessage)
		}
		c.most, c.dotu = most, got == "9P2000.u"
		return nil
	}
	return errors.New("the server speaks neither 9P2000.u nor 9P2000")
}

// ask is for the time when there is one request only.
func (c *conn) ask(frame []byte) ([]byte, error) {
	if _, err := c.nc.Write(frame); err != nil {
		return nil, err
	}
	a, err := readAnswer(c.in, c.most)
	if err != nil {
		return nil, err
	}
	return c.result(frame[4], a)
}

// result is what an answer to a request of a kind says.
func (c *conn) result(kind uint8, a answer) ([]byte, error) {
	if a.kind == kind+1 {
		return a.body, nil
	}
	if a.kind == proto.Rerror {
		if err, ok := refusal(a.body, c.dotu); ok {
			return nil, err
		}
	}
	return nil, c.die(broken(fmt.Sprintf("an answer of type %d to a request of type %d", a.kind, kind)))
}

func (c *conn) start() {
	go c.read()
	go c.write()
	go c.watch(aliveEvery)
}

// die ends the connection, for the first reason that is given, and gives that.
func (c *conn) die(why error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over, c.cause = true, why
		close(c.dead)
		c.nc.Close()
		c.unsent = nil
	}
	return c.cause
}

func (c *conn) alive() bool {
	select {
	case <-c.dead:
		return false
	default:
		return true
	}
}

// why is the reason of its death.
func (c *conn) why() error { <-c.dead; return c.cause }

func (c *conn) read() {
	for {
		a, err := readAnswer(c.in, c.most)
		if err == nil {
			c.heard.Store(true)
			err = c.deliver(a)
		}
		if err != nil {
			c.die(err)
			return
		}
	}
}

// write sends what there is to send, all that came meanwhile at once.
func (c *conn) write() {
	var spare []byte
	for {
		select {
		case <-c.wake:
		case <-c.dead:
			return
		}
		c.mu.Lock()
		p := c.unsent
		c.unsent = spare[:0]
		c.mu.Unlock()
		c.nc.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := c.nc.Write(p); err != nil {
			c.die(err)
			return
		}
		if spare = p; cap(spare) > mostMessage {
			spare = nil
		}
	}
}

// watch hangs up on a server that says nothing, although it was asked
// something that every server answers at once: to flush what is not there.
func (c *conn) watch(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for asked := false; ; {
		select {
		case <-tick.C:
		case <-c.dead:
			return
		}
		switch {
		case c.heard.Swap(false):
			asked = false
		case asked:
			c.die(ctl.Errorf(syscall.ETIMEDOUT, "the server says nothing"))
			return
		default:
			asked = true
			c.send(flushOf(noTag), func(answer) {})
		}
	}
}

func flushOf(tag uint16) []byte {
	return (&proto.TFlush{Header: header(proto.Tflush), Oldtag: tag}).Compose()
}

// send gives a request its tag and sees to it that it is sent. then is called
// with the answer; if it is nil, the answer is the call's.
func (c *conn) send(frame []byte, then func(answer)) (*call, error) {
	p := &call{kind: frame[4], then: then}
	if then == nil {
		p.answer = make(chan answer, 1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return p, c.sendLocked(p, frame)
}

func (c *conn) sendLocked(p *call, frame []byte) error {
	switch {
	case c.over:
		return errAborted
	case len(c.unsent)+len(frame) > mostUnsent:
		return errFull
	case len(c.tags) > 0:
		p.tag, c.tags = c.tags[len(c.tags)-1], c.tags[:len(c.tags)-1]
	case c.last+1 == noTag:
		return errFull
	default:
		c.last++
		p.tag = c.last
	}
	c.calls[p.tag] = p
	setTag(frame, p.tag)
	c.unsent = append(c.unsent, frame...)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// free gives a call's tag to others. c.mu is held.
func (c *conn) free(p *call) {
	delete(c.calls, p.tag)
	c.tags = append(c.tags, p.tag)
}

// deliver gives an answer to whose it is. The tag of what is flushed is not
// free before the flush is answered.
func (c *conn) deliver(a answer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.calls[a.tag]
	if p == nil || p.over {
		return broken(fmt.Sprintf("an answer with the tag %d, of no request", a.tag))
	}
	if p.flushed {
		p.over = true
	} else {
		c.free(p)
	}
	if p.then != nil {
		p.then(a)
	} else {
		p.answer <- a
	}
	return nil
}

// rpc asks the server and waits for its answer: for so long, if limit is not
// 0, and until ctx ends. What was interrupted was not done, but for when the
// server does not say so in time; then undo, if there is one, is called should
// it have been after all.
func (c *conn) rpc(ctx context.Context, limit time.Duration, frame []byte, undo func()) ([]byte, error) {
	p, err := c.send(frame, nil)
	if err != nil {
		return nil, err
	}
	var expired <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		expired = t.C
	}
	select {
	case a := <-p.answer:
		return c.result(p.kind, a)
	case <-c.dead:
		return c.lost(p)
	case <-ctx.Done():
		if a, ok := p.soon(); ok {
			return c.result(p.kind, a)
		}
		return c.interrupt(p, ctx.Err(), undo)
	case <-expired:
		return c.interrupt(p, context.DeadlineExceeded, undo)
	}
}

// lost is what came of a request when the connection is over: its answer, if
// that was the last thing to come.
func (c *conn) lost(p *call) ([]byte, error) {
	select {
	case a := <-p.answer:
		return c.result(p.kind, a)
	default:
		return nil, errAborted
	}
}

// soon is the answer to an interrupted request that the server has no reason
// to keep waiting. Any signal interrupts a call to the kernel's FUSE, also one
// that is to end nothing, and no program expects EINTR of a mkdir or a stat.
func (p *call) soon() (answer, bool) {
	if p.kind == proto.Tread || p.kind == proto.Twrite {
		return answer{}, false
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case a := <-p.answer:
		return a, true
	case <-t.C:
		return answer{}, false
	}
}

// interrupt flushes a request. An answer that comes before the flush's is
// good: the request was done.
func (c *conn) interrupt(p *call, why error, undo func()) ([]byte, error) {
	flushed, err := c.flush(p)
	if err != nil {
		return nil, c.abandon(p, why, undo)
	}
	t := time.NewTimer(flushTime)
	defer t.Stop()
	select {
	case a := <-p.answer:
		return c.result(p.kind, a)
	case <-flushed:
	case <-c.dead:
		return c.lost(p)
	case <-t.C:
		return nil, c.abandon(p, why, undo)
	}
	select {
	case a := <-p.answer: // both came at once
		return c.result(p.kind, a)
	default:
		return nil, why
	}
}

// flush asks the server to forget a request. The channel is closed when it has.
func (c *conn) flush(p *call) (<-chan struct{}, error) {
	flushed := make(chan struct{})
	f := &call{kind: proto.Tflush}
	f.then = func(answer) {
		if c.calls[p.tag] == p {
			c.free(p)
		}
		close(flushed)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[p.tag] != p { // it is answered
		close(flushed)
		return flushed, nil
	}
	p.flushed = true
	if err := c.sendLocked(f, flushOf(p.tag)); err != nil {
		p.flushed = false
		return nil, err
	}
	return flushed, nil
}

// abandoned is the error of a request of which nobody knows if it was done,
// or will be.
type abandoned struct{ error }

func (a abandoned) Unwrap() error { return a.error }

// abandon leaves a request that nobody waits for any more to itself.
func (c *conn) abandon(p *call, why error, undo func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := func(a answer) {
		if undo != nil && a.kind == p.kind+1 {
			go undo()
		}
	}
	p.then = done
	select {
	case a := <-p.answer:
		done(a)
	default:
	}
	return abandoned{why}
}
