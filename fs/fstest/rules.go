package fstest

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Definition is rule 1: the attribute files are the definition, and config is
// the same, flattened.
func Definition(t *testing.T, dir string) {
	vm := machine(t, dir)
	reads(t, vm+"/config", "begin\nend\n")
	reads(t, vm+"/cpus", "1\n") // the default is no line of config
	set(t, vm+"/memory", "1G\n")
	set(t, vm+"/cmdline", "console=ttyS0 a  b\n")
	if err := os.Mkdir(vm+"/disk/3", 0o755); err != nil {
		t.Fatal(err)
	}
	set(t, vm+"/disk/3/readonly", "1")
	set(t, vm+"/config", "disk/15/path /d\n") // before disk/3 in byte order
	want := "begin\ncmdline console=ttyS0 a  b\ndisk/15/path /d\ndisk/3/readonly yes\nmemory 1024M\nend\n"
	reads(t, vm+"/config", want)
	reads(t, vm+"/memory", "1024M\n")

	other := another(t, vm)
	set(t, other+"/config", want)
	reads(t, other+"/config", want)
	reads(t, other+"/disk/3/readonly", "yes\n")
}

// Modes is the rest of rule 1: the policy is a text too, and a copy of it
// gives another machine the same.
func Modes(t *testing.T, dir string) {
	vm := machine(t, dir)
	plain := read(t, vm+"/modes")
	if err := os.Chmod(vm+"/cpus", 0o604); err != nil {
		t.Fatal(err)
	}
	policy := read(t, vm+"/modes")
	if !strings.Contains(policy, "\ncpus 0604 ") || !strings.HasPrefix(policy, "begin\n. 0755 ") {
		t.Errorf("modes after chmod 604 cpus: %q", policy)
	}
	other := another(t, vm)
	set(t, other+"/modes", policy)
	reads(t, other+"/modes", policy)
	if got := stat(t, other+"/cpus").Mode & 0o7777; got != 0o604 {
		t.Errorf("the copy's cpus: mode %o, want 604", got)
	}
	refused(t, vm+"/modes", "memory 0600 root root\nno-such 0600 root root\n", syscall.EINVAL)
	set(t, vm+"/modes", "-cpus\n")
	reads(t, vm+"/modes", plain)
}

