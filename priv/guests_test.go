package priv

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
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
