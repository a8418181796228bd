package priv

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// A user of this machine who is not root.
const alice, aliceGroup = 65534, 65534

// yard is a directory full of things that somebody might call an image.
type yard struct {
	dir string
	t   *testing.T
}

func newYard(t *testing.T) yard {
	y := yard{tempDir(t), t}
	y.file("raw", "raw bytes", 0o644, 0)
	y.file("qcow2", string(image{}.bytes()), 0o644, 0)
	y.file("cut", "QFI\xfb\x00\x00\x00\x03 and so on", 0o644, 0)
	y.file("qcow1", "QFI\xfb\x00\x00\x00\x01 and so on", 0o644, 0)
	y.file("empty", "", 0o644, 0)
	y.file("mine", "", 0o600, alice)
	y.file("roots", "secret", 0o600, 0)
	y.check(os.Mkdir(y.at("dir"), 0o755))
	y.check(os.Mkdir(y.at("closed"), 0o700))
	y.file("closed/file", "", 0o644, alice)
	y.check(unix.Mkfifo(y.at("fifo"), 0o666))
	y.check(unix.Mknod(y.at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	y.check(os.Chmod(y.at("fifo"), 0o666))
	y.check(os.Symlink(y.at("nowhere"), y.at("dangling")))
	y.check(os.Symlink(y.at("raw"), y.at("link")))
	y.check(os.Symlink("loop", y.at("loop")))
	y.check(os.Symlink("/etc/passwd", y.at("out")))
	return y
}

func (y yard) at(name string) string { return filepath.Join(y.dir, name) }

func (y yard) check(err error) {
	y.t.Helper()
	if err != nil {
		y.t.Fatal(err)
	}
}

func (y yard) file(name, text string, mode os.FileMode, uid int) {
	y.t.Helper()
	y.check(os.WriteFile(y.at(name), []byte(text), mode))
	y.check(os.Chown(y.at(name), uid, uid))
}

// patientOpeners are for what is answered: an opener and those that it asks are
// processes, and a busy machine may take its time to start them.
func patientOpeners(dirs []string) *openers {
	o := newOpeners(dirs)
	o.limit = time.Minute
	return o
}

func TestOpen(t *testing.T) {
	program(t)
	y := newYard(t)
	o := patientOpeners([]string{y.dir, "/nowhere"})
	for _, c := range []struct {
		uid  uint32
		path string
		rw   bool
		want string // the answer, or the error's number and a part of its words
	}{
		{alice, y.at("raw"), false, "1 raw"},
		{alice, y.at("qcow2"), false, "1 qcow2"},
		{alice, y.at("qcow1"), false, "ENOTSUP another version"},
		{alice, y.at("cut"), false, "EINVAL broken qcow2 image"},
		{alice, y.at("empty"), false, "1 raw"},
		{alice, y.at("link"), false, "1 raw"},
		{alice, y.at("mine"), true, "1 raw"},
		{alice, y.at("raw"), true, "EACCES open " + y.at("raw") + " as nobody: permission denied"},
		{alice, y.at("roots"), false, "EACCES permission denied"},
		{alice, y.at("closed/file"), false, "EACCES permission denied"},
		{alice, y.at("nowhere"), false, "ENOENT no such file or directory"},
		{alice, y.at("raw/below"), false, "ENOENT not a directory"},
		{alice, y.at("dangling"), false, "ENOENT no such file or directory"},
		{alice, y.at("loop"), false, "EINVAL symbolic links"},
		{alice, y.at("fifo"), true, "EINVAL is a FIFO"},
		{alice, y.at("null"), true, "EINVAL is a device"},
		{alice, y.at("dir"), false, "EINVAL is a directory"},
		{alice, "/proc/self/fd/0", false, "EINVAL /proc's"},
		{alice, "/proc/self/root/etc/passwd", false, "EINVAL /proc's"},
		{alice, "/proc/1/environ", false, "EACCES"},
		{alice, "/" + strings.Repeat("a", 300), false, "EINVAL file name too long"},
		{alice, y.at(strings.Repeat("a/", 1000)), false, "ENOENT"},
		{1234567, y.at("raw"), false, "EACCES user 1234567: no such user"},

		{0, y.at("raw"), true, "1 raw"},
		{0, y.at("link"), false, "1 raw"},
		{0, y.at("roots"), false, "1 raw"},
		{0, y.at("out"), false, "EACCES root's own files only below -images: " + y.dir},
		{0, "/etc/shadow", false, "EACCES root's own files only below -images"},
		{0, y.dir + strings.Repeat("/..", 20) + "/etc/passwd", false, "EACCES root's own files only below -images"},
		{0, y.at("nowhere"), false, "ENOENT"},
		// Root without capabilities has no way past mode bits.
		{0, y.at("mine"), true, "EACCES permission denied"},
	} {
		got := answer(o, c.uid, ctl.Want{Path: c.path, Write: c.rw, Format: "auto"})
		if !answers(got, c.want) {
			t.Errorf("open %s as %d: got %q, want %q", c.path, c.uid, got, c.want)
		}
	}
}

// answer opens a want and says what came of it: the fields of the answer, or
// the error's number and words.
func answer(o *openers, uid uint32, w ctl.Want) string {
	files, fields, err := o.open(context.Background(), uid, []ctl.Want{w})
	defer closeAll(files)
	if err != nil {
		return unix.ErrnoName(ctl.Errno(err)) + " " + err.Error()
	}
	return strings.Join(fields, " ")
}

// answers reports whether an answer is that, or has that number and words.
func answers(got, want string) bool {
	errno, words, _ := strings.Cut(want, " ")
	return got == want || errno[0] == 'E' && strings.HasPrefix(got, errno+" ") && strings.Contains(got, words)
}

// TestOpenedFiles looks at what arrives.
func TestOpenedFiles(t *testing.T) {
	program(t)
	y := newYard(t)
	before := len(ownFiles(t))
	files, fields, err := patientOpeners(nil).open(context.Background(), alice, []ctl.Want{raw(y.at("raw")), {Path: y.at("mine"), Write: true, Format: "auto"}, {Path: y.at("qcow2"), Format: "qcow2"}})
	if err != nil || strings.Join(fields, " ") != "1 raw 1 raw 1 qcow2" {
		t.Fatalf("answer %q, %v", fields, err)
	}
	if b, err := io.ReadAll(files[0]); string(b) != "raw bytes" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	for i, want := range []int{unix.O_RDONLY, unix.O_RDWR, unix.O_RDONLY} {
		flags, err := unix.FcntlInt(files[i].Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_ACCMODE != want || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("file %d: flags %#x, %v", i, flags, err)
		}
	}
	closeAll(files)
	if _, _, err := patientOpeners(nil).open(context.Background(), alice, []ctl.Want{raw(y.at("raw")), raw(y.at("roots"))}); !errors.Is(err, syscall.EACCES) {
		t.Errorf("one of two refused: %v", err)
	}
	eventually(t, "as few files open as before", func() bool { return len(ownFiles(t)) <= before })
}

func raw(path string) ctl.Want { return ctl.Want{Path: path, Format: "raw"} }

func ownFiles(t *testing.T) []os.DirEntry {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestRootsLinks holds that core, which owns the state directory, cannot
// lead the images directory below it elsewhere.
func TestRootsLinks(t *testing.T) {
	program(t)
	dir := tempDir(t)
	for name, uid := range map[string]int{"roots": 0, "others": alice} {
		if err := os.Symlink("/etc", dir+"/"+name); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(dir+"/"+name, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	if got := resolve([]string{dir + "/roots", dir + "/others", dir + "/nowhere"}); !slices.Equal(got, []string{"/etc"}) {
		t.Errorf("resolve = %q, want /etc once", got)
	}
}

// TestOpenHangs opens a file on a FUSE file system that never answers.
func TestOpenHangs(t *testing.T) {
	program(t)
	dir := tempDir(t)
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("SKIPPED: ", err)
	}
	defer dev.Close()
	tr := tree{point: dir, run: dir, uid: alice, gid: aliceGroup}
	options := "fd=" + decimal(uint32(dev.Fd())) + ",rootmode=40000,user_id=65534,group_id=65534,allow_other"
	if err := unix.Mount("hangs", dir, "fuse", 0, options); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	defer tr.detach()
	o := newOpeners(nil)
	start := time.Now()
	_, _, err = o.open(context.Background(), alice, []ctl.Want{raw(dir + "/disk")})
	if !errors.Is(err, syscall.ETIMEDOUT) || !strings.Contains(err.Error(), "no answer within 2s") {
		t.Errorf("got %v, want ETIMEDOUT", err)
	}
	if d := time.Since(start); d > 10*openTime {
		t.Errorf("it took %v", d)
	}
	o.count(alice, maxHungEach)
	if _, _, err := o.open(context.Background(), alice, []ctl.Want{raw(dir + "/disk")}); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("with too many that hang: %v, want EAGAIN", err)
	}
	o.count(alice, -maxHungEach)
	// The directory itself is found without asking its server.
	if _, _, err := patientOpeners(nil).open(context.Background(), alice, []ctl.Want{raw(dir)}); !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), "FUSE file system of user 65534") {
		t.Errorf("on a user's FUSE: %v, want EINVAL", err)
	}
}

func TestParseGroups(t *testing.T) {
	if got, err := parseGroups("1000 4 24\n"); err != nil || !slices.Equal(got, []uint32{1000, 4, 24}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, s := range []string{"", "\n", "a", "-1", "4294967295", "4294967296"} {
		if got, err := parseGroups(s); err == nil {
			t.Errorf("parseGroups(%q) = %v", s, got)
		}
	}
}
