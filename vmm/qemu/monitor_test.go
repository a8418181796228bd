package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"

// script plays QEMU: it says first, then answers each command with what
// answer makes of its name and id; an empty answer is none.
func script(t *testing.T, first string, answer func(command string, id int) string) (*monitor, chan event) {
	t.Helper()
	mine, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	events := make(chan event, 100)
	m := newMonitor(mine, func(e event) { events <- e })
	var wg sync.WaitGroup
	wg.Go(func() {
		defer c.Close()
		fmt.Fprint(c, first)
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			var cmd struct {
				Execute string
				ID      int
			}
			if err := json.Unmarshal(lines.Bytes(), &cmd); err != nil {
				t.Errorf("%q: %v", lines.Text(), err)
				return
			}
			reply := answer(cmd.Execute, cmd.ID)
			if reply == "hang up" {
				return
			}
			fmt.Fprint(c, reply)
		}
	})
	t.Cleanup(func() { mine.Close(); wg.Wait() })
	return m, events
}

func done(_ string, id int) string { return fmt.Sprintf(`{"return": {}, "id": %d}`+"\r\n", id) }

func TestGreet(t *testing.T) {
	m, _ := script(t, hello, done)
	version, err := m.greet(t.Context())
	if version != "7.2.22" || err != nil {
		t.Errorf("greet = %q, %v, want 7.2.22", version, err)
	}
}

func TestEventsBetweenAnswers(t *testing.T) {
	const reset = `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}` + "\n"
	m, events := script(t, reset+hello+reset, func(c string, id int) string {
		return reset + done(c, 999) + done(c, id) + `{"event": "STRANGE", "data": [1]}` + "\n"
	})
	if _, err := m.greet(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if e := <-events; e != (event{"RESET", true, "guest-reset"}) {
			t.Errorf("event %+v", e)
		}
	}
	if e := <-events; e.Name != "STRANGE" {
		t.Errorf("event %+v, want STRANGE", e)
	}
}

func TestQuery(t *testing.T) {
	m, _ := script(t, "", func(c string, id int) string {
		if c == "query-status" {
			return fmt.Sprintf(`{"id": %d, "return": {"running": true, "status": "running"}}`+"\n", id)
		}
		return fmt.Sprintf(`{"id": %d, "error": {"class": "GenericError", "desc": "bad\nidea %s"}}`+"\n", id, strings.Repeat("x", 9999))
	})
	var status struct{ Running bool }
	if err := m.query(t.Context(), "query-status", nil, &status); err != nil || !status.Running {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	err := m.execute(t.Context(), "cont", nil)
	if !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), "qemu: cont: bad?idea xxx") || len(err.Error()) > maxText+20 {
		t.Errorf("cont: %.100v", err)
	}
	if err := m.query(t.Context(), "query-status", nil, new(int)); !errors.Is(err, syscall.EIO) {
		t.Errorf("an answer of another kind: %v", err)
	}
}

