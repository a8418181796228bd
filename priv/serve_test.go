package priv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
	"vmfs/priv/confine/held"
	"vmfs/priv/wire"
)

// place is where the daemons of one test serve.
type place struct {
	t               *testing.T
	mnt, state, run string
	program         string
}

func newPlace(t *testing.T) place {
	p := place{t: t, program: program(t)}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	dir := tempDir(t)
	p.mnt, p.state, p.run = dir+"/m", dir+"/s", dir+"/r"
	t.Cleanup(p.clean)
	return p
}

// clean ends what a failed test left and takes the cover away.
func (p place) clean() {
	r := records{p.run + "/priv"}
	ids, _ := r.guests()
	for _, id := range ids {
		if rec, err := r.read(guestRecord(id)); err == nil {
			rec.kill(endTime)
		}
	}
	if rec, err := r.read(coreRecord); err == nil {
		rec.kill(endTime)
	}
	for len(p.mounts()) > 0 && unix.Unmount(p.mnt, unix.MNT_DETACH) == nil {
	}
}

// mounts are the types of what is mounted there, the lowest first.
func (p place) mounts() []string {
	all, err := readMounts()
	if err != nil {
		p.t.Fatal(err)
	}
	var types []string
	for _, m := range all {
		if m.point == p.mnt {
			types = append(types, m.fstype)
		}
	}
	return types
}

// running is a serve at work.
type running struct {
	place
	cmd    *exec.Cmd
	ended  chan struct{}
	output output
}

// output is what a daemon printed so far.
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

// serve starts a daemon whose core does what its words say.
func (p place) serve(core string) *running {
	p.t.Helper()
	d := &running{place: p, ended: make(chan struct{})}
	d.cmd = exec.Command(p.program, "serve", p.mnt, p.state, p.run, core, "/usr/share")
	d.cmd.Stdout, d.cmd.Stderr = &d.output, &d.output
	d.cmd.WaitDelay = time.Second // a core that hangs keeps them open
	if err := d.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { d.cmd.Wait(); close(d.ended) }()
	p.t.Cleanup(func() {
		d.cmd.Process.Kill()
		<-d.ended
		if p.t.Failed() {
			p.t.Logf("daemon said:\n%s", d.output.String())
		}
	})
	return d
}

func (d *running) says(what string) {
	d.t.Helper()
	eventually(d.t, "says "+what, func() bool { return strings.Contains(d.output.String(), what) })
}

// stop sends a SIGTERM and looks that the daemon ends well.
func (d *running) stop() {
	d.t.Helper()
	d.cmd.Process.Signal(syscall.SIGTERM)
	d.endsWith(0)
}

func (d *running) endsWith(status int) {
	d.t.Helper()
	select {
	case <-d.ended:
		if got := d.cmd.ProcessState.ExitCode(); got != status {
			d.t.Errorf("ended with status %d, want %d", got, status)
		}
	case <-time.After(time.Minute):
		d.t.Fatal("did not end")
	}
}

// core is the pid of the present core.
func (d *running) core() int {
	d.t.Helper()
	var pid int
	eventually(d.t, "a core", func() bool {
		r, err := records{d.run + "/priv"}.read(coreRecord)
		pid = r.pid
		return err == nil && r.live()
	})
	return pid
}

// lease is the pid of the process that answers DHCP.
func (d *running) lease() int {
	d.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		d.t.Fatal(err)
	}
	parent := fmt.Sprintf("\nPPid:\t%d\n", d.cmd.Process.Pid)
	for _, path := range all {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		status, _ := os.ReadFile(filepath.Dir(path) + "/status")
		if line, err := os.ReadFile(path); err == nil && string(line) == "vmfs\x00lease\x00" && strings.Contains(string(status), parent) {
			return pid
		}
	}
	d.t.Fatal("no process lease")
	return 0
}

