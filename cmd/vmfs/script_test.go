package main_test

// The sessions in testdata are shell lines that a user could type, run
// against a real mount with real guests. They need root, FUSE, QEMU and the
// guest that scripts/guest makes, and skip aloud without them. This file is
// their stage: a daemon of each script's own, in a directory of its own, and
// the verbs that shell lines are held against.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

func TestMain(m *testing.M) {
	// A shell ignores it for what it runs in the background, and so would all
	// that the sessions run, who end some of it by that.
	if signal.Ignored(os.Interrupt) {
		signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	}
	testscript.Main(m, map[string]func(){"hangfs": hangfs, "nousers": nousers, "9p": ninep})
}

func TestScripts(t *testing.T) {
	run(t, testscript.Params{Dir: "testdata"})
}

// TestKillpoints ends core, priv and both at each step of a start, with a
// program that stands still there, and at moments in between, and wants a
// machine that starts again and nothing left over.
func TestKillpoints(t *testing.T) {
	dir := t.TempDir()
	var scripts []string
	add := func(name, moment, step string) {
		nics := [2]string{"switch lan", "local yes"} // the first is the one at whose steps it stands still
		if slices.Contains(localSteps, step) {
			nics[0], nics[1] = nics[1], nics[0]
		}
		for victim, again := range map[string]string{"core": "", "serve": "serve", "serve core": "serve"} {
			script := fmt.Sprintf(killpoint, step, victim, again, nics[0], nics[1], moment)
			path := fmt.Sprintf("%s/%s-%s.txt", dir, name, strings.ReplaceAll(victim, " ", "-"))
			if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
				t.Fatal(err)
			}
			scripts = append(scripts, path)
		}
	}
	for i, step := range slices.Concat(ctl.Steps, ctl.NICSteps) {
		add(fmt.Sprintf("%02d-%s", i, step), fmt.Sprintf("until 10 'grep -qx \"at step %s\" $WORK/serve.log'", step), step)
	}
	for _, ms := range []int{10, 40, 80, 130, 200} {
		add(fmt.Sprintf("at-%03d", ms), fmt.Sprintf("ok 'sleep 0.%03d'", ms), "none")
	}
	slices.Sort(scripts)
	run(t, testscript.Params{Files: scripts}, "-tags", "killpoints")
}

// localSteps are those of a NIC in which more is done for a local one.
var localSteps = []string{"address", "up", "lease"}

const killpoint = `
# kill -9 of %[2]s in a start, at the step %[1]s
netns host
serve
ok 'debian a; mkdir $MNT/switch/lan; printf "address 10.0.0.1/24\ndhcp yes\nnat yes\ngroup dmz\n" | cat >$MNT/switch/lan/config'
ok 'printf "memory 64M\nnic/0/%[4]s\nnic/0/group web\nnic/1/%[5]s\n" | cat >$MNT/vm/a/config; echo %[1]s >$STATE/killpoint'
leaks before
exec bash -c 'timeout 100 bash -c "echo start >$MNT/vm/a/ctl"; true' &starter&
%[6]s
ok 'rm $STATE/killpoint'
killrole %[2]s
%[3]s
wait starter
until 10 'grep -qxE "stopped|running|failed .*" $MNT/vm/a/status'
until 10 'echo kill >$MNT/vm/a/ctl && echo clear-failed >$MNT/vm/a/ctl'
! says 'tap' 'ip link; nft list ruleset'
until 15 'echo start >$MNT/vm/a/ctl'
says '^running\n(ok|.*ip_forward is 0.*)\n(ok|.*ip_forward is 0.*)$' 'cat $MNT/vm/a/status $MNT/vm/a/check $MNT/switch/lan/check'
ok 'echo kill >$MNT/vm/a/ctl; echo down >$MNT/switch/lan/ctl'
leaks after
`

