package priv

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmfs/priv/cgroup"
	"vmfs/priv/network"
)

// Options are what root says on the command line. All paths are absolute.
type Options struct {
	Mount, State, Run string
	Images            []string // below which root's own images lie
	Interfaces        []string // that vmfs did not make and may use
	Networks          []string // that machines and switches have addresses of
	Cgroup            string   // in which guests have theirs; empty: the daemon's own
	NineP             NineP
	Version           string // of the program, for core to show
}

// Defaults of Options.
const (
	DefaultMount = "/vmfs"
	DefaultState = "/var/lib/vmfs"
	DefaultRun   = "/run/vmfs"
)

// DefaultImages is used when root lists no directory.
var DefaultImages = []string{"/var/lib/vmfs/images", "/boot", "/usr/share"}

// DefaultNetworks is used when root lists no network: those that nobody has in
// the world.
var DefaultNetworks = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"}

// maxRun leaves room for a socket's name in the 107 bytes of its address.
const maxRun = 80

// check refuses options in words and makes paths canonical.
func (o *Options) check() error {
	if ordinary() {
		if err := o.checkOrdinary(); err != nil {
			return err
		}
	}
	return o.valid()
}

// valid refuses what no daemon could do.
func (o *Options) valid() error {
	for _, p := range []struct {
		what string
		path *string
	}{{"mount point", &o.Mount}, {"state directory", &o.State}, {"run directory", &o.Run}} {
		if !filepath.IsAbs(*p.path) || strings.ContainsAny(*p.path, "\x00\n") {
			return fmt.Errorf("%s %q: not an absolute path", p.what, *p.path)
		}
		if *p.path = filepath.Clean(*p.path); *p.path == "/" {
			return fmt.Errorf("%s /: the root directory cannot be it", p.what)
		}
	}
	if len(o.Run) > maxRun {
		return fmt.Errorf("run directory %s: %d bytes; at most %d leave room for the names of sockets", o.Run, len(o.Run), maxRun)
	}
	for _, d := range o.Images {
		if !filepath.IsAbs(d) {
			return fmt.Errorf("images directory %q: not an absolute path", d)
		}
	}
	if o.Cgroup != "" && (!filepath.IsAbs(o.Cgroup) || o.Cgroup != filepath.Clean(o.Cgroup)) {
		return fmt.Errorf("cgroup %q: not an absolute path without dots", o.Cgroup)
	}
	for _, name := range o.Interfaces {
		if !network.ValidName(name) {
			return fmt.Errorf("interface %q: no interface can be called so", name)
		}
	}
	if _, err := parseAll(o.Networks, parseNetwork); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if _, err := o.doors(); err != nil {
		return err
	}
	return o.resolve()
}

// resolve follows symbolic links in the way to the mount point, because the
// kernel's table of mounts shows it so. The last part is not looked at: a
// dead tree may be there.
func (o *Options) resolve() error {
	dir, err := filepath.EvalSymlinks(filepath.Dir(o.Mount))
	if err != nil {
		return fmt.Errorf("mount point %s: %w", o.Mount, err)
	}
	o.Mount = filepath.Join(dir, filepath.Base(o.Mount))
	for _, d := range []string{o.State, o.Run} {
		if below(d, o.Mount) {
			return fmt.Errorf("%s: lies below the mount point %s", d, o.Mount)
		}
	}
	return nil
}

// network says what may be done to links. The nftables tables of a daemon with
// another run directory have another name, so that each keeps to its own.
func (o *Options) network(records string) network.Options {
	networks, _ := parseAll(o.Networks, parseNetwork)
	return network.Options{Records: records, Interfaces: o.Interfaces, Networks: networks, Tables: o.name(), Most: mostLinks}
}

// cgroup says where guests have their cgroups.
func (o *Options) cgroup(records string) cgroup.Options {
	return cgroup.Options{Records: records, Name: o.name(), Dir: o.Cgroup}
}

