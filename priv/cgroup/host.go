package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is the kernel's half, which tests replace: what makes and removes
// cgroups, and where those of this process are found.
type host struct {
	mounts, self string // files of /proc
	booted       string // is there where systemd rules
	is           func(path string) bool
	mkdir, rmdir func(path string) error
	delegated    func(path string) bool
}

var linux = host{
	mounts: "/proc/self/mountinfo", self: "/proc/self/cgroup", booted: "/run/systemd/system",
	is:    isCgroup,
	mkdir: func(path string) error { return os.Mkdir(path, 0o755) },
	rmdir: func(path string) error {
		if err := unix.Rmdir(path); err != nil {
			return fmt.Errorf("rmdir %s: %w", path, err)
		}
		return nil
	},
	delegated: delegated,
}

func isCgroup(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// delegated reports whether systemd has said that it keeps out of a cgroup.
func delegated(path string) bool {
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		var value [2]byte
		if n, err := unix.Getxattr(path, name, value[:]); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}

// place is a cgroup, by its path and by the number that the kernel gives no
// other one as long as it runs.
type place struct {
	path   string
	number uint64
}

// placeOf is the cgroup that is at a path now; fs.ErrNotExist if there is none.
func (h *host) placeOf(path string) (place, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return place{}, fmt.Errorf("%s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || !h.is(path) {
		return place{}, fmt.Errorf("%s: not a cgroup of version 2", path)
	}
	return place{path, st.Ino}, nil
}

// there reports whether the cgroup is still that one.
func (h *host) there(p place) bool {
	now, err := h.placeOf(p.path)
	return err == nil && now == p
}

// own is the cgroup of this process.
func (h *host) own() (string, error) {
	text, err := os.ReadFile(h.self)
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile(h.mounts)
	if err != nil {
		return "", err
	}
	path, err := parseSelf(string(text))
	if err != nil {
		return "", err
	}
	return parseMounts(string(mounts), path)
}

// parseSelf takes the path of version 2 out of /proc/self/cgroup.
func parseSelf(text string) (string, error) {
	for line := range strings.Lines(text) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if !filepath.IsAbs(path) || path != filepath.Clean(path) || strings.HasPrefix(path, "/..") || strings.HasSuffix(path, " (deleted)") {
			return "", fmt.Errorf("the daemon's cgroup %q cannot be found here", path)
		}
		return path, nil
	}
	return "", errors.New("the kernel has no cgroups of version 2")
}

// parseMounts finds where mountinfo shows a cgroup of version 2.
func parseMounts(text, path string) (string, error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		dash := slices.Index(f, "-")
		if dash < 6 || len(f) < dash+2 || f[dash+1] != "cgroup2" || strings.Contains(f[3]+f[4], `\`) {
			continue
		}
		if rel, err := filepath.Rel(f[3], path); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.Join(f[4], rel), nil
		}
	}
	return "", errors.New("no cgroups of version 2 are mounted")
}

// words are those of a file of a cgroup.
func words(dir, file string) ([]string, error) {
	text, err := os.ReadFile(dir + "/" + file)
	return strings.Fields(string(text)), err
}

// number reads a line "KEY NUMBER" of a file of a cgroup.
func number(dir, file, key string) (uint64, error) {
	f, err := words(dir, file)
	if err != nil {
		return 0, err
	}
	for i := 0; i+1 < len(f); i += 2 {
		if f[i] == key {
			return strconv.ParseUint(f[i+1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s/%s: no %s", dir, file, key)
}

// set writes a file of a cgroup. It makes none.
func set(dir, file, value string) error {
	f, err := os.OpenFile(dir+"/"+file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("%s to %s/%s: %w", value, dir, file, reason(err))
	}
	return nil
}

func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
