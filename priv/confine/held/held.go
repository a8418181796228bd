// Package held looks at running processes, and says where they are less
// restricted than the tables of package confine say. It reads /proc and
// changes nothing; it cannot see Landlock, which /proc does not show.
package held

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"vmfs/priv/confine"
)

// Check compares every thread of a process with its role and with who it is
// to be. The error joins all differences, nil if there are none.
func Check(pid int, r confine.Role, uid uint32) error {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var wrong []error
	for _, t := range threads {
		status, err := readStatus(dir + "/" + t.Name() + "/status")
		if err != nil {
			continue // the thread ended
		}
		for _, w := range differences(status, r, uid) {
			wrong = append(wrong, fmt.Errorf("%s, thread %s: %s", r.Name, t.Name(), w))
		}
	}
	return errors.Join(wrong...)
}

// readStatus reads the fields of a status file.
func readStatus(path string) (map[string]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	status := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	return status, nil
}

func differences(status map[string]string, r confine.Role, uid uint32) []string {
	var wrong []string
	want := func(key, value string) {
		if status[key] != value {
			wrong = append(wrong, fmt.Sprintf("%s is %q, want %q", key, status[key], value))
		}
	}
	within := func(key string, bits uint64) {
		if n, err := strconv.ParseUint(status[key], 16, 64); err != nil || n&^bits != 0 {
			wrong = append(wrong, fmt.Sprintf("%s is %s, want at most %016x", key, status[key], bits))
		}
	}
	id := strconv.FormatUint(uint64(uid), 10)
	want("Uid", strings.Join([]string{id, id, id, id}, " "))
	if r.NewPrivs == "" {
		want("NoNewPrivs", "1")
		// A role without a filter of its own still has priv's.
		want("Seccomp", "2")
	}
	within("CapPrm", bits(r))
	within("CapEff", bits(r))
	within("CapInh", 0)
	within("CapAmb", 0)
	// Core cannot empty its bounding set, having no CAP_SETPCAP to do it
	// with; no_new_privs makes that no door. It is never above priv's.
	if r.Bounding == "" {
		within("CapBnd", bits(r)|bits(confine.Priv))
	}
	return wrong
}

func bits(r confine.Role) uint64 {
	var n uint64
	for _, c := range r.Capabilities {
		n |= 1 << c.Bit
	}
	return n
}

// Files lists what a process has open: descriptor and what it leads to, as
// /proc/PID/fd shows it.
func Files(pid int) (map[int]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[int]string)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			files[fd] = to
		}
	}
	return files, nil
}
