package remote

import (
	"strings"
	"syscall"

	"vmfs/ctl"
)

// lastErrno is the highest number that Linux gives to programs. The kernel
// takes no other as an answer, and would wait for a better one.
const lastErrno = 133

// numbers are the texts of errors, in lower case: those of this system, and
// those of Plan 9.
var numbers = texts()

func texts() map[string]syscall.Errno {
	m := map[string]syscall.Errno{
		"file does not exist":              syscall.ENOENT,
		"file not found":                   syscall.ENOENT,
		"directory entry not found":        syscall.ENOENT,
		"file already exists":              syscall.EEXIST,
		"file or directory already exists": syscall.EEXIST,
		"directory is not empty":           syscall.ENOTEMPTY,
		"i/o error":                        syscall.EIO,
		"file is in use":                   syscall.EBUSY,
		"fid unknown or out of range":      syscall.EBADF,
		"bad use of fid":                   syscall.EBADF,
		"illegal offset":                   syscall.EINVAL,
		"illegal mode":                     syscall.EINVAL,
		"illegal name":                     syscall.ENAMETOOLONG,
		"unknown user":                     syscall.EINVAL,
		"unknown group":                    syscall.EINVAL,
		"wstat prohibited":                 syscall.EPERM,
		"authentication failed":            syscall.EACCES,
	}
	for e := syscall.Errno(1); e <= lastErrno; e++ {
		if text := strings.ToLower(e.Error()); m[text] == 0 {
			m[text] = e
		}
	}
	return m
}

// refusal reads what an Rerror has: a text, and in 9P2000.u its number.
func refusal(body []byte, dotu bool) (error, bool) {
	f := fields{p: body}
	text := f.text()
	n := uint32(0)
	if dotu {
		n = f.u32()
	}
	if !f.whole() {
		return nil, false
	}
	if n == 0 || n > lastErrno {
		n = uint32(numbers[strings.ToLower(text)])
	}
	if n == 0 {
		n = uint32(syscall.EIO)
	}
	return ctl.Errorf(syscall.Errno(n), "the server: %.200q", text), true
}

// broken is the end of a connection whose server breaks the rules.
func broken(what string) error {
	return ctl.Errorf(syscall.EPROTO, "the server breaks the rules of 9P: %s", what)
}
