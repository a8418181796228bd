package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmfs/priv"
)

// check says what this host can do for a daemon with the given directories,
// a line a finding, and what to do about what it cannot. It looks, and
// changes nothing: not even a module is loaded for it. The daemon is root's,
// but for a user who says where his own would mount.
func check(args []string) int {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	var o priv.Options
	flags.StringVar(&o.Mount, "m", "", "")
	flags.StringVar(&o.State, "state", "", "")
	flags.StringVar(&o.Run, "run", "", "")
	flags.Var((*list)(&o.Images), "images", "")
	flags.Var((*list)(&o.Interfaces), "interface", "")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vmfs: check: %q is too much\n%s", flags.Arg(0), usage)
		return 2
	}
	c := thisHost(o, os.Geteuid() != 0 && o.Mount != "")
	c.lookAtAll()
	if c.report(os.Stdout); c.missing() {
		return 1
	}
	return 0
}

// The first word of a finding. Only what is missing keeps a daemon from
// serving or every machine from running.
const (
	isOK      = "ok"
	isWarning = "warn"
	isMissing = "missing"
)

type finding struct{ word, about, text string }

// checker looks at a host and keeps what it found.
type checker struct {
	options  priv.Options
	host     string // the host's root directory, "" but in tests
	root     bool   // who looks is root
	own      bool   // the daemon would be that of who looks, who is not root
	release  string // of the kernel
	daemon   uint32 // the uid that RUN belongs to
	coreUID  uint32 // and STATE
	named    bool   // a user is named for core
	findings []finding

	refusal  func(own bool) error
	landlock func() int // the version of Landlock, 0 for none
	kvm      func() string
	access   func(path string) error // why who looks may not read and write it
	qemu     func() (path, version string, err error)
	mounted  func(point string) (priv.Mount, error)
	holder   func(run string) string
}

func readWrite(path string) error { return unix.Access(path, unix.R_OK|unix.W_OK) }

// thisHost is a checker of the host that it runs on.
func thisHost(o priv.Options, own bool) *checker {
	defaults := priv.RootDefaults()
	if own {
		defaults = priv.Defaults()
	}
	for _, p := range []struct{ path, otherwise *string }{
		{&o.Mount, &defaults.Mount}, {&o.State, &defaults.State}, {&o.Run, &defaults.Run},
	} {
		if *p.path == "" {
			*p.path = *p.otherwise
		}
	}
	if o.Images == nil {
		o.Images = defaults.Images
	}
	c := &checker{
		options: o, root: os.Geteuid() == 0, own: own, release: kernelRelease(),
		landlock: landlockVersion, kvm: priv.NoKVM, access: readWrite, qemu: priv.FindQEMU, mounted: priv.Mounted, holder: priv.LockHolder,
	}
	c.refusal = c.options.Refusal
	if c.coreUID, c.named = priv.CoreUser(); own {
		c.daemon, c.coreUID = uint32(os.Geteuid()), uint32(os.Geteuid())
	}
	return c
}

func (c *checker) ok(about, format string, args ...any) { c.find(isOK, about, format, args) }
func (c *checker) warn(about, format string, args ...any) {
	c.find(isWarning, about, format, args)
}
func (c *checker) lacks(about, format string, args ...any) {
	c.find(isMissing, about, format, args)
}

func (c *checker) find(word, about, format string, args []any) {
	c.findings = append(c.findings, finding{word, about, fmt.Sprintf(format, args...)})
}

// unseen is the finding for what could not be looked at.
func (c *checker) unseen(about string, err error) {
	advice := ""
	if !c.root {
		advice = "; root sees more: sudo vmfs check"
	}
	c.warn(about, "could not look: %v%s", reason(err), advice)
}

// reason is what is left of an error whose path is said already.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (c *checker) missing() bool {
	for _, f := range c.findings {
		if f.word == isMissing {
			return true
		}
	}
	return false
}

// report prints the findings, the words in a column.
func (c *checker) report(w io.Writer) {
	for _, f := range c.findings {
		fmt.Fprintf(w, "%-7s %s: %s\n", f.word, f.about, strings.ReplaceAll(f.text, "\n", " "))
	}
}

