package fstest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What holds over the time that a file is open.

// Requester is rule 3 of an open file: who opened it is who asks, whoever
// writes to it later.
func Requester(t *testing.T, dir string) {
	needRoot(t)
	const bob = 52002
	vm := machine(t, dir)
	if err := os.Chmod(vm+"/ctl", 0o666); err != nil {
		t.Fatal(err)
	}
	ctl := openAs(t, bob, vm+"/ctl")
	defer ctl.Close()
	fails(t, "remove by root on another's file", send(ctl, "remove\n"), syscall.EPERM, syscall.EACCES)
	if err := send(ctl, "kill\n"); err != nil {
		t.Errorf("kill by root on another's file: %v", err)
	}

	cpus := openWrite(t, vm+"/cpus")
	defer cpus.Close()
	cmd := exec.Command("/bin/sh", "-c", "echo 2 >&3")
	cmd.ExtraFiles = []*os.File{cpus}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: bob, Gid: bob}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a write of another to root's file: %v %s", err, out)
	}
	if log := read(t, vm+"/events.log"); !strings.HasSuffix(log, " config root cpus\n") {
		t.Errorf("the change is not root's: %s", log)
	}
}

// openAs opens a file for writing with the rights of another user.
func openAs(t *testing.T, uid int, path string) *os.File {
	t.Helper()
	runtime.LockOSThread() // until it is root's again; a locked thread ends with its goroutine
	if err := unix.Setfsuid(uid); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if back := unix.Setfsuid(os.Geteuid()); back != nil {
		t.Fatal(back)
	}
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Interrupts is rule 4: an interrupted read has taken nothing. Events and
// signals come at the same time; what the reads give is every event once.
func Interrupts(t *testing.T, dir string) {
	vm := machine(t, dir)
	fd, err := Insist(func() (int, error) { return syscall.Open(live(vm)+"/events", syscall.O_RDONLY|syscall.O_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	before := read(t, vm+"/events.log")
	const rounds = 20
	texts, interrupted := make(chan string), 0
	go gather(fd, rounds, texts, &interrupted)
	for i := range rounds {
		time.Sleep(5 * time.Millisecond)
		set(t, vm+"/cpus", []string{"2", "3"}[i%2])
	}
	var got string
	select {
	case got = <-texts:
	case <-time.After(time.Minute):
		t.Fatal("the events did not all come within a minute")
	}
	if want := strings.TrimPrefix(read(t, vm+"/events.log"), before); got != want {
		t.Errorf("the reads gave:\n%swant:\n%s", got, want)
	}
	if interrupted == 0 {
		t.Error("no read was interrupted")
	}
}

// gather reads n lines while signals hit it: of those that Go programs take
// for nothing.
func gather(fd, n int, texts chan<- string, interrupted *int) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid, done := unix.Gettid(), make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
			}
		}
	}()
	var text strings.Builder
	p := make([]byte, 4096)
	for strings.Count(text.String(), "\n") < n {
		switch k, err := syscall.Read(fd, p); {
		case err == syscall.EINTR:
			*interrupted++
		case err != nil || k == 0:
			texts <- fmt.Sprintf("%sthen %d bytes, %v", &text, k, err)
			return
		default:
			text.Write(p[:k])
		}
	}
	texts <- text.String()
}

// Snapshots is rule 5: each open reads one consistent text.
func Snapshots(t *testing.T, dir string) {
	vm := machine(t, dir)
	for _, path := range []string{vm + "/config", vm + "/cmdline", vm + "/events.log", vm + "/edition"} {
		set(t, vm+"/cmdline", "one")
		want := read(t, path)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		first := make([]byte, 1)
		if _, err := io.ReadFull(f, first); err != nil {
			t.Fatal(err)
		}
		set(t, vm+"/cmdline", "another and longer")
		rest, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(first) + string(rest); got != want {
			t.Errorf("%s, changed while it was read: got %q, want %q", path, got, want)
		}
		if now := read(t, path); now == want {
			t.Errorf("%s: a new open reads the former text", path)
		}
	}
}

// Clone is mkdir and rmdir for clients that have neither: opened to read and
// write it makes a machine, is its ctl, and takes it back if nobody used it.
func Clone(t *testing.T, dir string) {
	opened := func() (f *os.File, vm string) {
		f, err := os.OpenFile(dir+"/clone", os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		name, err := io.ReadAll(f)
		if err != nil || !strings.HasSuffix(string(name), "\n") {
			t.Fatalf("clone: got %q, %v, want a name", name, err)
		}
		vm = dir + "/vm/" + strings.TrimSuffix(string(name), "\n")
		reads(t, vm+"/status", "stopped\n")
		return f, vm
	}
	gone := func(vm string) func() bool {
		return func() bool { _, err := os.Stat(vm); return os.IsNotExist(err) }
	}
	f, vm := opened()
	f.Close()
	eventually(t, "a clone that nobody used is gone", gone(vm))

	f, vm = opened()
	other, second := opened()
	if second == vm {
		t.Errorf("two clones are called %s", vm)
	}
	fails(t, "no verb", send(f, "no-such-verb\n"), syscall.EINVAL)
	set(t, vm+"/cpus", "2\n")
	f.Close()
	other.Close()
	eventually(t, "the other clone is gone", gone(second))
	reads(t, vm+"/cpus", "2\n")
	set(t, vm+"/ctl", "remove\n")

	f, vm = opened()
	set(t, vm+"/cpus", "2\n")
	if err := send(f, "remove\n"); err != nil || !gone(vm)() {
		t.Errorf("remove by clone: %v, gone %v", err, gone(vm)())
	}
}
