package priv

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vmfs/priv/fusermount"
)

// A mount point bears up to two mounts of ours, told apart by what mountinfo
// shows: the cover, an empty read-only tmpfs that stays when the daemon goes,
// and on it the tree, whose source names the run directory of its daemon.
const (
	coverType   = "tmpfs"
	coverSource = "vmfs"
	treeType    = "fuse.vmfs"
	maxRead     = 128 << 10
)

// tree is the mount point of a daemon.
type tree struct {
	point string // absolute, resolved
	run   string
	uid   uint32 // of core, who serves it
	gid   uint32
}

func (t *tree) source() string { return "vmfs:" + t.run }

// clear detaches what dead daemons left on the mount point, down to the
// cover. A tree that a living daemon serves is an error.
func (t *tree) clear() error {
	for range 100 {
		mounts, err := readMounts()
		if err != nil {
			return err
		}
		top := topMount(mounts, t.point)
		if top == nil || top.fstype != treeType {
			return nil
		}
		run, ours := strings.CutPrefix(top.source, "vmfs:")
		if !ours {
			return nil
		}
		if run != t.run {
			if pid := LockHolder(run); pid != "" {
				return fmt.Errorf("mount point %s: already served by process %s, whose run directory is %s", t.point, pid, run)
			}
		}
		if err := t.detach(); err != nil {
			return err
		}
	}
	return fmt.Errorf("mount point %s: a hundred mounts and no end", t.point)
}

// cover puts the empty directory there, unless it is. An ordinary user cannot.
func (t *tree) cover() error {
	if err := t.clear(); err != nil || ordinary() {
		return err
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	if top := topMount(mounts, t.point); top != nil && top.fstype == coverType && top.source == coverSource {
		return nil
	}
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount(coverSource, t.point, coverType, flags, "mode=0555,size=4k,nr_inodes=1"); err != nil {
		return fmt.Errorf("mount an empty directory over %s: %w", t.point, err)
	}
	return nil
}

// mount covers the mount point and mounts a new tree on the cover. Its
// requests come from the file, which core serves; the caller closes it.
func (t *tree) mount() (*os.File, error) {
	if err := t.cover(); err != nil {
		return nil, err
	}
	if ordinary() {
		return t.mountOrdinary()
	}
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("%w (is the module fuse loaded?)", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions,allow_other,max_read=%d",
		dev.Fd(), t.uid, t.gid, maxRead)
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount(t.source(), t.point, treeType, flags, options); err != nil {
		dev.Close()
		return nil, fmt.Errorf("mount %s: %w", t.point, err)
	}
	return dev, nil
}

// detach takes the topmost mount away, in use or not. The kernel follows the
// path without asking whoever serves the mount.
func (t *tree) detach() error {
	if ordinary() {
		return fusermount.Unmount(t.point)
	}
	if err := unix.Unmount(t.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("detach %s: %w", t.point, err)
	}
	return nil
}
