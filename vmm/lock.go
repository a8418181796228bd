package vmm

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// QEMU announces what it does with an image by OFD read locks on single
// bytes: one says "I do this", the other "nobody else may". We speak the same
// language, so that a QEMU started by hand is kept out as another machine is.
// (block/file-posix.c: RAW_LOCK_PERM_BASE and RAW_LOCK_SHARED_BASE, plus the
// number of the permission.)
const (
	doesRead    = 100
	doesWrite   = 101
	doesResize  = 103
	denysRead   = 200
	denysWrite  = 201
	denysResize = 203
)

// lock takes an image for one machine, or a read-only one together with its
// other readers. Both kinds of lock belong to the open file, so they are
// QEMU's too, and end when both processes have closed it. flock keeps
// machines of vmfs apart, and shows a pid in /proc/locks; OFD locks keep
// others out. The error is EBUSY if somebody has it, else it says why the
// file cannot be locked.
func lock(f *os.File, what string, write bool) error {
	how := unix.LOCK_SH
	if write {
		how = unix.LOCK_EX
	}
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	switch {
	case err == nil && write:
		err = ofd(f, unix.F_WRLCK, 0, 0)
	case err == nil:
		err = lockShared(f)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return ctl.Errorf(syscall.EBUSY, "%s: locked", what)
	}
	return ctl.Errorf(syscall.EOPNOTSUPP, "%s: cannot be locked where it is: %v", what, err)
}

// lockShared says that we read and that nobody may write, and looks whether
// somebody writes or wants no readers.
func lockShared(f *os.File) error {
	for _, b := range []int64{doesRead, denysWrite, denysResize} {
		if err := ofd(f, unix.F_RDLCK, b, 1); err != nil {
			return err
		}
	}
	for _, b := range []int64{denysRead, doesWrite, doesResize} {
		l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: b, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
			return err
		}
		if l.Type != unix.F_UNLCK {
			return unix.EAGAIN
		}
	}
	return nil
}

// ofd takes a lock of n bytes, or to the end of any later file for n 0.
func ofd(f *os.File, kind int16, start, n int64) error {
	l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: start, Len: n}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
}
