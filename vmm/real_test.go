package vmm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// bootTime is what a guest gets to come up, on a slow and busy host.
const bootTime = 60 * time.Second

// prompt is its shell's.
const prompt = "guest# "

// up starts a machine and returns it with its screen at the shell.
func up(t *testing.T, change func(*ctl.Launch)) (*process, ctl.Guest, *screen) {
	t.Helper()
	needHost(t)
	p := spawn(t, "tcg")
	g := p.dial()
	l := linux(t, p, 1)
	if change != nil {
		change(l)
	}
	begin(t, g, l)
	s := &screen{t: t, c: g.Console()}
	s.expect(prompt, bootTime)
	return p, g, s
}

func begin(t *testing.T, g ctl.Guest, l *ctl.Launch) {
	t.Helper()
	if err := g.Give(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	if err := g.Go(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// typed runs a shell line in the guest.
func typed(t *testing.T, g ctl.Guest, line string) {
	t.Helper()
	if err := g.Input(t.Context(), []byte(line+"\n")); err != nil {
		t.Fatal(err)
	}
}

func wantExit(t *testing.T, s ctl.GuestState, failed bool, who, how string, restart bool) {
	t.Helper()
	if s.Exit == nil {
		t.Fatal("no exit record")
	}
	e := *s.Exit
	if e.Failed != failed || e.Who != who || e.How != how || e.Restart != restart {
		t.Errorf("exit %+v, want failed %v, who %q, how %q, restart %v", e, failed, who, how, restart)
	}
	if ago := time.Since(e.At); ago < 0 || ago > time.Minute {
		t.Errorf("the end was %v ago", ago)
	}
}

// A machine's life: typed at, paused, rebooted from within, powered off.
func TestLife(t *testing.T) {
	p, g, s := up(t, says(`x=a,b,,"c d" -sandbox off`))
	typed(t, g, "cat /proc/cmdline; echo answer $((6*7))")
	s.expect(`quiet panic=-1 x=a,b,,"c d" -sandbox off`+"\r\nanswer 42", bootTime)

	st := awaitState(t, g, "running", soon)
	if st.Generation != 7 || st.Name != "test" || st.Reason != "a test" || !strings.HasPrefix(st.Engine, "qemu ") || time.Since(st.Started) > bootTime {
		t.Errorf("state %+v", st)
	}
	u, err := g.Usage(t.Context())
	if err != nil || u.CPU < 100*time.Millisecond || u.Overhead < 10<<20 || u.Overhead > 200<<20 {
		t.Errorf("usage %+v, %v", u, err)
	}

	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, g, "paused", soon)
	if err := g.Pause(t.Context()); err != nil {
		t.Errorf("a second pause: %v", err)
	}
	end := s.c.End()
	typed(t, g, "echo l''ate")
	time.Sleep(300 * time.Millisecond)
	if got := s.c.End(); got != end {
		t.Errorf("a paused guest printed %d bytes", got-end)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, g, "running", soon)
	s.expect("late", bootTime)

	typed(t, g, "reboot -f")
	s.expect("Restarting system", bootTime)
	s.expect(prompt, bootTime)
	if st := awaitState(t, g, "running", soon); st.Reboots != 1 {
		t.Errorf("reboots %d, want 1", st.Reboots)
	}
	if !strings.Contains(s.all, "answer 42") {
		t.Error("the console lost what was before the reboot")
	}

	typed(t, g, "poweroff -f")
	st = awaitState(t, g, "ended", bootTime)
	wantExit(t, st, false, "guest", "power-off", false)
	if after, err := g.Usage(t.Context()); err != nil || after.CPU < u.CPU {
		t.Errorf("usage after the end %+v, %v", after, err)
	}
	wantErrno(t, "input after the end", g.Input(t.Context(), []byte("x")), syscall.EPIPE)
	wantErrno(t, "pause after the end", g.Pause(t.Context()), syscall.EINVAL)
	if err := g.Kill(t.Context(), "root", "kill", true); err != nil {
		t.Errorf("kill after the end: %v", err)
	}
	if err := g.Forget(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.gone(5 * time.Second)
	buf := make([]byte, 1<<20)
	if n, _ := g.Console().ReadAt(buf, 0); !bytes.Contains(buf[:n], []byte(prompt)) {
		t.Error("the console is gone with the process")
	}
	for range g.Notices() {
	}
	_, err = g.State(t.Context())
	wantErrno(t, "state after the process", err, syscall.EPIPE)
}

func TestCPUs(t *testing.T) {
	for _, n := range []int{2, 8} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			_, g, s := up(t, func(l *ctl.Launch) { l.CPUs = n })
			typed(t, g, "echo cpus $(grep -c ^processor /proc/cpuinfo)")
			s.expect(fmt.Sprintf("cpus %d\r\n", n), bootTime)
			if err := g.Kill(t.Context(), "somebody", "kill", false); err != nil {
				t.Fatal(err)
			}
			wantExit(t, awaitState(t, g, "ended", soon), false, "somebody", "kill", false)
		})
	}
}