func (p place) guest(id uint32) record {
	p.t.Helper()
	r, err := records{p.run + "/priv"}.read(guestRecord(id))
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func TestServeAndTerm(t *testing.T) {
	p := newPlace(t)
	d := p.serve("serving")
	d.says("vmfs: serving " + p.mnt)
	if got := p.mounts(); !slices.Equal(got, []string{coverType, treeType}) {
		t.Errorf("mounts: %q", got)
	}
	for path, want := range map[string]string{
		p.run: "drwxr-xr-x 0", p.run + "/priv": "drwx------ 0", p.run + "/guest": "drwx--x--x 0", p.run + "/lock": "-rw-r--r-- 0",
		p.state: "drwxr-xr-x 1899999999", p.state + "/vm": "drwx------ 1899999999",
	} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Error(err)
			continue
		}
		if got := fmt.Sprint(info.Mode(), " ", info.Sys().(*syscall.Stat_t).Uid); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
	second := p.serve("serving")
	second.endsWith(1)
	second.says("already served by process " + strconv.Itoa(d.cmd.Process.Pid))
	d.stop()
	if got := p.mounts(); !slices.Equal(got, []string{coverType}) {
		t.Errorf("mounts after the end: %q", got)
	}
	if err := os.Mkdir(p.mnt+"/vm", 0o755); err != syscall.EROFS && !strings.Contains(fmt.Sprint(err), "read-only") {
		t.Errorf("mkdir on the cover: %v", err)
	}
	if left, err := os.ReadDir(p.run); err != nil || len(left) > 0 {
		t.Errorf("left in the run directory: %v, %v", left, err)
	}
	again := p.serve("serving")
	again.says("vmfs: serving")
	if got := p.mounts(); !slices.Equal(got, []string{coverType, treeType}) {
		t.Errorf("mounts of the second daemon: %q", got)
	}
	again.stop()
}

// TestHeld holds the running processes against the tables.
func TestHeld(t *testing.T) {
	p := newPlace(t)
	d := p.serve("spawn:3 lease serving")
	d.says("vmfs: serving")
	if err := held.Check(d.lease(), confine.Lease, confine.LeaseUID); err != nil {
		t.Error(err)
	}
	if err := held.Check(d.cmd.Process.Pid, confine.Priv, 0); err != nil {
		t.Error(err)
	}
	core := d.core()
	if err := held.Check(core, confine.Core, confine.CoreUID); err != nil {
		t.Error(err)
	}
	files, err := held.Files(core)
	if err != nil {
		t.Fatal(err)
	}
	fuse := 0
	for _, to := range files {
		if to == "/dev/fuse" {
			fuse++
		}
	}
	if fuse != 1 {
		t.Errorf("core has %v", files)
	}
	files, err = held.Files(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for fd, to := range files {
		if to == "/dev/fuse" {
			t.Errorf("priv keeps the tree's requests as %d", fd)
		}
	}
	guest := p.guest(3)
	if guest.uid != confine.GuestUID+3 {
		t.Errorf("record %+v", guest)
	}
	eventually(t, "the guest has settled", func() bool {
		return held.Check(guest.pid, confine.Jail, confine.GuestUID+3) == nil
	})
	for _, ns := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		a, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", guest.pid, ns))
		b, _ := os.Readlink("/proc/self/ns/" + ns)
		if a == b || a == "" {
			t.Errorf("guest's %s namespace is %q, ours %q", ns, a, b)
		}
	}
	d.stop()
}

// TestOpenerHeld holds an opener that a file system keeps from ending.
func TestOpenerHeld(t *testing.T) {
	prog := program(t)
	if err := keepFiles(); err != nil { // as Serve does
		t.Fatal(err)
	}
	conn, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cmd := exec.Command(prog, "opener")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = []string{}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	eventually(t, "gave up capabilities", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		return err == nil && strings.Contains(string(status), "CapBnd:\t00000000000000c0") && strings.Contains(string(status), "CapEff:\t00000000000000c0")
	})
	files, err := held.Files(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for fd, to := range files {
		if fd <= 2 && to != "/dev/null" || fd > 2 && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			t.Errorf("the opener has %d: %s", fd, to)
		}
	}
}

