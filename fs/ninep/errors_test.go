package ninep

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
)

// Each errno of the contract has a text, which is the C library's but for what
// Linux's list has otherwise: that is what both compare with.
func TestErrorTexts(t *testing.T) {
	for errno, text := range enames {
		if !strings.EqualFold(text, errno.Error()) {
			t.Errorf("%d is %q, want %q", errno, text, errno.Error())
		}
		if text[:1] != strings.ToUpper(text[:1]) {
			t.Errorf("%q begins with no capital", text)
		}
	}
	for _, errno := range []syscall.Errno{
		syscall.EINVAL, syscall.ENOENT, syscall.EACCES, syscall.EPERM, syscall.EALREADY, syscall.EBUSY, syscall.EEXIST, syscall.EAGAIN,
		syscall.EDQUOT, syscall.ELOOP, syscall.EFBIG, syscall.ENODEV, syscall.EOPNOTSUPP, syscall.ENOSPC, syscall.ETIMEDOUT, syscall.EROFS,
	} {
		if enames[errno] == "" {
			t.Errorf("there is no text for: %v", errno)
		}
	}
}

// An error is a text, and in 9P2000.u its number too. What has no text is an
// I/O error by it, and by its number still what it was.
func TestComposeError(t *testing.T) {
	for _, c := range []struct {
		err    error
		text   string
		number syscall.Errno
	}{
		{ctl.Errorf(syscall.EDQUOT, "a sentence that is for err"), "Disk quota exceeded", syscall.EDQUOT},
		{fmt.Errorf("start: %w", syscall.EBUSY), "Device or resource busy", syscall.EBUSY},
		{fmt.Errorf("read: %w", context.Canceled), "Interrupted system call", syscall.EINTR},
		{context.DeadlineExceeded, "Connection timed out", syscall.ETIMEDOUT},
		{syscall.ENOTTY, "Input/output error", syscall.ENOTTY},
		{fmt.Errorf("nobody knows"), "Input/output error", syscall.EIO},
	} {
		for _, dotu := range []bool{false, true} {
			p := composeError(7, plain(c.err), dotu)
			want := append([]byte{0, 0, 0, 0, proto.Rerror, 7, 0, byte(len(c.text)), 0}, c.text...)
			if dotu {
				want = binary.LittleEndian.AppendUint32(want, uint32(c.number))
			}
			if sized(want); string(p) != string(want) {
				t.Errorf("%v: got %q, want %q", c.err, p, want)
			}
		}
	}
}