// The reset button begins again without being the guest's reboot, and leaves
// a paused machine paused.
func TestReset(t *testing.T) {
	_, g, s := up(t, nil)
	if err := g.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.expect(prompt, bootTime)
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	st := awaitState(t, g, "paused", soon)
	if st.Reboots != 0 {
		t.Errorf("reboots %d, want 0", st.Reboots)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.expect(prompt, bootTime)
}

// A guest that knows no power button is asked again with three keys, which
// make its kernel begin again: that is the end. It is paused when the stop
// comes.
func TestStopByKeys(t *testing.T) {
	_, g, _ := up(t, says("nobutton"))
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.Stop(t.Context(), 30*time.Second, "alice", true); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "pause of a stopping one", g.Pause(t.Context()), syscall.EINVAL)
	wantErrno(t, "reset of a stopping one", g.Reset(t.Context()), syscall.EINVAL)
	wantExit(t, awaitState(t, g, "ended", soon), false, "alice", "stop", true)
}

// says adds a word for the guest's init.
func says(word string) func(*ctl.Launch) {
	return func(l *ctl.Launch) { l.Cmdline += " " + word }
}

// A guest that knows the power button is asked once.
func TestStopByButton(t *testing.T) {
	_, g, s := up(t, nil)
	if err := g.Stop(t.Context(), 60*time.Second, "alice", false); err != nil {
		t.Fatal(err)
	}
	wantExit(t, awaitState(t, g, "ended", soon), false, "alice", "stop", false)
	s.expect("power button", soon)
}

// A guest that does not listen is killed at the deadline, which a second stop
// moves forward, and a third one does not move back.
func TestStopByForce(t *testing.T) {
	_, g, _ := up(t, says("deaf"))
	began := time.Now()
	for _, seconds := range []time.Duration{60, 2, 90} {
		if err := g.Stop(t.Context(), seconds*time.Second, "bob", false); err != nil {
			t.Fatal(err)
		}
	}
	awaitState(t, g, "stopping", soon)
	wantExit(t, awaitState(t, g, "ended", soon), false, "bob", "stop: no answer in 2 s, killed", false)
	if took := time.Since(began); took < 2*time.Second || took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A kernel that panics and was told to begin again does.
func TestPanic(t *testing.T) {
	_, g, s := up(t, nil)
	typed(t, g, "echo c > /proc/sysrq-trigger")
	s.expect("Kernel panic", bootTime)
	s.expect(prompt, bootTime)
	if st := awaitState(t, g, "running", soon); st.Reboots != 1 {
		t.Errorf("reboots %d, want 1", st.Reboots)
	}
}

// boot sector: prints its letter on the serial line for ever.
func bootSector(letter byte) []byte {
	b := make([]byte, 512)
	copy(b, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, letter, //     mov al, letter
		0xee,       //       out dx, al
		0xeb, 0xfd, //       jmp to the out
	})
	b[510], b[511] = 0x55, 0xaa
	return b
}

