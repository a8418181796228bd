package vmm

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vmfs/ctl"
	"vmfs/vmm/native/nativetest"
)

// nativeGuest starts a guest process with the native engine and a program in
// it, and returns it with its screen.
func nativeGuest(t *testing.T, a *nativetest.Program, change func(*ctl.Launch)) (*process, ctl.Guest, *screen) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipping: only root starts guest processes")
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("SKIPPED: needs KVM: %v", err)
	}
	p := spawn(t, accelNative)
	g := p.dial()
	l := &ctl.Launch{
		ID: p.id, Generation: 3, Name: "asm", Accel: accelNative, Reason: "a test",
		CPUs: 1, MemoryMiB: 2, Boot: "disk", Kernel: a.ReadOnly(t),
	}
	if change != nil {
		change(l)
	}
	begin(t, g, l)
	return p, g, &screen{t: t, c: g.Console()}
}

// echo prints hello, then what is typed, and powers off at a q, reboots at an
// r and dies at an x.
func echo() *nativetest.Program {
	a := nativetest.New().Print("hello\n")
	a.Label("wait").InByte(nativetest.SerialPort + 5).TestAL(1).Jz("wait")
	a.InByte(nativetest.SerialPort)
	for key, l := range map[byte]string{'q': "off", 'r': "reboot", 'x': "die"} {
		a.Bytes(0x3c, key).Jz(l) // cmp al, key
	}
	a.Port(nativetest.SerialPort).Out().Jmp("wait")
	a.Label("off").PowerOff()
	a.Label("reboot").OutByte(nativetest.PowerPort, 1)
	a.Label("die").Bytes(0x0f, 0x0b) // ud2
	return a
}

// The life of a native machine: typed at, paused, rebooted, reset, off.
func TestNativeLife(t *testing.T) {
	p, g, s := nativeGuest(t, echo(), nil)
	s.expect("hello\n", soon)
	typed(t, g, "echo")
	s.expect("echo\n", soon)
	for range 3 {
		if err := g.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitState(t, g, statePaused, soon)
		if err := g.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitState(t, g, stateRunning, soon)
	}
	typed(t, g, "r")
	s.expect("hello\n", soon)
	if err := g.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.expect("hello\n", soon)
	u, err := g.Usage(t.Context())
	if err != nil || u.CPU == 0 || u.Overhead == 0 || u.Overhead > 16<<20 {
		t.Errorf("usage %+v, %v", u, err)
	}
	typed(t, g, "q")
	state := awaitState(t, g, stateEnded, soon)
	wantExit(t, state, false, "guest", "power-off", false)
	if state.Engine != "native" || state.Reboots != 1 {
		t.Errorf("state %+v", state)
	}
	if err := g.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.gone(soon)
}

// How a native machine ends that does not want to, or cannot go on.
func TestNativeEnds(t *testing.T) {
	_, g, s := nativeGuest(t, echo(), nil)
	s.expect("hello\n", soon)
	typed(t, g, "x")
	state := awaitState(t, g, stateEnded, soon)
	if e := state.Exit; !e.Failed || e.Who != "guest" || !strings.HasPrefix(e.How, "triple fault on CPU 0") {
		t.Errorf("exit %+v", e)
	}

	_, g, s = nativeGuest(t, echo(), nil)
	s.expect("hello\n", soon)
	if err := g.Kill(t.Context(), "bob", "kill", false); err != nil {
		t.Fatal(err)
	}
	wantExit(t, awaitState(t, g, stateEnded, soon), false, "bob", "kill", false)

	// It hears neither button, and is killed.
	_, g, s = nativeGuest(t, echo(), nil)
	s.expect("hello\n", soon)
	if err := g.Stop(t.Context(), time.Second, "alice", true); err != nil {
		t.Fatal(err)
	}
	wantExit(t, awaitState(t, g, stateEnded, soon), false, "alice", "stop: no answer in 1 s, killed", true)

	// A reset is an answer to a stop.
	_, g, s = nativeGuest(t, echo(), nil)
	s.expect("hello\n", soon)
	if err := g.Stop(t.Context(), time.Minute, "alice", false); err != nil {
		t.Fatal(err)
	}
	typed(t, g, "r")
	wantExit(t, awaitState(t, g, stateEnded, soon), false, "alice", "stop", false)
}

// What the process may still do once it runs a guest.
func TestNativeConfined(t *testing.T) {
	p, _, s := nativeGuest(t, echo(), nil)
	s.expect("hello\n", soon)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", p.uid),
		"Groups:\t \n", "CapPrm:\t0000000000000000\n", "CapBnd:\t0000000000000000\n",
		"NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in\n%s", want, status)
		}
	}
	root, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", p.cmd.Process.Pid))
	if err != nil || len(root) > 0 {
		t.Errorf("its root directory: %v, %v; want nothing in it", root, err)
	}
}

// The process without the guest's memory is small: rss and pss are in KiB.
func TestNativeMemory(t *testing.T) {
	p, g, s := nativeGuest(t, echo(), func(l *ctl.Launch) { l.MemoryMiB = 64 })
	s.expect("hello\n", soon)
	const most = 5 << 10
	var idle int
	for end := time.Now().Add(soon); ; {
		time.Sleep(shedTime + time.Second)
		if idle = residentKiB(t, p.cmd.Process.Pid); idle <= most || time.Now().After(end) {
			break // else it has not come to shed what it does not need
		}
	}
	u, err := g.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rss := residentKiB(t, p.cmd.Process.Pid) // guest RAM touched is some 20 KiB of it
	t.Logf("RSS %d KiB, after a question %d KiB; Pss without the guest's memory %d KiB", idle, rss, u.Overhead>>10)
	if rss > most {
		t.Errorf("the process has %d KiB resident, more than %d", rss, most)
	}
}

// residentKiB is the line Rss of a process.
func residentKiB(t *testing.T, pid int) (kib int) {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		if n, err := fmt.Sscanf(line, "Rss: %d kB", &kib); n == 1 && err == nil {
			return kib
		}
	}
	t.Fatalf("no Rss in %s", rollup)
	return 0
}
