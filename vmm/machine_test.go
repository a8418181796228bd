package vmm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/wire"
	"vmfs/vmm/engine"
)

// fake is an engine that notes which buttons are pressed.
type fake struct {
	line    net.Conn // the guest's end of the console
	console net.Conn
	printed sync.WaitGroup // for what goes from there to the screen
	done    chan struct{}
	hear    func(button string) // called at each button

	mu      sync.Mutex
	pressed []string
	end     engine.End
}

func newFake() *fake {
	f := &fake{done: make(chan struct{}), hear: func(string) {}}
	f.line, f.console = net.Pipe()
	return f
}

func (f *fake) press(button string) error {
	f.mu.Lock()
	f.pressed = append(f.pressed, button)
	f.mu.Unlock()
	f.hear(button)
	return nil
}

// finish is QEMU's end.
func (f *fake) finish(e engine.End) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.done:
	default:
		f.end = e
		f.line.Close()
		f.printed.Wait()
		close(f.done)
	}
}

func (f *fake) buttons() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.pressed, " ")
}

func (f *fake) Name() string                          { return "qemu 1.2.3 tcg" }
func (f *fake) Input() io.Writer                      { return f.console }
func (f *fake) Done() <-chan struct{}                 { return f.done }
func (f *fake) End() engine.End                       { <-f.done; return f.end }
func (f *fake) Continue(context.Context) error        { return f.press("cont") }
func (f *fake) Pause(context.Context) error           { return f.press("stop") }
func (f *fake) Reset(context.Context) error           { return f.press("reset") }
func (f *fake) PowerButton(context.Context) error     { return f.press("power") }
func (f *fake) CtrlAltDel(context.Context) error      { return f.press("keys") }
func (f *fake) Running(context.Context) (bool, error) { return true, nil }
func (f *fake) Insert(_ context.Context, file *os.File) error {
	if file == nil {
		return f.press("eject")
	}
	return f.press("insert")
}
func (f *fake) Usage() (ctl.Usage, error) { return ctl.Usage{CPU: time.Second}, nil }
func (f *fake) Close()                    { f.Kill(); f.console.Close() }

func (f *fake) Quit(context.Context) error {
	f.press("quit")
	f.finish(engine.End{Reason: engine.Quit})
	return nil
}

func (f *fake) Kill() { f.finish(engine.End{Text: "qemu exited: signal: killed", Killed: true}) }

// powerOff is what a guest does when it is done.
func (f *fake) powerOff() {
	f.finish(engine.End{Reason: engine.GuestOff})
}

// running is a machine with a fake engine, after go.
func running(t *testing.T) (*machine, *fake) {
	t.Helper()
	m, f := fresh(t)
	words := []string{"generation", "5", "name", "x", "accel", "tcg", "cpus", "1", "memory", "1", "boot", "disk"}
	if err := m.edit(func(l *launch) error { return l.describe(words, "tcg") }); err != nil {
		t.Fatal(err)
	}
	if err := m.start(); err != nil {
		t.Fatal(err)
	}
	return m, f
}

func fresh(t testing.TB) (*machine, *fake) {
	t.Helper()
	m, err := newMachine(1, "tcg")
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	m.boot = func(_ context.Context, s *engine.Spec, _ func(engine.Event)) (engine.Engine, error) {
		f.printed.Go(func() { io.Copy(s.Screen, f.console) })
		return f, nil
	}
	t.Cleanup(m.close)
	return m, f
}

// exit waits for the record.
func (m *machine) awaitExit(t *testing.T, within time.Duration) ctl.Exit {
	t.Helper()
	select {
	case <-m.ended:
	case <-time.After(within):
		t.Fatalf("not ended within %v", within)
	}
	return *m.status().Exit
}

