package unpack

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
)

// Main is the main of the role; its socket is descriptor 3, its arguments are
// UID LIMIT: who it becomes, and how many bytes it may make. It has to be in a
// process group of its own, the priority of which it lowers. It returns the
// exit status.
//
// Its parent says
//
//	unpack
//
// with the file beside it, open for reading, and is answered "ok SIZE" with a
// memory file that nobody can change any more, or "error ERRNO reason". A
// parent that waits for it does so with a deadline: the file may be on a file
// system that never answers. The process ends when its parent does, or hangs
// up.
func Main(args []string) int {
	conn, err := wire.NewConn(os.NewFile(3, "parent"))
	if err != nil {
		return 1
	}
	defer conn.Close()
	out, size, err := serve(conn, args)
	if err != nil {
		conn.Send(nil, "error", unix.ErrnoName(ctl.Errno(err)), clip(err.Error()))
		return 1
	}
	defer out.Close()
	if err := conn.Send([]*os.File{out}, "ok", strconv.FormatInt(size, 10)); err != nil {
		return 1
	}
	return 0
}

// clip keeps a reason within what a message carries.
func clip(s string) string { return s[:min(len(s), 4096)] }

func serve(conn *wire.Conn, args []string) (*os.File, int64, error) {
	uid, limit, err := parseArgs(args)
	if err != nil {
		return nil, 0, err
	}
	if err := drop(uid, limit); err != nil {
		return nil, 0, err
	}
	out, err := newMemory()
	if err != nil {
		return nil, 0, err
	}
	n, err := fill(conn, out, limit)
	if err != nil {
		out.Close()
		return nil, 0, err
	}
	return out, n, nil
}

// fill takes the request and puts the kernel into out, under the list of
// calls: who takes the process over by the file has that one memory file.
func fill(conn *wire.Conn, out *os.File, limit int64) (int64, error) {
	if err := confine.Seccomp(confine.Unpack); err != nil {
		return 0, err
	}
	m, err := conn.Recv()
	if err != nil {
		return 0, err
	}
	defer m.Close()
	if len(m.Fields) != 1 || m.Fields[0] != "unpack" || len(m.Files) != 1 {
		return 0, ctl.Errorf(syscall.EINVAL, "unpack: not a request")
	}
	go func() {
		conn.Recv() // nothing more is to come
		os.Exit(1)
	}()
	return unpackFile(m.Files[0], out, limit)
}

func parseArgs(args []string) (uid uint32, limit int64, err error) {
	if len(args) != 2 {
		return 0, 0, fmt.Errorf("unpack: %d arguments, not UID LIMIT", len(args))
	}
	id, err := strconv.ParseUint(args[0], 10, 32)
	if err != nil || id == 0 || id == 1<<32-1 {
		return 0, 0, fmt.Errorf("unpack: %q: not an id", args[0])
	}
	limit, err = strconv.ParseInt(args[1], 10, 64)
	if err != nil || limit < 1 || limit > 1<<32 {
		return 0, 0, fmt.Errorf("unpack: %q: not a limit", args[1])
	}
	return uint32(id), limit, nil
}

// bounds are the limits of a process that has size bytes of addresses already,
// most of which Go's runtime only reserves.
func bounds(limit, size uint64) []bound {
	b := []bound{
		{unix.RLIMIT_CORE, 0, "nobody is to read a crash"},
		{unix.RLIMIT_CPU, 60, "seconds; the slowest format takes two"},
		{unix.RLIMIT_DATA, 2*limit + 192<<20, "zstd has the file and what comes out in memory; the runtime takes 64 MiB at a time"},
		{unix.RLIMIT_AS, size + 2*limit + 320<<20, "the same: shared memory, and what is only read again, is no data"},
		{unix.RLIMIT_FSIZE, limit, "the memory file, a second time"},
		{unix.RLIMIT_NOFILE, 16, "the socket, two files, the runtime's"},
	}
	if os.Geteuid() == 0 { // else it counts all that the user runs
		b = append(b, bound{unix.RLIMIT_NPROC, 1024, "threads of all unpackers, one for each CPU"})
	}
	return b
}

// addresses is the size of this process's address space, in bytes.
func addresses() (uint64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("unpack: %w", err)
	}
	pages, _, _ := strings.Cut(string(text), " ")
	n, err := strconv.ParseUint(pages, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("unpack: /proc/self/statm: %w", err)
	}
	return n * uint64(os.Getpagesize()), nil
}

const niceness = 10

type bound struct {
	what  int
	limit uint64
	why   string
}

// drop gives up all but what the table says, with no path at all. The calls
// are left for fill.
func drop(uid uint32, limit int64) error {
	// Nobody waits for it: the start that it was begun for goes first. Its
	// process group is its own, and so has all its threads and nobody else's.
	if err := unix.Setpriority(unix.PRIO_PGRP, 0, niceness); err != nil {
		return fmt.Errorf("unpack: priority: %w", err)
	}
	size, err := addresses()
	if err != nil {
		return err
	}
	for _, b := range bounds(uint64(limit), size) {
		var have unix.Rlimit
		if err := unix.Getrlimit(b.what, &have); err != nil {
			return fmt.Errorf("unpack: limit %d: %w", b.what, err)
		}
		n := min(b.limit, have.Max)
		if err := unix.Setrlimit(b.what, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("unpack: limit %d: %w", b.what, err)
		}
	}
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Unpack.Capabilities); err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := confine.Become(uid, uid, nil); err != nil {
			return err
		}
	}
	return confine.Landlock(nil)
}

// unpackFile unpacks a bzImage into a memory file, and seals that.
func unpackFile(kernel, out *os.File, limit int64) (int64, error) {
	size, err := fileSize(kernel)
	if err != nil {
		return 0, err
	}
	// Its own methods are hidden, so that nothing but write(2) is called.
	n, err := Unpack(kernel, size, struct{ io.Writer }{out}, limit)
	if err != nil {
		return 0, err
	}
	return n, seal(out)
}

// newMemory makes a memory file that can be sealed.
func newMemory() (*os.File, error) {
	fd, err := unix.MemfdCreate("kernel", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("unpack: memfd: %w", err)
	}
	return os.NewFile(uintptr(fd), "kernel"), nil
}

// allSeals keep everybody from changing a memory file.
const allSeals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func seal(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals); err != nil {
		return fmt.Errorf("unpack: seals: %w", err)
	}
	return nil
}

// fileSize refuses what is not a regular file open for reading.
func fileSize(f *os.File) (int64, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return 0, fmt.Errorf("unpack: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return 0, ctl.Errorf(ctl.Errno(err), "kernel: %v", err)
	}
	if !st.Mode().IsRegular() || flags&unix.O_ACCMODE == unix.O_WRONLY || flags&unix.O_PATH != 0 {
		return 0, ctl.Errorf(syscall.EINVAL, "kernel: not a regular file that is open for reading")
	}
	return st.Size(), nil
}
