package native

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"vmfs/vmm/engine"
	"vmfs/vmm/native/nativetest"
)

// linuxTime is what a guest gets for anything on an emulated host.
const linuxTime = 8 * time.Minute

const prompt = "guest# "

// linux boots the tests' guest (scripts/guest) from the files that
// VMFS_TEST_KERNEL and VMFS_TEST_INITRD name, up to its shell.
func linux(t *testing.T, change func(*engine.Spec)) *guest {
	t.Helper()
	kernel, initrd := os.Getenv("VMFS_TEST_KERNEL"), os.Getenv("VMFS_TEST_INITRD")
	if kernel == "" {
		t.Skip("SKIPPED: VMFS_TEST_KERNEL names no kernel; in scripts/testbed it does")
	}
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		t.Skip("SKIPPED: kvm_pvm is here, which emulates what an ordinary userland executes; scripts/testbed has an ordinary KVM")
	}
	g := start(t, nativetest.New(), func(s *engine.Spec) {
		s.MemoryMiB = 192
		s.Cmdline = "console=ttyS0 quiet panic=-1"
		for name, slot := range map[string]**os.File{kernel: &s.Kernel, initrd: &s.Initrd} {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			*slot = f
		}
		change(s)
	})
	g.expect(prompt)
	return g
}

// expect waits until the guest has printed text, and forgets what came up to
// there.
func (g *guest) expect(text string) string {
	g.t.Helper()
	for end := time.Now().Add(linuxTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		g.mu.Lock()
		all := g.out.String()
		before, after, ok := strings.Cut(all, text)
		if ok {
			g.out.Reset()
			g.out.WriteString(after)
		}
		g.mu.Unlock()
		if ok {
			return before
		}
		select {
		case <-g.Done():
			g.t.Fatalf("it ended: %+v\n%s", g.End(), all)
		default:
		}
	}
	g.t.Fatalf("no %q within %v, with %d resets and exits %+v, but\n%s", text, linuxTime, g.resetCount(), g.Exits(), g.printed())
	return ""
}

// shell runs a line in the guest and returns what it printed.
func (g *guest) shell(line string) string {
	g.t.Helper()
	if _, err := g.Input().Write([]byte(line + "\n")); err != nil {
		g.t.Fatal(err)
	}
	g.expect("\n") // the echo
	return strings.ReplaceAll(g.expect(prompt), "\r", "")
}

// A stock kernel finds its disks, its CPUs and its buttons in ACPI's tables,
// reads what the host wrote and writes what the host reads.
func TestLinux(t *testing.T) {
	random := make([]byte, 4<<20)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(random)
	from, to := nativetest.File(t, random), nativetest.File(t, make([]byte, len(random)))
	g := linux(t, func(s *engine.Spec) {
		s.Disks = []engine.Disk{
			{N: 0, ReadOnly: true, Images: []engine.Image{{File: from, Format: "raw"}}},
			{N: 1, Images: []engine.Image{{File: to, Format: "raw"}}},
		}
	})
	want := fmt.Sprintf("%x", sha256.Sum256(random))
	if got := g.shell("sha256sum </dev/vda"); !strings.Contains(got, want) {
		t.Errorf("vda has %s, want %s", got, want)
	}
	if got := g.shell("echo x >/dev/vda || echo refused"); !strings.Contains(got, "refused") {
		t.Errorf("a read-only disk: %s", got)
	}
	g.shell("dd if=/dev/vda of=/dev/vdb bs=256k conv=fsync")
	got := make([]byte, len(random))
	if _, err := to.ReadAt(got, 0); err != nil || sha256.Sum256(got) != sha256.Sum256(random) {
		t.Errorf("what the guest wrote differs (%v)", err)
	}
	t.Log(g.shell("cat /proc/interrupts; dmesg | tail -n 5"))
	g.Input().Write([]byte("reboot -f\n"))
	g.expect(prompt)
	if n := g.resetCount(); n != 1 {
		t.Errorf("%d resets, want 1", n)
	}
	g.PowerButton(t.Context())
	g.endsIn(linuxTime, engine.GuestOff)
	t.Logf("exits %+v", g.Exits())
}

// Two CPUs, and memory on both sides of the hole.
func TestLinuxLarge(t *testing.T) {
	g := linux(t, func(s *engine.Spec) { s.CPUs, s.MemoryMiB = 2, 3<<10+256 })
	if got := g.shell("nproc"); got != "2\n" {
		t.Errorf("nproc: %q", got)
	}
	if got := g.shell("grep System.RAM /proc/iomem"); !strings.Contains(got, "100000000-10fffffff : System RAM") {
		t.Errorf("iomem: %s", got)
	}
	g.Pause(t.Context())
	time.Sleep(100 * time.Millisecond)
	g.Continue(t.Context())
	g.CtrlAltDel(t.Context())
	g.expect(prompt)
	if n := g.resetCount(); n != 1 {
		t.Errorf("%d resets, want 1", n)
	}
	g.Input().Write([]byte("poweroff -f\n"))
	g.endsIn(linuxTime, engine.GuestOff)
}

func (g *guest) endsIn(limit time.Duration, want engine.Reason) {
	g.t.Helper()
	select {
	case <-g.Done():
	case <-time.After(limit):
		g.t.Fatalf("no end after %v; printed %s", limit, g.printed())
	}
	if end := g.End(); end.Reason != want {
		g.t.Errorf("end %+v, want reason %d", end, want)
	}
}