func TestRecord(t *testing.T) {
	off := engine.End{Reason: engine.GuestOff}
	killed := engine.End{Text: "qemu exited: signal: killed", Killed: true}
	crash := engine.End{Text: "qemu exited: signal: aborted: qemu: assertion failed"}
	stop := &stopping{by: "alice", restart: true}
	kill := &verdict{who: "bob", how: "kill", failed: true}
	now := time.Now()
	for _, tc := range []struct {
		name string
		end  engine.End
		stop *stopping
		kill *verdict
		want ctl.Exit
	}{
		{"power-off", off, nil, nil, ctl.Exit{Who: "guest", How: "power-off"}},
		{"stop", off, stop, nil, ctl.Exit{Who: "alice", How: "stop", Restart: true}},
		{"stop by a reset", engine.End{Reason: engine.Quit}, stop, nil, ctl.Exit{Who: "alice", How: "stop", Restart: true}},
		{"kill", killed, nil, kill, ctl.Exit{Failed: true, Who: "bob", How: "kill"}},
		{"kill of a stopping one", killed, stop, kill, ctl.Exit{Failed: true, Who: "bob", How: "kill", Restart: true}},
		{"kill too late", off, nil, kill, ctl.Exit{Who: "guest", How: "power-off"}},
		{"panic", engine.End{Reason: engine.GuestPanic}, stop, nil, ctl.Exit{Failed: true, Who: "guest", How: "panic", Restart: true}},
		{"the guest's crash", engine.End{Reason: engine.GuestCrash, Text: "triple fault on CPU 0"}, nil, nil, ctl.Exit{Failed: true, Who: "guest", How: "triple fault on CPU 0"}},
		{"crash", crash, nil, nil, ctl.Exit{Failed: true, Who: "host", How: "qemu exited: signal: aborted: qemu: assertion failed"}},
		{"killed by others", killed, nil, nil, ctl.Exit{Failed: true, Who: "host", How: "qemu exited: signal: killed"}},
		{"crash while stopping", crash, stop, nil, ctl.Exit{Failed: true, Who: "host", How: "qemu exited: signal: aborted: qemu: assertion failed", Restart: true}},
	} {
		tc.want.At = now
		if got := *record(tc.end, tc.stop, tc.kill, now); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestLadder(t *testing.T) {
	for _, tc := range []struct {
		name    string
		hears   string
		paused  bool
		buttons string
		how     string
	}{
		{"hears the button", "power", false, "cont power", "stop"},
		{"hears the keys", "keys", false, "cont power keys", "stop"},
		{"deaf", "", false, "cont power keys", "stop: no answer in 3 s, killed"},
		{"paused", "power", true, "cont stop cont power", "stop"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m, f := running(t)
			if tc.paused {
				if err := m.pause(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			f.hear = func(b string) {
				if b == tc.hears {
					f.powerOff()
				}
			}
			m.stopIn(3*time.Second, "alice", false)
			if e := m.awaitExit(t, soon); e.Failed || e.Who != "alice" || e.How != tc.how {
				t.Errorf("exit %+v, want %q", e, tc.how)
			}
			if got := f.buttons(); got != tc.buttons {
				t.Errorf("buttons %q, want %q", got, tc.buttons)
			}
		})
	}
}

func TestStopAgain(t *testing.T) {
	m, _ := running(t)
	m.stopIn(time.Hour, "alice", false)
	m.stopIn(2*time.Hour, "bob", true)
	m.stopIn(0, "carol", true)
	if e := m.awaitExit(t, soon); e.Who != "alice" || e.Restart || e.How != "stop: no answer in 0 s, killed" {
		t.Errorf("exit %+v", e)
	}
}

// A reset after a stop is the end that was asked for; before, it is a reboot,
// and several in a moment are one.
func TestGuestReset(t *testing.T) {
	m, f := running(t)
	var news []ctl.Notice
	m.tell = func(n ctl.Notice) { news = append(news, n) }
	for range 3 {
		m.event(engine.GuestReset)
	}
	if n := m.status().Reboots; n != 1 || !slices.Equal(news, []ctl.Notice{ctl.Rebooted}) {
		t.Errorf("%d reboots, news %v, want one", n, news)
	}
	m.lastReset = time.Time{}
	m.event(engine.HostReset)
	m.event(engine.GuestReset)
	if n := m.status().Reboots; n != 1 {
		t.Errorf("%d reboots after the button, want 1", n)
	}
	m.tell = func(ctl.Notice) {}
	m.stopIn(time.Hour, "alice", true)
	m.event(engine.GuestReset)
	if e := m.awaitExit(t, soon); e.How != "stop" || !e.Restart || !strings.Contains(f.buttons(), "quit") {
		t.Errorf("exit %+v, buttons %q", e, f.buttons())
	}
}

func TestButtons(t *testing.T) {
	m, f := running(t)
	for _, step := range []struct {
		do    func(*machine, context.Context) error
		state string
	}{
		{(*machine).resume, "running"}, {(*machine).pause, "paused"}, {(*machine).pause, "paused"},
		{(*machine).reset, "paused"}, {(*machine).resume, "running"}, {(*machine).reset, "running"},
	} {
		if err := step.do(m, t.Context()); err != nil || m.status().State != step.state {
			t.Errorf("state %q, %v, want %q", m.status().State, err, step.state)
		}
	}
	if got := f.buttons(); got != "cont stop reset cont reset" {
		t.Errorf("buttons %q", got)
	}
	// QEMU stops by itself when a disk is full.
	m.event(engine.Stopped)
	if s := m.status().State; s != "paused" {
		t.Errorf("state %q, want paused", s)
	}
	f.powerOff()
	m.awaitExit(t, soon)
	for _, do := range []func(*machine, context.Context) error{(*machine).pause, (*machine).resume, (*machine).reset} {
		wantErrno(t, "a button after the end", do(m, t.Context()), syscall.EINVAL)
	}
	m.stopIn(0, "late", true)
	m.end(verdict{who: "late"})
	if e := m.status().Exit; e.Who != "guest" {
		t.Errorf("the record changed to %+v", e)
	}
}

// The drive is changed from go until the end, by a file that can be locked.
func TestMedium(t *testing.T) {
	path := filepath.Join(t.TempDir(), "iso")
	if err := os.WriteFile(path, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(m *machine, verb string, files ...*os.File) error {
		_, err := m.do(&wire.Request{Verb: verb, Message: wire.Message{Files: files}})
		return err
	}
	m, _ := fresh(t)
	wantErrno(t, "eject before go", ask(m, "eject"), syscall.EINVAL)
	if err := ask(m, "cdrom", open(t, path, os.O_RDONLY)); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "a second one before go", ask(m, "cdrom", open(t, path, os.O_RDONLY)), syscall.EEXIST)
	m.launch.release()

	m, f := running(t)
	for _, verb := range []string{"cdrom", "eject", "cdrom"} {
		var files []*os.File
		if verb == "cdrom" {
			files = append(files, open(t, path, os.O_RDONLY))
		}
		if err := ask(m, verb, files...); err != nil {
			t.Fatal(err)
		}
	}
	wantErrno(t, "one that can be written", ask(m, "cdrom", open(t, path, os.O_RDWR)), syscall.EINVAL)
	wantErrno(t, "a directory", ask(m, "cdrom", open(t, t.TempDir(), os.O_RDONLY)), syscall.EINVAL)
	if got := f.buttons(); got != "cont insert eject insert" {
		t.Errorf("buttons %q", got)
	}
	f.powerOff()
	m.awaitExit(t, soon)
	if err := ask(m, "eject"); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// A UEFI firmware is code that is read and variables that are written, of
// whole sectors and no more than the board has.
func TestUEFI(t *testing.T) {
	dir := t.TempDir()
	file := func(size int64, flags int) *os.File {
		f, err := os.CreateTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		return open(t, f.Name(), flags)
	}
	const code, vars = 3653632, 540672
	for _, tc := range []struct {
		name       string
		code, vars *os.File
	}{
		{"empty variables", file(code, os.O_RDONLY), file(0, os.O_RDWR)},
		{"half a sector", file(code+2048, os.O_RDONLY), file(vars, os.O_RDWR)},
		{"too much", file(4<<20, os.O_RDONLY), file(4<<20+4096, os.O_RDWR)},
		{"code that can be written", file(code, os.O_RDWR), file(vars, os.O_RDWR)},
		{"variables that cannot", file(code, os.O_RDONLY), file(vars, os.O_RDONLY)},
	} {
		var l launch
		wantErrno(t, tc.name, l.uefi(tc.code, tc.vars), syscall.EINVAL)
	}
	var l launch
	if err := l.uefi(file(code, os.O_RDONLY), file(vars, os.O_RDWR)); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "a second one", l.uefi(file(code, os.O_RDONLY), file(vars, os.O_RDWR)), syscall.EEXIST)
	wantErrno(t, "a BIOS besides", l.boot("firmware", file(4096, os.O_RDONLY), true), syscall.EEXIST)
	l.release()
	if l.spec.Flash != nil {
		t.Error("flash is left after release")
	}
}

// Whatever is asked before or during go ends the launch and nothing is left.
func TestEndBeforeItRuns(t *testing.T) {
	t.Run("stop before go", func(t *testing.T) {
		m, _ := fresh(t)
		m.stopIn(time.Minute, "alice", true)
		if e := m.awaitExit(t, soon); e.Failed || e.Who != "alice" || e.How != "stop" || !e.Restart {
			t.Errorf("exit %+v", e)
		}
		wantErrno(t, "go", m.start(), syscall.EEXIST)
	})
	t.Run("kill during go", func(t *testing.T) {
		m, _ := fresh(t)
		m.edit(func(l *launch) error { l.given = true; return nil })
		begun := make(chan struct{})
		m.boot = func(ctx context.Context, _ *engine.Spec, _ func(engine.Event)) (engine.Engine, error) {
			close(begun)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}
		failed := make(chan error)
		go func() { failed <- m.start() }()
		<-begun
		m.end(verdict{"bob", "kill", false})
		if err := <-failed; err == nil {
			t.Error("go succeeded")
		}
		if e := m.awaitExit(t, soon); e.Failed || e.Who != "bob" || e.How != "kill" {
			t.Errorf("exit %+v", e)
		}
	})
	t.Run("failure", func(t *testing.T) {
		m, _ := fresh(t)
		m.edit(func(l *launch) error { l.given = true; return nil })
		m.boot = func(context.Context, *engine.Spec, func(engine.Event)) (engine.Engine, error) {
			return nil, ctl.Errorf(syscall.ENODEV, "no\nQEMU")
		}
		wantErrno(t, "go", m.start(), syscall.ENODEV)
		if e := m.awaitExit(t, soon); !e.Failed || e.Who != "host" || e.How != "no?QEMU" {
			t.Errorf("exit %+v", e)
		}
		wantErrno(t, "launch after it", m.edit(func(*launch) error { return nil }), syscall.EEXIST)
	})
}

// The console's two ways.
func TestConsole(t *testing.T) {
	m, f := running(t)
	if err := m.input.put([]byte("typed")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(f.line, buf); err != nil || string(buf) != "typed" {
		t.Errorf("the guest read %q, %v", buf, err)
	}
	f.line.Write([]byte("printed"))
	f.powerOff()
	m.awaitExit(t, soon)
	memory, bell, err := m.screen.Share()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	all := make([]byte, 4096+20)
	memory.ReadAt(all, 0)
	if !bytes.Contains(all, []byte("printed")) {
		t.Error("what the guest printed last is not in the ring")
	}
	wantErrno(t, "input after the end", m.input.put([]byte("x")), syscall.EPIPE)
}

func TestInput(t *testing.T) {
	in := newInput()
	wantErrno(t, "too much at once", in.put(make([]byte, maxInput+1)), syscall.EFBIG)
	if err := in.put(make([]byte, maxInput-1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	wantErrno(t, "into a full queue", in.put([]byte("xy")), syscall.EAGAIN)
	if took := time.Since(began); took < inputTime || took > inputTime+soon {
		t.Errorf("it took %v", took)
	}
	if len(in.queue) != maxInput-1 {
		t.Errorf("%d bytes wait, want %d: half a write went in", len(in.queue), maxInput-1)
	}
	// Room is made while one waits.
	r, w := io.Pipe()
	go in.feed(w)
	time.AfterFunc(5*time.Millisecond, func() { io.ReadFull(r, make([]byte, 2048)) })
	if err := in.put([]byte("xy")); err != nil {
		t.Errorf("with room made: %v", err)
	}
	in.close()
	in.close()
	r.Close()
	wantErrno(t, "after close", in.put(nil), syscall.EPIPE)
}

func TestDescribe(t *testing.T) {
	good := []string{"generation", "5", "name", "web", "accel", "tcg", "reason", "because", "cpus", "64", "memory", "512", "boot", "cdrom", "cmdline", "a\tb"}
	var l launch
	if err := l.describe(good, "tcg"); err != nil {
		t.Fatal(err)
	}
	if l.generation != 5 || l.name != "web" || l.reason != "because" || l.spec.CPUs != 64 || l.spec.MemoryMiB != 512 || l.spec.Boot != "cdrom" || l.spec.Cmdline != "a\tb" {
		t.Errorf("got %+v", l)
	}
	wantErrno(t, "a second one", l.describe(good, "tcg"), syscall.EEXIST)

	for _, bad := range [][]string{
		{"cpus", "0"}, {"cpus", "65"}, {"cpus", "x"}, {"memory", "0"}, {"memory", "99999999999"}, {"accel", "hvf"}, {"accel", "kvm"},
		{"boot", "floppy"}, {"name", "a\nb"}, {"cmdline", "a\x00b"}, {"cmdline", "a\rb"}, {"generation", "-1"},
		{"color", "red"}, {"name"}, {"boot", "disk", "boot", "disk"},
	} {
		words := slices.Clone(good)
		if i := slices.Index(words, bad[0]); i >= 0 {
			words = slices.Delete(words, i, i+2)
		}
		var l launch
		wantErrno(t, strings.Join(bad, " "), l.describe(append(words, bad...), "tcg"), syscall.EINVAL)
		if l.given {
			t.Errorf("%q was taken", bad)
		}
	}
	for i := 0; i < len(good); i += 2 {
		words := slices.Delete(slices.Clone(good), i, i+2)
		var l launch
		err := l.describe(words, "tcg")
		if optional := good[i] == "reason" || good[i] == "cmdline"; optional != (err == nil) {
			t.Errorf("without %s: %v", good[i], err)
		}
	}
}

func TestFilesOfALaunch(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, []byte("image"), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	var l launch
	defer l.release()
	disk := func(words string, name string, flags int) error {
		return l.disk(strings.Fields(words), open(t, name, flags))
	}
	const rdonly, rdwr = os.O_RDONLY, os.O_RDWR
	for _, tc := range []struct {
		words, path string
		flags       int
		want        syscall.Errno
	}{
		{"16 0 raw rw", path, rdwr, syscall.EINVAL},
		{"-1 0 raw rw", path, rdwr, syscall.EINVAL},
		{"0 4 raw ro", path, rdonly, syscall.EINVAL},
		{"0 1 raw rw", path, rdwr, syscall.EINVAL}, // a base is not written
		{"0 0 vmdk rw", path, rdwr, syscall.EINVAL},
		{"0 0 raw rx", path, rdwr, syscall.EINVAL},
		{"0 0 raw rw", path, rdonly, syscall.EINVAL}, // open for less, or for more
		{"0 0 raw ro", path, rdwr, syscall.EINVAL},
		{"0 0 raw ro", fifo, rdonly | unix.O_NONBLOCK, syscall.EINVAL},
		{"0 0 raw ro", dir, rdonly, syscall.EINVAL},
		{"0 0 raw ro", path, unix.O_PATH, syscall.EINVAL},
		{"0 0 raw rw", path, rdwr, 0},
		{"0 0 raw rw", path, rdwr, syscall.EEXIST},
		{"1 0 raw rw", path, rdwr, syscall.EBUSY},
		{"1 0 raw ro", path, rdonly, syscall.EBUSY},
	} {
		if err := disk(tc.words, tc.path, tc.flags); ctl.Errno(err) != tc.want {
			t.Errorf("%s of %s: %v, want %v", tc.words, filepath.Base(tc.path), err, tc.want)
		}
	}
	wantErrno(t, "an empty kernel", l.boot("kernel", open(t, empty, rdonly), true), syscall.EINVAL)
	if err := l.boot("kernel", open(t, path, rdonly), true); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "a second kernel", l.boot("kernel", open(t, path, rdonly), true), syscall.EEXIST)
	wantErrno(t, "a locked cdrom", l.cdrom(open(t, path, rdonly)), syscall.EBUSY)
	if _, err := l.complete(); err == nil {
		t.Error("complete without words")
	}
	l.given = true
	spec, err := l.complete()
	if err != nil || len(spec.Disks) != 1 || spec.Disks[0].ReadOnly || spec.Disks[0].N != 0 {
		t.Errorf("complete: %+v, %v", spec, err)
	}
	l.images[3][1] = l.images[0][0]
	if _, err := l.complete(); err == nil {
		t.Error("a base without an image was taken")
	}
	l.images[3][1] = image{}
}

func TestSealedCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	data := bytes.Repeat([]byte("0123456789"), 1000)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, path, os.O_RDONLY)
	f.Seek(77, io.SeekStart) // where somebody else left it
	if _, err := sealedCopy("kernel", f, int64(len(data))-1); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a byte too many: %v", err)
	}
	m, err := sealedCopy("kernel", f, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the copy can be written")
	}
	got := make([]byte, len(data)+1)
	if n, _ := m.ReadAt(got, 0); !bytes.Equal(got[:n], data) {
		t.Error("the copy differs")
	}
}

func TestParseRole(t *testing.T) {
	good := []string{"3", "1900000003", "1899999999", "tcg", "/run/vmfs/guest"}
	if r, err := parseRole(good); err != nil || r != (role{id: 3, uid: 1900000003, coreUID: 1899999999, accel: "tcg", jail: "/run/vmfs/guest"}) {
		t.Errorf("%+v, %v", r, err)
	}
	for i, bad := range []string{"0", "0", "-1", "vmx", "relative"} {
		args := slices.Clone(good)
		args[i] = bad
		if _, err := parseRole(args); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
	for _, bad := range []string{"more", "unjailed ", "outwards"} {
		if _, err := parseRole(append(good, bad)); err == nil {
			t.Errorf("%q behind the arguments was taken", bad)
		}
	}
	r, err := parseRole(append(good, "outward", "unjailed no user namespaces"))
	if err != nil || !r.outward || r.unjailed != "no user namespaces" {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := parseRole([]string{"4294967296", "1", "1", "tcg", "/"}); err == nil {
		t.Error("an id of 33 bits was taken")
	}
}

// What every request may be without ending the process.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{"go", "state", "usage", "console", "stop 5 yes alice", "stop -1 yes a", "kill root kill no", "kill a b c",
		"launch generation 1 name x accel tcg cpus 1 memory 1 boot disk", "launch a", "launch generation", "disk 0 0 raw rw", "kernel", "input", "uefi", "cdrom", "eject",
		"nic 0 fe:e1:bb:d1:00:01", "nic 16 fe:e1:bb:d1:00:01", "nic 0 ff:ff:ff:ff:ff:ff", "nic 0 FE-E1-BB-D1-00-01", "nic 0 00:00:00:00:00:00:00:01",
		"pause", "resume", "reset", "forget", "dance", `""`, "stop 99999999999999999999 no x"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, line []byte, withFile bool) {
		fields, err := wire.Decode(line)
		if err != nil {
			return
		}
		m, _ := fresh(t)
		r := &wire.Request{Verb: fields[0], Args: fields[1:]}
		if withFile {
			f, err := os.Open("/dev/null")
			if err != nil {
				t.Fatal(err)
			}
			r.Files = []*os.File{f}
		}
		defer r.Close()
		a, err := m.do(r)
		if err != nil && len(a.fields) > 0 {
			t.Errorf("%q: an answer and %v", fields, err)
		}
		if a.after != nil {
			a.after()
		}
	})
}

func FuzzState(f *testing.F) {
	exit := &ctl.Exit{Failed: true, Who: "host", How: "qemu exited", At: time.UnixMilli(1700000000000)}
	for _, s := range []ctl.GuestState{
		{State: "new"},
		{State: "ended", Generation: 1 << 63, Name: "x y", Started: time.UnixMilli(1), Reboots: 3, Engine: "qemu 7.2.22 tcg", Reason: "no kvm", Exit: exit},
	} {
		line, err := wire.Encode(encodeState(s)...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Add([]byte("state ended who \"a\\nb\" new key at -5"))
	f.Fuzz(func(t *testing.T, line []byte) {
		fields, err := wire.Decode(line)
		if err != nil {
			return
		}
		s, err := decodeState(fields)
		if err != nil {
			return
		}
		if strings.ContainsAny(s.Name+s.Engine+s.Reason, "\n\x00") || s.Exit != nil && strings.ContainsAny(s.Exit.Who+s.Exit.How, "\n\x00") {
			t.Errorf("%q: control bytes in %+v", line, s)
		}
		again, err := decodeState(encodeState(s))
		if err != nil {
			t.Fatalf("%+v does not come back: %v", s, err)
		}
		if s.Exit != nil && again.Exit != nil {
			*again.Exit, s.Exit = *s.Exit, again.Exit
		}
		if again != s {
			t.Errorf("%+v came back as %+v", s, again)
		}
	})
}

func TestDecodeUsage(t *testing.T) {
	if u, err := decodeUsage([]string{"1500", "4096"}); err != nil || u != (ctl.Usage{CPU: 1500 * time.Microsecond, Overhead: 4096}) {
		t.Errorf("%+v, %v", u, err)
	}
	counted := ctl.Usage{CPU: time.Second, Overhead: 5, Exits: &ctl.Exits{PIO: 1, MMIO: 2, Interrupted: 3, Stray: 4}}
	again, err := decodeUsage(append(encodeUsage(counted), "newer", "7"))
	if err != nil || again.CPU != counted.CPU || again.Overhead != counted.Overhead || again.Exits == nil || *again.Exits != *counted.Exits {
		t.Errorf("%+v came back as %+v, %v", counted, again, err)
	}
	for _, bad := range [][]string{{}, {"1"}, {"-1", "2"}, {"1", "x"}, {"18446744073709551615", "1"}, {"1", "1", "pio"}, {"1", "1", "pio", "-1"}} {
		if u, err := decodeUsage(bad); err == nil || u.CPU < 0 {
			t.Errorf("%q: %+v, %v", bad, u, err)
		}
	}
}