// bootCD is the least CD that a BIOS boots, without emulation.
func bootCD(letter byte) []byte {
	const sector = 2048
	b := make([]byte, 21*sector)
	volume := func(n int, kind byte) []byte {
		s := b[n*sector : (n+1)*sector]
		s[0], s[6] = kind, 1
		copy(s[1:], "CD001")
		return s
	}
	volume(16, 1)
	record := volume(17, 0)
	copy(record[7:], "EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(record[0x47:], 19)
	volume(18, 255)
	catalog := b[19*sector:]
	catalog[0], catalog[30], catalog[31] = 1, 0x55, 0xaa
	binary.LittleEndian.PutUint16(catalog[28:], 0x55aa) // the sum of the words is 0: 1 + 0x55aa + 0xaa55
	entry := catalog[32:]
	entry[0] = 0x88                             // bootable
	binary.LittleEndian.PutUint16(entry[6:], 4) // of 512 bytes
	binary.LittleEndian.PutUint32(entry[8:], 20)
	copy(b[20*sector:], bootSector(letter))
	return b
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The BIOS boots from the drive that boot names, and from the next if that
// does not boot; and an image of a BIOS that is given is the one that runs.
func TestBIOS(t *testing.T) {
	needHost(t)
	disk := write(t, "disk", append(bootSector('D'), make([]byte, 1<<20)...))
	blank := write(t, "blank", make([]byte, 1<<20))
	cd := write(t, "cd", bootCD('C'))
	for _, tc := range []struct{ boot, disk, cd, want string }{
		{"disk", disk, cd, "DDDD"},
		{"cdrom", disk, cd, "CCCC"},
		{"disk", blank, cd, "CCCC"},
		{"net", disk, "", "DDDD"},
		{"disk", "", "", "No bootable device"},
	} {
		t.Run(tc.boot+" "+filepath.Base(tc.disk)+" "+filepath.Base(tc.cd), func(t *testing.T) {
			p := spawn(t, "tcg")
			g := p.dial()
			l := &ctl.Launch{ID: p.id, Generation: 1, Name: "bios", Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: tc.boot}
			l.Firmware = open(t, firmware(t), os.O_RDONLY)
			if tc.disk != "" {
				l.Disks = []ctl.LaunchDisk{{N: 0, Images: ctl.Opened{{File: open(t, tc.disk, os.O_RDWR), Format: "raw"}}}}
			}
			if tc.cd != "" {
				l.Cdrom = open(t, tc.cd, os.O_RDONLY)
			}
			begin(t, g, l)
			(&screen{t: t, c: g.Console()}).expect(tc.want, bootTime)
			g.Kill(t.Context(), "test", "kill", false)
		})
	}
}

func firmware(t *testing.T) string {
	t.Helper()
	for _, f := range []string{"/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"} {
		if _, err := os.Stat(f); err == nil {
			return f
		}
	}
	t.Skip("skipping: no SeaBIOS image (package seabios)")
	return ""
}

// diskProgram is a boot sector that copies itself to the second sector of its
// disk, tries the same with the next disk, says W or R (for read-only) on the
// serial line, and then what the next disk begins with.
func diskProgram() []byte {
	b := make([]byte, 512)
	copy(b, []byte{
		0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, //       ds = es = 0
		0xbb, 0x00, 0x7c, 0xb9, 0x02, 0x00, //       from 0x7c00 to sector 2
		0xba, 0x80, 0x00, 0xb8, 0x01, 0x03, 0xcd, 0x13, // write to the first disk
		0xba, 0x81, 0x00, 0xb8, 0x01, 0x03, 0xcd, 0x13, // write to the second
		0xb0, 'R', 0x72, 0x02, 0xb0, 'W', //         R if that failed, else W
		0xba, 0xf8, 0x03, 0xee, //                   say it
		0xbb, 0x00, 0x7e, 0xb9, 0x01, 0x00, //       to 0x7e00 from sector 1
		0xba, 0x81, 0x00, 0xb8, 0x01, 0x02, 0xcd, 0x13, // read from the second
		0xbe, 0x00, 0x7e, 0xb9, 0x04, 0x00, //       4 bytes of it
		0xba, 0xf8, 0x03, 0xac, 0xee, 0xe2, 0xfc, // say them
		0xf4, 0xeb, 0xfd, //                         and rest
	})
	b[510], b[511] = 0x55, 0xaa
	return b
}

// Disks come in the order of their numbers; what is written is in the file,
// and a read-only one cannot be.
func TestDisks(t *testing.T) {
	needHost(t)
	one := write(t, "one", append(diskProgram(), make([]byte, 1<<20)...))
	two := write(t, "two", bytes.Repeat([]byte("two."), 1<<18))
	p := spawn(t, "tcg")
	g := p.dial()
	begin(t, g, &ctl.Launch{
		ID: p.id, Generation: 1, Name: "disks", Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: "disk",
		Disks: []ctl.LaunchDisk{
			{N: 1, Images: ctl.Opened{{File: open(t, one, os.O_RDWR), Format: "raw"}}},
			{N: 5, ReadOnly: true, Images: ctl.Opened{{File: open(t, two, os.O_RDONLY), Format: "raw"}}},
		},
	})
	(&screen{t: t, c: g.Console()}).expect("Rtwo.", bootTime)
	got, err := os.ReadFile(one)
	if err != nil || !bytes.Equal(got[512:1024], diskProgram()) {
		t.Errorf("the second sector begins with %.8q, %v", got[512:], err)
	}
}

// The largest machine starts, too.
func TestAllThereIs(t *testing.T) {
	needHost(t)
	p := spawn(t, "tcg")
	g := p.dial()
	l := &ctl.Launch{ID: p.id, Generation: 1, Name: "all", Accel: "tcg", CPUs: 64, MemoryMiB: 512, Boot: "disk"}
	l.Cdrom = open(t, write(t, "cd", bootCD('C')), os.O_RDONLY)
	for n := range maxDisks {
		disk := write(t, "disk", append(bootSector(byte('A'+n)), make([]byte, 1<<20)...))
		l.Disks = append(l.Disks, ctl.LaunchDisk{N: n, Images: ctl.Opened{{File: open(t, disk, os.O_RDWR), Format: "raw"}}})
	}
	n := newNetwork(t)
	for i := range ctl.MaxNICs {
		l.NICs = append(l.NICs, ctl.LaunchNIC{N: i, MAC: testMAC(i), Tap: n.tap(fmt.Sprintf("tap%d", i), tapFlags)})
	}
	begin(t, g, l)
	(&screen{t: t, c: g.Console()}).expect("AAAA", bootTime)
	if err := g.Kill(t.Context(), "test", "kill", false); err != nil {
		t.Fatal(err)
	}
	awaitState(t, g, "ended", soon)
}

// What one machine has nobody else can take, until its QEMU is gone; a QEMU
// by hand counts as somebody else.
func TestLocks(t *testing.T) {
	needHost(t)
	image, base := write(t, "image", make([]byte, 1<<20)), write(t, "base", make([]byte, 1<<20))
	start := func(p *process) (ctl.Guest, error) {
		g := p.dial()
		ro, rw := open(t, base, os.O_RDONLY), open(t, image, os.O_RDWR)
		defer ro.Close() // as core does: a lock is as long as any copy
		defer rw.Close()
		return g, g.Give(t.Context(), &ctl.Launch{ID: p.id, Generation: 1, Name: "locks", Accel: "tcg", CPUs: 1, MemoryMiB: 32, Boot: "disk",
			Disks: []ctl.LaunchDisk{
				{N: 0, ReadOnly: true, Images: ctl.Opened{{File: ro, Format: "raw"}}},
				{N: 1, Images: ctl.Opened{{File: rw, Format: "raw"}}},
			}})
	}
	g, err := start(spawn(t, "tcg"))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Go(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = start(spawn(t, "tcg"))
	if wantErrno(t, "a second machine", err, syscall.EBUSY); err != nil && err.Error() != "disk/1: locked" {
		t.Errorf("a second machine: %v", err)
	}
	for _, tc := range []struct {
		path     string
		readOnly bool
		ok       bool
	}{{image, false, false}, {image, true, false}, {base, false, false}, {base, true, true}} {
		if err := byHand(t, tc.path, tc.readOnly); (err == nil) != tc.ok {
			t.Errorf("a QEMU by hand on %s, read-only %v: %v", filepath.Base(tc.path), tc.readOnly, err)
		}
	}
	if err := g.Kill(t.Context(), "test", "kill", false); err != nil {
		t.Fatal(err)
	}
	if _, err := start(spawn(t, "tcg")); err != nil {
		t.Errorf("after the end of the first: %v", err)
	}
}

// byHand runs a QEMU with its own locks on an image, until it listens.
func byHand(t *testing.T, path string, readOnly bool) error {
	t.Helper()
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-machine", "q35", "-qmp", "stdio",
		"-blockdev", fmt.Sprintf(`{"driver":"file","node-name":"d","filename":%q,"read-only":%v,"locking":"on"}`, path, readOnly),
		"-device", "virtio-blk-pci,drive=d")
	cmd.Stdin = strings.NewReader(`{"execute":"qmp_capabilities"}{"execute":"quit"}`)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %s", err, out)
	}
	return nil
}

// A QEMU by hand that writes keeps us out, and so does one that reads.
func TestLockedByHand(t *testing.T) {
	needHost(t)
	image := write(t, "image", make([]byte, 1<<20))
	for _, readOnly := range []bool{true, false} {
		cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-machine", "q35", "-qmp", "stdio",
			"-blockdev", fmt.Sprintf(`{"driver":"file","node-name":"d","filename":%q,"read-only":%v,"locking":"on"}`, image, readOnly),
			"-device", "virtio-blk-pci,drive=d")
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It answers when its disks are there.
		fmt.Fprintln(in, `{"execute":"qmp_capabilities"}`)
		answers := bufio.NewScanner(out)
		answers.Scan()
		answers.Scan()

		f := open(t, image, os.O_RDWR)
		wantErrno(t, fmt.Sprintf("to write, beside one of read-only %v", readOnly), lock(f, "disk/0", true), syscall.EBUSY)
		f.Close()
		f = open(t, image, os.O_RDONLY)
		err := lock(f, "disk/0", false)
		f.Close()
		if readOnly && err != nil {
			t.Errorf("to read, beside a reader: %v", err)
		}
		if !readOnly {
			wantErrno(t, "to read, beside a writer", err, syscall.EBUSY)
		}
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// What a guest process does when it is left, and what it refuses.
func TestPeers(t *testing.T) {
	needHost(t)
	t.Run("nobody comes", func(t *testing.T) {
		p := spawn(t, "tcg")
		began := time.Now()
		p.gone(firstPeerTime + 5*time.Second)
		if took := time.Since(began); took < firstPeerTime-time.Second {
			t.Errorf("it waited %v", took)
		}
	})
	t.Run("left before go", func(t *testing.T) {
		p := spawn(t, "tcg")
		g := p.dial()
		if err := g.Give(t.Context(), linux(t, p, 1)); err != nil {
			t.Fatal(err)
		}
		g.Close()
		p.gone(2 * time.Second)
	})
	t.Run("replaced", func(t *testing.T) {
		p, first, _ := up(t, says("deaf"))
		second := p.dial()
		for range first.Notices() {
		}
		_, err := first.State(t.Context())
		wantErrno(t, "the first peer", err, syscall.EPIPE)
		s2 := &screen{t: t, c: second.Console()}
		s2.expect(prompt, soon)
		typed(t, second, "echo be''tween")
		s2.expect("between", bootTime)
		second.Close()
		time.Sleep(50 * time.Millisecond)
		third := p.dial()
		awaitState(t, third, "running", soon)
		if err := third.Stop(t.Context(), 3*time.Second, "late", false); err != nil {
			t.Fatal(err)
		}
		third.Close() // nobody is there when it ends
		time.Sleep(5 * time.Second)
		wantExit(t, awaitState(t, p.dial(), "ended", soon), false, "late", "stop: no answer in 3 s, killed", false)
	})
	t.Run("not core", func(t *testing.T) {
		p := spawn(t, "tcg")
		c := p.rawDial() // root may, but says nothing that makes sense
		c.Write([]byte("\x00\xff"))
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			if n, err := c.Read(make([]byte, 100)); n == 0 || err != nil {
				break
			}
		}
		p.dial()
	})
}

// A process that was killed takes its QEMU with it, and core hears of it.
func TestKilledProcess(t *testing.T) {
	p, g, _ := up(t, nil)
	qemu := childOf(t, p.cmd.Process.Pid)
	p.cmd.Process.Kill()
	p.gone(5 * time.Second)
	for range g.Notices() {
	}
	if err := unix.Kill(qemu, 0); err == nil {
		t.Errorf("QEMU (pid %d) lives on", qemu)
	}
}

// A QEMU that ends by itself is a failure, and its reason is kept.
func TestKilledQEMU(t *testing.T) {
	p, g, _ := up(t, nil)
	unix.Kill(childOf(t, p.cmd.Process.Pid), unix.SIGSEGV)
	wantExit(t, awaitState(t, g, "ended", soon), true, "host", "qemu exited: signal: segmentation fault", false)
}

// SIGTERM to the process is a stop.
func TestTerm(t *testing.T) {
	p, g, _ := up(t, nil)
	p.cmd.Process.Signal(unix.SIGTERM)
	wantExit(t, awaitState(t, g, "ended", soon), false, "host", "stop", false)
}

func childOf(t *testing.T, pid int) int {
	t.Helper()
	out, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	var child int
	if n, _ := fmt.Sscan(string(out), &child); n == 1 {
		return child
	}
	// The child is whichever thread's that started it.
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		out, _ := os.ReadFile(f)
		if n, _ := fmt.Sscan(string(out), &child); n == 1 {
			return child
		}
	}
	t.Fatal("no child")
	return 0
}

