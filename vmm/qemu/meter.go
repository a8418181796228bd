package qemu

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// ticks is how many of the kernel's clock ticks /proc counts in a second: it
// is part of the interface on Linux, whatever the kernel's own rate.
const ticks = 100

// meter measures a QEMU process and this one beside it. It opens what it
// reads once, early.
type meter struct {
	memory uint64 // bytes of the guest's own memory

	mu          sync.Mutex
	stat, smaps *os.File // QEMU's; nil if it has ended, or was too quick
	final       time.Duration
}

func newMeter(pid int, memory uint64) *meter {
	dir := "/proc/" + strconv.Itoa(pid)
	m := &meter{memory: memory}
	m.stat, _ = os.Open(dir + "/stat")
	m.smaps, _ = os.Open(dir + "/smaps")
	return m
}

// ended keeps the last measure of a process that is gone.
func (m *meter) ended(s *os.ProcessState) {
	m.mu.Lock()
	m.final = s.UserTime() + s.SystemTime()
	m.mu.Unlock()
	m.close()
}

func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stat.Close()
	m.smaps.Close()
	m.stat, m.smaps = nil, nil
}

// usage sums up QEMU and this process.
func (m *meter) usage() (ctl.Usage, error) {
	u, err := m.own()
	if err != nil {
		return ctl.Usage{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stat == nil || m.smaps == nil {
		u.CPU += m.final
		return u, nil
	}
	cpu, err := cpuTime(m.stat)
	if err != nil {
		return ctl.Usage{}, err
	}
	pss, err := m.overhead()
	if err != nil {
		return ctl.Usage{}, err
	}
	return ctl.Usage{CPU: u.CPU + cpu, Overhead: u.Overhead + pss}, nil
}

// own is what this process uses.
func (m *meter) own() (ctl.Usage, error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return ctl.Usage{}, fmt.Errorf("usage: %w", err)
	}
	f, err := os.Open("/proc/self/smaps_rollup")
	if err != nil {
		return ctl.Usage{}, fmt.Errorf("usage: %w", err)
	}
	defer f.Close()
	pss, err := sumPss(f, 0)
	return ctl.Usage{CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano()), Overhead: pss}, err
}

func (m *meter) overhead() (uint64, error) {
	if _, err := m.smaps.Seek(0, io.SeekStart); err != nil {
		return 0, fmt.Errorf("usage: %w", err)
	}
	return sumPss(m.smaps, m.memory)
}

// cpuTime reads user and system time from a stat file of /proc.
func cpuTime(stat *os.File) (time.Duration, error) {
	buf := make([]byte, 1024)
	n, err := stat.ReadAt(buf, 0)
	if err != nil && err != io.EOF {
		return 0, fmt.Errorf("usage: %w", err)
	}
	return parseStat(string(buf[:n]))
}

// parseStat finds utime and stime, fields 14 and 15. The second field is a
// name in parentheses, of any bytes.
func parseStat(s string) (time.Duration, error) {
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("usage: stat: %w", syscall.EPROTO)
	}
	var sum uint64
	for _, field := range f[11:13] {
		n, err := strconv.ParseUint(field, 10, 48)
		if err != nil {
			return 0, fmt.Errorf("usage: stat: %w", syscall.EPROTO)
		}
		sum += n
	}
	return time.Duration(sum) * (time.Second / ticks), nil
}

// sumPss adds up the Pss of a file in the form of smaps, without mappings of
// exactly skip bytes.
func sumPss(r io.Reader, skip uint64) (uint64, error) {
	var sum, size uint64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if !ok || key != "Size" && key != "Pss" {
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 48)
		switch {
		case err != nil:
			return 0, fmt.Errorf("usage: smaps: %w", syscall.EPROTO)
		case key == "Size":
			size = kib << 10
		case size != skip || size == 0:
			sum += kib << 10
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("usage: smaps: %w", err)
	}
	return sum, nil
}
