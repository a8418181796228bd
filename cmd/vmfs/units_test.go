package main

// The units and their like of the Debian package, held against systemd's own
// opinion, and the manual against them. scripts/package-test runs them.

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const debian = "../../scripts/debian/"

// unitFiles are the sources of the units, by the names that they get.
var unitFiles = map[string]string{
	"vmfs.service":          debian + "vmfs.service",
	"vmfs-guests.service":   debian + "vmfs.vmfs-guests.service",
	"vmfs-machines.service": debian + "vmfs.vmfs-machines.service",
}

func readUnit(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(unitFiles[name])
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// systemd runs one of its programs, and wants not a word from it.
func systemd(t *testing.T, program string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("skipping what systemd says of the units: %v (package systemd)", err)
	}
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s %v: %v\n%s", program, args, err, out)
	}
}

func TestUnitsVerified(t *testing.T) {
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for name := range unitFiles {
		// Where the tests run, the package need not be.
		text := strings.ReplaceAll(readUnit(t, name), "/usr/sbin/vmfs", "/bin/true")
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	systemd(t, "systemd-analyze", args...)
}

func TestUsersAndDirectories(t *testing.T) {
	root := t.TempDir()
	if os.Getuid() != 0 {
		t.Skip("skipping what systemd makes of users and directories: it takes root")
	}
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": "root:x:0:0::/root:/bin/sh\n", "group": "root:x:0:\n"} {
		if err := os.WriteFile(root+"/etc/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for program, file := range map[string]string{"systemd-sysusers": "vmfs.sysusers", "systemd-tmpfiles": "vmfs.tmpfiles"} {
		path, err := filepath.Abs(debian + file)
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"--root=" + root, path}
		if program == "systemd-tmpfiles" {
			args = append([]string{"--create"}, args...)
		}
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("skipping what systemd makes of users and directories: %v (package systemd)", err)
		}
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
	users, _ := os.ReadFile(root + "/etc/passwd")
	if !regexp.MustCompile(`(?m)^_vmfs:.*:/usr/sbin/nologin$`).Match(users) {
		t.Errorf("no user _vmfs in\n%s", users)
	}
	if info, err := os.Stat(root + "/run/vmfs"); err != nil || info.Mode() != os.ModeDir|0o755 {
		t.Errorf("/run/vmfs: %v, %v", info, err)
	}
}

// hidesTree are the options of systemd.exec(5) that make a mount namespace,
// in which the tree would be seen by nobody else, or remove /run/vmfs.
var hidesTree = regexp.MustCompile(`^(Private(Tmp|Devices|Users|Mounts|IPC)|Protect\w+|(Read(Only|Write)|Inaccessible|Exec|NoExec)Paths|` +
	`Bind(ReadOnly)?Paths|TemporaryFileSystem|Root\w+|Mount\w+|DynamicUser|(Runtime|State|Cache|Logs)Directory\w*|ExtensionImages|ExtensionDirectories)$`)

func TestUnitsShowTheTree(t *testing.T) {
	for name := range unitFiles {
		for line := range strings.Lines(readUnit(t, name)) {
			if option, _, ok := strings.Cut(line, "="); ok && hidesTree.MatchString(option) {
				t.Errorf("%s has %s", name, line)
			}
		}
	}
	if !hidesTree.MatchString("ProtectSystem") || !hidesTree.MatchString("RuntimeDirectory") {
		t.Error("the options that hide a tree are not known")
	}
}

// What the manual shows of a unit is in it.
func TestManualUnits(t *testing.T) {
	section := manual(t, "vmfs.8").section(t, "SYSTEMD")
	for name := range unitFiles {
		shown := section.between(t, ".It Li "+name, ".It ").between(t, ".Bd -literal", ".Ed")
		unit := strings.Split(readUnit(t, name), "\n")
		for _, line := range shown {
			if !slices.Contains(unit, line) {
				t.Errorf("%s: the page has %q, the unit does not", name, line)
			}
		}
		if len(shown) == 0 {
			t.Errorf("%s: the page shows nothing of it", name)
		}
	}
}
