package priv

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
)

// maxID bounds the ids of machines, and so the uids of guests.
const maxID = ctl.MaxID

// parseID reads the id of a machine: 1 to maxID, in canonical decimal.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > maxID || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.40q is no machine's id", s)
	}
	return uint32(n), nil
}

// parseUID reads the uid of a user. The roles' own are nobody's.
func parseUID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.40q is no uid", s)
	}
	if n >= confine.WhoisUID && n <= confine.GuestUID+maxID {
		return 0, fmt.Errorf("uid %d is the daemon's own", n)
	}
	return uint32(n), nil
}

// Bounds of what a launch may say that it needs: the most that a machine may
// have, and more than any of its files is.
const (
	maxCPUs     = 64
	maxMemory   = 16 << 20 // MiB
	maxImages   = ctl.MaxParts * (1 + maxBases)
	maxFilesMiB = 1 << 20
)

// parseProcess reads "ID native|kvm|tcg yes|no CPUS MEMORY IMAGES FILES".
func parseProcess(args []string) (p ctl.Process, err error) {
	if err := count(args, 7); err != nil {
		return p, err
	}
	if p.ID, err = parseID(args[0]); err != nil {
		return p, err
	}
	p.Accel = args[1]
	if p.Accel != accelNative && p.Accel != "kvm" && p.Accel != "tcg" {
		return p, fmt.Errorf("%.40q is not native, kvm or tcg", p.Accel)
	}
	if p.Outward, err = parseYesNo(args[2]); err != nil {
		return p, err
	}
	for i, n := range []struct {
		to          *int
		least, most int
	}{{&p.CPUs, 1, maxCPUs}, {&p.MemoryMiB, 1, maxMemory}, {&p.Images, 0, maxImages}, {&p.FilesMiB, 0, maxFilesMiB}} {
		arg := args[3+i]
		v, err := strconv.Atoi(arg)
		if err != nil || v < n.least || v > n.most || strconv.Itoa(v) != arg {
			return p, fmt.Errorf("%.40q is no number from %d to %d", arg, n.least, n.most)
		}
		*n.to = v
	}
	return p, nil
}

// spawnArgs is the inverse of parseProcess.
func spawnArgs(p ctl.Process) []string {
	args := []string{decimal(p.ID), p.Accel, yesNo(p.Outward)}
	for _, n := range []int{p.CPUs, p.MemoryMiB, p.Images, p.FilesMiB} {
		args = append(args, strconv.Itoa(n))
	}
	return args
}

// maxPath is the longest path that the kernel takes, in bytes.
const maxPath = 4095

// parseWants reads "(ro|rw FORMAT PATH)...": at least one, at most a message's
// files.
func parseWants(args []string) ([]ctl.Want, error) {
	if len(args) == 0 || len(args)%3 != 0 || len(args)/3 > wire.MaxFiles {
		return nil, fmt.Errorf("%d words where a mode, a format and a path are wanted for each of 1 to %d files", len(args), wire.MaxFiles)
	}
	var wants []ctl.Want
	for i := 0; i < len(args); i += 3 {
		mode, format, path := args[i], args[i+1], args[i+2]
		if mode != "ro" && mode != "rw" {
			return nil, fmt.Errorf("mode %.40q is neither ro nor rw", mode)
		}
		if !slices.Contains(wanted, format) {
			return nil, fmt.Errorf("format %.40q is none of %s", format, strings.Join(wanted, ", "))
		}
		if !filepath.IsAbs(path) || strings.IndexByte(path, 0) >= 0 {
			return nil, fmt.Errorf("%.80q is no absolute path", path)
		}
		if len(path) > maxPath {
			return nil, fmt.Errorf("path %.40q... of %d bytes", path, len(path))
		}
		wants = append(wants, ctl.Want{Path: path, Write: mode == "rw", Format: format})
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
		args = append(args, mode, w.Format, w.Path)
	}
	return args
}

// wanted are the formats that a file can be wanted as, and found those that
// it can turn out to have.
var (
	wanted = []string{ctl.FormatRaw, ctl.FormatQcow2, ctl.FormatAuto, ctl.FormatFirmware}
	found  = []string{ctl.FormatRaw, ctl.FormatQcow2, ctl.FormatROM, ctl.FormatFlash, ctl.FormatVars}
)

// parseOpened reads "(N FORMAT...)..." for a number of wants, with as many
// files as there are formats: what an opener answers, and priv after it.
func parseOpened(fields []string, files, wants int) ([][]string, error) {
	var opened [][]string
	for len(fields) > 0 && len(opened) < wants {
		n, err := strconv.Atoi(fields[0])
		if err != nil || n < 1 || n > 1+maxBases || n > len(fields)-1 {
			return nil, errOpened
		}
		formats := fields[1 : 1+n]
		for _, f := range formats {
			if !slices.Contains(found, f) {
				return nil, errOpened
			}
		}
		opened, fields, files = append(opened, formats), fields[1+n:], files-n
	}
	if len(fields) != 0 || len(opened) != wants || files != 0 {
		return nil, errOpened
	}
	return opened, nil
}

var errOpened = errAnswer("open")

// openedMessage is the inverse of parseOpened, with the files.
func openedMessage(opened []ctl.Opened) (files []*os.File, fields []string) {
	for _, images := range opened {
		fields = append(fields, strconv.Itoa(len(images)))
		for _, image := range images {
			files, fields = append(files, image.File), append(fields, image.Format)
		}
	}
	return files, fields
}
