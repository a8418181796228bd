package priv

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// record is what RUN/priv remembers of a process that priv started: enough
// for a later daemon to tell it from another with the same pid.
//
//	pid 1234
//	start 567890
//	uid 1900000003
type record struct {
	pid   int
	start uint64 // field 22 of /proc/PID/stat: clock ticks since boot
	uid   uint32 // who it is once it has settled
}

const maxRecord = 256 // bytes

var errRecord = errors.New("not a record")

func (r record) text() []byte {
	return fmt.Appendf(nil, "pid %d\nstart %d\nuid %d\n", r.pid, r.start, r.uid)
}

// parseRecord reads what text makes and nothing else.
func parseRecord(text []byte) (record, error) {
	if len(text) > maxRecord {
		return record{}, errRecord
	}
	var r record
	if _, err := fmt.Sscanf(string(text), "pid %d\nstart %d\nuid %d\n", &r.pid, &r.start, &r.uid); err != nil {
		return record{}, errRecord
	}
	if r.pid <= 1 || r.start == 0 || !bytes.Equal(r.text(), text) {
		return record{}, errRecord
	}
	return r, nil
}

// records is the directory RUN/priv.
type records struct{ dir string }

func guestRecord(id uint32) string { return "guest." + strconv.FormatUint(uint64(id), 10) }

// write puts a record in its place whole: a crash leaves it or nothing.
func (d records) write(name string, r record) error {
	tmp := d.dir + "/." + name
	if err := os.WriteFile(tmp, r.text(), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, d.dir+"/"+name); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

// read returns fs.ErrNotExist when there is none.
func (d records) read(name string) (record, error) {
	text, err := os.ReadFile(d.dir + "/" + name)
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(text)
	if err != nil {
		return record{}, fmt.Errorf("%s/%s: %w", d.dir, name, err)
	}
	return r, nil
}

func (d records) remove(name string) { os.Remove(d.dir + "/" + name) }

// guests lists the ids of which there are records, ascending.
func (d records) guests() ([]uint32, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var ids []uint32
	for _, e := range entries {
		if text, ok := strings.CutPrefix(e.Name(), "guest."); ok {
			if id, err := parseID(text); err == nil {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// startTime is the start of a process in clock ticks since boot, 0 if there
// is no such process or its first thread has ended.
func startTime(pid int) uint64 {
	if start, runs := stat(pid); runs {
		return start
	}
	return 0
}

// stat is the start of a process, 0 if there is none, and whether its first
// thread runs.
func stat(pid int) (start uint64, runs bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	return parseStart(string(text))
}

// parseStart takes fields 22 and 3 of a stat line. The name in field 2 may
// have blanks and parentheses in it; the last parenthesis ends it.
func parseStart(stat string) (start uint64, runs bool) {
	f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(f) < 20 {
		return 0, false
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0, false
	}
	return start, f[0] != "Z" && f[0] != "X"
}

// open finds the process of a record: a pidfd that the caller closes, -1 when
// it is gone. One whose first thread has ended is not: others may be on their
// way out still, and hold its files.
func (r record) open() int {
	fd, err := unix.PidfdOpen(r.pid, 0)
	if err != nil {
		return -1
	}
	if start, _ := stat(r.pid); start != r.start { // asked after the pidfd holds the pid
		unix.Close(fd)
		return -1
	}
	return fd
}

func (r record) live() bool { return startTime(r.pid) == r.start }

// kill ends the process of a record and waits until it is gone, at most for
// limit. Nil if it is gone.
func (r record) kill(limit time.Duration) error {
	fd := r.open()
	if fd < 0 {
		return nil
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", r.pid, err)
	}
	if !ended(fd, limit) {
		return fmt.Errorf("process %d: killed, but not gone within %v", r.pid, limit)
	}
	return nil
}

// ended waits until the process of a pidfd has ended, at most for limit.
func ended(pidfd int, limit time.Duration) bool {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case n > 0:
			return true
		case err != nil && !errors.Is(err, unix.EINTR):
			return false
		case left == 0:
			return false
		}
	}
}

// recordOf makes the record of a child that was just started.
func recordOf(pid int, uid uint32) (record, error) {
	start := startTime(pid)
	if start == 0 {
		return record{}, fmt.Errorf("process %d: ended at once", pid)
	}
	return record{pid: pid, start: start, uid: uid}, nil
}

// notThere reports whether err says that there is no such file.
func notThere(err error) bool { return errors.Is(err, fs.ErrNotExist) }
