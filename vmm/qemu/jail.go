package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Jail makes dir the root directory of this process, which is the first of
// its mount and pid namespaces and has the capabilities of confine.Jail. In
// it are, all of them read-only:
//
//	/usr       the host's: QEMU, its libraries and firmware
//	/lib*      links or directories, as on the host
//	/etc       the loader's cache, if there is one
//	/proc      of its own pid namespace, processes only
//	/dev/kvm   a node that is uid's, if kvm is set
//
// and nothing that can be written. What was mounted is gone with the process.
func Jail(dir string, uid uint32, kvm bool) error {
	// What happens here stays here, also on a host whose mounts are shared.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("jail: private mounts: %w", err)
	}
	var flags uintptr = unix.MS_NOSUID | unix.MS_NOEXEC
	if !kvm {
		flags |= unix.MS_NODEV
	}
	if err := unix.Mount("jail", dir, "tmpfs", flags, "mode=0755,size=64k,nr_inodes=64"); err != nil {
		return fmt.Errorf("jail: tmpfs: %w", err)
	}
	return steps(dir, usr, libraries, loaderCache, proc,
		func(dir string) error { return devices(dir, uid, kvm) },
		func(dir string) error { return readOnly(dir, flags) },
		enter)
}

// OrdinaryJail is Jail with the rights of an ordinary user, in a user
// namespace in which the process has confine.OrdinaryJail's. It cannot make a
// device node: /dev/kvm is the host's. With outward there is /etc/resolv.conf
// too. What is mounted below /usr shows there: the kernel would not hide it.
func OrdinaryJail(dir string, kvm, outward bool) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("jail: private mounts: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	if err := unix.Mount("jail", dir, "tmpfs", flags, "mode=0755,size=64k,nr_inodes=64"); err != nil {
		return fmt.Errorf("jail: tmpfs: %w", err)
	}
	return steps(dir, usr, libraries, loaderCache, proc,
		func(dir string) error { return hostDevice(dir, kvm) },
		func(dir string) error { return resolver(dir, outward) },
		func(dir string) error { return readOnly(dir, flags) },
		enter)
}

// steps does the steps of building a jail.
func steps(dir string, all ...func(string) error) error {
	for _, step := range all {
		if err := step(dir); err != nil {
			return fmt.Errorf("jail: %w", err)
		}
	}
	return nil
}

// hostDevice shows the host's /dev/kvm.
func hostDevice(dir string, kvm bool) error {
	if !kvm {
		return nil
	}
	if err := os.Mkdir(dir+"/dev", 0o755); err != nil {
		return err
	}
	return bindFile("/dev/kvm", dir, 0)
}

// resolver shows the host's resolv.conf, as it is now.
func resolver(dir string, outward bool) error {
	const file = "/etc/resolv.conf"
	if _, err := os.Stat(file); !outward || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return bindFile(file, dir, unix.MS_NODEV)
}

// bindFile shows a file, read-only, at its own place below dir.
func bindFile(file, dir string, flags uintptr) error {
	if err := os.WriteFile(dir+file, nil, 0o444); err != nil {
		return err
	}
	return bindOver(file, dir+file, flags|unix.MS_NOEXEC)
}

func usr(dir string) error { return bind("/usr", dir+"/usr") }

// libraries repeats what the host has beside /usr/lib: links on most, and
// directories on some.
func libraries(dir string) error {
	names, err := filepath.Glob("/lib*")
	if err != nil {
		return err
	}
	for _, name := range names {
		st, err := os.Lstat(name)
		if err != nil {
			return err
		}
		switch st.Mode().Type() {
		case fs.ModeSymlink:
			err = relink(name, dir+name)
		case fs.ModeDir:
			err = bind(name, dir+name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func relink(name, to string) error {
	target, err := os.Readlink(name)
	if err != nil {
		return err
	}
	return os.Symlink(target, to)
}

// loaderCache copies the file that says where libraries are. It is the host's
// and no secret; without it the loader knows the usual places.
func loaderCache(dir string) error {
	const cache = "/etc/ld.so.cache"
	if err := os.Mkdir(dir+"/etc", 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(cache); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return bindFile(cache, dir, unix.MS_NODEV)
}

// proc shows the processes of this pid namespace, which are this one and
// QEMU, and nothing of the kernel's.
func proc(dir string) error {
	if err := os.Mkdir(dir+"/proc", 0o555); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY
	if err := unix.Mount("proc", dir+"/proc", "proc", flags, "subset=pid"); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	return nil
}

// devices makes the one node that QEMU may need.
func devices(dir string, uid uint32, kvm bool) error {
	if !kvm {
		return nil
	}
	if err := os.Mkdir(dir+"/dev", 0o755); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/kvm", &st); err != nil {
		return fmt.Errorf("/dev/kvm: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR {
		return fmt.Errorf("/dev/kvm: %w", unix.ENODEV)
	}
	node := dir + "/dev/kvm"
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(st.Rdev)); err != nil {
		return fmt.Errorf("mknod /dev/kvm: %w", err)
	}
	return os.Chown(node, int(uid), int(uid))
}

func readOnly(dir string, flags uintptr) error {
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("read-only root: %w", err)
	}
	return nil
}

// enter exchanges the root directory for dir and lets go of the old one. Both
// are at the same place for a moment, and the old one is on top.
func enter(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("chdir %s: %w", dir, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the old root: %w", err)
	}
	return unix.Chdir("/")
}

// bind shows the directory from, without what is mounted below it, at to.
func bind(from, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	return bindOver(from, to, unix.MS_NODEV)
}

// bindOver binds over what is there, read-only. Where the mounts are not this
// user's own, what is mounted below cannot be left out.
func bindOver(from, to string, flags uintptr) error {
	how := uintptr(unix.MS_BIND)
	if os.Geteuid() != 0 {
		how |= unix.MS_REC
	}
	if err := unix.Mount(from, to, "", how, ""); err != nil {
		return fmt.Errorf("bind %s: %w", from, err)
	}
	flags |= unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID
	if err := unix.Mount("", to, "", flags, ""); err != nil {
		return fmt.Errorf("bind %s read-only: %w", from, err)
	}
	return nil
}
