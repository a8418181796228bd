package fuse

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/fs"
)

// syncFile is a file whose fsync says so.
type syncFile struct {
	memFile
	sync func() error
}

func (f *syncFile) Sync() error { return f.sync() }

func (f *syncFile) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{Ino: f.ino, Mode: 0o666, Size: 100, Mtime: time.Unix(1, 0)}, nil
}

// fsync(2) of a file and of a directory comes to its Node, and so does what
// that says; where a Node has nothing to say, it succeeds.
func TestFsync(t *testing.T) {
	var came atomic.Int32
	root := newMemDir()
	root.files["f"] = &syncFile{memFile{ino: 2}, func() error {
		if came.Add(1) > 1 {
			return ctl.Errorf(syscall.EDQUOT, "the disk is full")
		}
		return nil
	}}
	root.files["plain"] = &memFile{ino: 3}
	dir, _ := mount(t, root, Options{Log: t.Logf})
	for _, c := range []struct {
		path string
		want error
	}{{"/f", nil}, {"/f", syscall.EDQUOT}, {"/plain", nil}, {"/", nil}} {
		fd, err := unix.Open(dir+c.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Fsync(fd); !errors.Is(err, c.want) {
			t.Errorf("fsync of %s: %v, want %v", c.path, err, c.want)
		}
		unix.Close(fd)
	}
	if n := came.Load(); n != 2 {
		t.Errorf("the Node heard of %d calls, want 2", n)
	}
}

// A file that is opened with O_TRUNC keeps its text, and its size is asked
// for again.
func TestTruncation(t *testing.T) {
	root := newMemDir()
	root.files["f"] = &syncFile{memFile: memFile{ino: 2}}
	dir, _ := mount(t, root, Options{Log: t.Logf})
	var before, after unix.Stat_t
	if err := unix.Stat(dir+"/f", &before); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir+"/f", unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Stat(dir+"/f", &after); err != nil || after.Size != 100 || before.Size != after.Size || before.Mtim != after.Mtim {
		t.Errorf("%d bytes of %v, then %d of %v, %v", before.Size, before.Mtim, after.Size, after.Mtim, err)
	}
}

var _ fs.Syncer = (*syncFile)(nil)