// Transactions is rule 2: a write message is taken whole or refused whole.
func Transactions(t *testing.T, dir string) {
	vm := machine(t, dir)
	set(t, vm+"/config", "cpus 2\nmemory 64M\n")
	refused(t, vm+"/config", "cpus 4\nmemory 0\n", syscall.EINVAL)
	refused(t, vm+"/config", "cpus 4\nmemory 128M", syscall.EINVAL) // cut in the last line
	refused(t, vm+"/config", "cpus 4\nno-such 1\n", syscall.EINVAL)
	refused(t, vm+"/config", strings.Repeat("# 13 bytes..\n", 65536/13+1), syscall.EFBIG)
	refused(t, vm+"/cpus", "3\n4\n", syscall.EINVAL)
	refused(t, vm+"/cmdline", strings.Repeat("x", 65536+1), syscall.EFBIG)
	refused(t, vm+"/ctl", "kill\nkill\n", syscall.EINVAL)
	refused(t, vm+"/ctl", "no-such-verb\n", syscall.EINVAL)
	set(t, vm+"/config", "cpus 3") // one line needs no newline
	reads(t, vm+"/cpus", "3\n")
	set(t, vm+"/config", "cpus 4\n#"+strings.Repeat("x", 65536-len("cpus 4\n#\n"))+"\n")
	reads(t, vm+"/cpus", "4\n")

	// Truncation and lengths mean nothing, and an offset neither.
	f, err := os.OpenFile(vm+"/cpus", os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, step := range []struct {
		what string
		err  error
	}{
		{"truncate to 0", os.Truncate(vm+"/cpus", 0)},
		{"truncate to 100", f.Truncate(100)},
		{"append", send(f, "5\n")},
		{"append again", send(f, "6\n")},
		{"fsync", f.Sync()},
		{"touch", os.Chtimes(vm+"/cpus", time.Unix(1, 0), time.Unix(1, 0))},
	} {
		if step.err != nil {
			t.Errorf("%s: %v", step.what, step.err)
		}
	}
	reads(t, vm+"/cpus", "6\n")
}

// Frames is the other half of rule 2: a text from begin to end in any number
// of writes.
func Frames(t *testing.T, dir string) {
	vm := machine(t, dir)
	text := "# kept in git\n\nbegin\ncpus 4\n# a remark\nmemory 256M\nend\n"
	for size := 1; size <= len(text); size++ {
		set(t, vm+"/config", "begin\nend\n")
		f := openWrite(t, vm+"/config")
		for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
			if err := send(f, rest[:min(size, len(rest))]); err != nil {
				t.Fatalf("writes of %d bytes: %v", size, err)
			}
		}
		f.Close()
		reads(t, vm+"/config", "begin\ncpus 4\nmemory 256M\nend\n")
	}

	// What is not finished is dropped, and err says so.
	f := openWrite(t, vm+"/config")
	if err := send(f, "begin\ncpus 8\n"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	reads(t, vm+"/cpus", "4\n")
	eventually(t, "err says what was dropped", func() bool {
		return strings.Contains(read(t, vm+"/err"), "dropped")
	})

	// What is refused is dropped, and the next write starts anew.
	f = openWrite(t, vm+"/config")
	defer f.Close()
	for i, step := range []struct {
		text string
		want error
	}{
		{"begin\ncpus 0\n", nil},
		{"end\n", syscall.EINVAL},
		{"cpus 9\n", nil},
		{"begin\ncpus 10\nend\ncpus 11\n", syscall.EINVAL},
		{"begin\n" + strings.Repeat("# 13 bytes..\n", 5000), nil},
		{strings.Repeat("# 13 bytes..\n", 100), syscall.EFBIG},
		{"cpus 12\n", syscall.EFBIG}, // still of the text that was too long
		{"end\n", syscall.EFBIG},
		{"begin\ncpus 13\nend", nil}, // as an editor leaves it
		{"\n", nil},
	} {
		if err := send(f, step.text); err != step.want {
			t.Errorf("step %d: got %v, want %v", i, err, step.want)
		}
	}
	reads(t, vm+"/config", "begin\ncpus 13\nend\n")
}

func openWrite(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not within a minute: %s", what)
}

// Policy is rule 3: chmod and chown work at once, on files and directories.
func Policy(t *testing.T, dir string) {
	vm := machine(t, dir)
	if err := os.Mkdir(vm+"/disk/0", 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]uint32{
		dir + "/vm": syscall.S_IFDIR | 0o1755, vm: syscall.S_IFDIR | 0o755,
		vm + "/ctl": syscall.S_IFREG | 0o660, vm + "/config": syscall.S_IFREG | 0o640,
		vm + "/status": syscall.S_IFREG | 0o444, vm + "/do": syscall.S_IFDIR | 0o755,
		vm + "/do/kill": syscall.S_IFREG | 0o660, vm + "/disk/0": syscall.S_IFDIR | 0o750,
		live(vm) + "/console": syscall.S_IFREG | 0o600, dir + "/ctl": syscall.S_IFREG | 0o600,
	} {
		if got := stat(t, path).Mode; got != want {
			t.Errorf("%s: mode %o, want %o", path, got, want)
		}
	}
	for _, path := range []string{vm + "/cpus", vm + "/disk/0/path", vm + "/disk/0", vm + "/do/start", live(vm) + "/console", vm} {
		if err := os.Chmod(path, 0o711); err != nil {
			t.Fatal(err)
		}
		if got := stat(t, path).Mode & 0o7777; got != 0o711 {
			t.Errorf("%s: mode %o after chmod 711", path, got)
		}
	}
	for _, odd := range []os.FileMode{os.ModeSetuid, os.ModeSetgid, os.ModeSticky} {
		fails(t, "chmod of an odd bit", os.Chmod(vm+"/cpus", 0o640|odd), syscall.EPERM)
	}
	if err := os.Chmod(vm, 0o755|os.ModeSticky); err != nil {
		t.Errorf("chmod of a sticky directory: %v", err)
	}
}

// live is the directory of what waits of a machine.
func live(vm string) string {
	return filepath.Join(filepath.Dir(filepath.Dir(vm)), "live/vm", filepath.Base(vm))
}

// Users is rule 3 among users: who may write the file may do the thing.
func Users(t *testing.T, dir string) {
	needRoot(t)
	const alice, bob = 52001, 52002
	vm := machine(t, dir)
	for _, path := range []string{vm, live(vm)} {
		if st := stat(t, path); st.Uid != 0 || st.Gid != 0 {
			t.Errorf("%s: %d:%d, want root's", path, st.Uid, st.Gid)
		}
	}
	if err := os.Chown(vm, alice, alice); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uid  uint32
		line string
		ok   bool
	}{
		{alice, "echo 2 > cpus", true},
		{bob, "echo 3 > cpus", false},
		{bob, "cat cpus", false},
		{bob, "cat status", true},
		{alice, "chmod 666 do/kill && chmod 644 cpus", true},
		{bob, "echo > do/kill && cat cpus", true},
		{bob, "echo kill > ctl", false},
		{bob, "chmod 666 ctl", false},
		{bob, "echo 2 > memory", false},
		{0, "chown 52002 memory", true},
		{bob, "echo 64M > memory && cat memory", true},
		{alice, "echo 2 > memory", false},
		{bob, "chgrp 52002 ctl", false},
		{alice, "chown 52002 ctl", false},
		{alice, "mkdir disk/0 && echo yes > disk/0/readonly && rmdir disk/0", true},
		{bob, "mkdir disk/0", false},
		{alice, "echo > status", false},
		{alice, "mkdir ../fstest-mine", false},
		{alice, "rmdir $PWD", false},
		{alice, "mv $PWD $PWD-b", false},
	} {
		out, err := as(c.uid, vm, c.line)
		if (err == nil) != c.ok {
			t.Errorf("user %d: %s: got %v %s, want success %v", c.uid, c.line, err, out, c.ok)
		}
	}
	reads(t, vm+"/cpus", "2\n")
	if st := stat(t, vm+"/do/start"); st.Uid != alice || st.Gid != alice {
		t.Errorf("do/start belongs to %d:%d, want the machine's owner", st.Uid, st.Gid)
	}
	if out, err := as(alice, dir, "cat err"); err != nil || strings.Contains(out, "52002") {
		t.Errorf("err of one user shows another's: %v %s", err, out)
	}
}

