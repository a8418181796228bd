package confine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// EmptyRoot makes an empty directory, in which nobody can make anything, the
// root and the current directory of this process. dir is where it is mounted
// for a moment. The process has a mount namespace of its own, and
// CAP_SYS_ADMIN. What was open stays open.
func EmptyRoot(dir string) error {
	// What happens here stays here, also on a host whose mounts are shared.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("confine: private mounts: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV | unix.MS_RDONLY
	if err := unix.Mount("empty", dir, "tmpfs", flags, "mode=0555,size=4k,nr_inodes=1"); err != nil {
		return fmt.Errorf("confine: empty root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("confine: empty root: %w", err)
	}
	// Both roots are at the same place then, and the old one is on top.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("confine: pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("confine: detach the old root: %w", err)
	}
	return unix.Chdir("/")
}
