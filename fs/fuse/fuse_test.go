package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/fs"
	"vmfs/fs/fstest"
)

// within is how long a test waits for what will come.
const within = time.Minute

// Believe makes the kernel believe names and attributes for d, in what is
// mounted until the test ends.
func Believe(t *testing.T, d time.Duration) {
	was := timeout
	timeout = d
	t.Cleanup(func() { timeout = was })
}

// memDir is a directory of directories that come and go, and of files.
type memDir struct {
	ino   uint64
	mu    *sync.Mutex
	last  *uint64
	files map[string]fs.Node
}

func newMemDir() *memDir {
	return &memDir{ino: rootID, mu: new(sync.Mutex), last: new(uint64), files: map[string]fs.Node{}}
}

func (d *memDir) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{Ino: d.ino, Dir: true, Mode: 0o755, Mtime: time.Unix(1, 0)}, nil
}

func (d *memDir) SetAttr(context.Context, ctl.Cred, ctl.AccessChange) error { return nil }

func (d *memDir) Lookup(_ context.Context, name string) (fs.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.files[name]; n != nil {
		return n, nil
	}
	return nil, syscall.ENOENT
}

func (d *memDir) List(context.Context) ([]fs.Entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []fs.Entry
	for name, n := range d.files {
		list = append(list, fs.Entry{Name: name, Node: n})
	}
	return list, nil
}

func (d *memDir) Mkdir(_ context.Context, _ ctl.Cred, name string, _ uint32) (fs.Node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*d.last++
	n := &memDir{ino: 1000 + *d.last, mu: d.mu, last: d.last, files: map[string]fs.Node{}}
	d.files[name] = n
	return n, nil
}

func (d *memDir) Rmdir(_ context.Context, _ ctl.Cred, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.files, name)
	return nil
}

func (d *memDir) Rename(_ context.Context, _ ctl.Cred, name string, to fs.Dir, newName string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	to.(*memDir).files[newName] = d.files[name]
	delete(d.files, name)
	return nil
}

func (d *memDir) Deny(_ context.Context, _ ctl.Cred, op, name string) error { return syscall.EPERM }

// memFile is a file that does what a test says.
type memFile struct {
	ino   uint64
	read  func(ctx context.Context, p []byte) (int, error)
	write func(ctx context.Context, p []byte) error
	close func()
}

func (f *memFile) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{Ino: f.ino, Mode: 0o666}, nil
}
func (f *memFile) SetAttr(context.Context, ctl.Cred, ctl.AccessChange) error { return nil }
func (f *memFile) Open(context.Context, ctl.Cred, fs.Flags) (fs.Handle, error) {
	return memHandle{f}, nil
}

type memHandle struct{ *memFile }

func (h memHandle) Read(ctx context.Context, p []byte, _ int64) (int, error) { return h.read(ctx, p) }
func (h memHandle) Write(ctx context.Context, p []byte) error                { return h.write(ctx, p) }
func (h memHandle) Stream() bool                                             { return false }
func (h memHandle) Close() {
	if h.close != nil {
		h.close()
	}
}

// mount serves root on a directory of the test, until it ends.
func mount(t *testing.T, root fs.Dir, o Options) (string, *Server) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	s, err := Serve(fstest.Mount(t, dir, MaxRead), root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE)
		select {
		case <-s.Done():
		case <-time.After(within):
			t.Error("the server did not end with its mount")
		}
	})
	return dir, s
}

// The calls of a test are plain system calls: package os would poll.

