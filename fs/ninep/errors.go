package ninep

import (
	"context"
	"errors"
	"syscall"

	"vmfs/ctl"
)

// enames are the texts of Rerror. Linux turns them back into numbers by
// comparing them with a list of its own; what is not in that list becomes a
// number that no program knows. So these are texts of that list, and the
// sentence of an error is for err.
var enames = map[syscall.Errno]string{
	syscall.EPERM:        "Operation not permitted",
	syscall.ENOENT:       "No such file or directory",
	syscall.EINTR:        "Interrupted system call",
	syscall.EIO:          "Input/output error",
	syscall.ENXIO:        "No such device or address",
	syscall.EBADF:        "Bad file descriptor",
	syscall.EAGAIN:       "Resource temporarily unavailable",
	syscall.ENOMEM:       "Cannot allocate memory",
	syscall.EACCES:       "Permission denied",
	syscall.EBUSY:        "Device or resource busy",
	syscall.EEXIST:       "File exists",
	syscall.EXDEV:        "Invalid cross-device link",
	syscall.ENODEV:       "No such device",
	syscall.ENOTDIR:      "Not a directory",
	syscall.EISDIR:       "Is a directory",
	syscall.EINVAL:       "Invalid argument",
	syscall.ENFILE:       "Too many open files in system",
	syscall.EMFILE:       "Too many open files",
	syscall.ETXTBSY:      "Text file busy",
	syscall.EFBIG:        "File too large",
	syscall.ENOSPC:       "No space left on device",
	syscall.ESPIPE:       "Illegal seek",
	syscall.EROFS:        "Read-only file system",
	syscall.EPIPE:        "Broken pipe",
	syscall.ERANGE:       "Numerical result out of range",
	syscall.ENAMETOOLONG: "File name too long",
	syscall.ENOSYS:       "Function not implemented",
	syscall.ENOTEMPTY:    "Directory not empty",
	syscall.ELOOP:        "Too many levels of symbolic links",
	syscall.EPROTO:       "Protocol error",
	syscall.EMSGSIZE:     "Message too long",
	syscall.EOPNOTSUPP:   "Operation not supported",
	syscall.ENOTCONN:     "Transport endpoint is not connected",
	syscall.ENETDOWN:     "Network is down",
	syscall.ECONNABORTED: "Software caused connection abort",
	syscall.ECONNRESET:   "Connection reset by peer",
	syscall.ENOBUFS:      "No buffer space available",
	syscall.ETIMEDOUT:    "Connection timed out",
	syscall.ECONNREFUSED: "Connection refused",
	syscall.EHOSTDOWN:    "Host is down",
	syscall.EALREADY:     "Operation already in progress",
	syscall.EDQUOT:       "Disk quota exceeded",
}

func ename(errno syscall.Errno) string {
	if s, ok := enames[errno]; ok {
		return s
	}
	return enames[syscall.EIO]
}

// plain is err as a client hears it.
func plain(err error) error {
	switch {
	case errors.Is(err, context.Canceled):
		return syscall.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return syscall.ETIMEDOUT
	}
	return ctl.Errno(err)
}
