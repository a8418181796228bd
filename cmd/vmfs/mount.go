package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/fs/fuse"
	"vmfs/fs/remote"
	"vmfs/priv/confine"
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
	tree, err := remote.New(context.Background(), dial, remote.Options{UID: uint32(os.Getuid()), Log: logLine})
	if err != nil {
		return err
	}
	defer tree.Close()
	dev, err := m.mount(addr.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.unmount()) }()
	server, err := fuse.Serve(dev, tree.Root(), fuse.Options{Log: logLine, NoCache: true})
	if err != nil {
		return err
	}
	if err := m.seal(); err != nil {
		return err
	}
	fmt.Printf("vmfs: mounted %s\n", m.dir)
	select {
	case <-stop:
	case <-server.Done():
		m.gone = true
	}
	return nil
}

// mountPoint is a directory that a remote tree is mounted on: by mount(2) for
// root; for others by fusermount3, which stays to unmount it when this
// process ends, however that comes.
type mountPoint struct {
	dir    string // absolute, resolved
	others bool   // other users may enter

	helper *exec.Cmd // fusermount3
	hold   *os.File  // the helper unmounts when this is closed
	gone   bool      // it is unmounted already
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
// that this user mounted from elsewhere.
func (m *mountPoint) ours() (bool, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	ours := false
	for line := range strings.Lines(string(text)) {
		if point, is := remoteMount(line, os.Getuid()); point == m.dir {
			ours = is
		}
	}
	return ours, nil
}

// remoteMount reads a line of mountinfo: where something is mounted, and
// whether it is a remote tree of a user's.
func remoteMount(line string, uid int) (point string, is bool) {
	left, right, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if len(l) < 5 || len(r) < 3 {
		return "", false
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	_, err := remote.ParseAddr(unescape.Replace(r[1]))
	user := ",user_id=" + strconv.Itoa(uid) + ","
	return unescape.Replace(l[4]), err == nil && r[0] == treeType && strings.Contains(","+r[2]+",", user)
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
	if out, err := exec.Command("fusermount3", "-u", "-z", "--", m.dir).CombinedOutput(); err != nil {
		return fmt.Errorf("fusermount3 -u %s: %w: %s", m.dir, err, bytes.TrimSpace(out))
	}
	return nil
}

// mount gives the path of the descriptor that requests come from.
func (m *mountPoint) mount(source string) (dev string, err error) {
	var fd int
	if os.Getuid() == 0 {
		fd, err = m.mountAsRoot(source)
	} else {
		fd, err = m.mountAsUser(source)
	}
	if err != nil {
		return "", err
	}
	return "/dev/fd/" + strconv.Itoa(fd), nil
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

func (m *mountPoint) mountAsRoot(source string) (fd int, err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w (is the module fuse loaded?)", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,%s", fd, m.options())
	if err := unix.Mount(source, m.dir, treeType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount on %s: %w", m.dir, err)
	}
	return fd, nil
}

// mountAsUser has fusermount3 mount. It sends the descriptor over a socket,
// and waits for the other end of that to be closed.
func (m *mountPoint) mountAsUser(source string) (fd int, err error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "helper")
	defer theirs.Close()
	m.hold = os.NewFile(uintptr(ends[0]), "helper")
	name := strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(source)
	m.helper = exec.Command("fusermount3", "-o", "auto_unmount,nosuid,nodev,noexec,subtype=vmfs,fsname="+name+","+m.options(), "--", m.dir)
	m.helper.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	m.helper.ExtraFiles = []*os.File{theirs}
	var complaint bytes.Buffer
	m.helper.Stderr = &complaint
	if err := m.helper.Start(); err != nil {
		return -1, fmt.Errorf("%w (package fuse3)", err)
	}
	theirs.Close()
	if fd, err = received(ends[0]); err != nil {
		m.hold.Close()
		m.helper.Wait()
		return -1, fmt.Errorf("%s", bytes.TrimSpace(complaint.Bytes()))
	}
	return fd, nil
}

// received is the descriptor that comes over a socket.
func received(socket int) (int, error) {
	p, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, p, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return -1, errors.New("no descriptor came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, errors.New("no descriptor came")
	}
	return fds[0], nil
}

// unmount undoes mount, in use or not.
func (m *mountPoint) unmount() error {
	if m.helper == nil {
		if m.gone {
			return nil
		}
		return m.detach()
	}
	m.hold.Close()
	kill := time.AfterFunc(5*time.Second, func() { m.helper.Process.Kill() })
	defer kill.Stop()
	return m.helper.Wait()
}

// seal gives up what is not needed once the tree is mounted.
func (m *mountPoint) seal() error {
	return confine.NoNewPrivs()
}