// What cannot start says why, at once, and is an end.
func TestNoStart(t *testing.T) {
	needHost(t)
	junk := write(t, "junk", []byte("this is no kernel"))
	for _, tc := range []struct {
		name   string
		change func(*ctl.Launch)
		errno  syscall.Errno
		words  string
	}{
		{"no kernel image", func(l *ctl.Launch) { l.Kernel = open(t, junk, os.O_RDONLY) }, syscall.EINVAL, "kernel"},
		{"more memory than there is", func(l *ctl.Launch) { l.MemoryMiB = 15 << 20 }, syscall.ENOMEM, "memory"},
		{"a bad firmware", func(l *ctl.Launch) { l.Kernel, l.Firmware = nil, open(t, junk, os.O_RDONLY) }, syscall.EINVAL, "PC"},
		{"a qcow2 that is none", func(l *ctl.Launch) {
			l.Disks = []ctl.LaunchDisk{{N: 0, Images: ctl.Opened{{File: open(t, junk, os.O_RDWR), Format: "qcow2"}}}}
		}, syscall.EINVAL, "qcow2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := spawn(t, "tcg")
			g := p.dial()
			l := &ctl.Launch{ID: p.id, Generation: 1, Name: "no", Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: "disk"}
			tc.change(l)
			if err := g.Give(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			err := g.Go(t.Context())
			wantErrno(t, "go", err, tc.errno)
			t.Log(err, time.Since(began))
			if err != nil && !strings.Contains(err.Error(), tc.words) {
				t.Errorf("%q does not speak of %q", err, tc.words)
			}
			st := awaitState(t, g, "ended", soon)
			wantExit(t, st, true, "host", err.Error(), false)
			wantErrno(t, "a second go", g.Go(t.Context()), syscall.EEXIST)
			if err := g.Forget(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.gone(5 * time.Second)
		})
	}
}

// KVM, where there is one: the node in the jail works for the guest's uid.
func TestKVM(t *testing.T) {
	needHost(t)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("skipping: no /dev/kvm here")
	}
	p := spawn(t, "kvm")
	g := p.dial()
	l := linux(t, p, 1)
	l.Accel = "kvm"
	begin(t, g, l)
	st := awaitState(t, g, "running", soon)
	if !strings.HasSuffix(st.Engine, " kvm") {
		t.Errorf("engine %q, want kvm", st.Engine)
	}
	if _, err := os.Stat("/sys/module/kvm_pvm"); err != nil {
		(&screen{t: t, c: g.Console()}).expect(prompt, bootTime)
	}
	if err := g.Kill(t.Context(), "test", "kill", false); err != nil {
		t.Fatal(err)
	}
}
