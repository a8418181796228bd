package priv

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// chainYard is a directory full of images that name each other. The images of
// a chain are called after it and numbered from the last base.
func chainYard(t *testing.T) yard {
	y := yard{tempDir(t), t}
	y.check(os.Mkdir(y.at("sub"), 0o755))
	qcow2 := func(name, base, format string) {
		y.file(name, string(image{base: base, format: format}.bytes()), 0o644, 0)
	}
	y.file("raw", "raw bytes", 0o644, 0)
	y.file("secret", "secret", 0o600, 0)
	qcow2("c0", "", "")
	qcow2("c1", "c0", "qcow2")
	qcow2("c2", y.at("c1"), "qcow2")
	qcow2("c3", "sub/../c2", "qcow2")
	qcow2("c4", "c3", "qcow2")
	qcow2("sub/up", "../raw", "raw")
	y.check(os.Symlink("sub/up", y.at("link"))) // and so names something above
	qcow2("onraw", "raw", "raw")
	qcow2("over", "onraw", "raw") // whose header is a disk's bytes, and no header
	qcow2("self", "self", "qcow2")
	qcow2("a", "b", "qcow2")
	qcow2("b", "a", "qcow2")
	qcow2("lies", "raw", "qcow2")
	qcow2("dangles", "none", "raw")
	qcow2("reads", "secret", "raw")
	qcow2("escapes", "/etc/passwd", "raw")
	qcow2("climbs", strings.Repeat("../", 20)+"etc/passwd", "raw")
	qcow2("magic", "/proc/self/root"+y.at("raw"), "raw")
	qcow2("fifo", "pipe", "raw")
	y.check(unix.Mkfifo(y.at("pipe"), 0o644))
	qcow2("protocol", "nbd:unix:/x", "raw")
	qcow2("unsaid", "raw", "")
	return y
}

func TestChains(t *testing.T) {
	program(t)
	y := chainYard(t)
	o := patientOpeners([]string{y.dir})
	for _, c := range []struct {
		uid        uint32
		file, want string
		answer     string
	}{
		{alice, "c0", "qcow2", "1 qcow2"},
		{alice, "c1", "auto", "2 qcow2 qcow2"},
		{alice, "c2", "auto", "3 qcow2 qcow2 qcow2"},
		{0, "c3", "auto", "4 qcow2 qcow2 qcow2 qcow2"},
		{alice, "c4", "auto", "ELOOP more than 3 bases behind it: " + y.at("c1")},
		{alice, "c4", "raw", "1 raw"},
		{alice, "onraw", "auto", "2 qcow2 raw"},
		{alice, "sub/up", "auto", "2 qcow2 raw"},
		{alice, "link", "auto", "ENOENT " + y.dir + "/../raw"},
		{alice, "over", "qcow2", "2 qcow2 raw"},
		{alice, "raw", "qcow2", "EINVAL raw: not a qcow2 image"},
		{alice, "self", "auto", "ELOOP self: it is behind itself"},
		{alice, "a", "auto", "ELOOP a: it is behind itself"},
		{alice, "lies", "auto", "EINVAL raw: not a qcow2 image"},
		{alice, "dangles", "auto", "ENOENT no such file or directory (the base of " + y.at("dangles") + ")"},
		{alice, "reads", "auto", "EACCES permission denied (the base of " + y.at("reads") + ")"},
		{0, "reads", "auto", "2 qcow2 raw"},
		{alice, "escapes", "auto", "2 qcow2 raw"}, // he may read that
		{0, "escapes", "auto", "EACCES root's own files only below -images"},
		{0, "climbs", "auto", "EACCES root's own files only below -images"},
		{alice, "magic", "auto", "EINVAL /proc's"},
		{alice, "fifo", "auto", "EINVAL is a FIFO"},
		{alice, "protocol", "auto", "ENOTSUP named by a protocol"},
		{alice, "unsaid", "auto", "EINVAL does not say the format of its base"},
	} {
		got := answer(o, c.uid, ctl.Want{Path: y.at(c.file), Format: c.want})
		if !answers(got, c.answer) {
			t.Errorf("open %s of %s as %d: got %q, want %q", c.want, c.file, c.uid, got, c.answer)
		}
	}
}

// A base is only read, whatever is done with the image before it.
func TestBasesAreRead(t *testing.T) {
	program(t)
	y := chainYard(t)
	y.check(os.Chmod(y.at("c1"), 0o666))
	y.check(os.Chmod(y.at("c0"), 0o666))
	files, _, err := patientOpeners(nil).open(context.Background(), alice, []ctl.Want{{Path: y.at("c1"), Write: true, Format: "qcow2"}})
	if err != nil || len(files) != 2 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	defer closeAll(files)
	for i, want := range []int{unix.O_RDWR, unix.O_RDONLY} {
		flags, err := unix.FcntlInt(files[i].Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_ACCMODE != want {
			t.Errorf("file %d: flags %#x, %v, want mode %d", i, flags, err, want)
		}
	}
}

func TestFirmware(t *testing.T) {
	program(t)
	y := yard{tempDir(t), t}
	volume := func(guid string) string {
		return strings.Repeat("\x00", 16) + guid + strings.Repeat("\x00", 8) + "_FVH and so on"
	}
	code := volume("\x78\xe5\x8c\x8c\x3d\x8a\x1c\x4f\x99\x35\x89\x61\x85\xc3\x2d\xd3")
	y.file("FW_CODE_4M.ms.fd", code, 0o644, 0)
	y.file("FW_VARS_4M.ms.fd", volume(variablesGUID), 0o644, 0)
	y.file("x64-code.bin", code, 0o644, 0)
	y.file("x64-vars.bin", volume(variablesGUID), 0o644, 0)
	y.file("CODE.fd", code, 0o644, 0)
	y.file("OVMF.fd", volume(variablesGUID), 0o644, 0)
	y.file("firmware", code, 0o644, 0)
	y.file("bios.bin", "bios", 0o644, 0)
	y.file("CODE-old", code, 0o644, 0)
	y.file("VARS-old", code, 0o600, 0)
	o := patientOpeners(nil)
	for name, want := range map[string]string{
		"FW_CODE_4M.ms.fd": "2 flash vars",
		"x64-code.bin":     "2 flash vars",
		"OVMF.fd":          "1 rom",
		"bios.bin":         "1 rom",
		"CODE.fd":          "ENOENT " + y.at("VARS.fd") + " as nobody: no such file or directory (the template",
		"CODE-old":         "EACCES VARS-old as nobody: permission denied",
		"firmware":         "EINVAL no CODE in its name",
	} {
		if got := answer(o, alice, ctl.Want{Path: y.at(name), Format: "firmware"}); !answers(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
