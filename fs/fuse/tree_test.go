package fuse_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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
	s, err = fuse.Serve(fstest.Mount(t, dir, fuse.MaxRead), root, fuse.Options{Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Not to be in use is what Unmount asks for as well. It then waits for
		// an end that another mount namespace can put off.
		if err := unix.Unmount(dir, unix.MNT_EXPIRE); err != unix.EAGAIN {
			t.Errorf("is the mount in use: got %v, want %v", err, unix.EAGAIN)
		}
		unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		s.Wait()
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
	t.Cleanup(m.Close)
	tr := fs.New(m)
	dir, s := mounted(t, tr.Root())
	tr.Watch(s.Changed)
	fstest.NoPoll(t, dir+"/help")
	return dir, m, host
}

func TestConformance(t *testing.T) {
	dir, _, _ := tree(t)
	fstest.Run(t, dir)
}

func TestMatrix(t *testing.T) {
	dir, _, _ := tree(t)
	fstest.Matrix(t, dir, fstest.Syscalls(dir))
}

// startable makes a machine that the host can start, and gives its directory
// and that of what waits of it.
func startable(t *testing.T, dir string) (vm, live string) {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	vm, live = dir+"/vm/web", dir+"/live/vm/web"
	sh(t, `mkdir $1; echo $2 > $1/kernel`, vm, kernel)
	return vm, live
}

// sh runs a shell line and returns what it printed.
func sh(t *testing.T, line string, args ...string) string {
	t.Helper()
	cmd := shell(line, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

func shell(line string, args ...string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", append([]string{"-euc", line, "sh"}, args...)...)
	cmd.Dir = "/"
	return cmd
}

// await waits for a condition.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > time.Minute {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// A start that lasts holds its own file only; interrupted, it is undone.
func TestSlowStart(t *testing.T) {
	dir, _, host := tree(t)
	vm, _ := startable(t, dir)
	blocked := make(chan bool, 10)
	host.Lock()
	host.Blocking = func(ctx context.Context) { blocked <- true; <-ctx.Done() }
	host.Unlock()

	least := time.Hour
	for try := 0; try < 3 || try < 50 && least > 50*time.Millisecond; try++ {
		start := shell(`exec dd if=/dev/stdin of=$1/do/start bs=10 count=1 status=none`, vm)
		start.Stdin = strings.NewReader("\n")
		if err := start.Start(); err != nil {
			t.Fatal(err)
		}
		<-blocked
		if got := sh(t, `cat $1/status; ls -l $1 > /dev/null`, vm); got != "starting\n" {
			t.Errorf("status: %q", got)
		}
		begin := time.Now()
		start.Process.Signal(unix.SIGTERM) // not SIGINT, which who runs the test may ignore
		if err := start.Wait(); err == nil {
			t.Error("an interrupted start succeeded")
		}
		least = min(least, time.Since(begin))
		if got := sh(t, `cat $1/status $1/err`, vm); got != "stopped\n" {
			t.Errorf("after the interrupt: %q", got)
		}
	}
	if least > 50*time.Millisecond {
		t.Errorf("a start ended %v after its interrupt", least)
	}

	// Not with echo, which may write again when a write was interrupted.
	fd, err := fstest.Insist(func() (int, error) { return unix.Open(vm+"/do/start", unix.O_WRONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	started := make(chan error)
	go func() {
		_, err := unix.Write(fd, []byte("\n"))
		started <- err
	}()
	<-blocked
	sh(t, `echo > $1/do/kill`, vm)
	if err := <-started; err == nil {
		t.Error("a killed start succeeded")
	}
}

// One description of a console takes writes beside a read that waits; all
// readers see all; tail -f follows the log.
func TestConsole(t *testing.T) {
	dir, _, host := tree(t)
	vm, live := startable(t, dir)
	sh(t, `echo start > $1/ctl`, vm)
	guest := host.Guest(1)

	both := shell(`exec 3<> $1/console; cat <&3 & echo typed >&3; wait`, live)
	other := shell(`cat $1/console`, live)
	var out [2]output
	for i, cmd := range []*exec.Cmd{both, other} {
		cmd.Stdout = &out[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the guest to be typed to", func() bool { return guest.Typed() == "typed\n" })
	guest.Print("one\n")
	tail := shell(`exec tail -n +1 -f -s 0.1 $1/console.log`, vm)
	followed, err := tail.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(time.Minute, func() { tail.Process.Kill() })
	lines := bufio.NewReader(followed)
	for _, want := range []string{"one\n", "two\n"} {
		if got, err := lines.ReadString('\n'); got != want {
			t.Errorf("tail -f: %q, %v, want %q", got, err, want)
		}
		if want == "one\n" {
			guest.Print("two\n")
		}
	}
	late.Stop()
	tail.Process.Kill()
	tail.Wait()
	for i := range out { // who has not begun by the end waits for the next launch
		await(t, "a reader to have all", func() bool { return out[i].String() == "one\ntwo\n" })
	}
	guest.EndAs(ctl.Exit{Who: "guest", How: "power-off", At: time.Now()})
	for i, cmd := range []*exec.Cmd{both, other} {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if got := out[i].String(); got != "one\ntwo\n" {
			t.Errorf("reader %d: %q", i, got)
		}
	}
	if got := sh(t, `cat $1/console.log $2/wait; stat -c %s $1/console.log`, vm, live); got != "one\ntwo\nstopped\n8\n" {
		t.Errorf("after the end: %q", got)
	}
}

// output is what a program has printed so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// What others change is seen at once, also where the kernel believed it knew.
func TestOtherDoors(t *testing.T) {
	fuse.Believe(t, time.Hour)
	dir, m, _ := tree(t)
	vm, err := m.Create(ctl.Cred{}, "web", 0o755, 0)
	if err != nil {
		t.Fatal(err)
	}
	look := func(path, want string) {
		t.Helper()
		if got := sh(t, `stat -c "%A %s" $1 2>&1 || :`, dir+path); !strings.Contains(got, want) {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	look("/vm/web/cpus", "-rw-r----- 2")
	look("/vm/web/config", " 10")
	ok(vm.Set(ctl.Cred{}, "cpus", "16"))
	look("/vm/web/cpus", "-rw-r----- 3")
	look("/vm/web/config", " 18")
	mode := uint32(0o600)
	ok(vm.SetAccess(ctl.Cred{}, "cpus", ctl.AccessChange{Mode: &mode}))
	look("/vm/web/cpus", "-rw------- 3")
	ok(vm.AddPart(ctl.Cred{}, ctl.Part{Dir: "disk", N: 3}))
	look("/vm/web/disk/3/path", "-rw-r----- 0")
	ok(vm.Edit(ctl.Cred{}, "-disk/3\n"))
	look("/vm/web/disk/3/path", "No such file")
	look("/live/vm/web/console", "-rw-------")
	ok(m.Rename(ctl.Cred{}, vm, "other"))
	look("/vm/other/cpus", "-rw------- 3")
	look("/live/vm/other/console", "-rw-------")
	for _, path := range []string{"/vm/web", "/live/vm/web"} {
		await(t, path+" to be gone", func() bool {
			var st unix.Stat_t
			return unix.Stat(dir+path, &st) == unix.ENOENT
		})
	}
	ok(m.Remove(ctl.Cred{}, vm))
	look("/vm/other", "No such file")
	look("/vm/other/cpus", "No such file")
	look("/live/vm/other/console", "No such file")
}

// A copy by common tools is whole, and goes back.
func TestTools(t *testing.T) {
	dir, _, _ := tree(t)
	vm, _ := startable(t, dir)
	for _, tool := range []string{"tar", "grep", "cmp", "diff"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	copies := t.TempDir()
	got := sh(t, `
		cd $2
		echo 4 > $1/cpus
		tar -C $1 -cf - . | tar -xf -
		cmp $1/config config
		cmp $1/kernel kernel
		test "$(cat status)" = stopped
		cp -r $1 copied
		diff -r $1 copied
		grep -rl $(cat kernel) $1 | sort | sed "s,$1/,,"
		mkdir $1-b
		cp config $1-b/config
		cmp $1/config $1-b/config
		cp -r copied/cpus $1-b/
		tar -C copied -cf - memory | tar -C $1-b --overwrite -xf -
		rmdir $1-b
		find $1 -type f | wc -l
		rm -r $1 2>&1 | grep -c "not permitted"
	`, vm, copies)
	// rm also tries disk/ and nic/, which are empty.
	if want := fmt.Sprintf("config\nconfig.old\nkernel\n%d\n%d\n", files, files+2); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// files is how many files a machine without disks has.
var files = func() int {
	n := 13 + len(ctl.Verbs)
	for _, a := range ctl.Attrs {
		if !strings.Contains(a.Name, "/") {
			n++
		}
	}
	return n
}()

// A name that a write made free is free when the write returns: the kernel
// has forgotten what was there.
func TestNameAgain(t *testing.T) {
	dir, _, _ := tree(t)
	for range 30 {
		for _, vm := range []string{dir + "/vm/again", dir + "/vm/again/nic/0"} {
			if err := os.Mkdir(vm, 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(vm); err != nil {
				t.Fatal(err)
			}
		}
		put(t, dir+"/vm/again/config", "-nic/0\n")
		if err := os.Mkdir(dir+"/vm/again/nic/0", 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, dir+"/vm/again/ctl", "remove\n")
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}