// NothingWaits is rule 4: reading all that is not in live/ ends, and makes
// nothing, of clone neither.
func NothingWaits(t *testing.T, dir string) {
	vm := machine(t, dir)
	if err := os.Mkdir(vm+"/disk/15", 0o755); err != nil {
		t.Fatal(err)
	}
	machines := func() string {
		entries, err := os.ReadDir(dir + "/vm")
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(entries)
	}
	before, begin := machines(), time.Now()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == dir+"/live":
			return fs.SkipDir
		case e.IsDir():
			return nil
		}
		_, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 5*time.Minute { // an emulated host that is busy takes half a minute
		t.Errorf("reading all files took %v", d)
	}
	if now := machines(); now != before {
		t.Errorf("reading all files made %s of %s", now, before)
	}
}

// Waits is rule 4 of what waits: an interrupt ends it within 50 ms, and one
// who will not wait gets an end of file.
func Waits(t *testing.T, dir string) {
	vm := machine(t, dir)
	for _, path := range []string{dir + "/live/events", live(vm) + "/events", live(vm) + "/console"} {
		if d := interrupted(t, path); d > interruptTime {
			t.Errorf("%s: a read ended %v after its interrupt", path, d)
		}
		fd, err := Insist(func() (int, error) {
			return syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(fd)
		if n, err := Insist(func() (int, error) { return syscall.Read(fd, make([]byte, 4096)) }); n != 0 || err != nil {
			t.Errorf("%s, O_NONBLOCK: got %d bytes, %v, want an end of file", path, n, err)
		}
	}
	reads(t, live(vm)+"/wait", "stopped\n")
}

// interruptTime is what an interrupt may take.
const interruptTime = 50 * time.Millisecond

// interrupted gives the least time, of some, from a signal to the end of a
// process that reads path. On a busy machine most may take longer, since
// there a process waits to be run at all.
func interrupted(t *testing.T, path string) time.Duration {
	t.Helper()
	least := time.Hour
	for try := 0; try < 5 || try < 50 && least > interruptTime; try++ {
		cmd := exec.Command("cat", path)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		begin := time.Now()
		cmd.Process.Signal(syscall.SIGTERM) // not SIGINT, which who runs the test may ignore
		cmd.Wait()
		least = min(least, time.Since(begin))
		if cmd.ProcessState.Exited() {
			t.Fatalf("cat %s did not wait: %s", path, out.Bytes())
		}
	}
	return least
}

// Sizes is rule 5: a text has its true size, all else has 0.
func Sizes(t *testing.T, dir string) {
	vm := machine(t, dir)
	set(t, vm+"/kernel", "/boot/vmlinuz")
	var files []string
	for _, pattern := range []string{dir + "/*", vm + "/*", live(vm) + "/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	computed := map[string]bool{"info": true, "check": true, "err": true, "help": true, "version": true, "metrics": true,
		"console": true, "events": true, "wait": true}
	for _, path := range files {
		st := stat(t, path)
		if st.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			continue
		}
		want := int64(0)
		if !computed[filepath.Base(path)] {
			want = int64(len(read(t, path)))
		}
		if st.Size != want {
			t.Errorf("%s: size %d, want %d", path, st.Size, want)
		}
		if st.Blksize != 65536 {
			t.Errorf("%s: block size %d, want 65536", path, st.Blksize)
		}
	}
}

// Times is the other half of rule 5, and of rule 6: a change makes a new
// time, of the file and of config, at once; writing what is there does not.
func Times(t *testing.T, dir string) {
	vm := machine(t, dir)
	before := []syscall.Stat_t{*stat(t, vm+"/cpus"), *stat(t, vm+"/config"), *stat(t, vm+"/memory")}
	set(t, vm+"/cpus", "16")
	cpus, config, memory := stat(t, vm+"/cpus"), stat(t, vm+"/config"), stat(t, vm+"/memory")
	if cpus.Mtim == before[0].Mtim || config.Mtim == before[1].Mtim {
		t.Error("a change made no new time")
	}
	if memory.Mtim != before[2].Mtim {
		t.Error("a change made a new time of another file")
	}
	if cpus.Size != 3 || config.Size != int64(len("begin\ncpus 16\nend\n")) {
		t.Errorf("after a change the sizes are %d and %d", cpus.Size, config.Size)
	}
	events := read(t, vm+"/events.log")
	set(t, vm+"/cpus", "16\n")
	set(t, vm+"/config", "cpus 16\n")
	set(t, vm+"/config", "begin\ncpus 16\nend\n")
	if now := stat(t, vm+"/cpus"); now.Mtim != cpus.Mtim {
		t.Error("writing what is there made a new time")
	}
	if now := read(t, vm+"/events.log"); now != events {
		t.Errorf("writing what is there made an event: %s", strings.TrimPrefix(now, events))
	}
}

// Values is rule 6: verbatim to the end of the line.
func Values(t *testing.T, dir string) {
	vm := machine(t, dir)
	const odd = "  a \"b\"  \\n $c # é \n"
	set(t, vm+"/cmdline", odd)
	reads(t, vm+"/cmdline", odd)
	reads(t, vm+"/config", "begin\ncmdline "+odd+"end\n")
	for _, bad := range []string{"a\x00b", "a\rb", "a\x1bb", "a\x7fb", "a\tb", "a\r\n"} {
		refused(t, vm+"/cmdline", bad, syscall.EINVAL)
		refused(t, vm+"/config", "cmdline "+bad, syscall.EINVAL)
	}
	set(t, vm+"/cmdline", "\n")
	reads(t, vm+"/cmdline", "")
	for _, c := range [][2]string{{"1", "yes\n"}, {"0", "no\n"}, {"yes", "yes\n"}, {"no", "no\n"}} {
		set(t, vm+"/ephemeral", c[0])
		reads(t, vm+"/ephemeral", c[1])
	}
	for _, bad := range []string{"true", "Yes", "2", "y", "yes "} {
		refused(t, vm+"/ephemeral", bad, syscall.EINVAL)
	}
	set(t, vm+"/config", "-ephemeral\n")
	reads(t, vm+"/config", "begin\nend\n")
	set(t, vm+"/cpus", "2")
	set(t, vm+"/cpus", "\n")
	reads(t, vm+"/cpus", "1\n")
	set(t, vm+"/cpus", "2")
	set(t, vm+"/config", "-cpus\n")
	reads(t, vm+"/cpus", "1\n")
	set(t, vm+"/config", "disk/7/path /x y\n")
	reads(t, vm+"/disk/7/path", "/x y\n")
	set(t, vm+"/config", "-disk/7\n")
	if _, err := os.Stat(vm + "/disk/7"); !os.IsNotExist(err) {
		t.Errorf("disk/7 after -disk/7: %v", err)
	}
	for _, bad := range []string{"0", "65", "1.5", "-1", "x", "1 2"} {
		refused(t, vm+"/cpus", bad, syscall.EINVAL)
	}
}

// Paths is rule 7, as far as nothing is started: a path need not exist.
func Paths(t *testing.T, dir string) {
	vm := machine(t, dir)
	set(t, vm+"/kernel", "/no/such/file")
	reads(t, vm+"/kernel", "/no/such/file\n")
	refused(t, vm+"/kernel", "relative", syscall.EINVAL)
	refused(t, vm+"/kernel", "/"+strings.Repeat("x", 5000), syscall.EINVAL)
}

// Refused is rule 8: what makes no sense in this tree is never success.
func Refused(t *testing.T, dir string) {
	vm := machine(t, dir)
	never := []syscall.Errno{syscall.EPERM, syscall.EACCES}
	moved := append(never, syscall.EXDEV) // v9fs says so itself, of two directories
	for _, path := range []string{vm + "/status", vm + "/cpus", vm + "/do/start", dir + "/help", live(vm) + "/console"} {
		fails(t, "unlink "+path, syscall.Unlink(path), never...)
		fails(t, "link "+path, syscall.Link(path, vm+"/other"), never...)
		fails(t, "rename "+path, syscall.Rename(path, vm+"/other"), moved...)
	}
	for _, in := range []string{dir, dir + "/vm", vm, vm + "/do", vm + "/disk", live(vm)} {
		fd, err := Insist(func() (int, error) { return syscall.Open(in+"/new", syscall.O_CREAT|syscall.O_WRONLY, 0o644) })
		if err == nil {
			syscall.Close(fd)
		}
		fails(t, "create in "+in, err, never...)
		fails(t, "symlink in "+in, syscall.Symlink("/etc", in+"/new"), never...)
		fails(t, "mknod in "+in, syscall.Mknod(in+"/new", syscall.S_IFIFO|0o644, 0), never...)
	}
	for _, in := range []string{dir, vm, vm + "/do", dir + "/live", dir + "/live/vm"} {
		fails(t, "mkdir in "+in, syscall.Mkdir(in+"/new", 0o755), never...)
	}
	for _, d := range []string{dir + "/vm", dir + "/live", vm + "/do", vm + "/disk", live(vm)} {
		fails(t, "rmdir "+d, syscall.Rmdir(d), never...)
	}
	for _, name := range []string{"16", "-1", "00", "01", "x", "1x"} {
		fails(t, "mkdir disk/"+name, syscall.Mkdir(vm+"/disk/"+name, 0o755), syscall.EINVAL)
	}
	for _, name := range []string{".x", "-x", "a b", "a:b", "é", strings.Repeat("x", 64)} {
		fails(t, fmt.Sprintf("mkdir vm/%s", name), syscall.Mkdir(dir+"/vm/"+name, 0o755), syscall.EINVAL)
	}
	fails(t, "mkdir twice", syscall.Mkdir(vm, 0o755), syscall.EEXIST)
	for _, path := range []string{vm, vm + "/cpus"} {
		fails(t, "setxattr", syscall.Setxattr(path, "user.x", []byte("y"), 0), syscall.ENOTSUP)
		fails(t, "removexattr", syscall.Removexattr(path, "user.x"), syscall.ENOTSUP)
		_, err := syscall.Getxattr(path, "user.x", nil)
		fails(t, "getxattr", err, syscall.ENOTSUP)
	}
	fails(t, "write to status", write(vm+"/status", "x"), never...)
	fails(t, "move into another", syscall.Rename(vm, vm+"/do/x"), syscall.EPERM, syscall.EINVAL, syscall.EXDEV)
	fails(t, "move out of vm", syscall.Rename(vm, dir+"/live/x"), moved...)
	fails(t, "a path beneath a file", write(vm+"/cpus/x", "y"), syscall.ENOTDIR)

	before := read(t, vm+"/err")
	refused(t, vm+"/cpus", "65", syscall.EINVAL)
	added := strings.TrimPrefix(read(t, vm+"/err"), before)
	if strings.Count(added, "\n") != 1 || !strings.Contains(added, "EINVAL") || !strings.Contains(added, "cpus") || !strings.Contains(added, "64") {
		t.Errorf("one refusal added to err: %q", added)
	}
}

// Removed: rmdir takes a machine with all that is in it, what is still open of
// it answers ENOENT, and a read that waits ends.
func Removed(t *testing.T, dir string) {
	vm := machine(t, dir)
	if err := os.Mkdir(vm+"/disk/0", 0o755); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, path := range []string{vm + "/cpus", vm + "/config", vm + "/ctl", vm + "/disk/0/path", live(vm) + "/console"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if _, err := os.Stat(live(vm)); err != nil {
		t.Fatal(err)
	}
	ended := waiting(t, live(vm)+"/console")
	if err := syscall.Rmdir(vm); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		fails(t, "a read of its console that waited", err, syscall.ENOENT)
	case <-time.After(time.Minute):
		t.Fatal("a read of its console still waits")
	}
	for _, path := range []string{vm, vm + "/cpus", live(vm), live(vm) + "/console"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s after rmdir: %v", path, err)
		}
	}
	for _, f := range files {
		_, err := Insist(func() (int, error) { return syscall.Read(int(f.Fd()), make([]byte, 64)) })
		fails(t, "read of "+f.Name(), err, syscall.ENOENT)
		_, err = Insist(func() (int, error) { return syscall.Write(int(f.Fd()), []byte("1\n")) })
		fails(t, "write of "+f.Name(), err, syscall.ENOENT)
	}
	if err := syscall.Mkdir(vm, 0o755); err != nil {
		t.Errorf("mkdir of the same name: %v", err)
	}
	reads(t, vm+"/status", "stopped\n")
	_, err := Insist(func() (int, error) { return syscall.Write(int(files[0].Fd()), []byte("9\n")) })
	fails(t, "write to the former machine's file", err, syscall.ENOENT)
	reads(t, vm+"/cpus", "1\n")
	set(t, vm+"/ctl", "remove\n")
	if _, err := os.Stat(vm); !os.IsNotExist(err) {
		t.Errorf("after remove: %v", err)
	}
	if err := syscall.Mkdir(vm, 0o755); err != nil {
		t.Errorf("mkdir after remove: %v", err)
	}
}

