package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// Bounds of the conversation with QEMU's monitor (QMP: a JSON object a line).
const (
	maxLine     = 1 << 20         // bytes of one message
	maxText     = 400             // bytes of an error's text
	commandTime = 5 * time.Second // for one answer, where the caller sets no time of his own
)

var (
	errHungUp = ctl.Errorf(syscall.EIO, "qemu hung up")
	errLine   = errors.New("qemu: not a message of the monitor")
)

// monitor is one end of QMP.
type monitor struct {
	conn *net.UnixConn
	tell func(event)

	greeting chan string   // the version, once
	done     chan struct{} // closed when QEMU hung up

	mu      sync.Mutex // keeps a command in one piece
	id      uint64
	waiting map[uint64]chan packet
}

// packet is anything that QEMU says. One of its fields tells which kind.
type packet struct {
	QMP    *greeting       `json:"QMP"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"` // of an event
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	ID uint64 `json:"id"` // of a command that is answered
}

type greeting struct {
	Version struct {
		QEMU struct{ Major, Minor, Micro uint } `json:"qemu"`
	} `json:"version"`
}

// event is a piece of news, and what the events we look at say.
type event struct {
	Name   string `json:"-"`
	Guest  bool   `json:"guest"`
	Reason string `json:"reason"`
}

// decode takes a line apart.
func decode(line []byte) (packet, error) {
	var p packet
	if len(line) > maxLine || json.Unmarshal(line, &p) != nil {
		return packet{}, errLine
	}
	if p.QMP == nil && p.Event == "" && p.Return == nil && p.Error == nil {
		return packet{}, errLine
	}
	return p, nil
}

// event is the news in p. What is no object says nothing.
func (p packet) event() event {
	e := event{Name: p.Event}
	json.Unmarshal(p.Data, &e)
	e.Reason = clean(e.Reason)
	return e
}

// newMonitor begins to listen. tell is called for each event, from one
// goroutine.
func newMonitor(conn *net.UnixConn, tell func(event)) *monitor {
	m := &monitor{
		conn:     conn,
		tell:     tell,
		greeting: make(chan string, 1),
		done:     make(chan struct{}),
		waiting:  make(map[uint64]chan packet),
	}
	go m.listen()
	return m
}

func (m *monitor) listen() {
	defer close(m.done)
	defer m.conn.Close()
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		p, err := decode(lines.Bytes())
		if err != nil {
			return
		}
		m.deliver(p)
	}
}

func (m *monitor) deliver(p packet) {
	switch {
	case p.QMP != nil:
		v := p.QMP.Version.QEMU
		select {
		case m.greeting <- fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro):
		default: // it greets twice
		}
	case p.Event != "":
		m.tell(p.event())
	default:
		m.mu.Lock()
		answer := m.waiting[p.ID]
		delete(m.waiting, p.ID)
		m.mu.Unlock()
		if answer != nil {
			answer <- p
		}
	}
}

// greet waits for the greeting and opens the monitor. It returns QEMU's
// version.
func (m *monitor) greet(ctx context.Context) (string, error) {
	select {
	case version := <-m.greeting:
		return version, m.execute(ctx, "qmp_capabilities", nil)
	case <-m.done:
		return "", errHungUp
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// execute gives a command and waits until it is answered.
func (m *monitor) execute(ctx context.Context, command string, args any) error {
	return m.ask(ctx, command, args, nil, nil)
}

// query is execute for a command whose answer is wanted.
func (m *monitor) query(ctx context.Context, command string, args, answer any) error {
	return m.ask(ctx, command, args, nil, answer)
}

// give is execute for a command that takes a file.
func (m *monitor) give(ctx context.Context, command string, args any, f *os.File) error {
	return m.ask(ctx, command, args, f, nil)
}

// ask is all of these; f and answer may be nil.
func (m *monitor) ask(ctx context.Context, command string, args any, f *os.File, answer any) error {
	// A start has 15 s as a whole, and on a busy host QEMU takes most of
	// them before its first answer.
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, commandTime,
			ctl.Errorf(syscall.ETIMEDOUT, "qemu: %s: no answer in %v", command, commandTime))
		defer cancel()
	}
	id, reply, err := m.send(ctx, command, args, f)
	if err != nil {
		return err
	}
	select {
	case p := <-reply:
		return p.answer(command, answer)
	case <-m.done:
		return fmt.Errorf("%s: %w", command, errHungUp)
	case <-ctx.Done():
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
		return context.Cause(ctx)
	}
}

// send writes one command, with f beside it if that is not nil.
func (m *monitor) send(ctx context.Context, command string, args any, f *os.File) (uint64, chan packet, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id++
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, m.id})
	if err != nil {
		return 0, nil, fmt.Errorf("qemu: %s: %w", command, err)
	}
	deadline, _ := ctx.Deadline()
	m.conn.SetWriteDeadline(deadline)
	if err := m.write(append(line, '\n'), f); err != nil {
		m.conn.Close() // half a command may be in there
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil, ctl.Errorf(syscall.ETIMEDOUT, "qemu: %s: its monitor does not read", command)
		}
		return 0, nil, fmt.Errorf("%s: %w", command, errHungUp)
	}
	reply := make(chan packet, 1)
	m.waiting[m.id] = reply
	return m.id, reply, nil
}

// write writes all of a line. A file goes with its first byte.
func (m *monitor) write(line []byte, f *os.File) error {
	if f != nil {
		n, _, err := m.conn.WriteMsgUnix(line, unix.UnixRights(int(f.Fd())), nil)
		if err != nil {
			return err
		}
		line = line[n:]
	}
	_, err := m.conn.Write(line)
	return err
}

// answer takes what a command returned.
func (p packet) answer(command string, v any) error {
	if p.Error != nil {
		return ctl.Errorf(syscall.EIO, "qemu: %s: %s", command, clean(p.Error.Desc))
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(p.Return, v); err != nil {
		return ctl.Errorf(syscall.EIO, "qemu: %s: the answer is not one", command)
	}
	return nil
}

// drain waits until all that QEMU said is delivered, once it has ended.
func (m *monitor) drain() {
	m.conn.SetReadDeadline(time.Now().Add(time.Second))
	<-m.done
}
