package priv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/fusermount"
)

// A daemon that is not root's has the rights of the user who started it, and
// so have all its roles: there is one uid. It opens what he may open, mounts by
// fusermount3 for him alone, and changes nothing of the host's network.

// ordinary reports whether this process is of such a daemon.
func ordinary() bool { return os.Geteuid() != 0 }

// madeMask is the umask for directories that others may pass through, where
// there are others.
func madeMask() int {
	if ordinary() {
		return 0o077
	}
	return 0o022
}

// Defaults are the options of who says nothing: of root, or of the user who
// calls. What has none for him, because a variable of his environment is not
// set, or because where to mount is for him to say, is empty.
func Defaults() Options {
	if !ordinary() {
		return RootDefaults()
	}
	state := os.Getenv("XDG_STATE_HOME")
	if home := os.Getenv("HOME"); !filepath.IsAbs(state) && home != "" {
		state = home + "/.local/state"
	}
	below := func(dir string) string {
		if !filepath.IsAbs(dir) {
			return ""
		}
		return filepath.Join(dir, "vmfs")
	}
	return Options{State: below(state), Run: below(os.Getenv("XDG_RUNTIME_DIR")), Networks: DefaultNetworks}
}

// checkOrdinary refuses what only root's daemon can do, and says what an
// ordinary user has to.
func (o *Options) checkOrdinary() error {
	switch {
	case os.Geteuid() == nobody:
		return fmt.Errorf("user %d: he stands for whoever is not known; start it as somebody else", nobody)
	case o.Mount == "":
		return errors.New("where to mount: without root there is no default (vmfs serve -m ~/vm)")
	case o.State == "":
		return errors.New("state directory: neither XDG_STATE_HOME nor HOME is set; -state says where it is")
	case o.Run == "":
		return errors.New("run directory: XDG_RUNTIME_DIR is not set; -run says where it is")
	case len(o.Interfaces) > 0:
		return errors.New("-interface: a daemon without root uses no interface")
	}
	return nil
}

// restrictOrdinary is restrict where there is no right to give up.
func restrictOrdinary() error {
	if err := keepFiles(); err != nil {
		return err
	}
	if err := confine.Keep(confine.OrdinaryPriv.Capabilities); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("no core dumps: %w", err)
	}
	return nil
}

// makeStateOrdinary makes the state directory, of which nobody else sees
// anything. One that is there must be an earlier daemon's, or empty.
func makeStateOrdinary(state string) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return fmt.Errorf("%s: %w", state, reason(err))
	}
	st, err := lstat(state)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", state, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s: not a directory", state)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s: belongs to user %d", state, st.Uid)
	}
	if _, err := os.Lstat(state + "/vmfs"); err == nil {
		return nil
	}
	entries, err := os.ReadDir(state)
	if err != nil {
		return fmt.Errorf("%s: %w", state, reason(err))
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "vmfs.") { // of an attempt that was cut short
			return fmt.Errorf("%s: not empty (%s), and no daemon's", state, e.Name())
		}
	}
	return nil
}

// The modes of a mount point of an ordinary user: while the tree is mounted,
// which wants a directory that he may write, and for ever after. He cannot
// cover it, but nothing lands in it either while the daemon is away.
const (
	pointOpen   = 0o700
	pointClosed = 0o500
)

// makePointOrdinary wants an empty directory of the user's, since what is in
// it could be reached neither with the tree nor, then, be changed without.
func makePointOrdinary(point string) error {
	st, err := lstat(point)
	if err != nil {
		return fmt.Errorf("%s: %w", point, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: belongs to user %d", point, st.Uid)
	}
	entries, err := os.ReadDir(point)
	if err != nil {
		return fmt.Errorf("%s: %w", point, reason(err))
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s: not empty (%s)", point, entries[0].Name())
	}
	return nil
}

// mountOrdinary mounts a new tree, which nobody but the user sees. What lies
// beneath cannot be written from then on.
func (t *tree) mountOrdinary() (*os.File, error) {
	beneath, err := os.OpenFile(t.point, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("mount point %w", err)
	}
	defer beneath.Close()
	self := fmt.Sprintf("/proc/self/fd/%d", beneath.Fd())
	if err := os.Chmod(self, pointOpen); err != nil {
		return nil, fmt.Errorf("mount point %s: %w", t.point, reason(err))
	}
	dev, err := fusermount.Mount(t.point, t.source(), strings.TrimPrefix(treeType, "fuse."),
		"default_permissions", fmt.Sprintf("max_read=%d", maxRead))
	if cerr := os.Chmod(self, pointClosed); err == nil && cerr != nil {
		dev.Close()
		err = fmt.Errorf("mount point %s: %w", t.point, reason(cerr))
	}
	return dev, err
}

// remain leaves the opener the user whose daemon this is. His groups are those
// that the daemon was started with.
func (o *opener) remain() error {
	if int(o.uid) != os.Geteuid() {
		return ctl.Errorf(syscall.EPERM, "open as %s: not with the rights of %d", o.who, os.Geteuid())
	}
	return confine.Seccomp(confine.Opener)
}

// nobody is whom the kernel and others let stand for who is not known.
const nobody = 65534

// noNetwork stands for a request about a link where there is no network.
func noNetwork() error {
	return ctl.Errorf(syscall.EPERM, "taps, bridges and addresses are for a daemon of root's; nic/N/user yes gives a NIC the engine's own network")
}
