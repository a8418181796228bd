package priv

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// mountInfo is a line of /proc/self/mountinfo: what is mounted where, known
// without touching the file system, which may be one that never answers.
type mountInfo struct {
	id, parent int
	point      string
	fstype     string
	source     string
	super      []string // options of the file system
}

func readMounts() ([]mountInfo, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(string(text))
}

func parseMounts(text string) ([]mountInfo, error) {
	var all []mountInfo
	for line := range strings.Lines(text) {
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// parseMount reads "ID PARENT MAJ:MIN ROOT POINT OPTIONS TAG... - TYPE SOURCE SUPER".
func parseMount(line string) (mountInfo, error) {
	f := strings.Split(line, " ")
	dash := slices.Index(f, "-")
	if dash < 6 || len(f) < dash+4 {
		return mountInfo{}, fmt.Errorf("mountinfo: %.200q: too few fields", line)
	}
	id, err1 := strconv.Atoi(f[0])
	parent, err2 := strconv.Atoi(f[1])
	if err1 != nil || err2 != nil {
		return mountInfo{}, fmt.Errorf("mountinfo: %.200q: no numbers", line)
	}
	return mountInfo{
		id: id, parent: parent, point: unescape(f[4]), fstype: f[dash+1],
		source: unescape(f[dash+2]), super: strings.Split(f[dash+3], ","),
	}, nil
}

// unescape undoes the kernel's \040 for a blank and the like.
func unescape(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 || len(s) < i+4 {
			b.WriteString(s)
			return b.String()
		}
		c, err := strconv.ParseUint(s[i+1:i+4], 8, 8)
		if err != nil {
			b.WriteString(s[:i+1])
			s = s[i+1:]
			continue
		}
		b.WriteString(s[:i])
		b.WriteByte(byte(c))
		s = s[i+4:]
	}
}

// topMount finds the mount that a path lookup of point arrives at, nil if
// nothing is mounted exactly there.
func topMount(mounts []mountInfo, point string) *mountInfo {
	var here []*mountInfo
	covered := make(map[int]bool)
	for i := range mounts {
		if m := &mounts[i]; m.point == point {
			here = append(here, m)
			covered[m.parent] = true
		}
	}
	for _, m := range slices.Backward(here) {
		if !covered[m.id] {
			return m
		}
	}
	return nil
}

// owner says which user serves a FUSE file system; ok is false for one that
// is not FUSE.
func (m *mountInfo) owner() (uid string, ok bool) {
	if m.fstype != "fuse" && m.fstype != "fuseblk" && !strings.HasPrefix(m.fstype, "fuse.") && !strings.HasPrefix(m.fstype, "fuseblk.") {
		return "", false
	}
	for _, o := range m.super {
		if uid, is := strings.CutPrefix(o, "user_id="); is {
			return uid, true
		}
	}
	return "unknown", true
}
