package priv

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// errnoNamed is the inverse of unix.ErrnoName.
func errnoNamed(name string) (syscall.Errno, bool) {
	for e := syscall.Errno(1); e < 200; e++ {
		if unix.ErrnoName(e) == name {
			return e, name != ""
		}
	}
	return 0, false
}

// oneLine makes control bytes of a text that others wrote harmless in a log
// and in err.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
