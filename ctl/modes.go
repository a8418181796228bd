package ctl

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// Defaults says what holds of a file of an object until somebody changes it,
// by its path below the object; false for what is no file of one.
type Defaults func(path string) (def Default, ok bool)

// Modes is the policy flattened: `path mode owner group` in byte order, for
// the directory, which is `.`, and for each file that differs from what it
// would be otherwise; between begin and end.
func (o *object) Modes(def Defaults) string {
	d := o.def.Load()
	var b strings.Builder
	b.WriteString("begin\n")
	for _, path := range sortedKeys(d.nodes) {
		f, ok := def(path)
		a := d.access(path, f)
		if !ok || path != "" && a == d.untouched(f) {
			continue
		}
		if path == "" {
			path = "."
		}
		fmt.Fprintf(&b, "%s %04o %s %s\n", path, a.Mode, UserName(a.UID), groupName(a.GID))
	}
	b.WriteString("end\n")
	return b.String()
}

// untouched is the access of a file that nobody changed.
func (d *definition) untouched(def Default) Access {
	a := d.access("", Default{})
	if def.Root {
		return RootAccess(def.Mode)
	}
	return Access{def.Mode, a.UID, a.GID}
}

// SetModes takes the lines of one write, or a whole policy from begin to end,
// and applies all or none. Each line does what chmod, chown and chgrp of by
// would do, and is refused where they would be.
func (o *object) SetModes(by Cred, text string, def Defaults) error {
	whole := strings.HasPrefix(text, "begin\n")
	if whole {
		var ok bool
		if text, ok = framed(text); !ok {
			return Errorf(syscall.EINVAL, "modes: a whole policy is a line begin, lines, and a line end")
		}
	} else if !wholeLines(text) {
		return errCut("modes")
	}
	changed, err := o.update(func(d *definition) (bool, error) {
		e := modesEdit{by: by, def: def, d: d, said: map[string]bool{}}
		for i, line := range strings.Split(text, "\n") {
			if err := e.line(line); err != nil {
				return false, Errorf(Errno(err), "modes line %d: %v", i+1, err)
			}
		}
		if whole {
			if err := e.dropUnsaid(); err != nil {
				return false, err
			}
		}
		return e.changed, nil
	})
	if changed {
		o.event("access", by.String(), "modes")
		o.notify(Policy)
	}
	return err
}

// modesEdit is a policy in the making.
type modesEdit struct {
	by      Cred
	def     Defaults
	d       *definition
	said    map[string]bool
	changed bool
}

func (e *modesEdit) line(line string) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	if path, ok := strings.CutPrefix(line, "-"); ok {
		return e.reset(path)
	}
	f := strings.Fields(line)
	if len(f) != 4 {
		return Errorf(syscall.EINVAL, "not `path mode owner group`")
	}
	path, now, err := e.present(f[0])
	if err != nil {
		return err
	}
	mode, err := strconv.ParseUint(f[1], 8, 32)
	if err != nil || mode > 0o1777 {
		return Errorf(syscall.EINVAL, "%s: %.20q is no mode", f[0], f[1])
	}
	uid, err := userID(f[2])
	if err != nil {
		return Errorf(syscall.EINVAL, "%s: owner %.40s: %v", f[0], f[2], err)
	}
	gid, err := groupID(f[3])
	if err != nil {
		return Errorf(syscall.EINVAL, "%s: group %.40s: %v", f[0], f[3], err)
	}
	return e.set(path, now, Access{uint32(mode), uid, gid})
}

// set makes the access of path what the line says, as far as it differs.
func (e *modesEdit) set(path string, now, next Access) error {
	e.said[path] = true
	if next == now {
		return nil
	}
	if err := e.by.mayChange(path, now, next); err != nil {
		return err
	}
	var c AccessChange
	if next.Mode != now.Mode {
		c.Mode = &next.Mode
	}
	if next.UID != now.UID {
		c.UID = &next.UID
	}
	if next.GID != now.GID {
		c.GID = &next.GID
	}
	e.changed = change(e.d.nodes, path, c) || e.changed
	return nil
}

// present finds a file and its access as the edit has it so far.
func (e *modesEdit) present(said string) (path string, now Access, err error) {
	if path = said; said == "." {
		path = ""
	}
	def, ok := e.def(path)
	if !ok {
		return "", Access{}, Errorf(syscall.EINVAL, "%.80s: no such file", said)
	}
	return path, e.d.access(path, def), nil
}

// reset gives a file what it would have if nobody had changed it.
func (e *modesEdit) reset(said string) error {
	path, now, err := e.present(said)
	if err != nil {
		return err
	}
	if path == "" {
		return Errorf(syscall.EINVAL, "-.: the directory's owner and mode cannot be unset")
	}
	def, _ := e.def(path)
	if err := e.by.mayChange(path, now, e.d.untouched(def)); err != nil {
		return err
	}
	if _, there := e.d.nodes[path]; there {
		delete(e.d.nodes, path)
		e.changed = true
	}
	return nil
}

// dropUnsaid resets the files that a whole policy does not name.
func (e *modesEdit) dropUnsaid() error {
	for _, path := range sortedKeys(e.d.nodes) {
		if _, ok := e.def(path); path == "" || e.said[path] || !ok {
			continue
		}
		if err := e.reset(path); err != nil {
			return err
		}
	}
	return nil
}

// mayChange refuses what chmod(2) and chown(2) would refuse by.
func (by Cred) mayChange(path string, now, next Access) error {
	switch {
	case by.Rules() || now == next:
		return nil
	case by.UID != now.UID:
		return Errorf(syscall.EPERM, "%s: it is %s's", path, UserName(now.UID))
	case next.UID != now.UID:
		return Errorf(syscall.EPERM, "%s: only root gives a file away", path)
	case next.GID != now.GID && !by.in(next.GID):
		return Errorf(syscall.EPERM, "%s: %s is not in group %s", path, by, groupName(next.GID))
	}
	return nil
}