func writeFile(path string, p []byte) error {
	fd, err := fstest.Insist(func() (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	n, err := fstest.Insist(func() (int, error) { return unix.Write(fd, p) })
	if err == nil && n != len(p) {
		err = errors.New("a short write")
	}
	return err
}

func readFile(path string) (string, error) {
	fd, err := fstest.Insist(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	p := make([]byte, 100)
	n, err := fstest.Insist(func() (int, error) { return unix.Read(fd, p) })
	return string(p[:max(0, n)]), err
}

// A write comes as one message as long as it is up to 128 KiB, so that one
// that is too long can be refused whole.
func TestMessages(t *testing.T) {
	came := make(chan int, 100)
	root := newMemDir()
	root.files["f"] = &memFile{ino: 2, write: func(_ context.Context, p []byte) error {
		came <- len(p)
		return nil
	}}
	dir, _ := mount(t, root, Options{Log: t.Logf})
	for _, n := range []int{1, 4096, fs.MaxWrite, fs.MaxWrite + 1, 2*fs.MaxWrite - 4096} {
		buf := make([]byte, n+1)
		if err := writeFile(dir+"/f", buf[1:]); err != nil { // not on a page's border
			t.Fatal(err)
		}
		if got := <-came; got != n || len(came) > 0 {
			t.Errorf("a write of %d bytes came as %d, and %d more", n, got, len(came))
		}
	}
}

// A panic is an EIO, and is logged; the server goes on.
func TestPanic(t *testing.T) {
	logged := make(chan string, 1000)
	root := newMemDir()
	root.files["f"] = &memFile{ino: 2,
		read:  func(context.Context, []byte) (int, error) { panic("at the disco") },
		write: func(context.Context, []byte) error { return nil }}
	dir, _ := mount(t, root, Options{Log: func(format string, args ...any) { logged <- fmt.Sprintf(format, args...) }})
	for range 2 * panicsLogged {
		if _, err := readFile(dir + "/f"); err != unix.EIO {
			t.Fatalf("got %v, want EIO", err)
		}
	}
	if n := len(logged); n != panicsLogged {
		t.Errorf("logged %d times, want %d", n, panicsLogged)
	}
	if line := <-logged; !strings.Contains(line, "at the disco") || !strings.Contains(line, "fuse_test.go") {
		t.Errorf("logged: %s", line)
	}
	if err := writeFile(dir+"/f", []byte("x")); err != nil {
		t.Error(err)
	}
}

// What the kernel forgets is forgotten, and open files are closed once.
func TestForget(t *testing.T) {
	var closed atomic.Int32
	root := newMemDir()
	root.files["f"] = &memFile{ino: 2, read: func(context.Context, []byte) (int, error) { return 0, nil }, close: func() { closed.Add(1) }}
	dir, s := mount(t, root, Options{Log: t.Logf})
	for i := range 50 {
		sub := fmt.Sprintf("%s/d%d", dir, i)
		if err := unix.Mkdir(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Rename(sub, sub+"b"); err != nil {
			t.Fatal(err)
		}
		if err := unix.Rmdir(sub + "b"); err != nil {
			t.Fatal(err)
		}
		if _, err := readFile(dir + "/f"); err != nil {
			t.Fatal(err)
		}
	}
	b := s.bridge
	deadline := time.Now().Add(within)
	for time.Now().Before(deadline) && (b.inodes.count() > 2 || closed.Load() < 50) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := b.inodes.count(); n != 2 { // the root and f
		t.Errorf("%d inodes are remembered, want 2", n)
	}
	if closed.Load() != 50 || b.files.count() != 0 {
		t.Errorf("of 50 open files %d were closed, %d are open", closed.Load(), b.files.count())
	}
}

func (t *inodes) count() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

func (h *handles[T]) count() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.open) - len(h.free)
}

// When the mount goes, who waits is sent away and what is open is closed.
func TestUnmount(t *testing.T) {
	waiting, closed := make(chan bool, 1), make(chan bool, 1)
	root := newMemDir()
	root.files["f"] = &memFile{ino: 2,
		read: func(ctx context.Context, _ []byte) (int, error) {
			waiting <- true
			<-ctx.Done()
			return 0, ctx.Err()
		},
		close: func() { closed <- true }}
	dir, s := mount(t, root, Options{Log: t.Logf})
	cat := exec.Command("cat", dir+"/f")
	cat.Dir = "/"
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	<-waiting
	if err := unix.Unmount(dir, 0); err != unix.EBUSY {
		t.Errorf("unmount in spite of a reader: got %v, want EBUSY", err)
	}
	if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if err := cat.Wait(); err == nil {
		t.Error("the reader saw no error")
	}
	select {
	case <-closed:
	default:
		t.Error("the open file was not closed")
	}
}

// A name that goes through another door goes here too, and a directory that
// takes its name is not touched.
func TestGone(t *testing.T) {
	Believe(t, time.Hour)
	root := newMemDir()
	dir, s := mount(t, root, Options{Log: t.Logf})
	for i := range 20 {
		if err := unix.Mkdir(dir+"/d", 0o755); err != nil {
			t.Fatal(err)
		}
		n, err := root.Lookup(context.Background(), "d")
		if err != nil {
			t.Fatal(err)
		}
		ino := n.(*memDir).ino
		root.Rmdir(context.Background(), ctl.Cred{}, "d")
		s.Changed([]fs.Change{{Dir: rootID, Name: "d", Ino: ino}})
		begin := time.Now()
		for unix.Mkdir(dir+"/d", 0o755) == unix.EEXIST {
			if time.Since(begin) > within {
				t.Fatalf("round %d: the name of a removed directory is still taken", i)
			}
			time.Sleep(time.Millisecond)
		}
		if err := unix.Rmdir(dir + "/d"); err != nil {
			t.Fatal(err)
		}
	}
	s.Changed([]fs.Change{{Ino: 77}, {Dir: 5, Name: "x", Ino: 77}, {Ino: rootID}})
}

func TestOwn(t *testing.T) {
	table := newInodes(newMemDir())
	n := newNotifier(&table)
	e := entry{rootID, "d"}
	release, again := n.own(e.dir, e.name), n.own(e.dir, e.name)
	n.add([]entry{e})
	release()
	n.add([]entry{e})
	if len(n.gone) != 0 {
		t.Error("the kernel would be told of what it does itself")
	}
	again()
	n.add([]entry{e, e, {rootID, "x"}})
	if len(n.gone) != 2 || len(n.owned) != 0 {
		t.Errorf("to tell: %v, owned: %v", n.gone, n.owned)
	}
}

func TestHandles(t *testing.T) {
	var h handles[string]
	a, b := h.add("a"), h.add("b")
	if v, ok := h.remove(a); v != "a" || !ok {
		t.Errorf("got %q %v", v, ok)
	}
	for _, id := range []uint64{a, 2, 1 << 63} {
		if _, ok := h.get(id); ok {
			t.Errorf("%d is open", id)
		}
		if _, ok := h.remove(id); ok {
			t.Errorf("%d was open", id)
		}
	}
	if c := h.add("c"); c != a {
		t.Errorf("a free number is not used: got %d, want %d", c, a)
	}
	var left []string
	h.each(func(s string) { left = append(left, s) })
	if fmt.Sprint(left) != "[c b]" {
		t.Errorf("left: %v", left)
	}
	if _, ok := h.get(b); ok {
		t.Error("open after all were closed")
	}
}
