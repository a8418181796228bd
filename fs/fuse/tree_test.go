package fuse_test

import (
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
	"vmfs/fs"
	"vmfs/fs/fstest"
	"vmfs/fs/fuse"
)

// mounted serves root on a directory of the test.
func mounted(t *testing.T, root fs.Dir) (dir string, s *fuse.Server) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, err := os.MkdirTemp("", "fuse-test-") // t.TempDir lets no other user pass
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, err = fuse.Mount(dir, root, fuse.Options{Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	return dir, s
}

// tree is a whole tree on a host without guests, mounted.
func tree(t *testing.T) (dir string, m *ctl.Manager, host *ctltest.Host) {
	t.Helper()
	host = ctltest.NewHost()
	m, err := ctl.Open(context.Background(), ctl.Options{State: t.TempDir(), Host: host})
	if err != nil {
		t.Fatal(err)
	}
	tr := fs.New(m)
	dir, s := mounted(t, tr.Root())
	tr.Watch(s.Changed)
	noPoll(t, dir+"/help")
	return dir, m, host
}

// noPoll teaches the kernel that there is no poll here. The runtime asks
// with epoll_ctl, which it does not take for a call that can wait: in a
// process that also serves, that can hang.
func noPoll(t *testing.T, path string) {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	dir, _, _ := tree(t)
	fstest.Run(t, dir)
}