// TestCompromised lets core do what a working core never does.
func TestCompromised(t *testing.T) {
	for _, line := range []string{
		"1 open 1000 ro relative/path", "1 open 1899999999 ro /a", "1 spawn 0 tcg no", "1 spawn 4294967295 tcg no",
		"1 end ../../x", "1 exec /bin/sh", "1 unpack 4096", "0 alive", "no tag",
	} {
		p := newPlace(t)
		d := p.serve("raw " + line)
		d.says("vmfs: core ended: ")
		d.endsWith(1) // it does so each time
		if out := d.output.String(); !strings.Contains(out, "impossible request") && !strings.Contains(out, "not a message") {
			t.Errorf("%s: %s", line, out)
		}
		if n := strings.Count(d.output.String(), "\n"); n != deathsAllowed+1 {
			t.Errorf("%s: %d lines in the log, want %d:\n%s", line, n, deathsAllowed+1, d.output.String())
		}
		if got := p.mounts(); !slices.Equal(got, []string{coverType}) {
			t.Errorf("mounts after the end: %q", got)
		}
	}
}

func TestCoreDies(t *testing.T) {
	p := newPlace(t)
	d := p.serve("spawn:3 serving")
	d.says("vmfs: serving")
	guest := p.guest(3)
	for range 2 {
		core := d.core()
		syscall.Kill(core, syscall.SIGKILL)
		eventually(t, "another core", func() bool { return d.core() != core }) // the session crash holds how soon
		if got := p.mounts(); !slices.Equal(got, []string{coverType, treeType}) {
			t.Errorf("mounts: %q", got)
		}
	}
	if p.guest(3) != guest || !guest.live() {
		t.Errorf("the guest noticed: %+v", p.guest(3))
	}
	d.says("core ended: signal: killed")
	d.says("process " + strconv.Itoa(guest.pid) + " is one") // the second core's spawn
	if n := strings.Count(d.output.String(), "vmfs: serving"); n != 1 {
		t.Errorf("announced %d times", n)
	}
	d.stop()
	if !guest.live() {
		t.Error("the guest ended with the daemon")
	}
}

func TestCoreKeepsDying(t *testing.T) {
	p := newPlace(t)
	d := p.serve("exit:7")
	d.endsWith(1)
	d.says("core ended: exit status 7")
	d.says("core ended 5 times within 1m0s")
}

func TestCoreHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED: takes 12 s")
	}
	p := newPlace(t)
	d := p.serve("serving hang")
	d.says("vmfs: serving")
	core := d.core()
	time.Sleep(aliveTime)
	d.says("core ended: silent for 10s")
	if d.core() == core {
		t.Error("the same core")
	}
}

// TestAdopt kills the daemon and starts another, as in a crash.
func TestAdopt(t *testing.T) {
	p := newPlace(t)
	d := p.serve("spawn:3 spawn:4 serving")
	d.says("vmfs: serving")
	three, four, core := p.guest(3), p.guest(4), d.core()
	syscall.Kill(core, syscall.SIGSTOP) // one that will not see that its daemon is gone
	d.cmd.Process.Kill()
	<-d.ended
	if err := four.kill(endTime); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.run+"/guest/9", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	again := p.serve("guests serving")
	again.says("vmfs: serving")
	again.says("guests 1\n")
	if startTime(core) != 0 {
		t.Error("the old core is still there")
	}
	if p.guest(3) != three || !three.live() {
		t.Error("guest 3 was not adopted")
	}
	if left, _ := os.ReadDir(p.run + "/guest"); len(left) != 1 || left[0].Name() != "3" {
		t.Errorf("sockets: %v", left)
	}
	if got := p.mounts(); !slices.Equal(got, []string{coverType, treeType}) {
		t.Errorf("mounts: %q", got)
	}
	again.stop()
	last := p.serve("end:3 end:3 guests serving")
	last.says("vmfs: serving")
	last.says("guests 0\n")
	if three.live() {
		t.Error("guest 3 was not ended")
	}
	last.stop()
	if left, _ := os.ReadDir(p.run); len(left) > 0 {
		t.Errorf("left in the run directory: %v", left)
	}
}

