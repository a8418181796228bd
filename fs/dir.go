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
	case d.obj != nil:
		if n, ok := ctl.PartNumber(name); ok && d.obj.HasPart(d.partOf(n)) {
			return d.atPart(d.partOf(n)), nil
		}
	default:
		if o, ok := d.t.m.Find(d.objects(), name); ok {
			return d.atObject(o), nil
		}
	}
	return nil, errNotThere
}

// objects is the kind of the objects that a directory has, if it has any.
func (l *line) objects() string {
	if l.many == nil || l.of != "" {
		return ""
	}
	return l.many.of
}

// partOf is a part of those that are in a directory.
func (l *line) partOf(n int) ctl.Part { return ctl.Part{Dir: l.many.part, N: n} }

func (d *dir) List(context.Context) ([]Entry, error) {
	if err := d.gone(); err != nil {
		return nil, err
	}
	if d.objects() != "" {
		return d.listObjects(), nil
	}
	entries := make([]Entry, 0, len(d.fixed))
	for _, l := range d.fixed {
		entries = append(entries, Entry{l.name(), d.at(l)})
	}
	if d.many != nil {
		for _, n := range d.obj.Parts(d.many.part) {
			entries = append(entries, Entry{strconv.Itoa(n), d.atPart(d.partOf(n))})
		}
	}
	return entries, nil
}

// listing is the entries of a directory of objects. All who have it open
// share one, so that many open directories do not cost a copy each.
type listing struct {
	of      []ctl.Object
	entries []Entry
}

func (d *dir) listObjects() []Entry {
	cache := d.t.lists[d.line]
	objects := d.t.m.List(d.objects())
	if len(objects) == 0 {
		return nil
	}
	// The Manager gives the same slice as long as no object comes or goes.
	if l := cache.Load(); l != nil && len(l.of) == len(objects) && &l.of[0] == &objects[0] {
		return l.entries
	}
	l := &listing{of: objects, entries: make([]Entry, 0, len(objects))}
	for _, o := range objects {
		l.entries = append(l.entries, Entry{o.Name(), d.atObject(o)})
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
	if !ok || d.line != other.line || d.objects() == "" || d.mkdir == nil {
		return ctl.Errorf(syscall.EPERM, "mv %.80q: only machines and switches have names to change, and stay where they are", name)
	}
	o, ok := d.t.m.Find(d.objects(), name)
	if !ok {
		return errNotThere
	}
	return d.t.m.Rename(by, o, newName)
}

func (d *dir) Deny(_ context.Context, by ctl.Cred, op, name string) error {
	return d.refuseEntry(by, name, ctl.Errorf(syscall.EPERM, "%s %.80q: files here come and go with their directory", op, name))
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

// mkdirObject makes an object. It belongs to its maker and to the group of
// the directory, and grants nobody more than that does.
func mkdirObject(n *node, by ctl.Cred, name string, mode uint32) (Node, error) {
	a := n.access()
	o, err := n.t.m.Make(by, n.objects(), name, mode&a.Mode&0o777, a.GID)
	if err != nil {
		return nil, err
	}
	return n.atObject(o), nil
}

func rmdirObject(n *node, by ctl.Cred, name string) error {
	o, ok := n.t.m.Find(n.objects(), name)
	if !ok {
		return errNotThere
	}
	return n.t.m.Remove(by, o)
}

func mkdirPart(n *node, by ctl.Cred, name string, _ uint32) (Node, error) {
	number, ok := ctl.PartNumber(name)
	if !ok {
		return nil, ctl.Errorf(syscall.EINVAL, "mkdir %.80q: a number from 0 to %d", name, ctl.MaxParts-1)
	}
	if err := n.obj.AddPart(by, n.partOf(number)); err != nil {
		return nil, err
	}
	return n.atPart(n.partOf(number)), nil
}

func rmdirPart(n *node, by ctl.Cred, name string) error {
	number, ok := ctl.PartNumber(name)
	if !ok {
		return errNotThere
	}
	return n.obj.RemovePart(by, n.partOf(number))
}
