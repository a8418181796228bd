package priv

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
)

// maxID bounds the ids of machines, and so the uids of guests.
const maxID = 100_000_000

// parseID reads the id of a machine: 1 to maxID, in canonical decimal.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > maxID || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.40q is no machine's id", s)
	}
	return uint32(n), nil
}

// parseUID reads the uid of a user. Core's and the guests' own are nobody's.
func parseUID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.40q is no uid", s)
	}
	if n >= confine.CoreUID && n <= confine.GuestUID+maxID {
		return 0, fmt.Errorf("uid %d is the daemon's own", n)
	}
	return uint32(n), nil
}

// maxPath is the longest path that the kernel takes, in bytes.
const maxPath = 4095

// parseWants reads "(ro|rw PATH)...": at least one, at most a message's files.
func parseWants(args []string) ([]ctl.Want, error) {
	if len(args) == 0 || len(args)%2 != 0 || len(args)/2 > wire.MaxFiles {
		return nil, fmt.Errorf("%d words where a mode and a path are wanted for each of 1 to %d files", len(args), wire.MaxFiles)
	}
	var wants []ctl.Want
	for i := 0; i < len(args); i += 2 {
		mode, path := args[i], args[i+1]
		if mode != "ro" && mode != "rw" {
			return nil, fmt.Errorf("mode %.40q is neither ro nor rw", mode)
		}
		if !filepath.IsAbs(path) || strings.IndexByte(path, 0) >= 0 {
			return nil, fmt.Errorf("%.80q is no absolute path", path)
		}
		if len(path) > maxPath {
			return nil, fmt.Errorf("path %.40q... of %d bytes", path, len(path))
		}
		wants = append(wants, ctl.Want{Path: path, Write: mode == "rw"})
	}
	return wants, nil
}

// wantArgs is the inverse of parseWants.
func wantArgs(wants []ctl.Want) []string {
	var args []string
	for _, w := range wants {
		mode := "ro"
		if w.Write {
			mode = "rw"
		}
		args = append(args, mode, w.Path)
	}
	return args
}
