package ninep

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
)

// conn is one connection. One goroutine reads its messages and answers at
// once what cannot wait; what can has a goroutine of its own.
type conn struct {
	server *Server
	nc     net.Conn
	peer   Peer
	user   *account
	in     *bufio.Reader
	wait   sync.WaitGroup // for requests

	// Of the reading goroutine alone.
	session  *session
	attached bool
	answer   []byte // where it makes its own answers to reads
	parser   parser
	request  request // the present one; one with a goroutine is a copy
	turn     bool    // it has one of the server's

	out     sync.Mutex      // held while an answer is written, and taken before mu
	raw     syscall.RawConn // nil if there is none
	pending []byte          // what is not sent yet
	push    func(fd uintptr) bool

	mu      sync.Mutex
	running int // requests with a goroutine, answered or not
	held    int // bytes of the writes among them
}

// session is what a Tversion begins: it forgets whatever was before.
type session struct {
	conn   *conn
	ctx    context.Context // of all its requests
	cancel context.CancelFunc
	most   uint32 // bytes of a message; 0 before a Tversion
	dotu   bool   // 9P2000.u is spoken

	// Under conn.mu.
	fids map[uint32]*fid
	tags map[uint16]*request // that are not answered, and of their flushes
	over bool
}

// inBuffer is what is read ahead, in bytes. A longer message has memory of
// its own while it is worked on.
const inBuffer = 8 << 10

// burst is how many messages of those that have come a connection has worked on
// before it waits for a turn to go on, and how many in a turn. There are fewer
// turns than processors: while all of these are busy the runtime looks every
// 10 ms only whether somebody else has said something. Who waits for answers
// needs no turn, and nobody has one while he waits for his client.
const burst = 16

func newConn(s *Server, nc net.Conn, p Peer, u *account) *conn {
	c := &conn{server: s, nc: nc, peer: p, user: u, in: bufio.NewReaderSize(nc, inBuffer)}
	if sc, ok := nc.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
		c.push = c.sendNow
	}
	c.session = c.newSession(0, false)
	return c
}

func (c *conn) newSession(most uint32, dotu bool) *session {
	s := &session{conn: c, most: most, dotu: dotu, fids: map[uint32]*fid{}, tags: map[uint16]*request{}}
	s.ctx, s.cancel = context.WithCancel(c.server.ctx)
	return s
}

// serve reads messages until there are no more, or one that cannot be
// followed by anything that makes sense; then everything is undone. It
// returns when nothing is worked on any more.
func (c *conn) serve() {
	c.attachBy()
	defer c.endTurn()
	for n := 0; ; n++ {
		if c.in.Buffered() < headerSize {
			c.endTurn()
			n = 0
		}
		if n == burst {
			c.endTurn()
			c.server.turns <- struct{}{}
			c.turn = true
			n = 0
		}
		frame, err := c.frame()
		if err != nil {
			break
		}
		if err := c.message(frame); err != nil {
			break
		}
	}
	c.nc.Close()
	c.session.end()
	c.wait.Wait()
}

func (c *conn) endTurn() {
	if c.turn {
		c.turn = false
		<-c.server.turns
	}
}

var noDeadline time.Time

// attachBy sets the time by which there has to be a Tattach.
func (c *conn) attachBy() {
	c.attached = false
	c.nc.SetReadDeadline(time.Now().Add(c.server.limits.Attach))
}

var errFrame = errors.New("a message of a size that cannot be")

// frame reads a message. It is good until the next one is read, but for one
// longer than inBuffer, which nobody uses again.
func (c *conn) frame() ([]byte, error) {
	_, err := c.in.Peek(1)
	if err != nil {
		return nil, err
	}
	p, _ := c.in.Peek(c.in.Buffered())
	whole := len(p) >= 4 && uint64(len(p)) >= uint64(number4(p))
	if !whole {
		c.endTurn()
		if c.attached {
			c.nc.SetReadDeadline(time.Now().Add(c.server.limits.Frame))
			defer c.nc.SetReadDeadline(noDeadline)
		}
		if p, err = c.in.Peek(4); err != nil {
			return nil, err
		}
	}
	size := number4(p)
	most := c.session.most
	if most == 0 {
		most = minMessage // of a Tversion
	}
	switch {
	case size < headerSize || size > most:
		return nil, errFrame
	case size > inBuffer:
		frame := make([]byte, size)
		_, err := io.ReadFull(c.in, frame)
		return frame, err
	case !whole:
		if p, err = c.in.Peek(int(size)); err != nil {
			return nil, err
		}
	}
	c.in.Discard(int(size)) // the bytes stay where they are until more is read
	return p[:size], nil
}

// message works on a message or sees to it that somebody does. An error ends
// the connection.
func (c *conn) message(frame []byte) error {
	s := c.session
	r := &c.request
	err := r.parse(&c.parser, frame, s.dotu)
	if err == nil {
		err = s.expects(r)
	}
	switch used := s.enter(r, err == nil); {
	case used && r.kind != proto.Tversion:
		// No answer could be told from that to the other message.
		return errors.New("a tag that is in use")
	case err != nil:
		return c.send(composeError(r.tag, err, s.dotu))
	case r.kind == proto.Tversion:
		return c.version(r.call.(*proto.TRVersion))
	case r.kind == proto.Tflush:
		return c.flush(r.call.(*proto.TFlush))
	}
	return c.work(r, frame)
}

