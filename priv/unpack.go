package priv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
)

// An unpacker is a process for one kernel: it takes it out of a bzImage, and
// is confined to reading that and filling memory (package unpack). Nobody
// waits for it, so that it gets a minute; it holds up nobody, and its parent
// reads of what it says no more than an errno, a size and a sentence.

const (
	unpackTime   = time.Minute // that an unpacker gets
	maxUnpackers = 2           // at a time
	maxUnpacked  = 256 << 20   // bytes that one may be asked to make

	verbUnpack = "unpack" // the only one with which a file comes
)

// unpackers are those that run.
type unpackers struct {
	mu    sync.Mutex
	all   map[*exec.Cmd]bool
	ended bool
}

// unpack takes the kernel out of a bzImage; the caller closes it.
func (u *unpackers) unpack(ctx context.Context, bzImage *os.File, limit int64) (kernel *os.File, err error) {
	ctx, cancel := context.WithTimeout(ctx, unpackTime)
	defer cancel()
	uid := uint32(confine.UnpackUID)
	if ordinary() {
		uid = uint32(os.Geteuid())
	}
	cmd := role("unpack", decimal(uid), strconv.FormatInt(limit, 10))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	conn, err := u.start(cmd)
	if err != nil {
		return nil, err
	}
	defer u.end(cmd)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	kernel, err = askUnpacker(conn, bzImage)
	if ctx.Err() != nil && err != nil {
		return nil, ctl.Errorf(syscall.ETIMEDOUT, "unpack: not done within %v", unpackTime)
	}
	return kernel, err
}

// start starts a process if there is a place for it, which end gives back.
func (u *unpackers) start(cmd *exec.Cmd) (*wire.Conn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended || len(u.all) == maxUnpackers {
		return nil, ctl.Errorf(syscall.EAGAIN, "unpack: %d kernels are unpacked already", len(u.all))
	}
	conn, err := startRole(cmd)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if u.all == nil {
		u.all = make(map[*exec.Cmd]bool)
	}
	u.all[cmd] = true
	return conn, nil
}

// end ends a process, however far it is.
func (u *unpackers) end(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.all, cmd)
}

// close ends all, for good.
func (u *unpackers) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = true
	for cmd := range u.all {
		cmd.Process.Kill()
	}
}

// askUnpacker hands the file over and takes what comes out.
func askUnpacker(conn *wire.Conn, bzImage *os.File) (*os.File, error) {
	err := conn.Send([]*os.File{bzImage}, verbUnpack)
	var m wire.Message
	if err == nil {
		m, err = conn.Recv()
	}
	if err != nil {
		return nil, ctl.Errorf(syscall.EIO, "unpack: the process ended: %v", err)
	}
	defer m.Close()
	fields, err := parseSaid(verbUnpack, m.Fields, len(m.Files))
	if err != nil {
		return nil, err
	}
	if len(fields) != 1 || len(m.Files) != 1 {
		return nil, errAnswer(verbUnpack)
	}
	return m.Take(0), nil
}

func parseUnpack(args []string) (act, error) {
	if err := count(args, 1); err != nil {
		return nil, err
	}
	limit, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil || limit < 1 || limit > maxUnpacked {
		return nil, fmt.Errorf("%.40q is no limit from 1 to %d bytes", args[0], maxUnpacked)
	}
	return func(ctx context.Context, s *server) (reply, error) {
		kernel, err := s.unpackers.unpack(ctx, fileOf(ctx), limit)
		if err != nil {
			return reply{}, err
		}
		return reply{files: []*os.File{kernel}}, nil
	}, nil
}

// checkFiles refuses files that a working core does not send. The one of
// unpack is memory that nobody can change: what it holds cannot become
// something else, and nothing on the way waits for a file system.
func checkFiles(verb string, files []*os.File) error {
	switch {
	case verb != verbUnpack && len(files) > 0:
		return fmt.Errorf("%s: files came with it", verb)
	case verb != verbUnpack:
		return nil
	case len(files) != 1:
		return fmt.Errorf("%s: %d files came with it, want one", verb, len(files))
	}
	const fixed = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	if seals, err := unix.FcntlInt(files[0].Fd(), unix.F_GET_SEALS, 0); err != nil || seals&fixed != fixed {
		return fmt.Errorf("%s: its file is no sealed memory", verb)
	}
	return nil
}

type fileKey struct{}

// withFile is ctx of a request with which a file came.
func withFile(ctx context.Context, f *os.File) context.Context {
	return context.WithValue(ctx, fileKey{}, f)
}

// fileOf is that file.
func fileOf(ctx context.Context) *os.File {
	f, _ := ctx.Value(fileKey{}).(*os.File)
	return f
}

// Unpack takes the kernel out of a bzImage, which is sealed memory and stays
// the caller's; the caller closes what it gets. That is no more than what a
// process says that has read a user's bytes, and is to be looked at. EINVAL for
// a bzImage that is none or is damaged, EOPNOTSUPP for one that is not packed
// or otherwise than is known, ETIMEDOUT after a minute, EIO when the process
// died, EAGAIN when too many are at work.
func (c *Client) Unpack(ctx context.Context, bzImage *os.File, limit int64) (*os.File, error) {
	m, err := c.caller.Call(ctx, []*os.File{bzImage}, verbUnpack, strconv.FormatInt(limit, 10))
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if len(m.Files) != 1 {
		return nil, errAnswer(verbUnpack)
	}
	return m.Take(0), nil
}
