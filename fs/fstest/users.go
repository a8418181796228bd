package fstest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The users of Limits and Instances, who need not be known to the host.
const (
	alice = 52001
	bob   = 52002
)

// limit gives a user limits of his own that go with the test.
func limit(t *testing.T, dir string, uid int, values map[string]string) string {
	t.Helper()
	user := filepath.Join(dir, "user", strconv.Itoa(uid))
	if err := os.Mkdir(user, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Rmdir(user); err != nil {
			t.Error(err)
		}
	})
	for attr, v := range values {
		set(t, user+"/"+attr, v)
	}
	return user
}

// Limits are what root says of a user, and hold for what he makes.
func Limits(t *testing.T, dir string) {
	needRoot(t)
	all := filepath.Join(dir, "user/default")
	for attr, want := range map[string]string{"vms": "64\n", "cpus": "4\n", "memory": "2048M\n", "nics": "8\n"} {
		reads(t, all+"/"+attr, want)
		if got := stat(t, all+"/"+attr); got.Mode != syscall.S_IFREG|0o644 || got.Size != int64(len(want)) {
			t.Errorf("user/default/%s: mode %o, size %d", attr, got.Mode, got.Size)
		}
	}
	user := limit(t, dir, alice, map[string]string{"vms": "2", "memory": "1g", "cpus": "max"})
	reads(t, user+"/memory", "1024M\n")
	reads(t, user+"/nics", "8\n")
	reads(t, user+"/usage", "vms 0 2\ncpus 0 max\nmemory 0M 1024M\nnics 0 8\n")
	refused(t, user+"/vms", "many", syscall.EINVAL)
	refused(t, user+"/cpus", "-1", syscall.EINVAL)
	set(t, all+"/nics", "3")
	eventually(t, "what holds for all holds for him", func() bool { return read(t, user+"/nics") == "3\n" })
	set(t, all+"/nics", "\n")
	for _, name := range []string{".x", "052001", "root", "0", "4294967295"} {
		fails(t, "mkdir user/"+name, syscall.Mkdir(filepath.Join(dir, "user", name), 0o755), syscall.EINVAL)
	}
	fails(t, "mkdir of nobody's", syscall.Mkdir(filepath.Join(dir, "user/no-such-user"), 0o755), syscall.ENOENT)
	fails(t, "mkdir twice", syscall.Mkdir(user, 0o755), syscall.EEXIST)
	fails(t, "rmdir of all's", syscall.Rmdir(all), syscall.EPERM)
	fails(t, "mv", syscall.Rename(user, filepath.Join(dir, "user/52009")), syscall.EPERM)
	for _, line := range []string{"echo 9 > vms", "mkdir ../52002", "rmdir ../52001", "chmod 666 vms"} {
		if out, err := as(alice, user, line); err == nil {
			t.Errorf("%s as the user succeeded: %s", line, out)
		}
	}

	open(t, dir+"/vm", 0o1777)
	for _, name := range []string{"fstest-Limits-a", "fstest-Limits-b"} {
		made(t, dir, name)
		if out, err := as(alice, dir+"/vm", "mkdir "+name); err != nil {
			t.Fatalf("mkdir %s: %v %s", name, err, out)
		}
	}
	reads(t, user+"/usage", "vms 2 2\ncpus 0 max\nmemory 0M 1024M\nnics 0 8\n")
	if out, err := as(alice, dir, "cat user/default/usage"); err != nil || out != "vms 2 2\ncpus 0 max\nmemory 0M 1024M\nnics 0 8\n" {
		t.Errorf("his usage among all: %v %q", err, out)
	}
	out, err := as(alice, dir+"/vm", "mkdir fstest-Limits-c")
	if err == nil || !strings.Contains(out, syscall.EDQUOT.Error()) && !strings.Contains(strings.ToLower(out), "quota exceeded") {
		t.Errorf("one more: %v %s", err, out)
	}
	if out, err := as(alice, dir, "tail -n 1 err"); err != nil || !strings.Contains(out, " vm/fstest-Limits-c EDQUOT ") || !strings.Contains(out, "would have 3: at most 2, says user/52001/vms") {
		t.Errorf("err: %v %s", err, out)
	}
}