// name is no other daemon's on this host.
func (o *Options) name() string {
	if o.Run == DefaultRun {
		return "vmfs"
	}
	sum := sha256.Sum256([]byte(o.Run))
	return "vmfs-" + hex.EncodeToString(sum[:4])
}

func below(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// makePoint makes the mount point if it is missing. What is mounted there is
// not touched.
func makePoint(point string) error {
	mounts, err := readMounts()
	if err != nil {
		return fmt.Errorf("%s: %w", point, err)
	}
	if topMount(mounts, point) != nil {
		return nil
	}
	if err := os.Mkdir(point, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", point, reason(err))
	}
	info, err := os.Lstat(point)
	if err != nil {
		return fmt.Errorf("%s: %w", point, reason(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: not a directory", point)
	}
	if ordinary() {
		return makePointOrdinary(point)
	}
	return nil
}

// makeRun makes the run directory if it is missing; it must be the daemon's
// user's alone, and an ordinary one's is closed to others.
func makeRun(run string) error {
	st, err := makeDir(run, 0o755)
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s: not a directory that %s alone may write", run, userName(uint32(os.Geteuid())))
	}
	if ordinary() {
		return os.Chmod(run, 0o700)
	}
	return nil
}

// makeDir makes a directory, and those above it, if it is missing, and says
// what is there.
func makeDir(dir string, mode fs.FileMode) (st unix.Stat_t, err error) {
	if err = os.MkdirAll(filepath.Dir(dir), 0o755); err == nil {
		err = os.Mkdir(dir, mode)
	}
	if err == nil || errors.Is(err, fs.ErrExist) {
		st, err = lstat(dir)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", dir, reason(err))
	}
	return st, err
}

// makeOwn makes a directory of priv's below the run directory.
func makeOwn(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, mode)
}

// makeState makes the state directory and gives it to core, if it is missing
// or root's and empty. Others may pass through it, to the images directory
// that is below it by default; all else in it is core's alone.
func makeState(state string, images []string, uid, gid uint32) error {
	if ordinary() {
		return makeStateOrdinary(state)
	}
	st, err := makeDir(state, 0o700)
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s: not a directory", state)
	case st.Uid == uid:
		return nil
	case st.Uid != 0:
		return fmt.Errorf("%s: belongs to user %d, neither to core (%d) nor, empty, to root", state, st.Uid, uid)
	}
	return giveState(state, images, uid, gid)
}

// giveState fills an empty directory of root's and gives it away, last.
func giveState(state string, images []string, uid, gid uint32) error {
	vm, own := state+"/vm", state+"/images"
	entries, err := os.ReadDir(state)
	if err != nil {
		return fmt.Errorf("%s: %w", state, reason(err))
	}
	for _, e := range entries { // of an attempt that was cut short, or the package's
		if path := state + "/" + e.Name(); path != own && (path != vm || os.Remove(vm) != nil) {
			return fmt.Errorf("%s: is root's and not empty (%s)", state, e.Name())
		}
	}
	if err := os.Mkdir(vm, 0o700); err != nil {
		return fmt.Errorf("%s: %w", vm, reason(err))
	}
	if err := os.Lchown(vm, int(uid), int(gid)); err != nil {
		return fmt.Errorf("%s: %w", vm, reason(err))
	}
	for _, d := range images {
		if d == own {
			if err := makeOwn(own, 0o755); err != nil {
				return err
			}
		}
	}
	// Anybody may list its few names: priv too, which locks it, and is like
	// anybody there.
	if err := os.Chmod(state, 0o755); err != nil {
		return fmt.Errorf("%s: %w", state, reason(err))
	}
	if err := os.Lchown(state, int(uid), int(gid)); err != nil {
		return fmt.Errorf("%s: %w", state, reason(err))
	}
	return nil
}

func lstat(path string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return st, err
}

// reason strips the operation and the path of an error that the caller names.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
