package native

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmfs/ctl"
	"vmfs/vmm/engine"
	"vmfs/vmm/kvm"
	"vmfs/vmm/native/nativetest"
)

// guest is a machine of a test.
type guest struct {
	*VM
	t      testing.TB
	mu     sync.Mutex
	out    strings.Builder
	resets int
}

func (g *guest) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.out.Write(p)
}

// printed is what the guest has printed.
func (g *guest) printed() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.out.String()
}

func (g *guest) event(engine.Event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.resets++
}

func (g *guest) resetCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resets
}

// kvmFile is this host's KVM, and what is special about it.
func kvmFile(t testing.TB) (*os.File, kvm.Quirk) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED: needs KVM: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	quirk := kvm.NoQuirk
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		quirk = kvm.KVMPVM
	}
	return f, quirk
}

// prepare makes a machine that stands still, with a program as its kernel.
func prepare(t testing.TB, a *nativetest.Program, change func(*engine.Spec)) *guest {
	t.Helper()
	f, quirk := kvmFile(t)
	g := &guest{t: t}
	s := &engine.Spec{CPUs: 1, MemoryMiB: 2, Kernel: a.Kernel(t), Screen: g}
	if change != nil {
		change(s)
	}
	vm, err := Start(Host{KVM: f, Quirk: quirk}, s, g.event)
	if err != nil {
		t.Fatal(err)
	}
	g.VM = vm
	t.Cleanup(g.Close)
	return g
}

// boot makes it go.
func start(t testing.TB, a *nativetest.Program, change func(*engine.Spec)) *guest {
	t.Helper()
	g := prepare(t, a, change)
	if err := g.Continue(context.Background()); err != nil {
		t.Fatal(err)
	}
	return g
}

// ends waits for the end.
func (g *guest) ends() engine.End {
	g.t.Helper()
	select {
	case <-g.Done():
	case <-time.After(time.Minute):
		g.t.Fatalf("no end after a minute; printed %q, exits %+v", g.printed(), g.Exits())
	}
	return g.End()
}

// until waits for something to come true.
func (g *guest) until(what string, true func() bool) {
	g.t.Helper()
	for end := time.Now().Add(time.Minute); !true(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			g.t.Fatalf("not within a minute: %s; printed %q", what, g.printed())
		}
	}
}

