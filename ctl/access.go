package ctl

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Cred is who asks: the credentials of the FUSE request that opened the
// file, or of the 9P connection. Never something that a payload says.
type Cred struct {
	UID, GID uint32
	Groups   []uint32 // the others; only where a door says that it knows them
}

// String is the login name, or the number of one who has none.
func (c Cred) String() string { return UserName(c.UID) }

// ruler is who may do everything, and to whom belongs what is root's.
var ruler struct{ uid, gid uint32 }

// RuledBy puts the user who started this daemon into root's place. It is
// called before anything else of this package, or not at all: then root rules.
func RuledBy(uid, gid uint32) { ruler.uid, ruler.gid = uid, gid }

// Rules reports whether c is root, or in his place.
func (c Cred) Rules() bool { return c.UID == ruler.uid }

// in reports whether c is in a group.
func (c Cred) in(gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// rootless reports whether the daemon is an ordinary user's.
func rootless() bool { return ruler.uid != 0 }

// UserName is the login name of uid, or its number.
func UserName(uid uint32) string {
	n := strconv.FormatUint(uint64(uid), 10)
	if uid == 0 {
		return "root"
	}
	if u, err := user.LookupId(n); err == nil {
		return u.Username
	}
	return n
}

// groupName is the name of gid, or its number.
func groupName(gid uint32) string {
	n := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(n); err == nil {
		return g.Name
	}
	return n
}

// userID is the uid of a login name, or that a text is.
func userID(s string) (uint32, error) {
	return idOf(s, func() (string, error) {
		u, err := user.Lookup(s)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

// groupID is the same of a group.
func groupID(s string) (uint32, error) {
	return idOf(s, func() (string, error) {
		g, err := user.LookupGroup(s)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func idOf(s string, named func() (string, error)) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		found, err := named()
		if err != nil {
			return 0, err
		}
		n, err = strconv.ParseUint(found, 10, 32)
		return uint32(n), err
	}
	if n == nobody {
		return 0, syscall.EINVAL
	}
	return uint32(n), nil
}

// Access is who may do what with a file: the permission bits of chmod(2),
// the sticky bit among them, its owner and its group.
type Access struct{ Mode, UID, GID uint32 }

// AccessChange is a chmod, chown or chgrp; nil leaves a part as it is.
type AccessChange struct{ Mode, UID, GID *uint32 }

// node is what was set of a file's access; unset parts follow the default.
type node struct{ mode, uid, gid int64 }

const unset = -1

func (n node) over(a Access) Access {
	if n.mode != unset {
		a.Mode = uint32(n.mode)
	}
	if n.uid != unset {
		a.UID = uint32(n.uid)
	}
	if n.gid != unset {
		a.GID = uint32(n.gid)
	}
	return a
}

// Default is who may do what with a file until somebody changes that.
type Default struct {
	Mode uint32
	Root bool // it is root's; else it belongs to the directory's owner and group
}

// RootAccess is who may do what with a file that is root's.
func RootAccess(mode uint32) Access { return Access{mode, ruler.uid, ruler.gid} }

// owner is whose the directory is.
func (d *definition) owner() uint32 { return d.access("", Default{}).UID }

// access is who may do what with a file; def is what holds by default.
func (d *definition) access(path string, def Default) Access {
	a := d.nodes[""].over(Access{Mode: 0o755})
	if path == "" {
		return a
	}
	if path == "live" { // what is open there says what the machine's own files say
		def.Mode &= a.Mode
	}
	if a.Mode = def.Mode; def.Root {
		a = RootAccess(def.Mode)
	}
	if n, ok := d.nodes[path]; ok {
		a = n.over(a)
	}
	return a
}

// What Allows can be asked, as in the last digit of a mode.
const (
	MaySearch = 1 << iota
	MayWrite
	MayRead
)

// Allows reports whether by has all of the permissions want.
func (a Access) Allows(by Cred, want uint32) bool {
	bits := a.Mode
	switch {
	case by.Rules():
		return true
	case by.UID == a.UID:
		bits >>= 6
	case by.in(a.GID):
		bits >>= 3
	}
	return bits&want == want
}

// change notes c for path in nodes and reports whether that changed anything.
func change(nodes map[string]node, path string, c AccessChange) bool {
	old, ok := nodes[path]
	if !ok {
		old = node{unset, unset, unset}
	}
	n := old
	if c.Mode != nil {
		n.mode = int64(*c.Mode & 0o1777)
	}
	if c.UID != nil {
		n.uid = int64(*c.UID)
	}
	if c.GID != nil {
		n.gid = int64(*c.GID)
	}
	if n == old {
		return false
	}
	nodes[path] = n
	return true
}

func (n node) text(path string) string {
	part := func(v int64, format string) string {
		if v == unset {
			return "-"
		}
		return fmt.Sprintf(format, v)
	}
	if path == "" {
		path = "."
	}
	return path + " " + part(n.mode, "%04o") + " " + part(n.uid, "%d") + " " + part(n.gid, "%d")
}

func parseNode(nodes map[string]node, s string) error {
	f := strings.Fields(s)
	if len(f) != 4 {
		return syscall.EINVAL
	}
	var n node
	for i, to := range []*int64{&n.mode, &n.uid, &n.gid} {
		*to = unset
		if f[i+1] == "-" {
			continue
		}
		base := 10
		if i == 0 {
			base = 8
		}
		v, err := strconv.ParseUint(f[i+1], base, 32)
		if err != nil {
			return err
		}
		*to = int64(v)
	}
	if f[0] == "." {
		f[0] = ""
	}
	nodes[strings.Clone(f[0])] = n
	return nil
}