// run runs scripts against the program, built with flags, or skips them.
func run(t *testing.T, p testscript.Params, flags ...string) {
	kernel, initrd := requirements(t)
	program := program(t, flags...)
	p.Setup = func(env *testscript.Env) error { return setUp(env, program, kernel, initrd) }
	p.Condition = exists
	p.Cmds = map[string]func(*testscript.TestScript, bool, []string){
		"netns":    netns,
		"ordinary": ordinary,
		"serve":    serve,
		"term":     term,
		"ends":     ends,
		"killrole": killRole,
		"ok":       ok,
		"refused":  refused,
		"says":     says,
		"until":    until,
		"within":   within,
		"leaks":    leaks,
		"held":     heldNow,
		"bootable": bootable,
		"halting":  halting,
		"scribe":   scribe,
		"watcher":  watcher,
		"hosts":    hosts,
		"on":       on,
		"page":     page,
		"install":  install,
		"sshd":     sshd,
	}
	testscript.Run(t, p)
}

// exists is the condition [exists:PATH].
func exists(cond string) (bool, error) {
	path, ok := strings.CutPrefix(cond, "exists:")
	if !ok {
		return false, fmt.Errorf("no such condition")
	}
	_, err := os.Stat(path)
	return err == nil, nil
}

// requirements skips, with the reason, where the sessions cannot run, or
// fails there if VMFS_TEST_SESSIONS says that they must.
func requirements(t *testing.T) (kernel, initrd string) {
	skip := t.Skipf
	if os.Getenv("VMFS_TEST_SESSIONS") == "required" {
		skip = t.Fatalf
	}
	if testing.Short() {
		skip("skipping the sessions: -short")
	}
	if os.Getuid() != 0 {
		skip("skipping the sessions: they mount and spawn, and that needs root")
	}
	for _, p := range []string{"qemu-system-x86_64", "bash", "setpriv", "prlimit", "script", "timeout",
		"nsenter", "ip", "bridge", "nft", "ping"} {
		if _, err := exec.LookPath(p); err != nil {
			skip("skipping the sessions: %v", err)
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		skip("skipping the sessions: %v", err)
	}
	cache, _ := os.UserCacheDir()
	kernel = guestFile("VMFS_TEST_KERNEL", cache+"/vmfs/vmlinuz")
	initrd = guestFile("VMFS_TEST_INITRD", cache+"/vmfs/initrd")
	for _, f := range []string{kernel, initrd} {
		if _, err := os.Stat(f); err != nil {
			skip("skipping the sessions: make a guest with scripts/guest: %v", err)
		}
	}
	return kernel, initrd
}

func guestFile(variable, path string) string {
	if v := os.Getenv(variable); v != "" {
		return v
	}
	return path
}

// program builds the program as it is shipped: static, since what restricts
// all threads at once needs that. The race detector cannot be in it. It lies
// where every user may execute it. Where VMFS_TEST_PROGRAM is a built one,
// that is taken: a machine in which the sessions run need not have Go.
func program(t *testing.T, flags ...string) string {
	if built := os.Getenv("VMFS_TEST_PROGRAM"); built != "" && len(flags) == 0 {
		return built
	}
	dir, err := os.MkdirTemp("", "vmfs-program-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-o", dir + "/vmfs"}, flags...)
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return dir + "/vmfs"
}

// stageKey is under which a script keeps its stage.
type stageKey struct{}

// A stage is what one script has to itself.
type stage struct {
	env    *testscript.Env
	dir    string // m, state, run and images are in it; RUN must be short
	tag    uint64
	serve  *exec.Cmd
	ended  chan struct{} // closed when serve was reaped
	before string        // what "leaks before" saw
	netns  []string      // network namespaces; the daemon and the lines are in the first
	user   *ordinaryUser // whose daemon and lines they are; nil is root
	hosts  map[string]*host
	host   *host // of these, where the lines are
	paged  int   // blocks of the cookbook that were typed
}

// tags tell the processes of one stage from those of another. Nothing that
// a process does drops its RLIMIT_MSGQUEUE: exec, another uid, a namespace
// and another parent all keep it, so a process that leaked is still found.
var tags atomic.Uint64