// word is the guest's memory at addr.
func (g *guest) word(addr uint64) uint32 {
	p, err := g.ram.Slice(addr, 4)
	if err != nil {
		g.t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(p)
}

func TestPowerOff(t *testing.T) {
	g := start(t, nativetest.New().Print("so long").PowerOff().Label("x").Jmp("x"), nil)
	if end := g.ends(); end != (engine.End{Reason: engine.GuestOff}) {
		t.Errorf("end %+v, want a power-off", end)
	}
	if got := g.printed(); got != "so long" {
		t.Errorf("printed %q", got)
	}
	if e := g.Exits(); e.PIO < 8 || e.MMIO != 0 || e.Stray != 0 {
		t.Errorf("exits %+v", e)
	}
	for what, button := range map[string]func(context.Context) error{"pause": g.Pause, "continue": g.Continue, "power": g.PowerButton} {
		if err := button(context.Background()); !errors.Is(err, errEnded) {
			t.Errorf("%s after the end: %v", what, err)
		}
	}
	if _, err := g.Input().Write([]byte("x")); err == nil {
		t.Error("input after the end was taken")
	}
}

// TestResets resets by each of the three ways a guest has, and by the button.
func TestResets(t *testing.T) {
	for what, a := range map[string]*nativetest.Program{
		"ACPI":     nativetest.New().Print("a").OutByte(powerPort, 1).Label("x").Jmp("x"),
		"keyboard": nativetest.New().Print("a").OutByte(0x64, 0xfe).Label("x").Jmp("x"),
		"cf9":      nativetest.New().Print("a").OutByte(0xcf9, 6).Label("x").Jmp("x"),
	} {
		g := start(t, a, nil)
		g.until(what+": three resets", func() bool { return g.resetCount() >= 3 })
		g.Quit(context.Background())
		if end := g.ends(); end.Reason != engine.Quit {
			t.Errorf("%s: end %+v", what, end)
		}
		if got := g.printed(); !strings.HasPrefix(got, "aaa") {
			t.Errorf("%s: printed %q", what, got)
		}
	}
	g := start(t, nativetest.New().Print("b").Inc(0x2000).Label("x").Jmp("x"), nil)
	g.until("b", func() bool { return g.printed() == "b" && g.word(0x2000) == 1 })
	g.Reset(context.Background())
	g.until("bb, and memory anew", func() bool { return g.printed() == "bb" && g.word(0x2000) == 1 })
	g.Pause(context.Background())
	g.Reset(context.Background())
	g.until("a second reset", func() bool { return g.resetCount() == 2 })
	time.Sleep(20 * time.Millisecond)
	if got := g.printed(); got != "bb" {
		t.Errorf("reset while paused, it printed %q", got)
	}
	g.Continue(context.Background())
	g.until("bbb", func() bool { return g.printed() == "bbb" })
}

// TestCrashes holds the end of machines that cannot go on against what
// happened and where.
func TestCrashes(t *testing.T) {
	for _, c := range []struct {
		what string
		code []byte
		want []string
	}{
		{"triple fault", []byte{0x0f, 0x0b}, []string{"triple fault on CPU 0"}},
		{"internal error", []byte{0xd9, 0x05, 0, 0, 0, 0xd0}, // fld dword [0xd0000000]: not memory
			[]string{"internal error: an instruction that KVM cannot emulate", "CPU 0 at 0x100000: code d9 05 00 00 00 d0"}},
	} {
		g := start(t, nativetest.New().Bytes(c.code...), nil)
		end := g.ends()
		if end.Reason != engine.GuestCrash {
			t.Errorf("%s: end %+v", c.what, end)
		}
		for _, want := range c.want {
			if !strings.Contains(end.Text, want) {
				t.Errorf("%s: %q lacks %q", c.what, end.Text, want)
			}
		}
		t.Log(end.Text)
	}
}

// pauseTime is how long a pause takes where there are CPUs for it.
const pauseTime = time.Millisecond

// TestPause stops a CPU that computes and one that waits, in a millisecond: the
// shortest time counts. The others waited for a CPU of the host, and on a busy
// one that may be nearly all.
func TestPause(t *testing.T) {
	count := nativetest.New().Label("x").Inc(0x2000).Jmp("x")
	g := start(t, count, nil)
	var times []time.Duration
	for least := time.Hour; len(times) < 20 || len(times) < 500 && least > pauseTime; least = slices.Min(times) {
		before := g.word(0x2000)
		g.until("it counts", func() bool { return g.word(0x2000) != before })
		began := time.Now()
		if err := g.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		times = append(times, time.Since(began))
		still := g.word(0x2000)
		time.Sleep(2 * time.Millisecond)
		if got := g.word(0x2000); got != still {
			t.Fatalf("paused, it counted from %d to %d", still, got)
		}
		if runs, err := g.Running(context.Background()); runs || err != nil {
			t.Errorf("Running = %v, %v", runs, err)
		}
		g.Continue(context.Background())
	}
	slices.Sort(times)
	t.Logf("%d pauses take from %v to %v, half of them less than %v", len(times), times[0], times[len(times)-1], times[len(times)/2])
	if times[0] > pauseTime && os.Getenv("VMFS_TEST_BOX") == "" { // scripts/testbed has emulated CPUs
		t.Errorf("a pause takes more than %v", pauseTime)
	}
	w := start(t, nativetest.New().Print("w").Bytes(0xfa).Hlt(), nil) // cli: for ever
	w.until("w", func() bool { return w.printed() == "w" })
	if err := w.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.Kill()
	if end := w.ends(); !end.Killed {
		t.Errorf("end %+v", end)
	}
}

// TestPowerButton waits for the interrupt of the generic event device.
func TestPowerButton(t *testing.T) {
	a := nativetest.New().Jmp("start")
	a.Label("pressed").InByte(eventsPort).TestAL(1).Jz("other").Print("pressed").PowerOff()
	a.Label("other").Print("other").EOI()
	a.Label("start").Interrupts(map[byte]string{eventsGSI: "pressed"}).Print("ready\n").Idle()
	g := start(t, a, nil)
	g.until("ready", func() bool { return g.printed() == "ready\n" })
	g.PowerButton(context.Background())
	if end := g.ends(); end.Reason != engine.GuestOff {
		t.Errorf("end %+v", end)
	}
	if got := g.printed(); got != "ready\npressed" {
		t.Errorf("printed %q", got)
	}
}

// TestConsole echoes what is typed, and powers off at a q.
func TestConsole(t *testing.T) {
	a := nativetest.New().Label("wait").InByte(serialPort + 5).TestAL(1).Jz("wait")
	a.InByte(serialPort).Bytes(0x3c, 'q').Jz("off").Port(serialPort).Out().Jmp("wait")
	a.Label("off").PowerOff()
	g := start(t, a, nil)
	text := strings.Repeat("hello, guest. ", 100)
	if n, err := g.Input().Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	g.until("the echo", func() bool { return len(g.printed()) == len(text) })
	if g.printed() != text {
		t.Errorf("echo %q", g.printed())
	}
	g.Input().Write([]byte("q"))
	g.ends()
}

// TestSecondCPU starts the other CPU as a kernel does: INIT, SIPI.
func TestSecondCPU(t *testing.T) {
	a := nativetest.New()
	// At 0x8000, in real mode: mov al, 'A'; mov dx, 0x3f8; out dx, al;
	// mov word [0x2000], 1; cli; hlt
	for i, v := range []uint32{0xf8ba41b0, 0x06c7ee03, 0x00012000, 0x9090f4fa} {
		a.Store(0x8000+4*uint32(i), v)
	}
	a.Store(nativetest.LAPIC+0xf0, 0x1ff)
	a.Store(nativetest.LAPIC+0x310, 1<<24).Store(nativetest.LAPIC+0x300, 0x4500) // INIT
	a.Store(nativetest.LAPIC+0x310, 1<<24).Store(nativetest.LAPIC+0x300, 0x4608) // SIPI, 0x8000
	a.Label("wait").Load(0x2000).TestAL(1).Jz("wait").Print("B").PowerOff()
	g := start(t, a, func(s *engine.Spec) { s.CPUs = 2 })
	if end := g.ends(); end.Reason != engine.GuestOff {
		t.Errorf("end %+v", end)
	}
	if got := g.printed(); got != "AB" {
		t.Errorf("printed %q, want AB", got)
	}
}

// TestResetVector starts the other CPU in the last page below 1 MiB. It is full
// of zeros, which as instructions do no harm, up to the reset vector.
func TestResetVector(t *testing.T) {
	a := nativetest.New().Print("a")
	a.Store(nativetest.LAPIC+0xf0, 0x1ff)
	a.Store(nativetest.LAPIC+0x310, 1<<24).Store(nativetest.LAPIC+0x300, 0x4500) // INIT
	a.Store(nativetest.LAPIC+0x310, 1<<24).Store(nativetest.LAPIC+0x300, 0x46ff) // SIPI, 0xff000
	a.Label("x").Jmp("x")
	g := start(t, a, func(s *engine.Spec) { s.CPUs = 2 })
	g.until("two resets", func() bool { return g.resetCount() >= 2 })
	if got := g.printed(); !strings.HasPrefix(got, "aa") {
		t.Errorf("printed %q", got)
	}
}

func TestStartRefuses(t *testing.T) {
	f, _ := kvmFile(t)
	a := nativetest.New().Hlt()
	for what, change := range map[string]func(*engine.Spec){
		"cpus":    func(s *engine.Spec) { s.CPUs = 0 },
		"memory":  func(s *engine.Spec) { s.MemoryMiB = 0 },
		"kernel:": func(s *engine.Spec) { s.Kernel = nil },
		"disks":   func(s *engine.Spec) { s.Disks = make([]engine.Disk, MaxDevices+1) },
		"qcow2":   func(s *engine.Spec) { s.Disks = []engine.Disk{{Images: []engine.Image{{Format: "qcow2"}}}} },
		"nic/3":   func(s *engine.Spec) { s.NICs = []engine.NIC{{N: 3, MAC: make([]byte, 6)}} },
		"ELF":     func(s *engine.Spec) { s.Kernel = nativetest.File(t, []byte("\x7fELF but no more")) },
		"cmdline": func(s *engine.Spec) { s.Cmdline = strings.Repeat("x", 1<<17) },
		"initrd":  func(s *engine.Spec) { s.Initrd = nativetest.File(t, make([]byte, 4<<20)) },
	} {
		h := Host{KVM: f}
		s := &engine.Spec{CPUs: 1, MemoryMiB: 2, Kernel: a.Kernel(t), Screen: &strings.Builder{}}
		change(s)
		vm, err := Start(h, s, func(engine.Event) {})
		if err == nil {
			vm.Close()
			t.Errorf("%s: it started", what)
			continue
		}
		var e *ctl.Error
		if !errors.As(err, &e) || ctl.Errno(err) == 0 || ctl.Errno(err) == syscall.EPERM {
			t.Errorf("%s: %v is no error for a user", what, err)
		}
		t.Logf("%s: %v", what, err)
	}
}
