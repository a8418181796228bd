package ninep

import (
	"bytes"
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/knusbaum/go9p/proto"
)

// outstanding is the part of a request that has a goroutine of its own.
type outstanding struct {
	s      *session
	fid    *fid
	ctx    context.Context
	cancel context.CancelFunc
	held   int

	// Under conn.mu.
	flushes []uint16 // the tags of those who flushed it, in order
	timer   *time.Timer
	dropped bool // nobody waits for an answer any more
}

// begin counts a request that has a goroutine of its own. EAGAIN if there are
// too many: what comes behind it, a flush for one, still has to be read.
func (c *conn) begin(r *request, frame []byte) error {
	r.keep(frame)
	limits := &c.server.limits
	if !c.user.take(&c.user.requests, 2*limits.Requests) {
		return syscall.EAGAIN
	}
	r.ctx, r.cancel = context.WithCancel(r.s.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running >= limits.Requests || c.held+r.held > limits.Held {
		r.cancel()
		c.user.requests.Add(-1)
		return syscall.EAGAIN
	}
	c.running++
	c.held += r.held
	r.s.tags[r.tag] = r
	c.wait.Add(1)
	return nil
}

// keep copies what the next message is read or parsed to the place of.
func (r *request) keep(frame []byte) {
	switch t := r.call.(type) {
	case *proto.TRead:
		kept := *t
		r.call = &kept
	case *proto.TWrite:
		r.held = len(frame)
		if len(frame) <= inBuffer {
			t.Data = bytes.Clone(t.Data)
		}
	}
}

// finish does a request in its own goroutine, and answers it and whoever
// flushed it.
func (c *conn) finish(r *request) {
	defer c.wait.Done()
	var m room
	answer := c.do(r, m.get)
	r.s.release(r.fid)

	c.out.Lock()
	answers := c.answers(r, answer)
	if len(answers) > 0 {
		c.write(answers)
	}
	c.out.Unlock()
	m.put()
}

// answers ends the life of r's tags and gives what is to be said: the answer
// first, if it says more than that it was interrupted, then to those who
// flushed it. A refusal does say more: who only had a signal in between, and
// flushed, still hears why. Nothing can come between, since c.out is held.
//
// Nor is r counted any more, since who hears the answer may ask the next thing.
// So there can be one more, the one that is being written.
func (c *conn) answers(r *request, answer []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.cancel()
	c.running--
	c.held -= r.held
	c.user.requests.Add(-1)
	if r.dropped {
		return nil
	}
	r.forget()
	if len(r.flushes) > 0 && bytes.Equal(answer, composeError(r.tag, syscall.EINTR, r.s.dotu)) {
		answer = nil
	}
	for _, tag := range r.flushes {
		answer = append(answer, flushed(tag)...)
	}
	return answer
}

// forget makes the tags of r free. c.mu is held.
func (r *request) forget() {
	r.dropped = true
	delete(r.s.tags, r.tag)
	for _, tag := range r.flushes {
		delete(r.s.tags, tag)
	}
	if r.timer != nil {
		r.timer.Stop()
	}
}

func flushed(tag uint16) []byte {
	return (&proto.RFlush{Header: header(proto.Rflush, tag)}).Compose()
}

// flush interrupts a request. It is answered once that has ended, so that
// nothing that a request took is lost; one that does not end soon is given up
// and never answered. A flush of a flush waits for the same.
func (c *conn) flush(t *proto.TFlush) error {
	c.mu.Lock()
	r := c.session.tags[t.Oldtag]
	if r != nil {
		r.flushes = append(r.flushes, t.Tag)
		c.session.tags[t.Tag] = r
		r.cancel()
		if r.timer == nil {
			r.timer = time.AfterFunc(c.server.limits.Flush, func() { c.giveUp(r) })
		}
	}
	c.mu.Unlock()
	if r != nil {
		return nil
	}
	return c.send(flushed(t.Tag))
}

// giveUp answers those who flushed a request that does not end.
func (c *conn) giveUp(r *request) {
	c.out.Lock()
	defer c.out.Unlock()
	var answers []byte
	c.mu.Lock()
	if !r.dropped {
		r.forget()
		for _, tag := range r.flushes {
			answers = append(answers, flushed(tag)...)
		}
	}
	c.mu.Unlock()
	if len(answers) > 0 {
		c.write(answers)
	}
}

// rooms are for the answers of reads that can wait.
var rooms = sync.Pool{New: func() any { return new([readHeader + leastRoom]byte) }}

// room is memory for one answer, which is used again after it was sent.
type room struct{ pooled *[readHeader + leastRoom]byte }

func (m *room) get(n int) []byte {
	if n > readHeader+leastRoom {
		return make([]byte, n)
	}
	m.pooled = rooms.Get().(*[readHeader + leastRoom]byte)
	return m.pooled[:n]
}

func (m *room) put() {
	if m.pooled != nil {
		rooms.Put(m.pooled)
	}
}