func TestGuestEnds(t *testing.T) {
	p := newPlace(t)
	d := p.serve("spawn:3 serving")
	d.says("vmfs: serving")
	syscall.Kill(p.guest(3).pid, syscall.SIGKILL)
	d.says("exited 3 signal: killed")
	if left, _ := os.ReadDir(p.run + "/guest"); len(left) > 0 {
		t.Errorf("sockets: %v", left)
	}
	d.stop()
}

// TestDraining holds that a SIGTERM does not cut a shutdown short.
func TestDraining(t *testing.T) {
	p := newPlace(t)
	d := p.serve("draining serving usr1 shutdown")
	d.says("vmfs: serving")
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
		t.Fatal("a SIGTERM cut it short")
	case <-time.After(time.Second):
	}
	syscall.Kill(d.core(), syscall.SIGUSR1)
	d.endsWith(0)
}

func TestShutdown(t *testing.T) {
	p := newPlace(t)
	d := p.serve("serving shutdown")
	d.endsWith(0)
	if out := d.output.String(); strings.Count(out, "\n") != 1 {
		t.Errorf("said %q", out)
	}
}

func TestOtherDaemonsMount(t *testing.T) {
	p := newPlace(t)
	d := p.serve("serving")
	d.says("vmfs: serving")
	other := p
	other.run, other.state = p.run+"2", p.state+"2"
	second := other.serve("serving")
	second.endsWith(1)
	second.says("already served by process " + strconv.Itoa(d.cmd.Process.Pid))
	if got := p.mounts(); !slices.Equal(got, []string{coverType, treeType}) {
		t.Errorf("mounts: %q", got)
	}
	d.stop()
}

// Two daemons with different run directories would call each other's guests
// dead.
func TestOtherDaemonsState(t *testing.T) {
	p := newPlace(t)
	d := p.serve("serving")
	d.says("vmfs: serving")
	other := p
	other.run, other.mnt = p.run+"2", p.mnt+"2"
	second := other.serve("serving")
	second.endsWith(1)
	second.says("another daemon serves it")
	d.stop()
	third := p.serve("serving")
	third.says("vmfs: serving")
	third.stop()
}

func TestRefusals(t *testing.T) {
	p := newPlace(t)
	dir := tempDir(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.WriteFile(dir+"/file", nil, 0o644))
	check(os.Mkdir(dir+"/alices", 0o755))
	check(os.Chown(dir+"/alices", alice, alice))
	check(os.MkdirAll(dir+"/full/vm/web", 0o755))
	for _, c := range []struct{ mnt, state, run, want string }{
		{"m", p.state, p.run, `mount point "m": not an absolute path`},
		{"/", p.state, p.run, "the root directory cannot be it"},
		{dir + "/no/m", p.state, p.run, "no such file"},
		{dir + "/file", p.state, p.run, "not a directory"},
		{p.mnt, p.mnt + "/s", p.run, "lies below the mount point"},
		{p.mnt, dir + "/file", p.run, "not a directory"},
		{p.mnt, dir + "/alices", p.run, "belongs to user 65534"},
		{p.mnt, dir + "/full", p.run, "not empty (vm)"},
		{p.mnt, p.state, "/tmp/" + strings.Repeat("r", 80), "85 bytes; at most 80"},
		{p.mnt, p.state, dir + "/alices", "not a directory that root alone may write"},
	} {
		q := p
		q.mnt, q.state, q.run = c.mnt, c.state, c.run
		d := q.serve("serving")
		d.endsWith(1)
		d.says(c.want)
	}
	if got := p.mounts(); len(got) > 0 {
		t.Errorf("refused, but mounted: %q", got)
	}
}
