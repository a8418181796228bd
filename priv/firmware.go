package priv

import (
	"errors"
	"io"
	"strings"
	"syscall"

	"vmfs/ctl"
)

// A UEFI firmware for flash memory comes as two files: its code, and a
// template of the variables that it keeps. Of the first only its code is ever
// the firmware's; the second each machine has a copy of. An image that has
// both in one is used as a BIOS is, and forgets what it was told.

// firmwareHead is how much of a firmware volume tells what it is.
const firmwareHead = 44

// variablesGUID is what a firmware volume that begins with variables says of
// its contents.
const variablesGUID = "\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50"

// isFlash reports whether a file that begins with head is a UEFI firmware's
// code without its variables.
func isFlash(head []byte) bool {
	return len(head) >= firmwareHead && string(head[40:44]) == "_FVH" && string(head[16:32]) != variablesGUID
}

// varsPath is where the template of the variables lies that belongs to the
// code at path: beside it, with VARS for CODE in its name.
func varsPath(path string) (string, bool) {
	dir, name := path[:strings.LastIndexByte(path, '/')+1], path[strings.LastIndexByte(path, '/')+1:]
	for code, vars := range map[string]string{"CODE": "VARS", "code": "vars"} {
		if i := strings.LastIndex(name, code); i >= 0 {
			return dir + name[:i] + vars + name[i+len(code):], true
		}
	}
	return "", false
}

// firmware looks what the opened firmware is, and opens the template of its
// variables if it has one.
func (o *opener) firmware(w ctl.Want, opened ctl.Opened) (ctl.Opened, error) {
	var head [firmwareHead]byte
	n, err := opened[0].File.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return opened, o.refused(w, err)
	}
	if !isFlash(head[:n]) {
		opened[0].Format = ctl.FormatROM
		return opened, nil
	}
	opened[0].Format = ctl.FormatFlash
	vars, ok := varsPath(w.Path)
	if !ok {
		return opened, ctl.Errorf(syscall.EINVAL, "open %s: the code of a UEFI firmware, but no CODE in its name to find its VARS by", w.Path)
	}
	f, err := o.open(ctl.Want{Path: vars})
	if err != nil {
		return opened, ctl.Errorf(ctl.Errno(err), "%v (the template of the variables of %s)", err, w.Path)
	}
	return append(opened, ctl.Image{File: f, Format: ctl.FormatVars}), nil
}
