package fuse

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/fs"
	"vmfs/fs/fstest"
)

// sizedFile is a file with a size and a time.
type sizedFile struct{ memFile }

func (f *sizedFile) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{Ino: f.ino, Mode: 0o666, Size: 100, Mtime: time.Unix(1, 0)}, nil
}

// fsync(2) of a file and of a directory succeeds.
func TestFsync(t *testing.T) {
	root := newMemDir()
	root.files["f"] = &memFile{ino: 2}
	dir, _ := mount(t, root, Options{Log: t.Logf})
	for _, path := range []string{"/f", "/"} {
		fd, err := fstest.Insist(func() (int, error) { return unix.Open(dir+path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(unix.Fsync(fd), unix.Fdatasync(fd)); err != nil {
			t.Errorf("fsync of %s: %v", path, err)
		}
		unix.Close(fd)
	}
}

// A file that is opened with O_TRUNC keeps its text, and its size is asked
// for again.
func TestTruncation(t *testing.T) {
	root := newMemDir()
	root.files["f"] = &sizedFile{memFile{ino: 2}}
	dir, _ := mount(t, root, Options{Log: t.Logf})
	var before, after unix.Stat_t
	if err := unix.Stat(dir+"/f", &before); err != nil {
		t.Fatal(err)
	}
	fd, err := fstest.Insist(func() (int, error) { return unix.Open(dir+"/f", unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Stat(dir+"/f", &after); err != nil || after.Size != 100 || before.Size != after.Size || before.Mtim != after.Mtim {
		t.Errorf("%d bytes of %v, then %d of %v, %v", before.Size, before.Mtim, after.Size, after.Mtim, err)
	}
}
