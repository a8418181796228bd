package wire

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// helloTime is how long the first message of the other side may take.
const helloTime = 5 * time.Second

// Hello exchanges the first messages: each side says its protocol and who it
// is. It returns what the other side is. A newer protocol is no error: an
// unknown verb is answered ENOSYS.
func (c *Conn) Hello(self ...string) (peer []string, err error) {
	c.c.SetDeadline(time.Now().Add(helloTime))
	defer c.c.SetDeadline(time.Time{})
	if err := c.Send(nil, append([]string{"hello", "vmfs", strconv.Itoa(Protocol)}, self...)...); err != nil {
		return nil, err
	}
	m, err := c.Recv()
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	defer m.Close()
	if len(m.Fields) < 4 || m.Fields[0] != "hello" || m.Fields[1] != "vmfs" {
		return nil, fmt.Errorf("hello: %w", errMessage)
	}
	if n, err := strconv.Atoi(m.Fields[2]); err != nil || n < 1 {
		return nil, fmt.Errorf("hello: %w", errMessage)
	}
	return m.Fields[3:], nil
}

// Request is one question that Serve received. Exactly one of OK and Refuse
// answers it.
type Request struct {
	Verb string
	Args []string
	Message
	tag  string
	conn *Conn
}

// OK answers a request; files are copied.
func (r *Request) OK(files []*os.File, fields ...string) error {
	return r.conn.Send(files, append([]string{r.tag, "ok"}, fields...)...)
}

// Refuse answers a request with an error's number and sentence.
func (r *Request) Refuse(err error) error {
	name := unix.ErrnoName(ctl.Errno(err))
	reason := err.Error()
	if len(reason) > 4096 {
		reason = reason[:4096]
	}
	return r.conn.Send(nil, r.tag, "error", name, reason)
}

// Serve receives requests and hands them to handle, one after the other,
// until the other side hangs up (io.EOF) or sends what is no request. Who
// handles a request may answer it later, from another goroutine; files that
// were not taken by then are the handler's to Close.
func (c *Conn) Serve(handle func(*Request)) error {
	for {
		m, err := c.Recv()
		if err != nil {
			return err
		}
		if n, err := strconv.ParseUint(m.Fields[0], 10, 64); err != nil || n == 0 || len(m.Fields) < 2 {
			m.Close()
			return fmt.Errorf("request %.40q: %w", m.Fields[0], errMessage)
		}
		handle(&Request{Verb: m.Fields[1], Args: m.Fields[2:], Message: m, tag: m.Fields[0], conn: c})
	}
}

// Notify sends news that nobody asked for: tag 0.
func (c *Conn) Notify(files []*os.File, fields ...string) error {
	return c.Send(files, append([]string{"0"}, fields...)...)
}

// Caller asks over a Conn, from any number of goroutines.
type Caller struct {
	conn   *Conn
	notice func(Message)

	mu      sync.Mutex
	tag     uint64
	waiting map[string]chan Message
	done    chan struct{}
	err     error // why done was closed
}

// NewCaller takes over conn. notice is called for each piece of news, from
// one goroutine, and closes its files; done is closed when the conversation
// has ended.
func NewCaller(conn *Conn, notice func(Message)) *Caller {
	c := &Caller{conn: conn, notice: notice, waiting: make(map[string]chan Message), done: make(chan struct{})}
	go c.receive()
	return c
}

// Done is closed when the other side hung up or Close was called.
func (c *Caller) Done() <-chan struct{} { return c.done }

// Close hangs up; calls that wait return EPIPE.
func (c *Caller) Close() error { return c.conn.Close() }

// Peer says who is at the other end.
func (c *Caller) Peer() (*unix.Ucred, error) { return c.conn.Peer() }

// Notify sends news to the other side.
func (c *Caller) Notify(fields ...string) error { return c.conn.Notify(nil, fields...) }

func (c *Caller) receive() {
	var err error
	for err == nil {
		var m Message
		if m, err = c.conn.Recv(); err == nil {
			err = c.deliver(m)
		}
	}
	c.conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = ctl.Errorf(syscall.EPIPE, "conversation ended: %v", err)
	close(c.done)
}

func (c *Caller) deliver(m Message) error {
	if m.Fields[0] == "0" && len(m.Fields) >= 2 {
		m.Fields = m.Fields[1:]
		c.notice(m)
		return nil
	}
	c.mu.Lock()
	answer := c.waiting[m.Fields[0]]
	delete(c.waiting, m.Fields[0])
	tag, err := strconv.ParseUint(m.Fields[0], 10, 64)
	known := err == nil && tag > 0 && tag <= c.tag
	c.mu.Unlock()
	if answer == nil {
		m.Close() // nobody waits any more
		if !known {
			return errMessage
		}
		return nil
	}
	answer <- m
	return nil
}

// Call asks and waits for the answer: its fields after ok, with its files, or
// the *ctl.Error that the other side sent. When ctx ends first the answer is
// thrown away when it comes.
func (c *Caller) Call(ctx context.Context, files []*os.File, verb string, args ...string) (Message, error) {
	answer := make(chan Message, 1)
	c.mu.Lock()
	c.tag++
	tag := strconv.FormatUint(c.tag, 10)
	c.waiting[tag] = answer
	c.mu.Unlock()

	if err := c.conn.Send(files, append([]string{tag, verb}, args...)...); err != nil {
		c.forget(tag, answer)
		return Message{}, ctl.Errorf(syscall.EPIPE, "%s: %v", verb, err)
	}
	select {
	case m := <-answer:
		return parseAnswer(verb, m)
	case <-ctx.Done():
		c.forget(tag, answer)
		return Message{}, context.Cause(ctx)
	case <-c.done:
		c.forget(tag, answer)
		return Message{}, c.err
	}
}

// forget gives up on an answer, and closes its files if it came meanwhile.
func (c *Caller) forget(tag string, answer chan Message) {
	c.mu.Lock()
	delete(c.waiting, tag)
	c.mu.Unlock()
	select {
	case m := <-answer:
		m.Close()
	default:
	}
}

func parseAnswer(verb string, m Message) (Message, error) {
	switch {
	case len(m.Fields) >= 2 && m.Fields[1] == "ok":
		m.Fields = m.Fields[2:]
		return m, nil
	case len(m.Fields) == 4 && m.Fields[1] == "error" && ErrnoNamed(m.Fields[2]) != 0:
		m.Close()
		return Message{}, &ctl.Error{Errno: ErrnoNamed(m.Fields[2]), Reason: m.Fields[3]}
	}
	m.Close()
	return Message{}, ctl.Errorf(syscall.EPROTO, "%s: the answer is not one", verb)
}

// ErrnoNamed is the inverse of unix.ErrnoName; 0 for what is no such name.
func ErrnoNamed(name string) syscall.Errno { return errnos[name] }

var errnos = func() map[string]syscall.Errno {
	m := make(map[string]syscall.Errno)
	for e := syscall.Errno(1); e < 200; e++ {
		if name := unix.ErrnoName(e); name != "" {
			m[name] = e
		}
	}
	return m
}()
