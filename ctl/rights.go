package ctl

import (
	"os/user"
	"strconv"
	"syscall"
)

// DirMode is the mode of the directories of objects, until somebody changes
// it: whoever may write one may make an object.
const DirMode = 0o1755

// PortsAccess is who may attach to a switch until somebody changes it: who
// may write the file ports.
var PortsAccess = Default{Mode: 0o664}

// nobody is no gid.
const nobody = 1<<32 - 1

// credOf is a user with the groups that the host's files say he has now. Of
// one whom they do not know only the uid counts.
func credOf(uid uint32) Cred {
	c := Cred{UID: uid, GID: nobody}
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return c
	}
	if gid, err := strconv.ParseUint(u.Gid, 10, 32); err == nil {
		c.GID = uint32(gid)
	}
	groups, _ := u.GroupIds()
	for _, g := range groups {
		if gid, err := strconv.ParseUint(g, 10, 32); err == nil {
			c.Groups = append(c.Groups, uint32(gid))
		}
	}
	return c
}

// mayAttach reports whether by could write the file ports of a switch.
func (sw *Switch) mayAttach(by Cred) bool {
	return sw.m.Access("switch", RootAccess(DirMode)).Allows(by, MaySearch) &&
		sw.Access("", Default{}).Allows(by, MaySearch) &&
		sw.Access("ports", PortsAccess).Allows(by, MayWrite)
}

// reach finds the switch of a NIC, nil if it names none. ENOENT if there is none
// of that name, EACCES if who set it may not attach, with the groups that he has now.
func (vm *VM) reach(d *definition, n int) (*Switch, error) {
	v := d.attrs[nicAttr(n, "switch")]
	if v.text == "" {
		return nil, nil
	}
	sw, ok := vm.m.switches.named(v.text)
	if !ok {
		return nil, Errorf(syscall.ENOENT, "there is no switch %s", v.text)
	}
	if setter := credOf(v.uid); !sw.mayAttach(setter) {
		return nil, Errorf(syscall.EACCES, "%s, who set it, may not write switch/%s/ports", setter, v.text)
	}
	return sw, nil
}
