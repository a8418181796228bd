package priv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/confine/held"
)

// ownMounts runs the rest of a test in a process of its own, with a mount
// namespace of its own that goes with it: it returns true in there.
func ownMounts(t *testing.T) bool {
	t.Helper()
	const outside = "VMFS_TEST_MOUNTS" // the namespace that is not ours to change
	namespace, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if was := os.Getenv(outside); was != "" && was != namespace {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), outside+"="+namespace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// TestUserNow changes who the users of a host are: what counts is what they are
// when they are asked about, or when something is opened for them. An /etc of
// the test's covers the host's.
func TestUserNow(t *testing.T) {
	program(t)
	if !ownMounts(t) {
		return
	}
	const bob = 52077
	y := newYard(t)
	y.check(os.Mkdir(y.at("etc"), 0o755))
	set := func(name string, lines ...string) {
		t.Helper()
		y.file("etc/"+name, strings.Join(lines, ""), 0o644, 0)
	}
	set("passwd", "root:x:0:0::/root:/bin/sh\n")
	set("group", "root:x:0:\n")
	set("nsswitch.conf", "passwd: files\ngroup: files\n")
	y.check(unix.Mount(y.at("etc"), "/etc", "", unix.MS_BIND, ""))
	o := patientOpeners(nil)
	is := func(want string) {
		t.Helper()
		got, err := o.whois(context.Background(), bob)
		if got != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, syscall.EACCES) {
			t.Errorf("his groups are %q, %v, want %q", got, err, want)
		}
	}
	opens := func(want string) {
		t.Helper()
		if got := answer(o, bob, ctl.Want{Path: y.at("ops"), Format: "raw"}); !answers(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	y.file("ops", "for ops", 0o640, 0)
	y.check(os.Chown(y.at("ops"), 0, 52079))

	is("")
	opens("EACCES user 52077: no such user")
	set("passwd", "bob:x:52077:52078::/:/bin/false\n")
	is("52078")
	opens("EACCES permission denied")
	set("group", "ops:x:52079:bob\n")
	is("52078 52079")
	opens("1 raw")
	set("group", "ops:x:52079:\n")
	is("52078")
	opens("EACCES permission denied")
	set("passwd")
	is("")
	opens("EACCES user 52077: no such user")
}

// takenOver is an id that somebody else's code runs in. By the uid that it is
// asked about it hangs, says too much, or does to another what would forge that
// one's answer; then it says what it could: 0 for yes.
const takenOver = `#!/bin/bash
case $3 in
*1) read <DIR/fifo ;;
*2) printf %040000d 0 ;;
*3) exit 3 ;;
*4) (:); echo 0 ;;
*5)
	read victim <DIR/victim
	could() { "$@"; said+=" $?"; }
	opens() { { :; } 4<>$1; }
	could kill -CONT $victim
	could opens /proc/$victim/mem
	could opens DIR/anyones
	could opens DIR/new
	could ulimit -Sn 65
	could ulimit -Sv 1000000
	echo $said
	;;
esac 2>&-
`

// TestWhoisTakenOver puts such an id in the place of the host's.
func TestWhoisTakenOver(t *testing.T) {
	program(t)
	if !ownMounts(t) {
		return
	}
	y := newYard(t)
	y.check(keepFiles()) // as Serve does
	y.file("id", strings.ReplaceAll(takenOver, "DIR", y.dir), 0o755, 0)
	y.check(unix.Mount(y.at("id"), idProgram, "", unix.MS_BIND, ""))
	y.check(os.Chmod(y.dir, 0o777))
	y.file("anyones", "", 0o666, 0)
	y.check(os.Chmod(y.at("anyones"), 0o666))
	user := func(does uint32) uint32 { return uint32(os.Getpid())*10 + does } // nobody else's process is asked about him
	first := whoisOf(user(1))
	y.check(first.Start())
	victim := first.Process.Pid
	defer func() { first.Process.Kill(); first.Wait() }()
	eventually(t, "one hangs", func() bool { return idOf(t, user(1)) == victim })
	whoisHeld(t, victim)

	y.file("victim", decimal(uint32(victim)), 0o644, 0)
	ask := func(does uint32) (string, error) { // without an end
		out, err := whoisOf(user(does)).Output()
		return said(user(does), err, string(out))
	}
	if got, err := ask(5); err != nil || got != "1 1 1 1 1 1" {
		t.Errorf("it could %q, %v", got, err)
	}
	unconfined := exec.Command(idProgram, "-G", "--", "+5")
	unconfined.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: confine.WhoisUID, Gid: confine.WhoisUID}}
	same := exec.Command("sleep", "600")
	same.SysProcAttr = unconfined.SysProcAttr
	y.check(same.Start())
	defer func() { same.Process.Kill(); same.Wait() }()
	y.file("victim", decimal(uint32(same.Process.Pid)), 0o644, 0)
	if got, err := unconfined.Output(); string(got) != "0 0 0 0 0 0\n" {
		t.Errorf("with the uid alone it could %q, %v: that shows nothing of the other", got, err)
	}
	for does, words := range map[uint32]string{2: "it said more than 32768 bytes", 3: "exit status 3", 4: "exit status 254"} { // 4: no process
		_, err := ask(does)
		if !errors.Is(err, syscall.EACCES) || !strings.Contains(err.Error(), words) {
			t.Errorf("case %d: %v, want EACCES and %q", does, err, words)
		}
	}

	o := newOpeners(nil)
	if _, err := o.whois(t.Context(), user(1)+10); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("asked one that hangs: %v", err)
	}
	eventually(t, "it is gone", func() bool { return idOf(t, user(1)+10) == 0 })
	eventually(t, "and not counted", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.all == 0 && len(o.busy) == 0
	})
}

