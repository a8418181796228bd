package ctl

import (
	"context"
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

// mayAttach reports whether by could write the file ports of a switch.
func (sw *Switch) mayAttach(by Cred) bool {
	return sw.m.Access("switch", RootAccess(DirMode)).Allows(by, MaySearch) &&
		sw.Access("", Default{}).Allows(by, MaySearch) &&
		sw.Access("ports", PortsAccess).Allows(by, MayWrite)
}

// reach finds the switch of a NIC, nil if it names none. ENOENT if there is none
// of that name, EACCES if who set it may not attach, with the groups that he has
// now, or is no more.
func (vm *VM) reach(ctx context.Context, d *definition, n int) (*Switch, error) {
	v := d.attrs[nicAttr(n, "switch")]
	if v.text == "" {
		return nil, nil
	}
	sw, ok := vm.m.switches.named(v.text)
	if !ok {
		return nil, Errorf(syscall.ENOENT, "there is no switch %s", v.text)
	}
	setter, err := vm.m.whoIs(ctx, v.uid)
	if err != nil {
		return nil, err
	}
	if !sw.mayAttach(setter) {
		return nil, Errorf(syscall.EACCES, "%s, who set it, may not write switch/%s/ports", setter, v.text)
	}
	return sw, nil
}

// whoIs asks the host about a user; about who may do everything anyway it need
// not be asked.
func (m *Manager) whoIs(ctx context.Context, uid uint32) (Cred, error) {
	if c := (Cred{UID: uid, GID: nobody}); c.Rules() {
		return c, nil
	}
	return m.Host.WhoIs(ctx, uid)
}
