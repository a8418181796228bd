package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/fs/fuse"
	"vmfs/fs/remote"
	"vmfs/priv/confine"
	"vmfs/priv/fusermount"
)

// mount serves another daemon's tree on a directory, in the foreground, as
// whatever user that daemon takes its connection for.
func mount(args []string) int {
	flags := flag.NewFlagSet("mount", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	var keys remote.TLS
	var m mountPoint
	flags.BoolVar(&m.others, "allow-other", false, "")
	flags.StringVar(&keys.CA, "ca", "", "")
	flags.StringVar(&keys.Cert, "cert", "", "")
	flags.StringVar(&keys.Key, "key", "", "")
	flags.StringVar(&keys.Name, "name", "", "")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() != 2 {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	addr, err := remote.ParseAddr(flags.Arg(0))
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmfs: mount: %v\n%s", err, usage)
		return 2
	}
	if err := mountRemote(addr, keys, &m, flags.Arg(1)); err != nil {
		return fail(fmt.Errorf("mount %s: %w", addr, err))
	}
	return 0
}

// mountRemote mounts a tree and serves it until it is told to end, or somebody
// unmounts it. It leaves no mount.
func mountRemote(addr remote.Addr, keys remote.TLS, m *mountPoint, dir string) (err error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	dial, err := addr.Dial(keys)
	if err != nil {
		return err
	}
	if err := m.find(dir); err != nil {
		return err
	}
	m.source = addr.String()
	tree, err := remote.New(context.Background(), dial, remote.Options{UID: uint32(os.Getuid()), Log: logLine})
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := m.keep(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmount()) }()
	dev, err := m.mount()
	if err != nil {
		return err
	}
	server, err := fuse.Serve(dev, tree.Root(), fuse.Options{Log: logLine, NoCache: true})
	if err != nil {
		return err
	}
	if err := sealMount(); err != nil {
		return err
	}
	fmt.Printf("vmfs: mounted %s\n", m.dir)
	select {
	case <-stop:
	case <-server.Done():
	}
	return nil
}

// mountPoint is a directory that a remote tree is mounted on: by mount(2) for
// root, by fusermount3 for others. A process that does nothing else, keeper,
// unmounts it when this one ends, however that comes: this one gives up all
// that would let it.
type mountPoint struct {
	dir    string // absolute, resolved
	source string // what mountinfo says of the tree
	others bool   // other users may enter

	keeper *exec.Cmd
	hold   *os.File // the keeper unmounts when this is closed
}

const treeType = "fuse.vmfs"

// find resolves the directory, and takes away what a dead process of this
// user left mounted there.
func (m *mountPoint) find(dir string) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for range 100 {
		m.dir, err = filepath.EvalSymlinks(abs)
		if errors.Is(err, unix.ENOTCONN) { // what is mounted there is dead
			m.dir, err = filepath.EvalSymlinks(filepath.Dir(abs))
			m.dir = filepath.Join(m.dir, filepath.Base(abs))
		}
		if err != nil {
			return err
		}
		ours, err := m.ours()
		if err != nil {
			return err
		}
		if !ours {
			return m.isDir()
		}
		if err := m.dead(); err != nil {
			return err
		}
		if err := m.detach(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: a hundred mounts and no end", m.dir)
}

func (m *mountPoint) isDir() error {
	st, err := os.Stat(m.dir)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s: %w", m.dir, unix.ENOTDIR)
	}
	return err
}

// ours reports whether the last that was mounted on the directory is a tree
// that this user mounted, from the source if that is said.
func (m *mountPoint) ours() (bool, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	ours := false
	for line := range strings.Lines(string(text)) {
		if point, source := remoteMount(line, os.Getuid()); point == m.dir {
			ours = source != "" && (m.source == "" || m.source == source)
		}
	}
	return ours, nil
}

