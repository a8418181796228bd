package ctl_test

import (
	"context"
	"io"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

// hostile is a Host whose guest processes are not ours any more.
type hostile struct {
	*ctltest.Host
	deaf    bool                          // Kill and Stop are answered and not done
	console func(ctl.Console) ctl.Console // nil: as it is
	state   func(*ctl.GuestState)         // nil: as it is
}

func (h *hostile) Spawn(ctx context.Context, p ctl.Process) (ctl.Guest, int, error) {
	g, pid, err := h.Host.Spawn(ctx, p)
	return &liar{g, h}, pid, err
}

func (h *hostile) Adopt(ctx context.Context, id uint32) (ctl.Guest, error) {
	g, err := h.Host.Adopt(ctx, id)
	return &liar{g, h}, err
}

type liar struct {
	ctl.Guest
	h *hostile
}

func (l *liar) Kill(ctx context.Context, by, how string, failed bool) error {
	if l.h.deaf {
		return nil
	}
	return l.Guest.Kill(ctx, by, how, failed)
}

func (l *liar) Stop(ctx context.Context, wait time.Duration, by string, restart bool) error {
	if l.h.deaf {
		return nil
	}
	return l.Guest.Stop(ctx, wait, by, restart)
}

func (l *liar) State(ctx context.Context) (ctl.GuestState, error) {
	s, err := l.Guest.State(ctx)
	if l.h.state != nil {
		l.h.state(&s)
	}
	return s, err
}

func (l *liar) Console() ctl.Console {
	if l.h.console != nil {
		return l.h.console(l.Guest.Console())
	}
	return l.Guest.Console()
}

func hostileMachine(t *testing.T) (*ctl.Manager, *ctl.VM, *hostile, string) {
	t.Helper()
	h := &hostile{Host: ctltest.NewHost()}
	dir := t.TempDir()
	m := open(t, dir, h)
	vm, err := m.Create(alice, "web", 0o755, 2001)
	ok(t, err)
	return m, vm, h, dir
}

// endless is a console whose writer claims to have printed this much.
type endless struct {
	ctl.Console
	end uint64
}

func (e endless) End() uint64 { return e.end }

// A guest process that claims to have printed more than can be counted costs
// its own log, not the daemon.
func TestHostileConsoleEnd(t *testing.T) {
	for _, end := range []uint64{1<<64 - 1, 1 << 63, 1<<63 - 1} {
		_, vm, h, _ := hostileMachine(t)
		h.console = func(c ctl.Console) ctl.Console { return endless{c, end} }
		ok(t, vm.Do(ctx, alice, "start", ""))
		h.Guest(1).Print("x\n")
		if n := vm.ConsoleLogSize(); n < 0 {
			t.Errorf("console.log has %d bytes", n)
		}
		h.Guest(1).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
		becomes(t, vm, "stopped")
	}
}

// sips is a console that gives at most 64 KiB at a time, as the real one.
type sips struct{ ctl.Console }

func (s sips) ReadAt(p []byte, pos uint64) (int, uint64) {
	return s.Console.ReadAt(p[:min(len(p), 64<<10)], pos)
}

// What a launch printed is kept whole, also where the console is read in
// pieces.
func TestConsoleKeptWhole(t *testing.T) {
	_, vm, h, _ := hostileMachine(t)
	h.console = func(c ctl.Console) ctl.Console { return sips{c} }
	slow := vm.OpenConsole()
	ok(t, vm.Do(ctx, alice, "start", ""))
	text := strings.Repeat("0123456789abcde\n", 200<<10/16)
	h.Guest(1).Print(text)
	p := make([]byte, 1)
	if _, err := slow.Read(ctx, p, true); err != nil { // it has begun to read
		t.Fatal(err)
	}
	h.Guest(1).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
	becomes(t, vm, "stopped")
	if n := vm.ConsoleLogSize(); n != int64(len(text)) {
		t.Errorf("console.log has %d bytes of %d", n, len(text))
	}
	got := len(p)
	for {
		q := make([]byte, 4096)
		n, err := slow.Read(ctx, q, false)
		got += n
		if err == io.EOF {
			break
		}
		ok(t, err)
	}
	if got != len(text) {
		t.Errorf("the reader got %d bytes of %d", got, len(text))
	}
}

// What a guest process says of its end cannot make the definition unreadable.
func TestHostileExitTime(t *testing.T) {
	_, vm, h, dir := hostileMachine(t)
	h.state = func(s *ctl.GuestState) {
		if s.Exit != nil {
			s.Exit.At = time.UnixMilli(1<<63 - 1)
		}
	}
	ok(t, vm.Do(ctx, alice, "start", ""))
	h.Guest(1).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
	becomes(t, vm, "stopped")
	again := open(t, dir, ctltest.NewHost())
	if again.VM("web") == nil {
		t.Error("the next daemon does not serve the machine")
	}
}

// A guest process that says yes to kill and lives is killed all the same.
func TestHostileKill(t *testing.T) {
	_, vm, h, _ := hostileMachine(t)
	h.deaf = true
	ok(t, vm.Do(ctx, alice, "start", ""))
	if err := vm.Do(ctx, alice, "kill", ""); err != nil {
		t.Errorf("kill: %v", err)
	}
	if h.Guest(1) != nil {
		t.Error("the guest process is still there")
	}
	becomes(t, vm, "stopped")
}

// A guest process that says yes to stop and goes on is killed soon after the
// deadline that it was to keep.
func TestHostileStop(t *testing.T) {
	t.Parallel()
	_, vm, h, _ := hostileMachine(t)
	h.deaf = true
	ok(t, vm.Do(ctx, alice, "start", ""))
	ok(t, vm.Do(ctx, alice, "stop", "1"))
	becomes(t, vm, "stopping")
	becomes(t, vm, "stopped")
	if h.Guest(1) != nil || !strings.Contains(vm.Info(ctx), "did not end it, killed") {
		t.Errorf("left: %v; info:\n%s", h.Guest(1), vm.Info(ctx))
	}
}

// A kill that comes when a start is all but done ends it.
func TestKillAtTheEndOfAStart(t *testing.T) {
	_, vm, h, _ := hostileMachine(t)
	asked := make(chan struct{})
	first := true
	h.state = func(*ctl.GuestState) { // the answer is there, ran has not looked yet
		if !first {
			return
		}
		first = false
		close(asked)
		time.Sleep(50 * time.Millisecond)
	}
	started := make(chan error, 1)
	go func() { started <- vm.Do(ctx, alice, "start", "") }()
	<-asked
	killed := make(chan error, 1)
	go func() { killed <- vm.Do(ctx, alice, "kill", "") }()
	select {
	case err := <-killed:
		ok(t, err)
	case <-time.After(time.Minute):
		t.Fatalf("kill hangs; the machine is %s, start said %v", strings.TrimSpace(vm.Status()), <-started)
	}
	if vm.Active() {
		t.Errorf("after kill: %s", vm.Status())
	}
}

// The policy of a disk goes with it.
func TestDiskPolicyGoes(t *testing.T) {
	_, vm, _, _ := hostileMachine(t)
	ok(t, vm.AddPart(alice, ctl.Part{Dir: "disk"}))
	mode := uint32(0o666)
	ok(t, vm.SetAccess(alice, "disk/0/path", ctl.AccessChange{Mode: &mode}))
	ok(t, vm.RemovePart(alice, ctl.Part{Dir: "disk"}))
	ok(t, vm.AddPart(alice, ctl.Part{Dir: "disk"}))
	if a := vm.Access("disk/0/path", ctl.Default{Mode: 0o640}); a.Mode != 0o640 {
		t.Errorf("the next disk 0 has a path of mode %o", a.Mode)
	}
}

// A generation that a guest process makes up does not become the machine's.
func TestHostileGeneration(t *testing.T) {
	m, vm, h, dir := hostileMachine(t)
	ok(t, vm.Do(ctx, alice, "start", ""))
	h.Abandon()
	m.Close()
	h.state = func(s *ctl.GuestState) { s.Generation = 1<<64 - 1 }
	vm = open(t, dir, h).VM("web")
	becomes(t, vm, "running")
	time.Sleep(100 * time.Millisecond)
	ok(t, vm.Do(ctx, alice, "kill", ""))
	h.Refused = func(step string) error {
		if step == "go" {
			return ctl.Errorf(syscall.EIO, "no")
		}
		return nil
	}
	vm.Do(ctx, alice, "start", "")
	if h.Guest(1) != nil {
		t.Errorf("a failed start leaves a guest process; info:\n%s", vm.Info(ctx))
	}
}

// A guest that reboots without end and does not die when it is told to is
// ended, and costs the log no more than that.
func TestHostileReboots(t *testing.T) {
	m, vm, h, _ := hostileMachine(t)
	h.deaf = true
	ok(t, vm.Do(ctx, alice, "start", ""))
	g := h.Guest(1)
	await(t, "its end", func() bool {
		for range 100 {
			g.Reboot()
			time.Sleep(20 * time.Microsecond)
		}
		return h.Guest(1) == nil
	})
	becomes(t, vm, "failed rebooted too fast")
	n := 0
	for _, c := range m.EventsText() {
		if c == '\n' {
			n++
		}
	}
	if n > 50 {
		t.Errorf("%d events", n)
	}
}

// Whoever sees that a machine has ended, however a moment ago, can start it.
func TestStoppedIsOver(t *testing.T) {
	_, vm, h, _ := hostileMachine(t)
	for round := range 50 {
		ok(t, vm.Do(ctx, alice, "start", ""))
		go h.Guest(1).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
		for vm.Status() != "stopped\n" {
			runtime.Gosched()
		}
		if vm.Active() {
			t.Fatalf("round %d: it is stopped and has a launch", round)
		}
		ok(t, vm.Do(ctx, alice, "clear-failed", "")) // it is fast
	}
}
