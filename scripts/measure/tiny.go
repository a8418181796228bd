package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/vmm"
	"vmfs/vmm/native/nativetest"
)

// The lines of a guest that is one instruction long: what a monitor costs. The
// guest process is made as the daemon makes it; on a machine whose KVM does not
// run ordinary kernels the daemon would not.

// tinyMiB is the guests' memory: no other mapping is as large.
const tinyMiB = 100

// tinyTime bounds one start.
const tinyTime = time.Minute

// microvm is the QEMU to compare with: no firmware but the few kilobytes of
// qboot, no ACPI, no device but the serial port.
var microvm = []string{
	"-M", "microvm,acpi=off,pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off",
	"-accel", "kvm", "-cpu", "host", "-m", strconv.Itoa(tinyMiB),
	"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
}

// A tiny is a guest that has run its first instruction.
type tiny struct {
	cmd   *exec.Cmd
	id    uint32 // the rest is of a guest process, not of QEMU
	dir   string // its own
	guest ctl.Guest
	seen  uint64        // of its console
	took  time.Duration // to that instruction
}

// end kills it and returns when it is gone.
func (t *tiny) end() {
	t.cmd.Process.Kill()
	t.cmd.Wait()
	if t.guest != nil {
		t.guest.Close()
	}
	if t.dir != "" {
		os.RemoveAll(t.dir)
	}
}

// ask has a guest process work once more, as each look at info does.
func (t *tiny) ask() error {
	if t.guest == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), tinyTime)
	defer cancel()
	if _, err := t.guest.State(ctx); err != nil {
		return err
	}
	_, err := t.guest.Usage(ctx)
	return err
}

// tinyKernel is the file of a kernel that begins with an exit and then stands
// still.
func (b *bench) tinyKernel() (string, error) {
	path := filepath.Join(b.dir, "tiny")
	image, err := nativetest.New().Print("x").Bytes(0xfa).Hlt().Image() // cli
	if err == nil {
		err = os.WriteFile(path, image, 0o644)
	}
	return path, err
}

// needKVM is the reason why there is nothing to measure, if there is none.
func needKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return skip{fmt.Sprintf("this machine has no KVM: %v", err)}
	}
	return f.Close()
}

// newTiny starts a guest process with the native engine that has heard of no
// machine yet.
func (b *bench) newTiny() (*tiny, error) {
	t := &tiny{id: b.guests.Add(1)}
	t.dir = filepath.Join(b.memDir, fmt.Sprintf("guest%d", t.id))
	if err := os.MkdirAll(t.dir+"/jail", 0o711); err != nil {
		return nil, err
	}
	var err error
	if t.cmd, err = b.spawn(t.dir, t.id); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), tinyTime)
	defer cancel()
	if t.guest, err = vmm.Dial(ctx, t.dir+"/sock", t.id, confine.GuestUID+t.id); err != nil {
		t.end()
		return nil, err
	}
	return t, nil
}

// launch is what core does then.
func (t *tiny) launch(l *ctl.Launch) error {
	ctx, cancel := context.WithTimeout(context.Background(), tinyTime)
	defer cancel()
	l.ID, l.Generation, l.Accel, l.Reason, l.Boot = t.id, 1, "native", "a measurement", "disk"
	if err := t.guest.Give(ctx, l); err != nil {
		return err
	}
	return t.guest.Go(ctx)
}

// Read reads from the guest's console, from where it was read last.
func (t *tiny) Read(p []byte) (int, error) {
	late := time.After(bootTimeout)
	for {
		changed := t.guest.Console().Changed()
		n, at := t.guest.Console().ReadAt(p, t.seen)
		if at != t.seen {
			return 0, errors.New("the guest prints faster than it is read")
		}
		t.seen += uint64(n)
		if n > 0 {
			return n, nil
		}
		select {
		case <-changed:
		case <-late:
			return 0, errors.New("native: the guest says nothing")
		}
	}
}

// fill reads all of p.
func (t *tiny) fill(p []byte) error {
	_, err := io.ReadFull(t, p)
	return err
}

// startNative starts a guest process with a kernel that prints, and waits for
// the first byte.
func (b *bench) startNative(kernel string) (*tiny, error) {
	begin := time.Now()
	t, err := b.newTiny()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(kernel)
	if err == nil {
		defer f.Close()
		err = t.launch(&ctl.Launch{Name: "tiny", CPUs: 1, MemoryMiB: tinyMiB, Kernel: f})
	}
	if err == nil {
		err = t.fill(make([]byte, 1))
	}
	if err != nil {
		t.end()
		return nil, err
	}
	t.took = time.Since(begin)
	return t, nil
}

// spawn is what priv does for a start.
func (b *bench) spawn(dir string, id uint32) (*exec.Cmd, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	socket := os.NewFile(uintptr(fd), "socket")
	defer socket.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: dir + "/sock"}); err != nil {
		return nil, err
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer kvm.Close()
	uid := uint64(confine.GuestUID + id)
	cmd := exec.Command(b.dir+"/vmfs-guest", "guest", strconv.FormatUint(uint64(id), 10), strconv.FormatUint(uid, 10),
		strconv.Itoa(os.Getuid()), "native", dir+"/jail")
	cmd.ExtraFiles = []*os.File{socket, kvm}
	cmd.Stderr, cmd.Env, cmd.Dir = os.Stderr, []string{}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS |
		syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	return cmd, cmd.Start()
}