// lookAtAll looks at everything, the most important first.
func (c *checker) lookAtAll() {
	c.lookAtKernel()
	c.lookAtRights()
	c.lookAtFUSE()
	c.lookAtQEMU()
	c.lookAtKVM()
	if !c.own {
		c.lookAtNetwork()
	}
	c.lookAtCgroups()
	if !c.own {
		c.lookAtUsers()
	}
	if err := c.refusal(c.own); err != nil {
		c.lacks("arguments", "%v", err)
		return // the paths mean nothing
	}
	c.lookAtMount()
	c.lookAtState()
	c.lookAtRun()
	for _, d := range c.options.Images {
		c.lookAtImages(d)
	}
	for _, name := range c.options.Interfaces {
		c.lookAtInterface(name)
	}
}

// path is where a file of the host is.
func (c *checker) path(p string) string { return c.host + p }

func (c *checker) has(path string) bool {
	_, err := os.Lstat(c.path(path))
	return err == nil
}

// read is a small file of the host, "" if it cannot be read.
func (c *checker) read(path string) string {
	text, _ := os.ReadFile(c.path(path))
	return string(text)
}

// lookAtMount looks at the mount point by what the kernel's table of mounts
// says: whoever asks a tree that hangs would hang too.
func (c *checker) lookAtMount() {
	point := c.options.Mount
	m, err := c.mounted(point)
	switch {
	case err != nil:
		c.unseen(point, err)
	case m.Run != "" && c.holder(m.Run) != "":
		c.ok(point, "served by process %s", c.holder(m.Run))
	case m.Run != "":
		c.warn(point, "the tree of a daemon that is dead: the next vmfs serve takes it away, and so does umount -l %s", point)
	case m.Cover:
		c.ok(point, "covered by the empty directory that a daemon leaves")
	case m.Type != "":
		c.warn(point, "a file system (%s) is mounted there, which the tree would hide: choose another directory with -m", m.Type)
	default:
		c.lookAtPoint(point)
	}
}

// lookAtPoint looks at a mount point with nothing mounted on it.
func (c *checker) lookAtPoint(point string) {
	entries, err := os.ReadDir(c.path(point))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.lookAtParent(point, filepath.Dir(point))
	case errors.Is(err, unix.ENOTDIR):
		c.lacks(point, "is not a directory: move it away, or choose another with -m")
	case err != nil:
		c.unseen(point, err)
	case len(entries) > 0 && c.own:
		c.lacks(point, "has files (%s): move them away, or choose another directory with -m", entries[0].Name())
	case len(entries) > 0:
		c.warn(point, "has files (%s), which the tree would hide: move them away, or choose another directory with -m", entries[0].Name())
	default:
		c.ok(point, "an empty directory to mount the tree on")
	}
}

// lookAtParent tells whether a directory that is not there can be made.
func (c *checker) lookAtParent(dir, parent string) {
	switch err := unix.Access(c.path(parent), unix.W_OK); {
	case errors.Is(err, unix.EROFS):
		c.lacks(dir, "is not there, and %s is mounted read-only: choose another directory", parent)
	case errors.Is(err, fs.ErrNotExist):
		c.lookAtParent(dir, filepath.Dir(parent))
	default:
		c.ok(dir, "is made when it is needed")
	}
}

