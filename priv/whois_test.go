package priv

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// TestUserNow changes who the users of a host are: what counts is what they are
// when they are asked about, or when something is opened for them. It is done in
// a mount namespace of its own, where an /etc of the test's covers the host's.
func TestUserNow(t *testing.T) {
	program(t)
	const outside = "VMFS_TEST_MOUNTS" // the namespace that is not ours to change
	namespace, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	if was := os.Getenv(outside); was == "" || was == namespace {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestUserNow$", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), outside+"="+namespace)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	const bob = 52077
	y := newYard(t)
	y.check(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	y.check(os.Mkdir(y.at("etc"), 0o755))
	set := func(name string, lines ...string) {
		t.Helper()
		y.file("etc/"+name, strings.Join(lines, ""), 0o644, 0)
	}
	set("passwd", "root:x:0:0::/root:/bin/sh\n")
	set("group", "root:x:0:\n")
	set("nsswitch.conf", "passwd: files\ngroup: files\n")
	y.check(unix.Mount(y.at("etc"), "/etc", "", unix.MS_BIND, ""))
	o := newOpeners(nil)
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
