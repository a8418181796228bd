package remote

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/knusbaum/go9p/proto"
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
func mounted(t *testing.T, tree *Tree) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	s, err := fuse.Serve(fstest.Mount(t, dir, fuse.MaxRead), tree.Root(), fuse.Options{Log: t.Logf, NoCache: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "nobody uses the mount", func() bool { return unix.Unmount(dir, unix.MNT_EXPIRE) == unix.EAGAIN })
		unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) // in other mount namespaces too
		s.Wait()
	})
	return dir
}

// TestRules holds a mount of a server's tree against the rules of the
// contract.
func TestRules(t *testing.T) {
	syscall.Umask(0o022)
	dir := mounted(t, dialed(t, served(t, fs.New(manager(t)).Root())))
	fstest.NoPoll(t, dir+"/help")
	fstest.Run(t, dir)
}

// plain is a dial to a server that is asked for 9P2000 only.
func plain(path string) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return &plainConn{Conn: nc}, nil
	}
}

// plainConn takes the .u out of the first message.
type plainConn struct {
	net.Conn
	begun bool
}

func (c *plainConn) Write(p []byte) (int, error) {
	if c.begun {
		return c.Conn.Write(p)
	}
	c.begun = true
	m := (&proto.TRVersion{Header: header(proto.Tversion), Msize: mostMessage, Version: "9P2000"}).Compose()
	setTag(m, noTag)
	if _, err := c.Conn.Write(m); err != nil {
		return 0, err
	}
	return len(p), nil
}

// In 9P2000 users are names, and the rest is as it is in 9P2000.u.
func TestPlain(t *testing.T) {
	m := manager(t)
	vm, err := m.Create(ctl.Cred{UID: 1, GID: 1}, "web", 0o755, 1)
	if err != nil {
		t.Fatal(err)
	}
	path := served(t, fs.New(m).Root())
	tree, err := New(bg, plain(path), Options{Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	cpus := found(t, tree.Root(), "vm/web/cpus")
	if a, err := cpus.Attr(bg); err != nil || a.UID != 1 || a.GID != 1 || a.Mode != 0o640 || a.Size != 2 {
		t.Errorf("daemon's: %+v, %v", a, err)
	}
	if os.Getuid() != 0 {
		t.Skip("the rest needs root")
	}
	for _, id := range []uint32{2, 54321} { // one with a name, and one without
		mode := uint32(0o604)
		if err := cpus.SetAttr(bg, ctl.Cred{}, ctl.AccessChange{Mode: &mode, UID: &id, GID: &id}); err != nil {
			t.Fatal(err)
		}
		if a, err := found(t, tree.Root(), "vm/web/cpus").Attr(bg); err != nil || a.UID != id || a.GID != id || a.Mode != mode {
			t.Errorf("given to %d: %+v, %v", id, a, err)
		}
	}
	sticky := uint32(0o1755)
	if err := found(t, tree.Root(), "vm/web").SetAttr(bg, ctl.Cred{}, ctl.AccessChange{Mode: &sticky}); !errors.Is(err, syscall.EPERM) {
		t.Errorf("a bit that 9P2000 has no word for: %v", err)
	}
	write(t, found(t, tree.Root(), "vm/web/memory"), "64M")
	if got := vm.Get("memory"); got != "64M" {
		t.Errorf("memory is %s", got)
	}
	if _, err := tree.Root().Lookup(bg, "none"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("what is not there: %v", err)
	}
}

// found looks a path up.
func found(t *testing.T, root fs.Dir, path string) fs.Node {
	t.Helper()
	var n fs.Node = root
	for name := range strings.SplitSeq(path, "/") {
		next, err := n.(fs.Dir).Lookup(bg, name)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		n = next
	}
	return n
}

func write(t *testing.T, n fs.Node, text string) {
	t.Helper()
	h, err := n.(fs.File).Open(bg, ctl.Cred{UID: uint32(os.Getuid())}, fs.Flags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Write(bg, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

// A write is one message, of 64 KiB too, and one that is too long is refused.
func TestLongWrite(t *testing.T) {
	m := manager(t)
	me := ctl.Cred{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	vm, err := m.Create(me, "web", 0o755, me.GID)
	if err != nil {
		t.Fatal(err)
	}
	tree := dialed(t, served(t, fs.New(m).Root()))
	h, err := found(t, tree.Root(), "vm/web/config").(fs.File).Open(bg, me, fs.Flags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	text := "cpus 2\n#" + strings.Repeat("x", fs.MaxWrite-9) + "\n"
	if err := h.Write(bg, []byte(text)); err != nil || vm.Get("cpus") != "2" {
		t.Errorf("%d bytes: %v, cpus %s", len(text), err, vm.Get("cpus"))
	}
	for _, n := range []int{fs.MaxWrite + 1, mostMessage - ioHeader, mostMessage - ioHeader + 1, 1 << 20} {
		if err := h.Write(bg, []byte("cpus 3\n"+strings.Repeat("#\n", n)[:n-7])); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Attributes are those that the server's tree has, times to the microsecond.
func TestSame(t *testing.T) {
	m := manager(t)
	local := fs.New(m).Root()
	if _, err := m.Create(ctl.Cred{}, "web", 0o755, 0); err != nil {
		t.Fatal(err)
	}
	tree := dialed(t, served(t, local))
	for _, path := range []string{"vm", "vm/web", "vm/web/memory"} {
		want, err := found(t, local, path).Attr(bg)
		if err != nil {
			t.Fatal(err)
		}
		got, err := found(t, tree.Root(), path).Attr(bg)
		if err != nil {
			t.Fatal(err)
		}
		if d := want.Mtime.Sub(got.Mtime); d < 0 || d > 1024 {
			t.Errorf("%s: changed at %v, and here at %v", path, want.Mtime, got.Mtime)
		}
		got.Mtime = want.Mtime
		if got != want {
			t.Errorf("%s: got %+v, want %+v", path, got, want)
		}
	}
}

// A process that asks a server which answers nothing, not a flush either, can
// be killed, and so can one that waits for the same directory.
func TestKillable(t *testing.T) {
	f := newFake(t, map[uint8]reply{})
	dir := mounted(t, f.tree())
	for _, kind := range []uint8{proto.Twalk, proto.Tflush} {
		f.do(kind, never)
	}
	var stuck []*exec.Cmd
	for _, args := range [][]string{{"mkdir", dir + "/a"}, {"ls", dir}, {"stat", dir + "/b"}} {
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stuck = append(stuck, cmd)
	}
	time.Sleep(100 * time.Millisecond)
	begin := time.Now()
	for _, cmd := range stuck {
		cmd.Process.Kill()
	}
	for _, cmd := range stuck {
		cmd.Wait()
		if cmd.ProcessState.Exited() {
			t.Errorf("%v was not stuck: %v", cmd.Args, cmd.ProcessState)
		}
	}
	if d := time.Since(begin); d >= answerTime {
		t.Errorf("that took %v", d)
	}
}
