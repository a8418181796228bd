package fs

import (
	"context"
	"strconv"
	"syscall"

	"vmfs/ctl"
)

var errNotThere = ctl.Errorf(syscall.ENOENT, "there is no such file")

func (d *dir) Lookup(_ context.Context, name string) (Node, error) {
	if err := d.gone(); err != nil {
		return nil, err
	}
	if l := d.names[name]; l != nil {
		return d.at(l), nil
	}
	switch {
	case d.many == nil:
	case d.vm != nil:
		if n, ok := diskNumber(name); ok && d.vm.HasDisk(n) {
			return d.atDisk(n), nil
		}
	default:
		if vm := d.t.m.VM(name); vm != nil {
			return d.atVM(vm), nil
		}
	}
	return nil, errNotThere
}

// diskNumber parses the N of disk/N, which has one form only.
func diskNumber(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && n < ctl.MaxDisks && strconv.Itoa(n) == s
}

func (d *dir) List(context.Context) ([]Entry, error) {
	if err := d.gone(); err != nil {
		return nil, err
	}
	if d.many != nil && d.vm == nil {
		return d.listMachines(), nil
	}
	entries := make([]Entry, 0, len(d.fixed))
	for _, l := range d.fixed {
		entries = append(entries, Entry{l.name(), d.at(l)})
	}
	if d.many != nil {
		for _, n := range d.vm.Disks() {
			entries = append(entries, Entry{strconv.Itoa(n), d.atDisk(n)})
		}
	}
	return entries, nil
}

// listing is the entries of a directory of machines. All who have it open
// share one, so that many open directories do not cost a copy each.
type listing struct {
	of      []*ctl.VM
	entries []Entry
}

func (d *dir) listMachines() []Entry {
	cache := &d.t.machines
	if d.mkdir == nil {
		cache = &d.t.lives
	}
	vms := d.t.m.VMs()
	if len(vms) == 0 {
		return nil
	}
	// The Manager gives the same slice as long as no machine comes or goes.
	if l := cache.Load(); l != nil && len(l.of) == len(vms) && &l.of[0] == &vms[0] {
		return l.entries
	}
	l := &listing{of: vms, entries: make([]Entry, 0, len(vms))}
	for _, vm := range vms {
		l.entries = append(l.entries, Entry{vm.Name(), d.atVM(vm)})
	}
	cache.Store(l)
	return l.entries
}

func (d *dir) Mkdir(_ context.Context, by ctl.Cred, name string, mode uint32) (Node, error) {
	child, err := d.make(by, name, mode)
	return child, d.refuseEntry(by, name, err)
}

func (d *dir) make(by ctl.Cred, name string, mode uint32) (Node, error) {
	if err := d.gone(); err != nil {
		return nil, err
	}
	if d.mkdir == nil {
		return nil, ctl.Errorf(syscall.EPERM, "mkdir %.80q: nothing can be made here", name)
	}
	return d.mkdir(&d.node, by, name, mode)
}

func (d *dir) Rmdir(_ context.Context, by ctl.Cred, name string) error {
	return d.refuseEntry(by, name, d.remove(by, name))
}

func (d *dir) remove(by ctl.Cred, name string) error {
	if err := d.gone(); err != nil {
		return err
	}
	if d.rmdir == nil {
		return ctl.Errorf(syscall.EPERM, "rmdir %.80q: it cannot be removed", name)
	}
	return d.rmdir(&d.node, by, name)
}

func (d *dir) Rename(_ context.Context, by ctl.Cred, name string, to Dir, newName string) error {
	return d.refuseEntry(by, name, d.rename(by, name, to, newName))
}

func (d *dir) rename(by ctl.Cred, name string, to Dir, newName string) error {
	other, ok := to.(*dir)
	if !ok || d.line != other.line || d.vm != nil || d.mkdir == nil {
		return ctl.Errorf(syscall.EPERM, "mv %.80q: only a machine has a name to change, and stays in vm/", name)
	}
	vm := d.t.m.VM(name)
	if vm == nil {
		return errNotThere
	}
	return d.t.m.Rename(by, vm, newName)
}

func (d *dir) Deny(_ context.Context, by ctl.Cred, op, name string) error {
	return d.refuseEntry(by, name, ctl.Errorf(syscall.EPERM, "%s %.80q: files here come and go with their machine", op, name))
}

// refuseEntry is refuse for an entry of d, which need not exist.
func (d *dir) refuseEntry(by ctl.Cred, name string, err error) error {
	if err == nil {
		return nil
	}
	path := name
	if p := d.path(); p != "" {
		path = p + "/" + name
	}
	return d.t.refuse(by, path, err)
}

// mkdirVM makes a machine. It belongs to its maker and to the group of vm/,
// and grants nobody more than vm/ does.
func mkdirVM(n *node, by ctl.Cred, name string, mode uint32) (Node, error) {
	a := n.access()
	vm, err := n.t.m.Create(by, name, mode&a.Mode&0o777, a.GID)
	if err != nil {
		return nil, err
	}
	return n.atVM(vm), nil
}

func rmdirVM(n *node, by ctl.Cred, name string) error {
	vm := n.t.m.VM(name)
	if vm == nil {
		return errNotThere
	}
	return n.t.m.Remove(by, vm)
}

func mkdirDisk(n *node, by ctl.Cred, name string, _ uint32) (Node, error) {
	disk, ok := diskNumber(name)
	if !ok {
		return nil, ctl.Errorf(syscall.EINVAL, "mkdir %.80q: a disk is a number from 0 to %d", name, ctl.MaxDisks-1)
	}
	if err := n.vm.AddDisk(by, disk); err != nil {
		return nil, err
	}
	return n.atDisk(disk), nil
}

func rmdirDisk(n *node, by ctl.Cred, name string) error {
	disk, ok := diskNumber(name)
	if !ok {
		return errNotThere
	}
	return n.vm.RemoveDisk(by, disk)
}