// open changes the mode of a directory for the time of the test.
func open(t *testing.T, path string, mode uint32) {
	t.Helper()
	was := stat(t, path).Mode & 0o7777
	if err := syscall.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Chmod(path, was); err != nil {
			t.Error(err)
		}
	})
}

// made says that a machine is made, which goes with the test.
func made(t *testing.T, dir, name string) {
	t.Cleanup(func() {
		if err := syscall.Rmdir(filepath.Join(dir, "vm", name)); err != nil && err != syscall.ENOENT {
			t.Errorf("rmdir %s: %v", name, err)
		}
	})
}

// Instances belong to who makes them, who needs no more than to write one
// file, and may set what the base allows.
func Instances(t *testing.T, dir string) {
	needRoot(t)
	base := machine(t, dir)
	set(t, base+"/config", "cpus 2\nkernel /boot/vmlinuz\nnote a note\ndisk/0/path /d\nnic/0/switch lan\ninstance.allow disk memory\n")
	reads(t, base+"/instance", "")
	refused(t, base+"/instance", ".x", syscall.EINVAL)
	refused(t, base+"/instance", filepath.Base(base), syscall.EEXIST)
	refused(t, base+"/instance.allow", "disk kernel", syscall.EINVAL)
	name := "fstest-Instances-alice"
	if out, err := as(alice, base, "echo "+name+" > instance"); err == nil {
		t.Errorf("anybody can make one: %s", out)
	}
	if err := os.Chown(base+"/instance", alice, -1); err != nil {
		t.Fatal(err)
	}
	made(t, dir, name)
	if out, err := as(alice, base, "echo "+name+" > instance"); err != nil {
		t.Fatalf("to write instance: %v %s", err, out)
	}
	vm := filepath.Join(dir, "vm", name)
	config := "begin\ncpus 2\nkernel /boot/vmlinuz\nnic/0/mac " + read(t, vm+"/nic/0/mac") + "nic/0/switch lan\nnote a note\nend\n"
	reads(t, vm+"/config", config)
	for path, want := range map[string]uint32{"": alice, "/config": alice, "/memory": alice, "/do/start": alice, "/disk": alice, "/nic/0": alice,
		"/cpus": 0, "/kernel": 0, "/nic": 0, "/nic/0/switch": 0, "/nic/0/tap": 0, "/instance": 0, "/instance.allow": 0} {
		if got := stat(t, vm+path).Uid; got != want {
			t.Errorf("%s%s belongs to %d, want %d", name, path, got, want)
		}
	}
	for _, line := range []string{"echo 1 > cpus", "echo cpus 1 > config", "chmod 666 cpus", "echo lan > nic/0/switch", "mkdir nic/1", "rmdir nic/0", "echo nic/1/up no > config",
		"echo x > instance", "echo instance.allow cpus > config", "echo '-cpus' > modes", "rmdir ../" + name, "printf 'begin\\nend\\n' | cat > config"} {
		if out, err := as(alice, vm, line); err == nil {
			t.Errorf("the owner's %s succeeded: %s", line, out)
		}
	}
	reads(t, vm+"/config", config)
	if out, err := as(alice, vm, "echo 64M > memory && mkdir disk/0 && echo /mine > disk/0/path && ls nic && cat nic/0/ifname nic/0/address && chmod 700 ."); err != nil {
		t.Errorf("what is the owner's: %v %s", err, out)
	}
	if out, err := as(bob, dir, "cat vm/"+name+"/status"); err == nil {
		t.Errorf("another's look: %s", out)
	}
	if out, err := as(alice, vm, "echo remove > ctl"); err != nil {
		t.Errorf("remove: %v %s", err, out)
	}
	if _, err := os.Stat(vm); !os.IsNotExist(err) {
		t.Errorf("after remove: %v", err)
	}
}
