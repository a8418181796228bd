package ctl

import (
	"errors"
	"fmt"
	"syscall"
)

// Error is a refusal or a failure that somebody can act on: the number that
// a door (FUSE, 9P) returns, and the sentence that err shows beside it.
// Errno is always one of the contract's error table.
type Error struct {
	Errno  syscall.Errno
	Reason string // op, thing, reason, once; no newline
}

func (e *Error) Error() string { return e.Reason }

// Unwrap lets errors.Is(err, syscall.EBUSY) ask for the number.
func (e *Error) Unwrap() error { return e.Errno }

// Errorf makes an Error.
func Errorf(errno syscall.Errno, format string, args ...any) *Error {
	return &Error{Errno: errno, Reason: fmt.Sprintf(format, args...)}
}

// Errno gives the number of any error: an Error's own, a system call's, and
// EIO for what nobody foresaw.
func Errno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return syscall.EIO
}
