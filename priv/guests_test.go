package priv

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/priv/cgroup"
)

// A guest goes without a cgroup where none can be born in one, and not where
// there is no more room in it.
func TestGuestsFull(t *testing.T) {
	for errno, want := range map[syscall.Errno]bool{
		syscall.EAGAIN: true, syscall.ENOMEM: true,
		syscall.EACCES: false, syscall.EBUSY: false, syscall.EOPNOTSUPP: false, syscall.ENOSYS: false,
	} {
		if got := full(&os.PathError{Op: "fork/exec", Path: "vmfs", Err: errno}); got != want { // as exec says it
			t.Errorf("%v: %v, want %v", errno, got, want)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(null.Fd())}
	if err := cmd.Start(); err == nil || full(err) || cmd.Process != nil {
		t.Errorf("born in what is no cgroup: %v, %v", cmd.Process, err)
	}
}

// TestGuestsMany holds that there are no more guests than may be, whatever core
// asks for, and that those that have ended do not count.
func TestGuestsMany(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to be no ordinary daemon")
	}
	run := t.TempDir()
	g := newGuests(run, 0, nil)
	g.most = 2
	for _, dir := range []string{g.dir, g.records.dir} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Run: run, Cgroup: "/nowhere"}
	g.cgroups = cgroup.Open(o.cgroup(g.records.dir))
	spawn := func() error {
		_, err := g.spawn(ctl.Process{ID: 9, Accel: "tcg", CPUs: 1, MemoryMiB: maxMemory})
		return err
	}
	var running []*exec.Cmd
	for id := range uint32(2) {
		if err := g.room(); err != nil {
			t.Errorf("with %d guests: %v", id, err)
		}
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		r, err := recordOf(cmd.Process.Pid, 0)
		if err == nil {
			err = g.records.write(guestRecord(1+id), r)
		}
		if err != nil {
			t.Fatal(err)
		}
		running = append(running, cmd)
	}
	if err := spawn(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "spawn guest 9: 2 guests run, and no more are started") {
		t.Errorf("a third: %v, want ENOSPC", err)
	}
	running[0].Process.Kill()
	running[0].Wait()
	if err := g.room(); err != nil {
		t.Errorf("after the end of one: %v", err)
	}
}