// whoisHeld looks at a process that was asked.
func whoisHeld(t *testing.T, pid int) {
	t.Helper()
	if err := held.Check(pid, confine.Role{Name: "whois", Bounding: "as the opener's"}, confine.WhoisUID); err != nil {
		t.Error(err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	for _, l := range append(slices.Clone(whoisLimits), whoisLimit{unix.RLIMIT_AS, whoisMemory, ""}) {
		want := regexp.MustCompile(fmt.Sprintf(`(?m)^%s +%d +%[2]d `, limitNames[l.what], l.limit))
		if !want.Match(limits) {
			t.Errorf("%v: no %v in\n%s", err, want, limits)
		}
	}
	files, err := held.Files(pid)
	for fd, to := range files { // a shell has copies of what it was given, and its script
		if to != files[0] && to != files[1] && !strings.HasSuffix(to, "/id") {
			t.Errorf("it has %d: %s", fd, to)
		}
	}
	ours, _ := os.Readlink("/proc/self/ns/ipc")
	if ipc, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/ipc", pid)); err != nil || err2 != nil || ipc == ours {
		t.Errorf("its shared memory would stay: %s, %v, %v", ipc, err, err2)
	}
}

var limitNames = map[int]string{
	unix.RLIMIT_CORE: "Max core file size", unix.RLIMIT_CPU: "Max cpu time", unix.RLIMIT_FSIZE: "Max file size",
	unix.RLIMIT_NOFILE: "Max open files", unix.RLIMIT_NPROC: "Max processes", unix.RLIMIT_AS: "Max address space",
}

// idOf is the pid of the id that is asked about a user, 0 if there is none.
func idOf(t *testing.T, uid uint32) int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if line, err := os.ReadFile(path); err == nil && strings.HasSuffix(string(line), "id\x00-G\x00--\x00+"+decimal(uid)+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

// TestWhoisEnds holds that who is asked ends with who asks.
func TestWhoisEnds(t *testing.T) {
	program(t)
	if !ownMounts(t) {
		return
	}
	y := newYard(t)
	y.file("id", strings.ReplaceAll(takenOver, "DIR", y.dir), 0o755, 0)
	y.check(unix.Mount(y.at("id"), idProgram, "", unix.MS_BIND, ""))
	uid := uint32(os.Getpid())*10 + 1
	asks := exec.Command("bash", "-c", self+" whois $$ "+decimal(uid)+" & wait")
	y.check(asks.Start())
	pid := 0
	eventually(t, "it is asked", func() bool { pid = idOf(t, uid); return pid != 0 })
	asks.Process.Kill()
	asks.Wait()
	eventually(t, "it is gone", func() bool { return startTime(pid) == 0 })
	if out, err := exec.Command(self, "whois", "1", decimal(uid)).Output(); string(out) != "who asked has gone" {
		t.Errorf("another's child: %q, %v", out, err)
	}
}

func FuzzGroups(f *testing.F) {
	for _, s := range []string{"1000 4 24\n", "0", "", "-1", "4294967295"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if groups, err := parseGroups(text); (len(groups) == 0) == (err == nil) {
			t.Errorf("parseGroups(%q) = %v, %v", text, groups, err)
		}
	})
}
