package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// What the host shows of a stage: its processes, mounts and locks.

// A process is one that descends from a stage's daemon.
type process struct {
	pid     int
	started string // field 22 of stat: with the pid, this process and no other
	args    []string
}

func (p process) String() string {
	return fmt.Sprintf("%d %s", p.pid, strings.Join(p.args, " "))
}

// role is the program's first argument, or the program if it is another.
func (p process) role() string {
	if len(p.args) > 1 && filepath.Base(p.args[0]) == "vmfs" {
		return p.args[1]
	}
	return filepath.Base(p.args[0])
}

func (p process) alive() bool {
	started, ok := startTime(p.pid)
	return ok && started == p.started
}

// startTime is empty for a process that is gone or only waits to be reaped.
func startTime(pid int) (string, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	i := strings.LastIndexByte(string(b), ')')
	if err != nil || i < 0 {
		return "", false
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || f[0] == "Z" {
		return "", false
	}
	return f[19], true
}

// processes are all that carry the stage's tag, ordered by role.
func (s *stage) processes() []process {
	var found []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		limits, err := os.ReadFile(dir + "/limits")
		if err != nil || !tagged(string(limits), s.tag) {
			continue
		}
		cmdline, err := os.ReadFile(dir + "/cmdline")
		started, ok := startTime(pid)
		if err != nil || !ok || len(cmdline) == 0 {
			continue
		}
		args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		found = append(found, process{pid, started, args})
	}
	slices.SortFunc(found, func(a, b process) int { return strings.Compare(a.role(), b.role()) })
	return found
}

func tagged(limits string, tag uint64) bool {
	_, rest, ok := strings.Cut(limits, "Max msgqueue size")
	f := strings.Fields(rest)
	return ok && len(f) > 0 && f[0] == strconv.FormatUint(tag, 10)
}

var fileKinds = [...]string{"sockets", "files", "others"}

// files counts a process's open files by kind: what kind a leak is of says
// where to look.
func (p process) files() (counts [len(fileKinds)]int) {
	dir := fmt.Sprintf("/proc/%d/fd", p.pid)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		switch target, _ := os.Readlink(filepath.Join(dir, e.Name())); {
		case strings.HasPrefix(target, "socket:"):
			counts[0]++
		case strings.HasPrefix(target, "/"):
			counts[1]++
		default:
			counts[2]++
		}
	}
	return counts
}

type mount struct{ point, fstype string }

// mounts are those below the stage's directory, the last first.
func (s *stage) mounts() []mount {
	var found []mount
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		f := strings.Fields(before)
		if ok && len(f) > 4 && strings.HasPrefix(f[4], s.dir+"/") {
			found = append(found, mount{f[4], strings.Fields(after)[0]})
		}
	}
	slices.Reverse(found)
	return found
}

// locks are those that the kernel shows on files below the stage's
// directory, as kind and path.
func (s *stage) locks() []string {
	paths := map[string]string{}
	filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if path == s.dir+"/m" {
			return filepath.SkipDir
		}
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) == nil {
			paths[strconv.FormatUint(st.Ino, 10)] = path
		}
		return nil
	})
	var found []string
	b, _ := os.ReadFile("/proc/locks")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		dev := strings.Split(f[5], ":")
		if path := paths[dev[len(dev)-1]]; path != "" {
			found = append(found, strings.Join([]string{f[1], f[3], path}, " "))
		}
	}
	slices.Sort(found)
	return found
}
