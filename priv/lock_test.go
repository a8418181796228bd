package priv

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestLockNamesItsHolder(t *testing.T) {
	run := t.TempDir()
	l, err := takeLock(run)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeLock(run); err == nil || !strings.Contains(err.Error(), "already served by process ") {
		t.Errorf("a second lock: %v", err)
	}
	l.release()
	if l, err = takeLock(run); err != nil {
		t.Fatal(err)
	}
	l.release()
	if _, err := os.Stat(run + "/lock"); !os.IsNotExist(err) {
		t.Errorf("the lock's file after its release: %v", err)
	}
}

// A daemon that is killed while it makes a child leaves its lock with the
// child, for a moment.
func TestLockOfADeadDaemon(t *testing.T) {
	run := t.TempDir()
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	held, err := takeLock(run)
	if err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(gone.Process.Pid) + "\n"
	if err := held.f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := held.f.WriteAt([]byte(pid), 0); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { unix.Flock(int(held.f.Fd()), unix.LOCK_UN) })
	l, err := takeLock(run)
	if err != nil {
		t.Fatalf("the lock of a dead daemon: %v", err)
	}
	l.release()
}