// expects reports what is wrong with a message at this time.
func (s *session) expects(r *request) error {
	switch {
	case r.kind == proto.Tversion:
	case s.most == 0:
		return ctl.Errorf(syscall.EPROTO, "message of type %d before Tversion", r.kind)
	case r.tag == noTag:
		return ctl.Errorf(syscall.EINVAL, "message of type %d without a tag", r.kind)
	}
	return nil
}

// work does what is done at once, and begins the rest.
func (c *conn) work(r *request, frame []byte) error {
	if r.named && r.fid == nil {
		return c.send(composeError(r.tag, syscall.EBADF, r.s.dotu))
	}
	if !r.waits() {
		r.ctx = r.s.ctx
		answer := c.do(r, c.scratch)
		r.s.release(r.fid)
		return c.send(answer)
	}
	r = &request{kind: r.kind, tag: r.tag, call: r.call, uname: r.uname, uid: r.uid, gid: r.gid, outstanding: r.outstanding}
	if err := c.begin(r, frame); err != nil {
		if r.kind == proto.Tremove {
			r.s.clunk(r) // as it is whatever comes of it
		}
		r.s.release(r.fid)
		return c.send(composeError(r.tag, err, r.s.dotu))
	}
	go c.finish(r)
	return nil
}

// do calls the operation; the answer is a whole message.
func (c *conn) do(r *request, room func(n int) []byte) (answer []byte) {
	defer func() {
		if v := recover(); v != nil {
			answer = composeError(r.tag, c.server.caught(v), r.s.dotu)
		}
	}()
	answer, err := r.operate(room)
	if err != nil {
		return composeError(r.tag, plain(err), r.s.dotu)
	}
	return answer
}

// scratch is room for an answer of the reading goroutine.
func (c *conn) scratch(n int) []byte {
	if n > inBuffer {
		return make([]byte, n)
	}
	if c.answer == nil {
		c.answer = make([]byte, inBuffer)
	}
	return c.answer[:n]
}

// enter makes a request one of the session, with the fid that it is about if
// that is asked for, and reports whether there is an unanswered message with its
// tag: then it has none. Whoever works on it releases the fid.
func (s *session) enter(r *request, withFid bool) (used bool) {
	r.s = s
	s.conn.mu.Lock()
	used = s.tags[r.tag] != nil
	if !used && withFid && r.named {
		if r.fid = s.fids[r.about]; r.fid != nil {
			r.fid.users++
		}
	}
	s.conn.mu.Unlock()
	return used
}

// send writes an answer of the reading goroutine.
func (c *conn) send(answer []byte) error {
	if !c.out.TryLock() {
		c.endTurn()
		c.out.Lock()
	}
	rest, err := c.writeNow(answer), error(nil)
	if len(rest) > 0 {
		c.endTurn()
		err = c.writeLate(rest)
	}
	c.out.Unlock()
	return err
}

// write writes answers; c.out is held.
func (c *conn) write(answers []byte) {
	if rest := c.writeNow(answers); len(rest) > 0 {
		c.writeLate(rest)
	}
}

// writeNow writes what can be sent at once, and gives the rest.
func (c *conn) writeNow(answers []byte) (rest []byte) {
	if c.raw == nil {
		return answers
	}
	c.pending = answers
	err := c.raw.Write(c.push)
	rest, c.pending = c.pending, nil
	if err != nil {
		return answers
	}
	return rest
}

// writeLate writes the rest. Who does not take it in time is hung up on. The
// time begins here: to look at the clock for each answer costs as much as to
// find out what to answer.
func (c *conn) writeLate(answers []byte) error {
	c.nc.SetWriteDeadline(time.Now().Add(c.server.limits.Write))
	_, err := c.nc.Write(answers)
	if err != nil {
		c.nc.Close() // the reading goroutine hears of it
		return err
	}
	c.nc.SetWriteDeadline(noDeadline)
	return nil
}

// sendNow sends as much of what is pending as can be sent at once.
func (c *conn) sendNow(fd uintptr) bool {
	n, err := syscall.Write(int(fd), c.pending)
	if err == nil {
		c.pending = c.pending[n:]
	}
	return true // whatever it was, writeLate meets it again
}

// version begins a session. What is not answered of the one before never is.
func (c *conn) version(t *proto.TRVersion) error {
	c.endTurn()
	c.session.end()
	name, most := t.Version, min(t.Msize, MaxMessage)
	base, suffix, _ := strings.Cut(name, ".")
	dotu := base == "9P2000" && suffix == "u"
	answer := proto.TRVersion{Header: header(proto.Rversion, t.Tag), Msize: most, Version: "9P2000"}
	switch {
	case base != "9P2000" || most < minMessage:
		answer.Version = "unknown"
		most = 0
	case dotu:
		answer.Version = "9P2000.u"
	}
	c.session = c.newSession(most, dotu)
	c.attachBy()
	return c.send(answer.Compose())
}

// end forgets a session: its requests are interrupted and not answered, its
// files closed as soon as nobody uses them.
func (s *session) end() {
	c := s.conn
	c.out.Lock()
	c.mu.Lock()
	s.over = true
	for _, r := range s.tags {
		if !r.dropped {
			r.forget()
		}
	}
	var unused []*fid
	for _, f := range s.fids {
		if f.drop() {
			unused = append(unused, f)
		}
	}
	c.user.fids.Add(-int64(len(s.fids)))
	s.fids = nil
	c.mu.Unlock()
	c.out.Unlock()
	s.cancel()
	for _, f := range unused {
		f.close()
	}
}