// startMicrovm starts QEMU with the same kernel.
func startMicrovm(kernel string) (*tiny, error) {
	begin := time.Now()
	cmd := exec.Command("qemu-system-x86_64", append(microvm[:len(microvm):len(microvm)], "-kernel", kernel)...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	t := &tiny{cmd: cmd}
	timer := time.AfterFunc(tinyTime, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.end()
		return nil, fmt.Errorf("QEMU: the guest says nothing: %s", complaint.String())
	}
	t.took = time.Since(begin)
	return t, nil
}

// firstInstruction holds the start of a guest process, until the guest's first
// instruction is done, against QEMU's.
func (b *bench) firstInstruction() (line, error) {
	kernel, err := b.tinyKernel()
	if err == nil {
		err = needKVM()
	}
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, took(func() (*tiny, error) { return b.startNative(kernel) }),
		took(func() (*tiny, error) { return startMicrovm(kernel) }))
	l.what, l.aim = "start until the first instruction, to microvm", 0.4
	return l, err
}

// took gives the time of a start.
func took(start func() (*tiny, error)) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		t, err := start()
		if err != nil {
			return 0, err
		}
		t.end()
		return t.took, nil
	}
}

// burst is how long starts follow each other without a pause, so many at a time
// for each core: most of a start waits, for the kernel's namespaces and for what
// another process has to say.
const (
	burst  = 2 * time.Second
	atOnce = 3
)

// startsSustained starts tiny guests one after the other and ends each when it
// runs.
func (b *bench) startsSustained() (line, error) {
	kernel, err := b.tinyKernel()
	if err == nil {
		err = needKVM()
	}
	if err != nil {
		return line{}, err
	}
	l, err := compare((b.pairs+7)/8, sustained(func() (*tiny, error) { return b.startNative(kernel) }),
		sustained(func() (*tiny, error) { return startMicrovm(kernel) }))
	rate := func(d time.Duration) string { return fmt.Sprintf("%.1f /s", 1/d.Seconds()) }
	l.what = "starts sustained, a core, to microvm"
	l.ours, l.peer, l.ratio = rate(l.took[0]), rate(l.took[1]), 1/l.ratio
	l.aim, l.unit, l.least = 20, "/s", true
	return l, err
}

// sustained gives the time of a core that a start and its end take.
func sustained(start func() (*tiny, error)) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		cores := runtime.NumCPU()
		begin := time.Now()
		started := make(chan int)
		failed := make(chan error)
		for range atOnce * cores {
			go func() {
				n, err := startsFor(burst, start)
				started <- n
				failed <- err
			}()
		}
		n := 0
		var err error
		for range atOnce * cores {
			n += <-started
			err = errors.Join(err, <-failed)
		}
		return time.Since(begin) * time.Duration(cores) / time.Duration(max(n, 1)), err
	}
}

// startsFor is how many starts there were in a time.
func startsFor(d time.Duration, start func() (*tiny, error)) (n int, err error) {
	for begin := time.Now(); time.Since(begin) < d; n++ {
		t, err := start()
		if err != nil {
			return n, err
		}
		t.end()
	}
	return n, nil
}

// settled is when a guest that was started has let go of what only that took.
const settled = 3 * time.Second

// guestMemory is what is resident of a process with one guest, without the
// guest's memory, when it has been asked how it does.
func (b *bench) guestMemory() (line, error) {
	l, err := b.tinyMemory(1, "Rss:")
	l.what, l.aim = "guest process without its RAM, RSS, to microvm", 5
	return l, err
}

// guestMemoryShared is the share of each of ten, whose program is in memory
// once.
func (b *bench) guestMemoryShared() (line, error) {
	l, err := b.tinyMemory(10, "Pss:")
	l.what, l.aim = "the same, Pss of each of 10", 3
	return l, err
}

// tinyMemory compares n guests of each kind, one kind after the other.
func (b *bench) tinyMemory(n int, key string) (line, error) {
	kernel, err := b.tinyKernel()
	if err == nil {
		err = needKVM()
	}
	if err != nil {
		return line{}, err
	}
	ours, err := tinyKiB(n, key, func() (*tiny, error) { return b.startNative(kernel) })
	if err != nil {
		return line{}, err
	}
	peer, err := tinyKiB(n, key, func() (*tiny, error) { return startMicrovm(kernel) })
	mib := func(kib float64) string { return fmt.Sprintf("%.2f MiB", kib/1024) }
	return line{ours: mib(ours), peer: mib(peer), ratio: ours / peer, unit: "MiB"}, err
}

// tinyKiB is the mean of n guests that run at the same time.
func tinyKiB(n int, key string, start func() (*tiny, error)) (float64, error) {
	var all []*tiny
	for range n {
		t, err := start()
		if err != nil {
			return 0, err
		}
		defer t.end()
		all = append(all, t)
	}
	time.Sleep(settled)
	sum := 0
	for _, t := range all {
		if err := t.ask(); err != nil {
			return 0, err
		}
	}
	for _, t := range all {
		kib, err := withoutRAM(t.cmd.Process.Pid, key)
		if err != nil {
			return 0, err
		}
		sum += kib
	}
	return float64(sum) / float64(n), nil
}

// withoutRAM sums up a line of a process's smaps over all mappings but the
// guest's memory, in KiB.
func withoutRAM(pid int, key string) (sum int, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	ram, found := false, false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.Atoi(fields[1])
		switch fields[0] {
		case "Size:":
			ram = kib == tinyMiB<<10
			found = found || ram
		case key:
			if !ram {
				sum += kib
			}
		}
	}
	if !found {
		return 0, fmt.Errorf("process %d: no mapping of %d MiB", pid, tinyMiB)
	}
	return sum, nil
}
