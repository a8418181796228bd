package remote

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
	"vmfs/fs"
	"vmfs/fs/fstest"
	"vmfs/fs/fuse"
	"vmfs/fs/ninep"
)

var bg = context.Background()

// manager has machines, and a host without guests.
func manager(t testing.TB) *ctl.Manager {
	t.Helper()
	m, err := ctl.Open(bg, ctl.Options{State: t.TempDir(), Host: ctltest.NewHost()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// served is the socket of a 9P server of root.
func served(t testing.TB, root fs.Dir) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "9p.sock")
	listen(t, path, root)
	return path
}

func listen(t testing.TB, path string, root fs.Dir) *ninep.Server {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := ninep.New(root, ninep.Options{Log: t.Logf})
	go s.Serve(l, ninep.SocketPeer)
	t.Cleanup(func() { l.Close(); s.Close() })
	return s
}

// dialed is a tree of the server at a socket.
func dialed(t testing.TB, path string) *Tree {
	t.Helper()
	dial, err := Addr{Net: "unix", Path: path}.Dial(TLS{})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := New(bg, dial, Options{UID: uint32(os.Getuid()), Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Close)
	return tree
}

// mounted mounts a tree for all users.
func mounted(t testing.TB, tree *Tree) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	s, err := fuse.Mount(dir, tree.Root(), fuse.Options{Log: t.Logf, NoCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if err = s.Unmount(); err == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error(err)
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir
}

// TestRules holds a mount of a server's tree against the rules of the
// contract.
func TestRules(t *testing.T) {
	syscall.Umask(0o022)
	fstest.Run(t, mounted(t, dialed(t, served(t, fs.New(manager(t)).Root()))))
}