// waiting reads a file that gives nothing yet, and says how that ended.
func waiting(t *testing.T, path string) <-chan error {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		defer f.Close()
		_, err := f.Read(make([]byte, 64))
		ended <- err
	}()
	time.Sleep(50 * time.Millisecond) // most likely it waits by then
	return ended
}

// Again: a disk that takes the number of another works, also for one who has
// the former's directory open.
func Again(t *testing.T, dir string) {
	vm := machine(t, dir)
	for range 3 {
		if err := os.Mkdir(vm+"/disk/0", 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(vm + "/disk/0")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		set(t, vm+"/disk/0/path", "/x")
		reads(t, vm+"/disk/0/path", "/x\n")
		if err := syscall.Rmdir(vm + "/disk/0"); err != nil {
			t.Fatal(err)
		}
		reads(t, vm+"/config", "begin\nend\n")
	}
}

// Renamed: a machine keeps its files under another name, the open ones too.
func Renamed(t *testing.T, dir string) {
	vm := machine(t, dir)
	other := vm + "-b"
	f, err := os.OpenFile(vm+"/cpus", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ino := stat(t, vm+"/cpus").Ino
	if _, err := os.Stat(live(vm)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Rename(vm, other); err != nil {
		t.Fatal(err)
	}
	if got := stat(t, other+"/cpus").Ino; got != ino {
		t.Errorf("inode %d became %d", ino, got)
	}
	for _, path := range []string{vm, vm + "/cpus"} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s after mv: %v", path, err)
		}
	}
	eventually(t, "live/ has the new name only", func() bool {
		_, old := os.Stat(live(vm))
		_, now := os.Stat(live(other))
		return os.IsNotExist(old) && now == nil
	})
	if err := send(f, "7\n"); err != nil {
		t.Errorf("write to a file opened before: %v", err)
	}
	reads(t, other+"/cpus", "7\n")
	if err := syscall.Mkdir(vm, 0o755); err != nil {
		t.Fatal(err)
	}
	fails(t, "mv onto a machine", syscall.Rename(other, vm), syscall.EEXIST)
	if err := syscall.Rmdir(vm); err != nil {
		t.Error(err)
	}
	fails(t, "mv to a name that cannot be", syscall.Rename(other, dir+"/vm/.x"), syscall.EINVAL)
	if err := syscall.Rename(other, vm); err != nil {
		t.Error(err)
	}
}

// Listing: directories list what is there, and each name can be looked up.
func Listing(t *testing.T, dir string) {
	vm := machine(t, dir)
	for _, n := range []string{"2", "10"} {
		if err := os.Mkdir(vm+"/disk/"+n, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	names := func(path string) []string {
		entries, err := os.ReadDir(path)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			if _, err := os.Stat(filepath.Join(path, e.Name())); err != nil {
				t.Error(err)
			}
			names = append(names, e.Name())
		}
		sort.Strings(names)
		return names
	}
	if got := strings.Join(names(vm+"/disk"), " "); got != "10 2" {
		t.Errorf("disk/: %s", got)
	}
	if got := strings.Join(names(vm+"/disk/2"), " "); got != "format path readonly" {
		t.Errorf("disk/2/: %s", got)
	}
	if got := strings.Join(names(live(vm)), " "); got != "console events wait" {
		t.Errorf("live/vm/NAME/: %s", got)
	}
	var many []string
	for i := range 300 {
		name := fmt.Sprintf("fstest-many-%03d", i)
		many = append(many, name)
		if err := os.Mkdir(filepath.Join(dir, "vm", name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	listed := map[string]int{}
	for _, name := range names(dir + "/vm") {
		listed[name]++
	}
	for _, name := range many {
		if listed[name] != 1 {
			t.Errorf("vm/ lists %s %d times", name, listed[name])
		}
		if err := os.Remove(filepath.Join(dir, "vm", name)); err != nil {
			t.Error(err)
		}
	}
	for _, name := range names(dir + "/vm") {
		if strings.HasPrefix(name, "fstest-many-") {
			t.Errorf("vm/ still lists %s", name)
		}
	}
}
