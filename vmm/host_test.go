package vmm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
)

// This file plays priv and core: it starts guest processes as priv does, and
// makes the kernel and initrd that real guests boot.

// coreUID is who may speak to the guests of these tests, beside root.
const coreUID = confine.CoreUID

// needHost skips a test that needs root, QEMU and a kernel.
func needHost(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: starts a guest process, which only root can")
	}
	if _, err := os.Stat("/usr/bin/qemu-system-x86_64"); err != nil {
		t.Skip("SKIPPED: no QEMU here (package qemu-system-x86)")
	}
}

// kernel is a Linux kernel of VMFS_TEST_KERNEL, or the host's newest.
func kernel(t *testing.T) string {
	t.Helper()
	if k := os.Getenv("VMFS_TEST_KERNEL"); k != "" {
		return k
	}
	found, _ := filepath.Glob("/boot/vmlinuz-*")
	if len(found) == 0 {
		t.Skip("SKIPPED: no kernel to boot; set VMFS_TEST_KERNEL to a vmlinuz of Debian")
	}
	return found[len(found)-1]
}

// initrd is VMFS_TEST_INITRD, or one made of busybox whose shell is on the
// serial line.
func initrd(t *testing.T) string {
	t.Helper()
	if i := os.Getenv("VMFS_TEST_INITRD"); i != "" {
		return i
	}
	busybox, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		t.Skip("SKIPPED: no /usr/bin/busybox for an initrd (package busybox-static); or set VMFS_TEST_INITRD")
	}
	var b bytes.Buffer
	w := newc{w: &b}
	for _, dir := range []string{"bin", "dev", "proc", "sys"} {
		w.entry(dir, 0o40755, 0, nil)
	}
	w.entry("dev/console", 0o20600, 5<<8|1, nil)
	w.entry("bin/busybox", 0o100755, 0, busybox)
	w.entry("init", 0o100755, 0, []byte(initScript))
	w.entry("TRAILER!!!", 0, 0, nil)
	path := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stty -echo
trap '' INT
echo "READY cpus=$(grep -c ^processor /proc/cpuinfo)"
while read line; do
	eval "$line"
	echo "DONE $?"
done
`

// newc writes a cpio archive as the kernel reads it.
type newc struct {
	w   io.Writer
	ino int
}

func (c *newc) entry(name string, mode, rdev int, data []byte) {
	c.ino++
	fmt.Fprintf(c.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, rdev>>8, rdev&0xff, len(name)+1, 0)
	c.padded(append([]byte(name), 0), 110)
	c.padded(data, 0)
}

// padded writes p so that it ends at a multiple of 4, with before in front.
func (c *newc) padded(p []byte, before int) {
	c.w.Write(p)
	c.w.Write(make([]byte, -(before+len(p))&3))
}

// guestBinary is the role as a program, built once without cgo.
var guestBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "vmfs-guest-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "guest")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/guest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %v\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if path, err := guestBinary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(status)
}

// process is a guest process that the test spawned as priv does.
type process struct {
	t      *testing.T
	id     uint32
	uid    uint32
	path   string // of its socket
	cmd    *exec.Cmd
	exited chan struct{}
	log    bytes.Buffer // its standard error, once exited is closed
}

var (
	nextID = uint32(4242000 + os.Getpid()%1000*10)
	idLock sync.Mutex
)

func spawn(t *testing.T, accel string) *process {
	t.Helper()
	binary, err := guestBinary()
	if err != nil {
		t.Fatal(err)
	}
	idLock.Lock()
	nextID++
	p := &process{t: t, id: nextID, uid: confine.GuestUID + nextID, exited: make(chan struct{})}
	idLock.Unlock()
	dir := t.TempDir()
	openUp(t, dir)
	p.path = filepath.Join(dir, "guest.sock")
	jail := filepath.Join(dir, "jail")
	if err := os.Mkdir(jail, 0o711); err != nil {
		t.Fatal(err)
	}
	socket := bindOnly(t, p.path)
	defer socket.Close()
	number := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	p.cmd = exec.Command(binary, number(p.id), number(p.uid), number(coreUID), accel, jail)
	p.cmd.ExtraFiles = []*os.File{socket}
	p.cmd.Stderr = &p.log
	p.cmd.Env = []string{}
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() && p.log.Len() > 0 {
			t.Logf("the guest process said: %s", p.log.String())
		}
	})
	return p
}

// openUp lets others into the directories that a test makes.
func openUp(t *testing.T, dir string) {
	for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
}

// bindOnly makes a socket that nobody listens on yet.
func bindOnly(t *testing.T, path string) *os.File {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, coreUID, coreUID); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "socket")
}

// dial connects as core does.
func (p *process) dial() ctl.Guest {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	g, err := Dial(ctx, p.path, p.id, p.uid)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { g.Close() })
	return g
}

// gone waits for the end of the process.
func (p *process) gone(within time.Duration) {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(within):
		p.t.Fatalf("the guest process is still there after %v", within)
	}
}

// open opens a file as priv would hand it over.
func open(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// linux is a launch of a kernel with a shell.
func linux(t *testing.T, p *process, cpus int) *ctl.Launch {
	return &ctl.Launch{
		ID: p.id, Generation: 7, Name: "test", Accel: "tcg", Reason: "a test",
		CPUs: cpus, MemoryMiB: 256, Boot: "disk",
		Cmdline: "console=ttyS0 quiet panic=-1",
		Kernel:  open(t, kernel(t), os.O_RDONLY),
		Initrd:  open(t, initrd(t), os.O_RDONLY),
	}
}

// screen reads a console from a position on.
type screen struct {
	t   *testing.T
	c   ctl.Console
	pos uint64
	all strings.Builder
}

// expect reads until want has come, and returns what came up to it.
func (s *screen) expect(want string, within time.Duration) string {
	s.t.Helper()
	late := time.After(within)
	buf := make([]byte, 4096)
	begin := s.all.Len()
	for {
		changed := s.c.Changed()
		n, at := s.c.ReadAt(buf, s.pos)
		s.pos = at + uint64(n)
		s.all.Write(buf[:n])
		if strings.Contains(s.all.String()[begin:], want) {
			return s.all.String()[begin:]
		}
		if n > 0 {
			continue
		}
		select {
		case <-changed:
		case <-late:
			s.t.Fatalf("no %q on the console within %v, but %q", want, within, s.all.String()[begin:])
		}
	}
}

// state asks until the state is want.
func awaitState(t *testing.T, g ctl.Guest, want string, within time.Duration) ctl.GuestState {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		s, err := g.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if s.State == want {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("state %q after %v, want %q", s.State, within, want)
		}
		select {
		case <-g.Notices():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func wantErrno(t *testing.T, what string, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

// rawDial connects without saying anything.
func (p *process) rawDial() *net.UnixConn {
	p.t.Helper()
	for range 1000 {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: p.path, Net: "unixpacket"})
		if err == nil {
			p.t.Cleanup(func() { c.Close() })
			return c
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.t.Fatal("nobody listens")
	return nil
}