func TestManyAsk(t *testing.T) {
	m, _ := script(t, "", done)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if err := m.execute(t.Context(), "stop", map[string]int{"a": 1}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(m.waiting) != 0 {
		t.Errorf("%d commands still wait", len(m.waiting))
	}
}

func TestHangUp(t *testing.T) {
	m, _ := script(t, "", func(string, int) string { return "hang up" })
	for range 2 {
		if err := m.execute(t.Context(), "cont", nil); !errors.Is(err, errHungUp) {
			t.Errorf("got %v, want %v", err, errHungUp)
		}
	}
	if _, err := m.greet(t.Context()); !errors.Is(err, errHungUp) {
		t.Errorf("greet: %v, want %v", err, errHungUp)
	}
}

func TestNoAnswer(t *testing.T) {
	m, _ := script(t, "", func(string, int) string { return "" })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.execute(ctx, "cont", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if len(m.waiting) != 0 {
		t.Errorf("%d commands still wait", len(m.waiting))
	}
	if _, err := m.greet(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("greet: %v", err)
	}
}

// Garbage, and a line without an end, end the conversation and take no memory.
func TestGarbage(t *testing.T) {
	for _, first := range []string{"what?\n", "{}\n", "[]\n", `{"return"` + "\n", `{"QMP": {"version": {"qemu": {"major": -1}}}}` + "\n", strings.Repeat("x", maxLine+10)} {
		m, _ := script(t, first, done)
		select {
		case <-m.done:
		case <-time.After(time.Minute):
			t.Errorf("%.20q was taken", first)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{hello, done("", 3), `{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-shutdown"}}`,
		`{"event":"X","data":{"guest":1}}`, `{"error":{"desc":"\u0000\n"},"id":1}`, `{"id":18446744073709551616,"return":0}`, `{"event":"\ud800","data":"\ud800"}`, "[[[["} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		p, err := decode(line)
		if err != nil {
			return
		}
		e := p.event()
		if strings.ContainsAny(e.Reason, "\n\x00") || len(e.Reason) > 4*maxText {
			t.Errorf("event %+v", e)
		}
		p.answer("x", nil)
	})
}

func TestTail(t *testing.T) {
	tail, w, err := newTail()
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	fmt.Fprintf(w, "%s\n", strings.Repeat("noise ", 5000))
	fmt.Fprintf(w, "qemu-system-x86_64: last \x1b[31mwords%s\n\n", strings.Repeat("!", 9999))
	w.Close()
	tail.drain()
	if got := tail.last(); len(got) != maxText {
		t.Errorf("a line of %d bytes, want %d", len(got), maxText)
	}
	if len(tail.text) > tailSize {
		t.Errorf("%d bytes are kept, want at most %d", len(tail.text), tailSize)
	}
	if got := clean("a\x1b\x00\xff\nb\u00e9"); got != "a????b\u00e9" {
		t.Errorf("clean: %q", got)
	}
}

func TestEndError(t *testing.T) {
	for line, want := range map[string]syscall.Errno{
		"cannot set up guest memory 'pc.ram': Cannot allocate memory":                   syscall.ENOMEM,
		"Could not access KVM kernel module: No such file or directory":                 syscall.ENODEV,
		"-blockdev {...}: Could not dup FD for /dev/fdset/4 flags 2: Permission denied": syscall.EACCES,
		"qemu: invalid kernel header":                                                   syscall.EINVAL,
		"":                                                                              syscall.EINVAL,
	} {
		err := endError(end{Status: "exit status 1", Line: line})
		if !errors.Is(err, want) || !strings.HasPrefix(err.Error(), "qemu exited: exit status 1") || !strings.HasSuffix(err.Error(), line) {
			t.Errorf("%q: %v (%v)", line, err, want)
		}
	}
}

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 100 0 0 0 123 45 0 0 20 0 1"
	for in, want := range map[string]time.Duration{
		"9 (qemu)" + rest:         1680 * time.Millisecond,
		"9 (a) R 9 9 (b))" + rest: 1680 * time.Millisecond,
		"9 (qemu) S 1":            -1,
		"":                        -1,
		"9 (qemu)" + strings.Replace(rest, "123", "-1", 1): -1,
	} {
		got, err := parseStat(in)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: %v, %v, want %v", in, got, err, want)
		}
	}
	self, err := os.Open("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	if _, err := cpuTime(self); err != nil {
		t.Error(err)
	}
}

func TestSumPss(t *testing.T) {
	const smaps = `7f0000000000-7f0020000000 rw-p 00000000 00:00 0
Size:             524288 kB
Pss:              300000 kB
Pss_Dirty:        300000 kB
7f0020000000-7f0020001000 r--p 00000000 fe:00 12 /usr/lib/x: Size: 3 kB
Size:                  4 kB
Pss:                   3 kB
`
	for skip, want := range map[uint64]uint64{512 << 20: 3 << 10, 0: 300003 << 10, 4 << 10: 300000 << 10} {
		if got, err := sumPss(strings.NewReader(smaps), skip); got != want || err != nil {
			t.Errorf("without %d: %d, %v, want %d", skip, got, err, want)
		}
	}
	if _, err := sumPss(strings.NewReader("Size: x kB\n"), 0); err == nil {
		t.Error("a size that is none was taken")
	}
}
