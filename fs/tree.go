package fs

import (
	"context"
	"errors"
	"strconv"
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
	disks disks

	watchers atomic.Pointer[[]func([]Change)]
	machines atomic.Pointer[listing] // of vm/
	lives    atomic.Pointer[listing] // of live/vm/
	moved    atomic.Int64            // when a machine was made, removed or renamed, in Unix ns
}

// New makes the tree of m. There is one for each Manager: it takes m's
// OnChange.
func New(m *ctl.Manager) *Tree {
	t := &Tree{m: m, root: lines[0], help: helpText()}
	t.moved.Store(m.Started().UnixNano())
	m.OnChange(t.changed)
	return t
}

// Root is the directory that is mounted.
func (t *Tree) Root() Dir { return &dir{node{t: t, line: t.root}} }

// node is what files and directories have in common.
type node struct {
	t *Tree
	*line
	vm   *ctl.VM // nil for files of no machine
	n    int     // the disk's number, if it is a disk's
	life uint64  // and which of that number
}

type (
	dir  struct{ node }
	file struct{ node }
)

// at is the Node of a line below n: of the same machine and disk.
func (n *node) at(l *line) Node {
	return node{t: n.t, line: l, vm: n.vm, n: n.n, life: n.life}.typed()
}

func (n *node) atVM(vm *ctl.VM) Node { return node{t: n.t, line: n.many, vm: vm}.typed() }

func (n *node) atDisk(disk int) Node {
	return node{t: n.t, line: n.many, vm: n.vm, n: disk, life: n.t.disks.see(n.vm, disk)}.typed()
}

func (n node) typed() Node {
	if n.kind == directory {
		return &dir{n}
	}
	return &file{n}
}

// Inode numbers: which machine, which disk and which of that number, which
// line of the table. Serial numbers are never used again, 0 is no machine's.
// The root has number 1.
const (
	rowBits  = 8
	diskBits = 4
	lifeBits = 16 // so many disks of one number a machine can have before an inode number returns
)

func (l *line) ino(serial uint64, disk int, life uint64) uint64 {
	return ((serial<<lifeBits|life&(1<<lifeBits-1))<<diskBits|uint64(disk))<<rowBits | l.row
}

func (n *node) ino() uint64 {
	if n.vm == nil {
		return n.row
	}
	return n.line.ino(n.vm.Serial(), n.n, n.life)
}

// policyPath is the path that the Manager or the machine knows the file by.
func (n *node) policyPath() string { return n.below[n.n] }

// path is the file's path below the root, for people.
func (n *node) path() string {
	p := n.line.path
	if n.vm != nil {
		p = strings.Replace(p, "NAME", n.vm.Name(), 1)
	}
	if n.disk {
		p = strings.Replace(p, "disk/N", "disk/"+strconv.Itoa(n.n), 1)
	}
	return p
}

// gone answers ENOENT for what was removed while somebody had it open.
func (n *node) gone() error {
	switch {
	case n.vm == nil:
		return nil
	case n.vm.Removed():
		return ctl.Errorf(syscall.ENOENT, "%s: the machine was removed", n.vm.Name())
	case n.disk && !(n.vm.HasDisk(n.n) && n.t.disks.is(n.vm, n.n, n.life)):
		return ctl.Errorf(syscall.ENOENT, "disk/%d: the disk was removed", n.n)
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
	def := ctl.Access{Mode: n.mode}
	if n.vm == nil {
		return n.t.m.Access(n.policyPath(), def)
	}
	return n.vm.Access(n.policyPath(), def)
}

func (n *node) Attr(ctx context.Context) (Attr, error) {
	if err := n.gone(); err != nil {
		return Attr{}, err
	}
	a := n.access()
	attr := Attr{Ino: n.ino(), Dir: n.kind == directory, Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: n.mtime()}
	switch {
	case n.kind == grows:
		attr.Size = n.vm.ConsoleLogSize()
	case n.kind == text && n.read != nil:
		attr.Size = int64(len(n.read(ctx, n, ctl.Cred{})))
	}
	return attr, nil
}

func (n *node) mtime() time.Time {
	switch {
	case n.vm != nil:
		return n.vm.Mtime(n.policyPath())
	case n.mkdir != nil:
		return time.Unix(0, n.t.moved.Load())
	case n.kind == text:
		return n.t.m.EventsChanged()
	}
	return n.t.m.Started()
}

func (n *node) SetAttr(_ context.Context, by ctl.Cred, c ctl.AccessChange) error {
	return n.refuse(by, n.setAccess(by, c))
}

// Sync makes a Node a Syncer.
func (n *node) Sync() error {
	if n.vm == nil {
		return nil // those changes are certain when they are answered
	}
	return n.vm.Sync()
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
	case n.vm == nil:
		return n.t.m.SetAccess(by, n.policyPath(), c)
	}
	return n.vm.SetAccess(by, n.policyPath(), c)
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
