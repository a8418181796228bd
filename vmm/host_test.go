package vmm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
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

// This file plays priv and core: it starts guest processes as priv does and
// connects as core does.

// coreUID is who may speak to the guests of these tests, beside root.
const coreUID = confine.CoreUID

// needHost skips a test that needs root, QEMU and a kernel.
func needHost(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("skipping: boots a guest, and -short")
	}
	if os.Getuid() != 0 {
		t.Skip("skipping: only root starts guest processes")
	}
	if _, err := os.Stat("/usr/bin/qemu-system-x86_64"); err != nil {
		t.Skip("skipping: no QEMU here (package qemu-system-x86)")
	}
}

// guestFile is a file of the guest that scripts/guest makes: a Debian kernel,
// and a busybox with a shell on the serial line.
func guestFile(t *testing.T, variable, name string) *os.File {
	t.Helper()
	cache, _ := os.UserCacheDir()
	path := cmp.Or(os.Getenv(variable), filepath.Join(cache, "vmfs", name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("skipping: make a guest with scripts/guest: %v", err)
	}
	return open(t, path, os.O_RDONLY)
}

// programs are vmfs and vmfs-guest, built once without cgo, in a directory that
// TestMain removes.
var (
	programs    = sync.OnceValues(buildPrograms)
	programsDir string
)

func buildPrograms() (string, error) {
	var err error
	if programsDir, err = os.MkdirTemp("", "vmfs-guest-test"); err != nil {
		return "", err
	}
	for name, pkg := range map[string]string{"vmfs": "vmfs/cmd/vmfs", "vmfs-guest": "vmfs/cmd/vmfs/guest"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(programsDir, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("go build: %v\n%s", err, out)
		}
	}
	return programsDir, nil
}

func TestMain(m *testing.M) {
	status := m.Run()
	if programsDir != "" {
		os.RemoveAll(programsDir)
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
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "vmfs")
	if accel == accelNative {
		binary = filepath.Join(dir, "vmfs-guest")
	}
	idLock.Lock()
	nextID++
	p := &process{t: t, id: nextID, uid: confine.GuestUID + nextID, exited: make(chan struct{})}
	idLock.Unlock()
	dir = t.TempDir()
	openUp(t, dir)
	p.path = filepath.Join(dir, "guest.sock")
	jail := filepath.Join(dir, "jail")
	if err := os.Mkdir(jail, 0o711); err != nil {
		t.Fatal(err)
	}
	socket := bindOnly(t, p.path)
	defer socket.Close()
	number := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }
	p.cmd = exec.Command(binary, "guest", number(p.id), number(p.uid), number(coreUID), accel, jail)
	p.cmd.ExtraFiles = []*os.File{socket}
	if accel == accelNative {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, open(t, "/dev/kvm", os.O_RDWR))
	}
	p.cmd.Stderr = &p.log
	p.cmd.Env = []string{}
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	p.start(t)
	return p
}

// start starts the process, and ends it with the test.
func (p *process) start(t *testing.T) {
	t.Helper()
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

// soon is how long a test waits at most for what comes at once, on a machine
// that has nothing else to do.
const soon = time.Minute

// dial connects as core does.
func (p *process) dial() ctl.Guest {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), soon)
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
		Kernel:  guestFile(t, "VMFS_TEST_KERNEL", "vmlinuz"),
		Initrd:  guestFile(t, "VMFS_TEST_INITRD", "initrd"),
	}
}

// screen reads a console from the beginning.
type screen struct {
	t   *testing.T
	c   ctl.Console
	pos uint64 // of the console
	all string // what was there up to pos
	met int    // of all: what was expected and came
}

// expect waits until want comes, behind what was expected before.
func (s *screen) expect(want string, within time.Duration) {
	s.t.Helper()
	late := time.After(within)
	buf := make([]byte, 4096)
	for {
		changed := s.c.Changed()
		n, at := s.c.ReadAt(buf, s.pos)
		s.pos = at + uint64(n)
		s.all += string(buf[:n])
		if i := strings.Index(s.all[s.met:], want); i >= 0 {
			s.met += i + len(want)
			return
		}
		if n > 0 {
			continue
		}
		select {
		case <-changed:
		case <-late:
			s.t.Fatalf("no %q on the console within %v, but %q", want, within, s.all[s.met:])
		}
	}
}

// awaitState asks until the state is want.
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