// lookAtState tells whether a daemon would take the state directory.
func (c *checker) lookAtState() {
	dir := c.options.State
	st, err := lstat(c.path(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.lookAtParent(dir, filepath.Dir(dir))
	case err != nil:
		c.unseen(dir, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		c.lacks(dir, "is not a directory: move it away, or choose another with -state")
	case st.Uid == c.coreUID && (!c.own || c.has(dir+"/vmfs")):
		c.ok(dir, "belongs to user %d, as it must", st.Uid)
	case st.Uid == c.coreUID:
		c.lookAtNewState(dir)
	case c.own:
		c.lacks(dir, "belongs to user %d: choose another directory with -state", st.Uid)
	case st.Uid != 0:
		c.lacks(dir, "belongs to user %d, and the daemon is user %d now: chown -R --from=%d %d:%d %s", st.Uid, c.coreUID, st.Uid, c.coreUID, c.coreUID, dir)
	default:
		c.lookAtNewState(dir)
	}
}

// lookAtNewState looks at a state directory that no daemon had yet, which must
// be empty.
func (c *checker) lookAtNewState(dir string) {
	entries, err := os.ReadDir(c.path(dir))
	if err != nil {
		c.unseen(dir, err)
		return
	}
	for _, e := range entries {
		if e.Name() != "images" && e.Name() != "vm" {
			c.lacks(dir, "is no daemon's and not empty (%s): move that away, or choose another directory with -state", e.Name())
			return
		}
	}
	c.ok(dir, "is empty, and is user %d's from the first start on", c.coreUID)
}

// lookAtRun tells whether a daemon would take the run directory, and whether
// a boot of the host empties it.
func (c *checker) lookAtRun() {
	dir := c.options.Run
	st, err := lstat(c.path(dir))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.lookAtParent(dir, filepath.Dir(dir))
	case err != nil:
		c.unseen(dir, err)
		return
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != c.daemon || st.Mode&0o022 != 0:
		c.lacks(dir, "is not a directory that user %d alone may write: chown %d %s; chmod go-w %s", c.daemon, c.daemon, dir, dir)
	default:
		c.ok(dir, "only user %d may write to it", c.daemon)
	}
	for !c.has(dir) {
		dir = filepath.Dir(dir)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.path(dir), &fs); err == nil && fs.Type != unix.TMPFS_MAGIC && fs.Type != unix.RAMFS_MAGIC {
		c.warn(c.options.Run, "is not on a tmpfs, so what it says of guests would outlive a boot of the host: choose another directory with -run")
	}
}

func lstat(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return st, err
}

// lookAtImages tells whether somebody else than root could put a file into a
// directory of -images, himself or by replacing a directory above it.
func (c *checker) lookAtImages(dir string) {
	about := "-images " + dir
	var st unix.Stat_t
	err := unix.Stat(c.path(dir), &st)
	switch {
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) == c.options.State && !c.has(c.options.State):
		c.ok(about, "is made at the first start")
		return
	case errors.Is(err, fs.ErrNotExist):
		c.warn(about, "is not there, so nothing in it can be booted: mkdir %s", dir)
		return
	case err != nil:
		c.unseen(about, err)
		return
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		c.warn(about, "is not a directory")
		return
	}
	if by := c.replaceable(dir); by != "" {
		c.warn(about, "%s, who so decides what root's machines boot: chown root, chmod go-w", by)
		return
	}
	c.ok(about, "only root decides what is in it")
}

// replaceable says who else than root may change what lies at a path, "" if
// nobody. STATE is core's, which is so by design: images/ in it is root's.
func (c *checker) replaceable(path string) string {
	for at, last := path, true; ; at, last = filepath.Dir(at), false {
		var st unix.Stat_t
		if err := unix.Stat(c.path(at), &st); err != nil {
			return fmt.Sprintf("%s: %v", at, err)
		}
		sticky := !last && st.Mode&unix.S_ISVTX != 0
		switch {
		case st.Uid != 0 && at != c.options.State:
			return fmt.Sprintf("%s belongs to user %d", at, st.Uid)
		case st.Mode&0o002 != 0 && !sticky:
			return at + " can be written by everybody"
		case st.Mode&0o020 != 0 && st.Gid != 0 && !sticky:
			return fmt.Sprintf("%s can be written by group %d", at, st.Gid)
		}
		if at == "/" || at == "." {
			return ""
		}
	}
}

func (c *checker) lookAtInterface(name string) {
	if !c.has("/sys/class/net/" + name) {
		c.warn("-interface "+name, "this host has no such interface: ip link shows those that it has")
		return
	}
	c.ok("-interface "+name, "is there")
}
