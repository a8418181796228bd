package ctl

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Events are every event there is, for the manual.
var Events = []struct{ Name, Help string }{
	{"created", "an object was made"},
	{"removed", "it was removed"},
	{"renamed", "detail: its former name"},
	{"config", "the definition changed; detail: the file"},
	{"access", "a mode or an owner changed; detail: the file"},
	{"starting", "a start began"},
	{"undone", "a start was ended before the guest ran; detail: why"},
	{"running", "the CPUs run; detail: the generation"},
	{"paused", "the CPUs stand still"},
	{"resumed", "they run again"},
	{"stopping", "the guest was asked to power off"},
	{"reset", "somebody pressed the button"},
	{"rebooted", "the guest reset itself"},
	{"stopped", "the launch ended as asked; detail: how"},
	{"failed", "a start failed, or the launch ended unasked; detail: why"},
	{"cleared", "a failure and a count of fast restarts were forgotten"},
	{"adopted", "a daemon found a guest that runs; detail: the generation"},
	{"serving", "the daemon began to serve"},
	{"shutdown", "the daemon is stopping all guests"},
	{"up", "a switch was brought up; detail: its bridge"},
	{"down", "a switch was taken down"},
	{"attached", "a NIC became a port of a switch; detail: the machine and the NIC"},
	{"detached", "it is none any more; detail: the same"},
	{"released", "an interface that belongs to nothing was taken away; detail: what it was for, and its name"},
}

// eventsKept is how many events are remembered.
const eventsKept = 4096

type event struct {
	seq  uint64
	at   time.Time
	of   uint64 // serial of the object; 0 none
	line string // with its newline
}

// eventLog remembers the last events and tells those who wait for more.
type eventLog struct {
	mu      sync.Mutex
	seq     uint64
	kept    uint64  // numbers up to it are reserved in the file
	boot    string  // of the host
	ring    []event // oldest first
	changed chan struct{}
	size    int64
	file    *os.File // STATE/events; nil if it cannot be written
	lines   int      // in file
	path    string
	debug   func(line string)
}

// eventBlock is how many sequence numbers are reserved at a time: events are
// not synced, so a power cut takes the last ones, and their numbers are not to
// be given to others.
const eventBlock = 1024

// openEventLog reads STATE/events: lines `SERIAL SEQ TIME OBJECT ...`, and
// `reserved SEQ BOOT` for the numbers that may be given out in a boot of the
// host. A line that a power cut left in pieces is dropped.
func openEventLog(dir, boot string) (*eventLog, error) {
	l := &eventLog{changed: make(chan struct{}), path: filepath.Join(dir, "events"), boot: oneWord(boot)}
	text, err := os.ReadFile(l.path)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var lost uint64
	for rest := text; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			break
		}
		if e, ok := parseEvent(string(line)); ok && e.seq > l.seq {
			l.add(e)
		}
		if n, in, ok := parseReserved(string(line)); ok && (boot == "" || in != l.boot) {
			lost = max(lost, n)
		}
		rest = after
	}
	l.seq = max(l.seq, lost)
	return l, l.rewrite()
}

func parseReserved(line string) (seq uint64, boot string, ok bool) {
	f := strings.Split(line, " ")
	if len(f) != 3 || f[0] != "reserved" {
		return 0, "", false
	}
	err := number(&seq, f[1])
	return seq, f[2], err == nil
}

func parseEvent(line string) (event, bool) {
	f := strings.SplitN(line, " ", 4)
	if len(f) != 4 || plainText(line) != nil {
		return event{}, false
	}
	var e event
	e.line = line[len(f[0])+1:] + "\n"
	err1 := number(&e.of, f[0])
	err2 := number(&e.seq, f[1])
	err3 := instant(&e.at, f[2])
	return e, err1 == nil && err2 == nil && err3 == nil
}

// add puts e at the end of the ring.
func (l *eventLog) add(e event) {
	if len(l.ring) == eventsKept {
		l.size -= int64(len(l.ring[0].line))
		l.ring = l.ring[1:]
	}
	l.ring = append(l.ring, e)
	l.size += int64(len(e.line))
	l.seq = e.seq
}

