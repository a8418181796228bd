// Package fstest holds a served tree against the rules of the contract. Its
// functions know a directory and nothing of what serves it: the same run
// over FUSE, over 9P and over a remote mount, on a daemon or on a fake one.
//
// They make machines of their own, whose names begin with fstest-, and start
// none. As root they also act as other users.
package fstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Mount mounts what nobody serves yet on dir, for all users and until the end
// of the test, and gives the path of the descriptor that requests come from.
func Mount(t testing.TB, dir string, maxRead int) (dev string) {
	t.Helper()
	// Not by a library, whose descriptor children inherit: a child that
	// outlives the server would keep a dead mount waiting.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,max_read=%d,default_permissions,allow_other", fd, maxRead)
	if err := unix.Mount("vmfs", dir, "fuse.vmfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return fmt.Sprintf("/dev/fd/%d", fd)
}

// Insist makes a system call until no signal interrupts it. A read or a write of
// these trees may end with EINTR, and the runtime sends signals of its own to
// the threads of a test.
func Insist(call func() (int, error)) (n int, err error) {
	for err = syscall.EINTR; err == syscall.EINTR; {
		n, err = call()
	}
	return n, err
}

// NoPoll teaches the kernel that the tree of which path is a file has no poll.
// The runtime asks with epoll_ctl when it opens a file, and does not take that
// for a call that can wait: in a process that also serves the tree it can hang.
func NoPoll(t testing.TB, path string) {
	t.Helper()
	fd, err := Insist(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	_, err = Insist(func() (int, error) { return unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000) })
	if err != nil {
		t.Fatal(err)
	}
}

// An Exception is a function of the package that a client cannot be held
// against, and what it cannot say or do.
type Exception struct{ Function, Reason string }

// Run runs every function of the package on the tree mounted on dir, but for
// exceptions, which it tells of.
func Run(t *testing.T, dir string, exceptions ...Exception) {
	for _, f := range []struct {
		name string
		test func(t *testing.T, dir string)
	}{
		{"Definition", Definition},
		{"Modes", Modes},
		{"Transactions", Transactions},
		{"Frames", Frames},
		{"Policy", Policy},
		{"Users", Users},
		{"Requester", Requester},
		{"NothingWaits", NothingWaits},
		{"Waits", Waits},
		{"Interrupts", Interrupts},
		{"Sizes", Sizes},
		{"Snapshots", Snapshots},
		{"Times", Times},
		{"Values", Values},
		{"Paths", Paths},
		{"Refused", Refused},
		{"Clone", Clone},
		{"Removed", Removed},
		{"Again", Again},
		{"Renamed", Renamed},
		{"Listing", Listing},
		{"Switches", Switches},
		{"NICs", NICs},
		{"RootsFiles", RootsFiles},
		{"Limits", Limits},
		{"Instances", Instances},
	} {
		t.Run(f.name, func(t *testing.T) {
			for _, e := range exceptions {
				if e.Function == f.name {
					t.Skip(e.Reason)
				}
			}
			f.test(t, dir)
		})
	}
}

// As runs f in a thread with the rights of a user, and ends that.
func As(w Who, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: it ends with the goroutine
		err := become(w)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// machine makes a machine that goes with the test, and returns its directory.
func machine(t *testing.T, dir string) string {
	t.Helper()
	name := "fstest-" + strings.ReplaceAll(filepath.Base(t.Name()), "_", "-")
	vm := filepath.Join(dir, "vm", name)
	if err := os.Mkdir(vm, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(vm); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return vm
}

// another makes a machine beside vm that goes with the test.
func another(t *testing.T, vm string) string {
	t.Helper()
	other := vm + "-b"
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(other) })
	return other
}

// write sends text as one write.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return send(f, text)
}

// send is one write(2): os.File.Write would go on after a short one.
func send(f *os.File, text string) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var werr error
	err = c.Write(func(fd uintptr) bool {
		n, werr = Insist(func() (int, error) { return syscall.Write(int(fd), []byte(text)) })
		return true
	})
	switch {
	case err != nil:
		return err
	case werr != nil:
		return werr
	case n != len(text):
		return errors.New("a short write")
	}
	return nil
}

func set(t *testing.T, path, text string) {
	t.Helper()
	if err := write(path, text); err != nil {
		t.Fatalf("write %s: %v", path, err)
	}
}

// refused checks that a write answers errno and changes nothing of file.
func refused(t *testing.T, path, text string, errno syscall.Errno) {
	t.Helper()
	before := read(t, path)
	if err := write(path, text); !errors.Is(err, errno) {
		t.Errorf("write %.40q to %s: got %v, want %v", text, path, err, errno)
	}
	if after := read(t, path); after != before {
		t.Errorf("a refused write changed %s from %q to %q", path, before, after)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func reads(t *testing.T, path, want string) {
	t.Helper()
	if got := read(t, path); got != want {
		t.Errorf("%s: got %q, want %q", path, got, want)
	}
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return &st
}

// fails checks an errno.
func fails(t *testing.T, what string, err error, want ...syscall.Errno) {
	t.Helper()
	for _, errno := range want {
		if errors.Is(err, errno) {
			return
		}
	}
	t.Errorf("%s: got %v, want one of %v", what, err, want)
}

// needRoot skips what takes the rights of several users.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to act as other users")
	}
}

// as runs a shell line as another user in a directory and returns what it
// said. The shell goes there itself: a tree that this process serves cannot
// answer between fork and exec.
func as(uid uint32, dir, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `cd "$0" && `+line, dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}
