package fs

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"vmfs/ctl"
)

// Tree is the whole tree of one Manager.
type Tree struct {
	m     *ctl.Manager
	root  *line
	help  string
	held  held
	parts parts

	watchers atomic.Pointer[[]func([]Change)]
	lists    map[*line]*atomic.Pointer[listing] // of directories of objects
	moved    map[string]*atomic.Int64           // when an object of a directory was made, removed or renamed, in Unix ns
}

// New makes the tree of m. There is one for each Manager: it takes m's
// OnChange.
func New(m *ctl.Manager) *Tree {
	t := &Tree{m: m, root: lines[0], help: helpText(), lists: map[*line]*atomic.Pointer[listing]{}, moved: map[string]*atomic.Int64{}}
	for _, l := range lines {
		if l.objects() == "" {
			continue
		}
		t.lists[l] = new(atomic.Pointer[listing])
		if t.moved[l.objects()] == nil {
			t.moved[l.objects()] = new(atomic.Int64)
			t.moved[l.objects()].Store(m.Started().UnixNano())
		}
	}
	m.OnChange(t.changed)
	return t
}

// Root is the directory that is mounted.
func (t *Tree) Root() Dir { return &dir{node{t: t, line: t.root}} }

// node is what files and directories have in common.
type node struct {
	t *Tree
	*line
	obj  ctl.Object // nil for files of none
	n    int        // the part's number, if it is a part's
	life uint64     // and which of that number
}

// vm is the machine that a file is of, of one that is.
func (n *node) vm() *ctl.VM { return n.obj.(*ctl.VM) }

// sw is the switch that a file is of, of one that is.
func (n *node) sw() *ctl.Switch { return n.obj.(*ctl.Switch) }

// actor is the machine or the switch that a file is of.
func (n *node) actor() ctl.Actor { return n.obj.(ctl.Actor) }

// asPart is the part that a file is of, of one that is.
func (n *node) asPart() ctl.Part { return ctl.Part{Dir: n.part, N: n.n} }

type (
	dir  struct{ node }
	file struct{ node }
)

// at is the Node of a line below n: of the same object and part.
func (n *node) at(l *line) Node {
	return node{t: n.t, line: l, obj: n.obj, n: n.n, life: n.life}.typed()
}

func (n *node) atObject(o ctl.Object) Node { return node{t: n.t, line: n.many, obj: o}.typed() }

func (n *node) atPart(p ctl.Part) Node {
	return node{t: n.t, line: n.many, obj: n.obj, n: p.N, life: n.t.parts.see(n.obj, p)}.typed()
}

func (n node) typed() Node {
	if n.kind == directory {
		return &dir{n}
	}
	return &file{n}
}

// Inode numbers: which object, which part and which of that number, which
// line of the table. Serial numbers are never used again and are of one object
// of all kinds, 0 is no object's; what the part is, the line says. The root
// has number 1.
const (
	rowBits  = 8
	partBits = 4
	lifeBits = 16 // so many parts of one number an object can have before an inode number returns
)

func (l *line) ino(serial uint64, part int, life uint64) uint64 {
	return ((serial<<lifeBits|life&(1<<lifeBits-1))<<partBits|uint64(part))<<rowBits | l.row
}

func (n *node) ino() uint64 {
	if n.obj == nil {
		return n.row
	}
	return n.line.ino(n.obj.Serial(), n.n, n.life)
}

// policyPath is the path that the Manager or the object knows the file by.
func (n *node) policyPath() string { return n.below[n.n] }

// path is the file's path below the root, for people.
func (n *node) path() string {
	p := n.line.path
	if n.part != "" {
		p = strings.Replace(p, n.part+"/N", n.asPart().String(), 1)
	}
	if n.obj != nil {
		p = strings.Replace(p, "NAME", n.obj.Name(), 1)
	}
	return p
}

// gone answers ENOENT for what was removed while somebody had it open.
func (n *node) gone() error {
	switch {
	case n.obj == nil:
		return nil
	case n.obj.Removed():
		return ctl.Errorf(syscall.ENOENT, "%s/%s was removed", n.of, n.obj.Name())
	case n.part != "" && !(n.obj.HasPart(n.asPart()) && n.t.parts.is(n.obj, n.asPart(), n.life)):
		return ctl.Errorf(syscall.ENOENT, "%s was removed", n.asPart())
	}
	return nil
}

// refuse notes what by is refused of a file, for err, and passes it on. Every
// refusal goes through here once. An interrupt is none.
func (t *Tree) refuse(by ctl.Cred, path string, err error) error {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, syscall.EINTR) {
		t.m.Refused(by, path, err)
	}
	return err
}

func (n *node) refuse(by ctl.Cred, err error) error {
	if err == nil {
		return nil
	}
	return n.t.refuse(by, n.path(), err)
}

func (n *node) access() ctl.Access {
	if n.obj == nil {
		return n.t.m.Access(n.policyPath(), ctl.RootAccess(n.mode))
	}
	return n.obj.Access(n.policyPath(), n.def())
}

func (n *node) Attr(ctx context.Context) (Attr, error) {
	if err := n.gone(); err != nil {
		return Attr{}, err
	}
	a := n.access()
	attr := Attr{Ino: n.ino(), Dir: n.kind == directory, Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: n.mtime()}
	switch {
	case n.kind == grows:
		attr.Size = n.vm().ConsoleLogSize()
	case n.kind == text && n.read != nil:
		attr.Size = int64(len(n.read(ctx, n, ctl.Cred{})))
	}
	return attr, nil
}

func (n *node) mtime() time.Time {
	switch {
	case n.obj != nil:
		return n.obj.Mtime(n.policyPath())
	case n.objects() != "" && n.mkdir != nil:
		return time.Unix(0, n.t.moved[n.objects()].Load())
	case n.kind == text:
		return n.t.m.EventsChanged()
	}
	return n.t.m.Started()
}

func (n *node) SetAttr(_ context.Context, by ctl.Cred, c ctl.AccessChange) error {
	return n.refuse(by, n.setAccess(by, c))
}

func (n *node) setAccess(by ctl.Cred, c ctl.AccessChange) error {
	if err := n.gone(); err != nil {
		return err
	}
	allowed := uint32(0o777)
	if n.kind == directory {
		allowed = 0o1777
	}
	if c.Mode != nil && *c.Mode&^allowed != 0 {
		return ctl.Errorf(syscall.EPERM, "chmod %04o: it can have the bits of %04o only", *c.Mode, allowed)
	}
	switch c = differing(c, n.access()); {
	case c == ctl.AccessChange{}:
		return nil
	case n.obj == nil:
		return n.t.m.SetAccess(by, n.policyPath(), c)
	}
	return n.obj.SetAccess(by, n.policyPath(), c)
}

// differing is what of c would change now. The rest is no change: whoever
// restores a copy sets every owner and mode, most to what they are.
func differing(c ctl.AccessChange, now ctl.Access) ctl.AccessChange {
	if c.Mode != nil && *c.Mode == now.Mode {
		c.Mode = nil
	}
	if c.UID != nil && *c.UID == now.UID {
		c.UID = nil
	}
	if c.GID != nil && *c.GID == now.GID {
		c.GID = nil
	}
	return c
}
