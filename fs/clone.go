package fs

import (
	"syscall"

	"vmfs/ctl"
)

// openClone makes a machine for one who opens clone to read and write and who
// may write vm/; what he has open is the machine's ctl. Opened otherwise, as
// by a grep -r, it is empty and makes nothing.
func openClone(n *node, o opened) (Handle, error) {
	if !o.flags.Read || !o.flags.Write {
		return &textHandle{opened: o}, nil
	}
	machines := n.t.machines()
	in := machines.access()
	if !in.Allows(o.by, ctl.MayWrite|ctl.MaySearch) {
		return nil, ctl.Errorf(syscall.EACCES, "clone: %s may not write %s", o.by, machines.path())
	}
	vm, err := n.t.m.CreateFree(o.by, newMode&in.Mode, in.GID)
	if err != nil {
		return nil, err
	}
	o.node = &node{t: n.t, line: machines.many.names["ctl"], obj: vm}
	return &cloneHandle{textHandle{opened: o}}, nil
}

// newMode is the mode of a machine that is made without saying one.
const newMode = 0o755

// machines is the directory of machines.
func (t *Tree) machines() *node { return &node{t: t, line: t.root.names["vm"]} }

// cloneHandle is the ctl of a new machine, which goes with the file if nobody
// did anything with it.
type cloneHandle struct{ textHandle }

func (h *cloneHandle) Close() {
	h.textHandle.Close()
	if !h.obj.Removed() && h.vm().Untouched() {
		h.refuse(h.by, h.t.m.Remove(h.by, h.obj))
	}
}
