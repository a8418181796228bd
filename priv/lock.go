package priv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lock is RUN/lock, held for as long as a daemon serves. It contains the
// daemon's pid.
type lock struct{ f *os.File }

// lockTime is how long a lock whose holder is dead may still be held.
const lockTime = 2 * time.Second

// takeLock takes the lock of the run directory, or names who has it.
func takeLock(run string) (*lock, error) {
	path := run + "/lock"
	patience := time.Now().Add(lockTime)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			pid := readPID(f)
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				if dead(pid) && time.Now().Before(patience) {
					time.Sleep(lockTime / 100)
					continue
				}
				return nil, fmt.Errorf("already served by process %s (%s)", pid, path)
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !same(f, path) {
			f.Close() // the holder removed it meanwhile
			continue
		}
		l := &lock{f}
		if err := l.write(); err != nil {
			l.release()
			return nil, err
		}
		return l, nil
	}
}

// dead reports whether pid is no process. A child that a daemon was just
// making when it was killed holds its lock until the child's exec.
func dead(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err != nil || errors.Is(unix.Kill(n, 0), unix.ESRCH)
}

// lockState keeps a second daemon with another run directory away from a
// state directory: each would call the other's guests dead. The lock goes
// with the file.
func lockState(state string) (*os.File, error) {
	f, err := os.OpenFile(state, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	for patience := time.Now().Add(lockTime); ; time.Sleep(lockTime / 100) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(patience) {
			f.Close()
			return nil, fmt.Errorf("%s: another daemon serves it, with another run directory (%w)", state, reason(err))
		}
	}
}

func (l *lock) write() error {
	if err := l.f.Truncate(0); err != nil {
		return err
	}
	_, err := l.f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// release removes the lock's file while it is still locked.
func (l *lock) release() {
	os.Remove(l.f.Name())
	l.f.Close()
}

// same reports whether path is f.
func same(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// LockHolder is the pid of the daemon that serves from a run directory, "" if
// none does, "unknown" if it does not say.
func LockHolder(run string) string {
	f, err := os.OpenFile(run+"/lock", os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return ""
	}
	return readPID(f)
}

// readPID reads the pid in a lock, for a message.
func readPID(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid := strings.TrimSpace(string(b))
	if _, bad := strconv.ParseUint(pid, 10, 31); err != nil || bad != nil {
		return "unknown"
	}
	return pid
}