// rewrite makes the file hold just the ring.
func (l *eventLog) rewrite() error {
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	var b strings.Builder
	for _, e := range l.ring {
		fmt.Fprintf(&b, "%d %s", e.of, e.line)
	}
	kept := l.seq + eventBlock
	b.WriteString(l.reserved(kept))
	dir := filepath.Dir(l.path)
	if err := replaceFile(dir, filepath.Base(l.path), b.String()); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	l.file, l.lines, l.kept = f, len(l.ring), kept
	return nil
}

func (l *eventLog) reserved(seq uint64) string {
	return fmt.Sprintf("reserved %d %s\n", seq, l.boot)
}

// reserve reserves the next numbers.
func (l *eventLog) reserve() {
	if _, err := l.file.WriteString(l.reserved(l.seq + eventBlock)); err == nil && l.file.Sync() == nil {
		l.kept = l.seq + eventBlock
	}
}

// append makes an event. The event stands even if the file cannot be written.
func (l *eventLog) append(of uint64, object, name, user, detail string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	line := fmt.Sprintf("%d %s %s %s %s", l.seq+1, clock(now), object, name, user)
	if detail = oneLine(detail); detail != "" {
		line += " " + detail
	}
	if l.debug != nil {
		l.debug(line)
	}
	e := event{l.seq + 1, now, of, line + "\n"}
	l.add(e)
	close(l.changed)
	l.changed = make(chan struct{})
	if l.lines >= 2*eventsKept || l.file == nil {
		l.rewrite()
		return
	}
	if l.seq > l.kept {
		l.reserve()
	}
	fmt.Fprintf(l.file, "%d %s", of, e.line)
	l.lines++
}

// text is events.log: of one object, or of all with 0.
func (l *eventLog) text(of uint64) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	if of == 0 {
		b.Grow(int(l.size))
	}
	for i := range l.ring {
		if of == 0 || l.ring[i].of == of {
			b.WriteString(l.ring[i].line)
		}
	}
	return b.String()
}

// count is how many events there ever were.
func (l *eventLog) count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// last is when the last event of an object was, or of all with 0.
func (l *eventLog) last(of uint64) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.ring) - 1; i >= 0; i-- {
		if of == 0 || l.ring[i].of == of {
			return l.ring[i].at
		}
	}
	return time.Time{}
}

// EventReader reads events as they come, from its opening on.
type EventReader struct {
	log  *eventLog
	of   *object // nil for all
	mu   sync.Mutex
	next uint64 // the first event not yet read
}

func (l *eventLog) reader(of *object) *EventReader {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &EventReader{log: l, of: of, next: l.seq + 1}
}

// Read gives whole lines: as many as there are and fit. With wait it waits
// for the first; without, nothing is io.EOF. An object's reader ends with
// io.EOF when the object is removed. EINVAL if p is too small for a line.
func (r *EventReader) Read(ctx context.Context, p []byte, wait bool) (int, error) {
	for {
		n, changed, err := r.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		if !wait || r.of != nil && r.of.Removed() {
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (r *EventReader) take(p []byte) (n int, changed chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.seq + 1 - uint64(len(l.ring))
	if r.next < oldest {
		line := r.lost(oldest)
		if len(line) > len(p) {
			return 0, nil, errNoRoom(p)
		}
		n, r.next = copy(p, line), oldest
	}
	for ; r.next <= l.seq; r.next++ {
		e := &l.ring[r.next-oldest]
		if r.of != nil && e.of != r.of.serial {
			continue
		}
		if n+len(e.line) > len(p) {
			if n == 0 {
				return 0, nil, errNoRoom(p)
			}
			break
		}
		n += copy(p[n:], e.line)
	}
	return n, l.changed, nil
}

func errNoRoom(p []byte) error {
	return Errorf(syscall.EINVAL, "events: a line does not fit in %d bytes", len(p))
}

// lost says how many events this reader did not read in time, if the oldest
// that is left is that one.
func (r *EventReader) lost(oldest uint64) string {
	return fmt.Sprintf("%d %s - lost - %d\n", oldest-1, clock(r.log.ring[0].at), oldest-r.next)
}
