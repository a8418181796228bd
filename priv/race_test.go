package priv

import (
	"context"
	"io"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// TestOpenRace opens a path while what lies there becomes something else all
// the time, by somebody who may change the directory. Whatever he hits on, what
// arrives is the file that may be had, or nothing.
func TestOpenRace(t *testing.T) {
	program(t)
	const mine, secret = "mine", "secret"
	for _, c := range []struct {
		name  string
		uid   uint32
		below string // of what is exchanged
		good  func(y yard, path string)
		bad   func(y yard, path string)
	}{
		{"a FIFO", alice, "", ownFile, func(y yard, path string) { y.check(unix.Mkfifo(path, 0o666)) }},
		{"a device", alice, "", ownFile, func(y yard, path string) {
			y.check(unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
			y.check(os.Chmod(path, 0o666))
		}},
		{"a link to root's", alice, "", ownFile, func(y yard, path string) { y.check(os.Symlink(y.at("roots"), path)) }},
		{"a link into /proc", alice, "", ownFile, func(y yard, path string) { y.check(os.Symlink("/proc/self/fd/3", path)) }},
		{"a directory above", alice, "/file", func(y yard, path string) {
			y.check(os.Mkdir(path, 0o755))
			ownFile(y, path+"/file")
		}, func(y yard, path string) { y.check(os.Symlink(y.at("closed"), path)) }},
		{"root's, out of -images", 0, "", func(y yard, path string) { y.check(os.Symlink(y.at("images/file"), path)) },
			func(y yard, path string) { y.check(os.Symlink(y.at("roots"), path)) }},
		{"root's, a directory above", 0, "/file", func(y yard, path string) { y.check(os.Symlink(y.at("images"), path)) },
			func(y yard, path string) { y.check(os.Symlink(y.at("closed"), path)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := newYard(t)
			y.check(os.Mkdir(y.at("images"), 0o755))
			y.file("images/file", mine, 0o644, 0)
			y.file("roots", secret, 0o600, 0)
			y.file("closed/file", secret, 0o644, 0)
			y.check(os.Mkdir(y.at("place"), 0o755))
			c.good(y, y.at("place/a"))
			c.bad(y, y.at("place/b"))
			exchange(t, y.at("place/a"), y.at("place/b"))
			o := patientOpeners([]string{y.at("images")})
			for opened, refused := 0, 0; opened < 4 || refused < 4; {
				files, _, err := o.open(context.Background(), c.uid, []ctl.Want{raw(y.at("place/a") + c.below)})
				if refused+opened > 1000 {
					t.Fatalf("%d opened, %d refused, the last by %v: that is no race", opened, refused, err)
				}
				if err != nil {
					refused++
					continue
				}
				opened++
				checkRegular(t, files[0], mine)
				closeAll(files)
			}
		})
	}
}

// ownFile makes the file that may be had.
func ownFile(y yard, path string) {
	y.check(os.WriteFile(path, []byte("mine"), 0o600))
	y.check(os.Chown(path, alice, aliceGroup))
}

func checkRegular(t *testing.T, f *os.File, want string) {
	t.Helper()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		t.Fatalf("got %v (%v), want a regular file", st.Mode(), err)
	}
	if b, err := io.ReadAll(f); string(b) != want || err != nil {
		t.Fatalf("got %q, %v, want %q", b, err, want)
	}
}

// exchange puts each in the other's place, again and again until the test
// ends.
func exchange(t *testing.T, a, b string) {
	t.Helper()
	done, ended := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-done:
				ended <- nil
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil && err != syscall.EINTR {
				<-done
				ended <- err
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(done)
		if err := <-ended; err != nil {
			t.Errorf("exchange: %v", err)
		}
	})
}
