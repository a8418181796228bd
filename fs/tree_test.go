package fs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
	"vmfs/fs"
)

var (
	root  = ctl.Cred{}
	alice = ctl.Cred{UID: 52001, GID: 52001}
	bob   = ctl.Cred{UID: 52002, GID: 52002}
	bg    = context.Background()
)

// tree makes a tree with a machine, web, that alice owns and that can start.
func tree(t *testing.T) (*fs.Tree, *ctl.Manager, *ctltest.Host) {
	t.Helper()
	host := ctltest.NewHost()
	m, err := ctl.Open(bg, ctl.Options{State: t.TempDir(), Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	vm, err := m.Create(alice, "web", 0o755, alice.GID)
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := vm.Set(alice, "kernel", kernel); err != nil {
		t.Fatal(err)
	}
	return fs.New(m), m, host
}

// walk finds a node.
func walk(t *testing.T, tr *fs.Tree, path string) fs.Node {
	t.Helper()
	var n fs.Node = tr.Root()
	for _, name := range strings.Split(path, "/") {
		var err error
		if n, err = n.(fs.Dir).Lookup(bg, name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	return n
}

func open(t *testing.T, tr *fs.Tree, by ctl.Cred, path string, f fs.Flags) fs.Handle {
	t.Helper()
	h, err := walk(t, tr, path).(fs.File).Open(bg, by, f)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(h.Close)
	return h
}

var (
	reading   = fs.Flags{Read: true}
	writing   = fs.Flags{Write: true}
	impatient = fs.Flags{Read: true, NonBlock: true}
)

// write is one write to a file of its own.
func write(t *testing.T, tr *fs.Tree, by ctl.Cred, path, text string) error {
	t.Helper()
	h, err := walk(t, tr, path).(fs.File).Open(bg, by, writing)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Write(bg, []byte(text))
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// text is one read of a file.
func text(t *testing.T, h fs.Handle) string {
	t.Helper()
	p := make([]byte, 4096)
	n, err := h.Read(bg, p, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(p[:n])
}

// Each refusal is noted once, with the file that it was refused of.
func TestRefusals(t *testing.T) {
	tr, m, _ := tree(t)
	vm := walk(t, tr, "vm/web").(fs.Dir)
	mode := uint32(0o4755)
	stale := open(t, tr, bob, "vm/web/cpus", fs.Flags{Read: true, Write: true})
	for _, c := range []struct {
		want  string
		errno syscall.Errno
		do    func() error
	}{
		{"vm/web/cpus EINVAL", syscall.EINVAL, func() error { return write(t, tr, bob, "vm/web/cpus", "0") }},
		{"vm/web/cpus EFBIG", syscall.EFBIG, func() error { return write(t, tr, bob, "vm/web/cpus", strings.Repeat("1", fs.MaxWrite+1)) }},
		{"vm/web/config EINVAL", syscall.EINVAL, func() error { return write(t, tr, bob, "vm/web/config", "x y\n") }},
		{"vm/web/status EPERM", syscall.EPERM, func() error { return write(t, tr, bob, "vm/web/status", "") }},
		{"vm/web/do/pause EINVAL", syscall.EINVAL, func() error { return write(t, tr, bob, "vm/web/do/pause", "\n") }},
		{"vm/web/ctl EPERM", syscall.EPERM, func() error { return write(t, tr, bob, "vm/web/ctl", "remove\n") }},
		{"vm/web/ctl EINVAL", syscall.EINVAL, func() error { return write(t, tr, bob, "vm/web/ctl", "remove x\n") }},
		{"ctl EINVAL", syscall.EINVAL, func() error { return write(t, tr, bob, "ctl", "reset switches and more\n") }},
		{"live/vm/web/console EAGAIN", syscall.EAGAIN, func() error { return write(t, tr, bob, "live/vm/web/console", "x") }},
		{"live/vm/web/events EPERM", syscall.EPERM, func() error { return write(t, tr, bob, "live/vm/web/events", "x") }},
		{"vm/web/cpus EPERM", syscall.EPERM, func() error {
			return walk(t, tr, "vm/web/cpus").SetAttr(bg, bob, ctl.AccessChange{Mode: &mode})
		}},
		{"vm/web/do EPERM", syscall.EPERM, func() error { return vm.Rmdir(bg, bob, "do") }},
		{"vm/web/x EPERM", syscall.EPERM, func() error { _, err := vm.Mkdir(bg, bob, "x", 0o777); return err }},
		{"vm/web/x EPERM", syscall.EPERM, func() error { return vm.Deny(bg, bob, "create", "x") }},
		{"vm/web/cpus EPERM", syscall.EPERM, func() error { return vm.Rename(bg, bob, "cpus", vm, "x") }},
		{"x EPERM", syscall.EPERM, func() error { return tr.Root().Deny(bg, bob, "create", "x") }},
		{"vm/web EEXIST", syscall.EEXIST, func() error {
			_, err := walk(t, tr, "vm").(fs.Dir).Mkdir(bg, bob, "web", 0o777)
			return err
		}},
		{"vm/web/cpus ENOENT", syscall.ENOENT, func() error {
			ok(t, walk(t, tr, "vm").(fs.Dir).Rmdir(bg, alice, "web"))
			return stale.Write(bg, []byte("1"))
		}},
	} {
		before := m.Refusals(bob.UID, "")
		if err := c.do(); !errors.Is(err, c.errno) {
			t.Errorf("%s: got %v", c.want, err)
		}
		added := strings.TrimPrefix(m.Refusals(bob.UID, ""), before)
		if strings.Count(added, "\n") != 1 || !strings.Contains(added, " "+c.want+" ") {
			t.Errorf("want one line %q, got %q", c.want, added)
		}
	}
	if _, err := stale.Read(bg, make([]byte, 10), 0); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("read of a removed machine's file: got %v, want ENOENT", err)
	}
}

// Who opened is who asks.
func TestRequester(t *testing.T) {
	tr, m, _ := tree(t)
	ok(t, write(t, tr, bob, "vm/web/cpus", "2"))
	if got := m.EventsText(); !strings.HasSuffix(got, "vm/web config 52002 cpus\n") {
		t.Errorf("events: %s", got)
	}
	if got := text(t, open(t, tr, alice, "vm/web/err", reading)); got != "" {
		t.Errorf("alice was refused: %s", got)
	}
	write(t, tr, bob, "vm/web/cpus", "0")
	for _, c := range []struct {
		by   ctl.Cred
		path string
		want bool
	}{{bob, "err", true}, {bob, "vm/web/err", true}, {alice, "err", false}, {alice, "vm/web/err", false}, {root, "err", true}} {
		if got := strings.Contains(text(t, open(t, tr, c.by, c.path, reading)), "cpus EINVAL"); got != c.want {
			t.Errorf("%v reads bob's refusal in %s: %v, want %v", c.by, c.path, got, c.want)
		}
	}
}

// A new machine belongs to its maker and the group of vm/, and grants no more
// than vm/ does.
func TestMkdir(t *testing.T) {
	tr, _, _ := tree(t)
	vms := walk(t, tr, "vm").(fs.Dir)
	for i, c := range []struct{ dir, asked, want uint32 }{
		{0o1755, 0o777, 0o755}, {0o1777, 0o777, 0o777}, {0o1777, 0o750, 0o750}, {0o1775, 0o727, 0o725},
	} {
		ops := uint32(2100)
		ok(t, vms.SetAttr(bg, root, ctl.AccessChange{Mode: &c.dir, GID: &ops}))
		n, err := vms.Mkdir(bg, bob, fmt.Sprint("vm", i), c.asked)
		ok(t, err)
		got, err := n.Attr(bg)
		ok(t, err)
		if got.Mode != c.want || got.UID != bob.UID || got.GID != ops {
			t.Errorf("mkdir %o in %o: got %o %d:%d, want %o %d:%d", c.asked, c.dir, got.Mode, got.UID, got.GID, c.want, bob.UID, ops)
		}
	}
}

// What somebody reads in pieces is one text, whatever happens meanwhile.
func TestSnapshot(t *testing.T) {
	tr, _, _ := tree(t)
	ok(t, write(t, tr, alice, "vm/web/cmdline", "first"))
	h := open(t, tr, alice, "vm/web/cmdline", reading)
	p := make([]byte, 3)
	for off, want := range []string{"fir", "irs", "rst", "st\n", "t\n", "\n", ""} {
		n, err := h.Read(bg, p, int64(off))
		if err != nil || string(p[:n]) != want {
			t.Errorf("at %d: got %q %v, want %q", off, p[:n], err, want)
		}
		ok(t, write(t, tr, alice, "vm/web/cmdline", fmt.Sprint("other ", off)))
	}
	for _, off := range []int64{-1, 1 << 62} {
		if n, err := h.Read(bg, p, off); n != 0 || err != nil {
			t.Errorf("at %d: got %d bytes, %v", off, n, err)
		}
	}
}

// The open files of one user hold so much text and no more; closing them
// gives it back, and others do not feel it.
func TestHeld(t *testing.T) {
	tr, _, _ := tree(t)
	for n := range ctl.MaxParts {
		ok(t, write(t, tr, alice, "vm/web/config", fmt.Sprintf("disk/%d/path /%s\n", n, strings.Repeat("x", 4000))))
	}
	var open []fs.Handle
	var err error
	f := walk(t, tr, "vm/web/config").(fs.File)
	read := func(by ctl.Cred) error {
		h, err := f.Open(bg, by, reading)
		ok(t, err)
		open = append(open, h)
		_, err = h.Read(bg, make([]byte, 1), 0)
		return err
	}
	for err == nil && len(open) < 1000 {
		err = read(alice)
	}
	if !errors.Is(err, syscall.EDQUOT) {
		t.Fatalf("after %d open files: %v, want EDQUOT", len(open), err)
	}
	if n := len(open); n < 200 || n > 300 {
		t.Errorf("%d open files hold 16 MiB of texts of 64 KiB", n)
	}
	ok(t, read(bob))
	ok(t, read(root))
	for err = nil; err == nil && len(open) < 1000; {
		h, openErr := f.Open(bg, alice, writing)
		ok(t, openErr)
		open = append(open, h)
		err = h.Write(bg, []byte("begin\n"+strings.Repeat("# 13 bytes..\n", 2000)))
	}
	if !errors.Is(err, syscall.EDQUOT) {
		t.Errorf("texts that are not finished: got %v, want EDQUOT", err)
	}
	ok(t, open[len(open)-1].Write(bg, []byte("cpus 2\n")))
	for _, h := range open {
		h.Close()
	}
	ok(t, read(alice))
	open[len(open)-1].Close()
}

// interrupt calls f and ends its context when it waits.
func interrupt(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(bg)
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("an interrupt did not end it")
	}
}

func TestConsole(t *testing.T) {
	tr, _, host := tree(t)
	early := open(t, tr, alice, "live/vm/web/console", fs.Flags{Read: true, Write: true})
	second := open(t, tr, alice, "live/vm/web/console", reading)
	p := make([]byte, 100)
	interrupt(t, func(ctx context.Context) error { _, err := early.Read(ctx, p, 0); return err })
	if got := text(t, open(t, tr, alice, "live/vm/web/console", impatient)); got != "" {
		t.Errorf("impatient: got %q", got)
	}
	ok(t, write(t, tr, alice, "vm/web/ctl", "start\n"))
	guest := host.Guest(1)
	guest.Print("hello\n")
	for _, h := range []fs.Handle{early, second, open(t, tr, bob, "live/vm/web/console", impatient)} {
		if got := text(t, h); got != "hello\n" {
			t.Errorf("got %q, want hello", got)
		}
	}
	// A second read of one open file waits its turn, and can be interrupted.
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := early.Read(bg, p, 0); err != nil || string(p[:n]) != "more\n" {
			t.Errorf("got %q %v", p[:n], err)
		}
	})
	time.Sleep(20 * time.Millisecond)
	interrupt(t, func(ctx context.Context) error { _, err := early.Read(ctx, make([]byte, 10), 0); return err })
	ok(t, early.Write(bg, []byte("typed\n")))
	if got := guest.Typed(); got != "typed\n" {
		t.Errorf("the guest was typed %q", got)
	}
	guest.Print("more\n")
	wg.Wait()
	if got := text(t, open(t, tr, alice, "vm/web/console.log", reading)); got != "hello\nmore\n" {
		t.Errorf("console.log: %q", got)
	}
	guest.EndAs(ctl.Exit{Who: "guest", How: "power-off", At: time.Now()})
	if got := text(t, early); got != "" {
		t.Errorf("at the end: got %q", got)
	}
	for _, h := range []fs.Handle{early, second} {
		if !h.Stream() {
			t.Error("a console is no stream")
		}
	}
}

func TestWait(t *testing.T) {
	tr, _, host := tree(t)
	if got := text(t, open(t, tr, bob, "live/vm/web/wait", reading)); got != "stopped\n" {
		t.Errorf("wait for a stopped machine: %q", got)
	}
	if got := text(t, open(t, tr, bob, "live/wait", reading)); got != "" {
		t.Errorf("wait: %q", got)
	}
	ok(t, write(t, tr, alice, "vm/web/do/start", "\n"))
	for _, path := range []string{"live/vm/web/wait", "live/wait"} {
		h := open(t, tr, bob, path, reading)
		interrupt(t, func(ctx context.Context) error { _, err := h.Read(ctx, make([]byte, 10), 0); return err })
		if got := text(t, open(t, tr, bob, path, impatient)); got != "" {
			t.Errorf("%s, impatient: %q", path, got)
		}
	}
	one, all := open(t, tr, bob, "live/vm/web/wait", reading), open(t, tr, bob, "live/wait", reading)
	host.Guest(1).EndAs(ctl.Exit{Failed: true, Who: "host", How: "killed by the kernel", At: time.Now()})
	if got := text(t, one); got != "failed killed by the kernel\n" {
		t.Errorf("wait: %q", got)
	}
	if got := text(t, all); got != "" {
		t.Errorf("live/wait: %q", got)
	}
	ok(t, write(t, tr, alice, "vm/web/do/start", "\n"))
	if got := text(t, one); got != "failed killed by the kernel\n" {
		t.Errorf("the same open file, after the next start: %q", got)
	}
	if got := text(t, all); got != "" {
		t.Errorf("the same open file, after the next start: %q", got)
	}
}

func TestEvents(t *testing.T) {
	tr, _, _ := tree(t)
	mine, all := open(t, tr, alice, "live/vm/web/events", reading), open(t, tr, root, "live/events", reading)
	_, err := walk(t, tr, "vm").(fs.Dir).Mkdir(bg, bob, "other", 0o777)
	ok(t, err)
	ok(t, write(t, tr, alice, "vm/web/cpus", "2"))
	if got := text(t, mine); strings.Count(got, "\n") != 1 || !strings.Contains(got, "vm/web config 52001 cpus") {
		t.Errorf("the machine's events: %q", got)
	}
	if got := text(t, all); strings.Count(got, "\n") != 2 || !strings.Contains(got, "vm/other created") {
		t.Errorf("all events: %q", got)
	}
	interrupt(t, func(ctx context.Context) error { _, err := mine.Read(ctx, make([]byte, 4096), 0); return err })
}

// A door is told of what it may have told its clients.
func TestChanges(t *testing.T) {
	tr, _, _ := tree(t)
	var got []fs.Change
	tr.Watch(func(c []fs.Change) { got = append(got, c...) })
	ino := func(path string) uint64 {
		a, err := walk(t, tr, path).Attr(bg)
		ok(t, err)
		return a.Ino
	}
	vms, lives, vm, live := ino("vm"), ino("live/vm"), ino("vm/web"), ino("live/vm/web")
	told := func(what string, want ...fs.Change) {
		t.Helper()
		for _, c := range want {
			if !slices.Contains(got, c) {
				t.Errorf("%s: the door was not told %+v", what, c)
			}
		}
		got = nil
	}
	ok(t, write(t, tr, alice, "vm/web/cpus", "2"))
	told("write", fs.Change{Ino: ino("vm/web/cpus")}, fs.Change{Ino: ino("vm/web/config")}, fs.Change{Ino: ino("events.log")})
	ok(t, write(t, tr, alice, "vm/web/config", "disk/5/path /x\n"))
	told("a disk", fs.Change{Ino: ino("vm/web/disk")})
	path := ino("vm/web/disk/5/path")
	ok(t, write(t, tr, alice, "vm/web/disk/5/path", "/y"))
	told("its path", fs.Change{Ino: path})
	disks, disk := ino("vm/web/disk"), ino("vm/web/disk/5")
	ok(t, write(t, tr, alice, "vm/web/config", "-disk/5\n"))
	told("its end", fs.Change{Dir: disks, Name: "5", Ino: disk}, fs.Change{Ino: disk})
	mode := uint32(0o600)
	ok(t, walk(t, tr, "vm/web/do/start").SetAttr(bg, alice, ctl.AccessChange{Mode: &mode}))
	told("chmod", fs.Change{Ino: ino("vm/web/do/start")})
	ok(t, walk(t, tr, "vm").(fs.Dir).Rename(bg, alice, "web", walk(t, tr, "vm").(fs.Dir), "b"))
	told("mv", fs.Change{Dir: vms, Name: "web", Ino: vm}, fs.Change{Dir: lives, Name: "web", Ino: live}, fs.Change{Ino: vms})
	ok(t, write(t, tr, alice, "vm/b/ctl", "remove"))
	told("remove", fs.Change{Dir: vms, Name: "b", Ino: vm}, fs.Change{Dir: lives, Name: "b", Ino: live}, fs.Change{Ino: vm})
}

// A disk that takes the number of one that was removed is another.
func TestDiskAgain(t *testing.T) {
	tr, _, _ := tree(t)
	disks := walk(t, tr, "vm/web/disk").(fs.Dir)
	first, err := disks.Mkdir(bg, alice, "0", 0o777)
	ok(t, err)
	old, err := first.Attr(bg)
	ok(t, err)
	h := open(t, tr, alice, "vm/web/disk/0/path", fs.Flags{Read: true, Write: true})
	for range 3 {
		ok(t, disks.Rmdir(bg, alice, "0"))
		second, err := disks.Mkdir(bg, alice, "0", 0o777)
		ok(t, err)
		now, err := second.Attr(bg)
		ok(t, err)
		if now.Ino == old.Ino {
			t.Errorf("both have inode number %d", now.Ino)
		}
		if err := h.Write(bg, []byte("/x")); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("write to the former disk's path: got %v, want ENOENT", err)
		}
		if _, err := first.Attr(bg); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("stat of the former disk: got %v, want ENOENT", err)
		}
	}
	ok(t, write(t, tr, alice, "vm/web/disk/0/path", "/x"))
}

// All who list vm/ share one list.
func TestList(t *testing.T) {
	tr, _, _ := tree(t)
	vms := walk(t, tr, "vm").(fs.Dir)
	list := func() []fs.Entry {
		e, err := vms.List(bg)
		ok(t, err)
		return e
	}
	if a, b := list(), list(); len(a) != 1 || a[0].Name != "web" || &a[0] != &b[0] {
		t.Errorf("got %v, then %v", a, b)
	}
	_, err := vms.Mkdir(bg, alice, "a", 0o777)
	ok(t, err)
	if e := list(); len(e) != 2 || e[0].Name != "a" || e[1].Name != "web" {
		t.Errorf("after mkdir: %v", e)
	}
	ok(t, vms.Rmdir(bg, alice, "a"))
	ok(t, vms.Rename(bg, alice, "web", vms, "c"))
	if e := list(); len(e) != 1 || e[0].Name != "c" {
		t.Errorf("after rmdir and mv: %v", e)
	}
	ok(t, vms.Rmdir(bg, alice, "c"))
	if e := list(); len(e) != 0 {
		t.Errorf("of none: %v", e)
	}
}