// remoteMount reads a line of mountinfo: where something is mounted, and its
// source if it is a remote tree of a user's.
func remoteMount(line string, uid int) (point, source string) {
	left, right, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if len(l) < 5 || len(r) < 3 {
		return "", ""
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	point, source = unescape.Replace(l[4]), unescape.Replace(r[1])
	user := ",user_id=" + strconv.Itoa(uid) + ","
	if _, err := remote.ParseAddr(source); err != nil || r[0] != treeType || !strings.Contains(","+r[2]+",", user) {
		return point, ""
	}
	return point, source
}

// dead reports by nil that nobody serves what is mounted on the directory. It
// asks in a goroutine: one who serves and does not answer would keep it.
func (m *mountPoint) dead() error {
	answer := make(chan error, 1)
	go func() {
		var st unix.Stat_t
		answer <- unix.Stat(m.dir, &st)
	}()
	select {
	case err := <-answer:
		if errors.Is(err, unix.ENOTCONN) {
			return nil
		}
	case <-time.After(2 * time.Second):
	}
	return fmt.Errorf("%s: a tree is mounted there already", m.dir)
}

// detach takes away what is mounted on the directory, in use or not.
func (m *mountPoint) detach() error {
	if os.Getuid() == 0 {
		if err := unix.Unmount(m.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", m.dir, err)
		}
		return nil
	}
	return fusermount.Unmount(m.dir)
}

// mount gives the path of the descriptor that requests come from.
func (m *mountPoint) mount() (dev string, err error) {
	by := m.mountAsUser
	if os.Getuid() == 0 {
		by = m.mountAsRoot
	}
	fd, err := by()
	return "/dev/fd/" + strconv.Itoa(fd), err
}

// options are those of the mount. The server checks who may do what; where
// others may enter, whom it may take for somebody else, the kernel does too.
func (m *mountPoint) options() string {
	o := "max_read=" + strconv.Itoa(fuse.MaxRead)
	if m.others {
		o += ",allow_other,default_permissions"
	}
	return o
}

func (m *mountPoint) mountAsRoot() (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w (is the module fuse loaded?)", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", fd, m.options())
	if err := unix.Mount(m.source, m.dir, treeType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount on %s: %w", m.dir, err)
	}
	return fd, nil
}

func (m *mountPoint) mountAsUser() (fd int, err error) {
	dev, err := fusermount.Mount(m.dir, m.source, strings.TrimPrefix(treeType, "fuse."), m.options())
	if err != nil {
		return -1, err
	}
	defer dev.Close()
	return unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// keep starts the keeper.
func (m *mountPoint) keep() error {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	defer theirs.Close()
	m.hold = ours
	m.keeper = exec.Command("/proc/self/exe", "keeper", m.dir, m.source)
	m.keeper.Stderr = os.Stderr
	m.keeper.ExtraFiles = []*os.File{theirs}
	m.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal's signal is for it
	if err := m.keeper.Start(); err != nil {
		ours.Close()
		return fmt.Errorf("keeper: %w", err)
	}
	return nil
}

// unmount has the keeper undo mount, whatever uses it.
func (m *mountPoint) unmount() error {
	m.hold.Close()
	if err := m.keeper.Wait(); err != nil {
		return fmt.Errorf("%s is still mounted: %w", m.dir, err)
	}
	return nil
}

// keeper is the role that outlives a mount: it waits for the end of descriptor
// 3, and then takes away what is left of the tree of a source on a directory.
func keeper(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("keeper: %d arguments, want 2: it is started by vmfs mount", len(args))
	}
	io.Copy(io.Discard, os.NewFile(3, "mount"))
	m := mountPoint{dir: args[0], source: args[1]}
	ours, err := m.ours()
	if err != nil || !ours {
		return err
	}
	return m.detach()
}

// sealMount gives up what is not needed once the tree is mounted.
func sealMount() error {
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Mount.Capabilities); err != nil {
		return err
	}
	return confine.Seccomp(confine.Mount)
}
