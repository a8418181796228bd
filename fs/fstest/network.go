package fstest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// network makes a switch that goes with the test, and returns its directory.
func network(t *testing.T, dir string) string {
	t.Helper()
	sw := filepath.Join(dir, "switch", "fstest-"+filepath.Base(t.Name()))
	if err := os.Mkdir(sw, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(sw); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	return sw
}

// Switches are objects as machines are: named, defined, renamed, removed by
// the same rules.
func Switches(t *testing.T, dir string) {
	sw := network(t, dir)
	for path, mode := range map[string]uint32{
		"": syscall.S_IFDIR | 0o755, "/ctl": 0o660, "/do/up": 0o660, "/config": 0o640, "/status": 0o444, "/isolated": 0o640,
		"/ifname": 0o644, "/address": 0o644, "/locked": 0o644, "/ports": 0o664, "/leases": 0o440, "/check": 0o444,
	} {
		if path != "" {
			mode |= syscall.S_IFREG
		}
		if got := stat(t, sw+path).Mode; got != mode {
			t.Errorf("%s: mode %o, want %o", path, got, mode)
		}
	}
	reads(t, sw+"/status", "down\n")
	reads(t, sw+"/check", "ok\n")
	set(t, sw+"/config", "begin\ngroup b a\naddress  10.0.0.1/24\nend\n")
	want := "begin\naddress 10.0.0.1/24\ngroup b a\nend\n"
	reads(t, sw+"/config", want)
	refused(t, sw+"/config", "isolated yes\naddress 10.0.0.0/24\n", syscall.EINVAL)
	refused(t, sw+"/group", "lan1", syscall.EINVAL)
	refused(t, sw+"/ifname", "0123456789abcdef", syscall.EINVAL)
	refused(t, sw+"/ports", "x", syscall.EINVAL)
	refused(t, sw+"/ctl", "start", syscall.EINVAL)
	reads(t, sw+"/config", want)

	other := sw + "-b"
	fails(t, "mkdir twice", syscall.Mkdir(sw, 0o755), syscall.EEXIST)
	fails(t, "move among machines", syscall.Rename(sw, dir+"/vm/fstest-x"), syscall.EPERM, syscall.EACCES, syscall.EXDEV)
	if err := syscall.Rename(sw, other); err != nil {
		t.Fatal(err)
	}
	reads(t, other+"/ctl", filepath.Base(other)+"\n")
	reads(t, other+"/config", want)
	set(t, other+"/ctl", "remove\n")
	if _, err := os.Stat(other); !os.IsNotExist(err) {
		t.Errorf("after remove: %v", err)
	}
}

// NICs have attributes of two owners, and a MAC of their own.
func NICs(t *testing.T, dir string) {
	vm := machine(t, dir)
	if err := os.Mkdir(vm+"/nic/3", 0o755); err != nil {
		t.Fatal(err)
	}
	mac := read(t, vm+"/nic/3/mac")
	if !strings.HasPrefix(mac, "fe:e1:bb:d4:") {
		t.Errorf("nic/3/mac is %q", mac)
	}
	for file, mode := range map[string]uint32{"switch": 0o640, "mac": 0o640, "tap": 0o644, "locked": 0o644, "ifname": 0o440, "stats": 0o440} {
		if got := stat(t, vm+"/nic/3/"+file).Mode & 0o7777; got != mode {
			t.Errorf("nic/3/%s: mode %o, want %o", file, got, mode)
		}
	}
	for file, value := range map[string]string{"local": "no\n", "up": "yes\n", "user": "no\n", "tap": "tap\n", "locked": "no\n", "rdomain": "0\n", "ifname": "", "address": "", "stats": "", "group": ""} {
		reads(t, vm+"/nic/3/"+file, value)
	}
	set(t, vm+"/config", "begin\nnic/3/switch fstest-none\nend\n")
	reads(t, vm+"/nic/3/mac", mac)
	refused(t, vm+"/nic/3/mac", "ff:ff:ff:ff:ff:ff", syscall.EINVAL)
	refused(t, vm+"/nic/3/tap", "eth0", syscall.EINVAL)
	other := vm + "-b"
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other)
	refused(t, other+"/config", read(t, vm+"/config"), syscall.EEXIST)
	fails(t, "mkdir nic/16", syscall.Mkdir(vm+"/nic/16", 0o755), syscall.EINVAL)
	if err := syscall.Rmdir(vm + "/nic/3"); err != nil {
		t.Error(err)
	}
	reads(t, vm+"/config", "begin\nend\n")
}

// RootsFiles are not a machine's owner's to change, by whatever way.
func RootsFiles(t *testing.T, dir string) {
	needRoot(t)
	const alice = 52001
	vm := machine(t, dir)
	if err := os.Chown(vm, alice, alice); err != nil {
		t.Fatal(err)
	}
	set(t, vm+"/config", "nic/0/group ops\n")
	config := read(t, vm+"/config")
	for _, line := range []string{
		"echo no > nic/0/locked", "echo nic/0/locked yes > config", "echo -nic/0/group > config", "rmdir nic/0",
		"printf 'begin\\nend\\n' | cat > config", "chmod 666 nic/0/group", "echo 'nic/0/group 0666 52001 52001' > modes",
	} {
		if out, err := as(alice, vm, line); err == nil {
			t.Errorf("the owner's %s succeeded: %s", line, out)
		}
		reads(t, vm+"/config", config)
	}
	if out, err := as(alice, vm, "echo no > nic/0/up && echo lan > nic/0/switch && mkdir nic/1 && rmdir nic/1"); err != nil {
		t.Errorf("what is the owner's: %v %s", err, out)
	}
	if err := os.Chown(vm+"/nic/0/group", alice, -1); err != nil {
		t.Fatal(err)
	}
	if out, err := as(alice, vm, "echo -nic/0/group > config && rmdir nic/0"); err != nil {
		t.Errorf("what he was given: %v %s", err, out)
	}
}
