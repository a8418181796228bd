package priv

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// self is this very file, replaced or not.
var self = "/proc/self/exe"

// role prepares this program as another role. It inherits no file but those
// that the caller adds, no environment, and no directory of the caller's.
func role(name string, args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path: self,
		Args: append([]string{"vmfs", name}, args...),
		Env:  []string{},
		Dir:  "/",
	}
}

// smallGuest is the program vmfs-guest beside this one, which is the role
// guest alone; nil if there is none that only we, or root, could have put there. It is
// opened once, so that it stays the one that was installed with us.
func smallGuest() *os.File {
	exe, err := os.Executable()
	if err != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(exe), "vmfs-guest"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG ||
		st.Mode&0o111 == 0 || st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() && st.Uid != 0 {
		f.Close()
		return nil
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, leastProgramFD)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// leastProgramFD is above every descriptor that a child is given: those are
// in their places when the child finds its program by number.
const leastProgramFD = 64

// as makes cmd execute f in the place of this program.
func as(cmd *exec.Cmd, f *os.File) {
	cmd.Path = "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
}
