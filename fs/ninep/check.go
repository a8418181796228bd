package ninep

import (
	"slices"
	"syscall"

	"vmfs/ctl"
	"vmfs/fs"
)

// What the kernel checks over FUSE, as Linux has it. Each of these looks at
// attributes of this moment and allocates nothing.

// may reports whether by has all of the permissions want (ctl.MayRead and
// the like) on what has these attributes.
func may(by *ctl.Cred, a *fs.Attr, want uint32) bool {
	return ctl.Access{Mode: a.Mode, UID: a.UID, GID: a.GID}.Allows(*by, want)
}

// mayOpen is for a Topen. An execution is a read that takes another bit too.
func mayOpen(by *ctl.Cred, a *fs.Attr, f fs.Flags, exec bool) error {
	var want uint32
	if f.Read {
		want |= ctl.MayRead
	}
	if f.Write {
		want |= ctl.MayWrite
	}
	if exec {
		want |= ctl.MaySearch
	}
	if !may(by, a, want) {
		return syscall.EACCES
	}
	return nil
}

// mayChangeEntry is for making an entry in a directory: it is changed.
func mayChangeEntry(by *ctl.Cred, dir *fs.Attr) error {
	if !may(by, dir, ctl.MayWrite|ctl.MaySearch) {
		return syscall.EACCES
	}
	return nil
}

// mayRemove is for an entry that is there: in a sticky directory it is for
// its owner, the directory's and root.
func mayRemove(by *ctl.Cred, dir, a *fs.Attr) error {
	if err := mayChangeEntry(by, dir); err != nil {
		return err
	}
	if dir.Mode&syscall.S_ISVTX != 0 && !by.Rules() && by.UID != a.UID && by.UID != dir.UID {
		return syscall.EPERM
	}
	return nil
}

// mayChange is for chmod, chown and chgrp: an owner changes the mode and
// gives the file a group that he is in; root does what he likes.
func mayChange(by *ctl.Cred, a *fs.Attr, c ctl.AccessChange) error {
	owner := by.UID == a.UID
	switch {
	case by.Rules():
		return nil
	case c.Mode != nil && !owner,
		c.UID != nil && !(owner && *c.UID == a.UID),
		c.GID != nil && !(owner && (*c.GID == a.GID || inGroup(by, *c.GID))):
		return syscall.EPERM
	}
	return nil
}

func inGroup(by *ctl.Cred, gid uint32) bool { return by.GID == gid || slices.Contains(by.Groups, gid) }