func setUp(env *testscript.Env, program, kernel, initrd string) error {
	dir, err := os.MkdirTemp("", "vmfs-test-")
	if err != nil {
		return err
	}
	s := &stage{env: env, dir: dir, tag: 400000 + uint64(os.Getpid())%100000*4 + tags.Add(1)<<10}
	env.Values[stageKey{}] = s
	env.Defer(s.tearDown)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, d := range []string{"m", "images"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	lib, err := filepath.Abs("testdata/lib.bash")
	if err != nil {
		return err
	}
	env.Setenv("VMFS", program)
	env.Setenv("MNT", dir+"/m")
	env.Setenv("STATE", dir+"/state")
	env.Setenv("RUN", dir+"/run")
	env.Setenv("IMAGES", dir+"/images")
	env.Setenv("KERNEL", dir+"/images/vmlinuz")
	env.Setenv("INITRD", dir+"/images/initrd")
	env.Setenv("TAG", strconv.FormatUint(s.tag, 10))
	env.Setenv("BASH_ENV", lib)
	env.Setenv("LC_ALL", "C")
	if err := copyFile(dir+"/images/vmlinuz", kernel); err != nil {
		return err
	}
	return copyFile(dir+"/images/initrd", initrd)
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

func stageOf(ts *testscript.TestScript) *stage {
	return ts.Value(stageKey{}).(*stage)
}

// tearDown leaves nothing, however the script ended.
func (s *stage) tearDown() {
	for range 3000 { // a minute: on a busy machine the dead take their time
		left := s.processes()
		if len(left) == 0 {
			break
		}
		for _, p := range left {
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
	s.removeNetns()
	s.user.release()
	for range 100 {
		mounts := s.mounts()
		if len(mounts) == 0 {
			if err := os.RemoveAll(s.dir); err != nil {
				s.env.T().Log("left: ", err)
			}
			return
		}
		for _, m := range mounts {
			syscall.Unmount(m.point, syscall.MNT_DETACH)
		}
	}
	s.env.T().Log("mounts left below ", s.dir)
}

// serve starts the daemon, in the cgroup CGROUP if that is set, and waits until
// it says that the tree is there.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	s := stageOf(ts)
	if neg {
		ts.Fatalf("serve cannot be negated: use ! exec")
	}
	if s.running() {
		ts.Fatalf("the daemon runs already")
	}
	args = slices.Concat([]string{"prlimit", "--msgqueue=" + ts.Getenv("TAG"), ts.Getenv("VMFS"), "serve"}, s.user.daemonArgs(ts), args)
	args = s.inNetns(s.user.as(args)...)
	if dir := ts.Getenv("CGROUP"); dir != "" {
		args = append([]string{"bash", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, dir}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = s.user.environment(ts)
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	log, err := os.OpenFile(ts.MkAbs(ts.Getenv("WORK")+"/serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	defer log.Close()
	cmd.Stderr = log
	ts.Check(cmd.Start())
	s.serve, s.ended = cmd, make(chan struct{})
	said := make(chan string, 1)
	go func(ended chan struct{}) {
		first := make([]byte, 256)
		n, _ := stdout.Read(first)
		said <- string(first[:n])
		cmd.Wait()
		close(ended)
	}(s.ended)
	want := "vmfs: serving " + ts.Getenv("MNT") + "\n"
	select {
	case got := <-said:
		if got != want {
			ts.Fatalf("serve: got %q, want %q; it said:\n%s", got, want, ts.ReadFile(log.Name()))
		}
	case <-time.After(time.Minute):
		ts.Fatalf("serve: said nothing within a minute:\n%s", ts.ReadFile(log.Name()))
	}
}

func (s *stage) running() bool {
	if s.serve == nil {
		return false
	}
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// term ends the daemon as a service manager does, and wants exit status 0.
func term(ts *testscript.TestScript, neg bool, args []string) {
	s := stageOf(ts)
	if !s.running() {
		ts.Fatalf("no daemon runs")
	}
	ts.Check(s.serve.Process.Signal(syscall.SIGTERM))
	endedWell(ts, s)
}

// ends waits for the end of a daemon that was told to shut down, and wants exit
// status 0.
func ends(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 0, "ends")
	s := stageOf(ts)
	if s.serve == nil {
		ts.Fatalf("there was no daemon")
	}
	endedWell(ts, s)
}

func endedWell(ts *testscript.TestScript, s *stage) {
	ended(ts, s, time.Minute)
	if code := s.serve.ProcessState.ExitCode(); code != 0 {
		ts.Fatalf("serve: got exit status %d, want 0", code)
	}
}

// ended waits for the daemon's own end.
func ended(ts *testscript.TestScript, s *stage, wait time.Duration) {
	select {
	case <-s.ended:
	case <-time.After(wait):
		ts.Fatalf("the daemon did not end within %v", wait)
	}
}

// killRole sends SIGKILL to roles, named as the program's first argument:
// serve (which is priv), core, opener, guest.
func killRole(ts *testscript.TestScript, neg bool, args []string) {
	s := stageOf(ts)
	var victims []process
	for _, p := range s.processes() {
		for _, role := range args {
			if p.role() == role {
				victims = append(victims, p)
			}
		}
	}
	if len(victims) < len(args) {
		ts.Fatalf("not every role of %v runs: %v", args, s.processes())
	}
	for _, p := range victims {
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	for _, p := range victims {
		for deadline := time.Now().Add(time.Minute); p.alive(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				ts.Fatalf("%v: still there a minute after SIGKILL", p)
			}
		}
		if s.serve != nil && p.pid == s.serve.Process.Pid {
			ended(ts, s, time.Minute)
		}
	}
}

// shell runs a line; nothing in a session may take longer than three minutes.
func shell(ts *testscript.TestScript, line string) (stdout, stderr string, err error) {
	args := append([]string{"-k", "5", "180"}, stageOf(ts).inNetns(stageOf(ts).user.as([]string{"bash", "-c", line})...)...)
	err = ts.Exec("timeout", args...)
	return ts.ReadFile("stdout"), ts.ReadFile("stderr"), err
}

// ok LINE: the line succeeds and says not a word.
func ok(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, "ok LINE")
	stdout, stderr, err := shell(ts, args[0])
	if err != nil || stdout+stderr != "" {
		ts.Fatalf("%s: got %v, want success in silence", args[0], result(err))
	}
}

// refused ERRNO LINE: the line fails, and says why in the system's words for
// that number and nothing on its standard output.
func refused(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, "refused ERRNO LINE")
	want := words(ts, args[0])
	stdout, stderr, err := shell(ts, args[1])
	if err == nil {
		ts.Fatalf("%s: got success, want %s", args[1], args[0])
	}
	if !strings.Contains(strings.ToLower(stderr), want) || stdout != "" {
		ts.Fatalf("%s: want %s (%s) on standard error and nothing else", args[1], args[0], want)
	}
}

// words gives an errno's text as a shell prints it, in lower case.
func words(ts *testscript.TestScript, name string) string {
	if name == "EOPNOTSUPP" {
		name = "ENOTSUP" // two names of one number
	}
	for e := syscall.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == name {
			return e.Error()
		}
	}
	ts.Fatalf("no errno is called %s", name)
	return ""
}

// says REGEXP LINE: the line succeeds with that and only that on its
// standard output: ^ and $ are the ends of lines.
func says(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] says REGEXP LINE")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	stdout, stderr, err := shell(ts, args[1])
	if err != nil || stderr != "" {
		ts.Fatalf("%s: got %v, want success without a complaint", args[1], result(err))
	}
	if re.MatchString(stdout) == neg {
		ts.Fatalf("%s: got %q, want %q to match: %v", args[1], stdout, args[0], !neg)
	}
}

func result(err error) string {
	if err != nil {
		return err.Error()
	}
	return "success"
}

// until SECONDS LINE tries a line until it succeeds. What the host's processes
// wait for meanwhile is not counted.
func until(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, "until SECONDS LINE")
	elapsed := stopwatch()
	for {
		_, _, err := shell(ts, args[1])
		if err == nil {
			return
		}
		if elapsed() > seconds(ts, args[0]) {
			ts.Fatalf("%s: not true within %s s", args[1], args[0])
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// within SECONDS LINE: the line succeeds in time. Bounds of the contract are
// given generously: a session holds the order of magnitude, bench the number.
// What the host's processes wait for meanwhile is not counted.
func within(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, "within SECONDS LINE")
	elapsed := stopwatch()
	if _, _, err := shell(ts, args[1]); err != nil {
		ts.Fatalf("%s: %v", args[1], err)
	}
	if d := elapsed(); d > seconds(ts, args[0]) {
		ts.Fatalf("%s: took %v, want at most %s s", args[1], d, args[0])
	}
}

// stopwatch counts the time from now on in which no process of the host waits
// for a CPU or a disk, and a tenth of that in which one does: most of what is
// waited for is then others' work.
func stopwatch() func() time.Duration {
	begin, before := time.Now(), stalled()
	return func() time.Duration {
		passed := time.Since(begin)
		return passed - min(passed, stalled()-before)*9/10
	}
}

// stalled is for how long some process of the host has waited for a CPU or a
// disk, and a CPU for another guest of the machine that this may be a guest of; 0
// where the kernel does not count that.
func stalled() (sum time.Duration) {
	stat, _ := os.ReadFile("/proc/stat")
	if f := strings.Fields(string(stat)); len(f) > 8 && f[0] == "cpu" {
		ticks, _ := strconv.ParseInt(f[8], 10, 64) // "steal", a hundredth of a second each
		sum = time.Duration(ticks) * 10 * time.Millisecond
	}
	for _, of := range []string{"cpu", "io"} {
		text, _ := os.ReadFile("/proc/pressure/" + of)
		if _, total, ok := strings.Cut(string(text), "total="); ok {
			usec, _, _ := strings.Cut(total, "\n")
			n, _ := strconv.ParseInt(usec, 10, 64)
			sum += time.Duration(n) * time.Microsecond
		}
	}
	return sum
}

func seconds(ts *testscript.TestScript, s string) time.Duration {
	d, err := time.ParseDuration(s + "s")
	ts.Check(err)
	return d
}

func arguments(ts *testscript.TestScript, neg bool, args []string, n int, usage string) {
	if neg || len(args) != n {
		ts.Fatalf("usage: %s", usage)
	}
}

// leaks before remembers what the daemon holds, once that has not changed for
// a second; leaks after wants the same again, some seconds later at most. Both
// want a daemon and no guest.
func leaks(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, "leaks before|after")
	s := stageOf(ts)
	if args[0] == "before" {
		engineAsked(ts)
		s.before = s.settled()
		return
	}
	var now string
	for range 600 {
		if now = s.holdings(); now == s.before {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	ts.Fatalf("leaks, - before and + now:\n%s", differences(s.before, now))
}

// engineAsked waits until the daemon has asked QEMU for its version, which it
// does in the background at its start.
func engineAsked(ts *testscript.TestScript) {
	if _, _, err := shell(ts, "cat $MNT/version"); err != nil {
		ts.Fatalf("cat version: %v", err)
	}
}

// settled are the holdings when they have not changed for a second.
func (s *stage) settled() string {
	was, since := s.holdings(), 0
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		now := s.holdings()
		if since++; now != was {
			was, since = now, 0
		}
		if since >= 10 {
			break
		}
	}
	return was
}

// differences are the lines that are in one of two texts only; both texts if
// there are none.
func differences(before, now string) string {
	var b strings.Builder
	for _, text := range []struct{ sign, lines, other string }{{"-", before, now}, {"+", now, before}} {
		for line := range strings.Lines(text.lines) {
			if !strings.Contains("\n"+text.other, "\n"+line) {
				b.WriteString(text.sign + line)
			}
		}
	}
	if b.Len() == 0 {
		return before + "\nand, in another order,\n" + now
	}
	return b.String()
}

// holdings lists everything that a stage has of the host, pids left out.
func (s *stage) holdings() string {
	var b bytes.Buffer
	var processes []string
	for _, p := range s.processes() {
		line := "process " + p.role()
		for kind, n := range p.files() {
			line += fmt.Sprintf(" %s=%d", fileKinds[kind], n)
		}
		processes = append(processes, line+"\n")
	}
	slices.Sort(processes)
	b.WriteString(strings.Join(processes, ""))
	mounts := s.mounts()
	slices.SortStableFunc(mounts, func(a, b mount) int { return strings.Compare(a.point, b.point) })
	for _, m := range mounts {
		fmt.Fprintf(&b, "mount %s %s\n", m.point, m.fstype)
	}
	filepath.WalkDir(s.run(), func(path string, _ os.DirEntry, err error) error {
		fmt.Fprintf(&b, "file %s\n", path)
		return err
	})
	for _, l := range s.locks() {
		fmt.Fprintf(&b, "lock %s\n", l)
	}
	b.WriteString(s.links())
	return b.String()
}
