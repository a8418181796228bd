package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// These tests want a kernel that has all controllers in version 2, and this
// process at its root, as scripts/testbed has. A test starts this program
// again, to be a daemon (mover) or to use much memory (hog).

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv("VMFS_TEST_MOVER")); len(args) > 0 {
		if args[0] == "hog" {
			os.Exit(hog())
		}
		os.Exit(mover(args))
	}
	os.Exit(m.Run())
}

func needKernel(t *testing.T) string {
	skip := t.Skipf
	if os.Getenv("VMFS_TEST_BOX") != "" {
		skip = t.Fatalf
	}
	own, err := linux.own()
	if err != nil {
		skip("skipping what the kernel makes of it: %v", err)
	}
	have, err := words(own, "cgroup.subtree_control")
	if err != nil || os.Getuid() != 0 || !isRoot(own) || len(without(controllers, have)) > 0 {
		skip("skipping what the kernel makes of it: it wants root at the root of version 2 with %q, and %s has %q", controllers, own, have)
	}
	return own
}

// realTree is a tree in a cgroup of the test's, and must be gone in the end.
func realTree(t *testing.T) *Tree {
	base := fmt.Sprintf("%s/vmfs-test-%d", needKernel(t), os.Getpid())
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	tree := Open(Options{Records: t.TempDir(), Name: "vmfs", Dir: base})
	if tree.Why() != "" {
		t.Fatal(tree.Why())
	}
	t.Cleanup(func() {
		if err := tree.Sweep(func(uint32) bool { return false }, 5*time.Second); err != nil {
			t.Error(err)
		}
		tree.Close()
		if _, err := os.Stat(tree.Path()); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: got %v in the end, want it gone", tree.Path(), err)
		}
		if err := linux.rmdir(base); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// run starts a shell line in the cgroup of a guest.
func run(t *testing.T, dir *os.File, line string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", line)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func made(t *testing.T, tree *Tree, id uint32) *os.File {
	t.Helper()
	dir, err := tree.Make(id, Need{Engine: "native", CPUs: 1, Memory: 8})
	if err != nil || dir == nil {
		text, _ := tree.State(id)
		t.Fatalf("got %v, %v: %s", dir, err, text)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestMemory has two processes in a cgroup, and one in another; the one that
// takes more memory than there may be is killed, and no other.
func TestMemory(t *testing.T) {
	tree := realTree(t)
	a, b := made(t, tree, 1), made(t, tree, 2)
	if text, _ := tree.State(1); text != tree.Path()+"/vm-1 memory 140M tasks 257 cpu_weight 100" {
		t.Errorf("state: got %q", text)
	}
	bystander, neighbour := run(t, a, "exec sleep 1000"), run(t, b, "exec sleep 1000")
	for _, p := range []*exec.Cmd{bystander, neighbour} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Process.Pid))
		if err != nil || !strings.Contains(string(text), "/vmfs/vm-") {
			t.Errorf("born in %q, %v", text, err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	err = run(t, a, "VMFS_TEST_MOVER=hog exec "+exe).Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("who takes 1 GiB: got %v, want killed", err)
	}
	if _, n := tree.State(1); n != 1 {
		t.Errorf("killed for memory: got %d, want 1", n)
	}
	if _, n := tree.State(2); n != 0 {
		t.Errorf("killed for memory next to it: got %d, want 0", n)
	}
	for _, p := range []*exec.Cmd{bystander, neighbour} {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if f := strings.Fields(string(stat)); err != nil || len(f) < 3 || f[2] == "Z" {
			t.Errorf("process %d is gone: %q, %v", p.Process.Pid, stat, err)
		}
	}
}

// TestTasks starts more processes than there may be.
func TestTasks(t *testing.T) {
	tree := realTree(t)
	dir := made(t, tree, 1)
	if err := set(dir.Name(), "pids.max", "20"); err != nil { // fewer, to be done sooner
		t.Fatal(err)
	}
	run(t, dir, "for i in $(seq 100); do sleep 1000 & done; wait")
	eventually(t, "a process was refused", func() bool {
		n, err := number(dir.Name(), "pids.events", "max")
		return err == nil && n > 0
	})
	now, err := words(dir.Name(), "pids.current")
	if n, _ := strconv.Atoi(now[0]); err != nil || n > 20 {
		t.Errorf("got %d processes, want at most 20", n)
	}
	if err := tree.End(1, 10*time.Second); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir.Name()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: got %v, want none", err)
	}
}

// TestEnd ends processes that ignore every signal that can be ignored, and have
// left their session.
func TestEnd(t *testing.T) {
	tree := realTree(t)
	dir := made(t, tree, 1)
	cmd := run(t, dir, "trap '' HUP INT TERM; setsid sleep 1000 & sleep 1000")
	eventually(t, "all run", func() bool {
		pids, _ := words(dir.Name(), "cgroup.procs")
		return len(pids) == 3
	})
	go cmd.Wait()
	if err := tree.End(1, 10*time.Second); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir.Name()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the end: got %v, want none", err)
	}
}

// TestMover has a daemon in a cgroup of its own: it moves out of the way, and
// leaves things as they were when it ends. One that is killed leaves its guest,
// which the next one finds, in the leaf or by name.
func TestMover(t *testing.T) {
	root := needKernel(t)
	base := fmt.Sprintf("%s/vmfs-test-own-%d", root, os.Getpid())
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		set(base, "cgroup.kill", "1")
		eventually(t, "all is removed", func() bool {
			exec.Command("find", base, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").Run()
			_, err := os.Stat(base)
			return errors.Is(err, os.ErrNotExist)
		})
	})
	untouched := func(when string) {
		t.Helper()
		entries, err := filepath.Glob(base + "/*/")
		have, err2 := words(base, "cgroup.subtree_control")
		if err != nil || err2 != nil || len(entries)+len(have) > 0 {
			t.Errorf("%s: got %q and %q below %s, want it as it was", when, entries, have, base)
		}
	}
	records := t.TempDir()
	move := func(in, name string, words ...string) string {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, in, exe)
		cmd.Env = append(os.Environ(), "VMFS_TEST_MOVER="+strings.Join(append([]string{records, name}, words...), " "))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("mover %q: %v: %s", words, err, out)
		}
		return string(out)
	}
	if got := move(base, "t", "guest", "end", "close"); !strings.Contains(got, base+"/t/vm-1 memory 140M") {
		t.Errorf("got %q", got)
	}
	untouched("after an end")
	move(base, "t", "guest")
	if got := move(base+"/"+leafName, "t", "state", "end", "close"); !strings.Contains(got, base+"/t/vm-1 memory 140M") {
		t.Errorf("of the one before: got %q", got)
	}
	untouched("after the next one's end")
	sleeper := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs" && exec sleep 1000`, base)
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { sleeper.Process.Kill(); sleeper.Wait() }()
	eventually(t, "somebody is there", func() bool {
		pids, _ := words(base, "cgroup.procs")
		return len(pids) == 1
	})
	if got := move(base, "t", "guest", "end", "close"); !strings.Contains(got, "none: "+base+" is not the daemon's alone: process "+strconv.Itoa(sleeper.Process.Pid)+" (") {
		t.Errorf("beside somebody: got %q", got)
	}
	untouched("beside somebody")
}

// hog uses 1 GiB.
func hog() int {
	p := make([]byte, 1<<30)
	for i := 0; i < len(p); i += 4096 {
		p[i] = 1
	}
	return int(p[0]) - 1
}

// mover is a daemon: RECORDS NAME, and what it does with guest 1.
func mover(args []string) int {
	tree := Open(Options{Records: args[0], Name: args[1]})
	for _, do := range args[2:] {
		var err error
		switch do {
		case "guest":
			var dir *os.File
			if dir, err = tree.Make(1, Need{Engine: "native", CPUs: 1, Memory: 8}); dir != nil {
				cmd := exec.Command("sleep", "1000")
				cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
				err = cmd.Start()
			}
			fallthrough
		case "state":
			text, _ := tree.State(1)
			fmt.Println(text)
		case "end":
			err = tree.End(1, 10*time.Second)
		case "close":
			tree.Close()
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return 0
}
