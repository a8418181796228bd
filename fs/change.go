package fs

import (
	"slices"
	"strconv"
	"time"

	"vmfs/ctl"
)

// Watch makes f hear of changes that did not come from a door's own client,
// and of those that did. f is called from any goroutine, possibly while the
// change is not yet answered, and must not wait for a request.
func (t *Tree) Watch(f func([]Change)) {
	for {
		old := t.watchers.Load()
		var list []func([]Change)
		if old != nil {
			list = append(list, *old...)
		}
		list = append(list, f)
		if t.watchers.CompareAndSwap(old, &list) {
			return
		}
	}
}

// changed is the Manager's OnChange.
func (t *Tree) changed(c ctl.Change) {
	if c.What == ctl.Created || c.What == ctl.Removed || c.What == ctl.Renamed {
		t.moved[c.Obj.Kind()].Store(time.Now().UnixNano())
	}
	changes := t.changes(c)
	if watchers := t.watchers.Load(); watchers != nil {
		for _, f := range *watchers {
			f(changes)
		}
	}
}

// changes translates. It names more than what changed: all files of the
// object, and the few of none. If it is contents, a directory has nothing new
// to show, but for those of parts, which come and go with a definition.
func (t *Tree) changes(c ctl.Change) []Change {
	changes := make([]Change, 0, 2*len(lines))
	fixed := func(l *line) bool { return c.What == ctl.Contents && l.kind == directory }
	for _, l := range lines {
		if l.of == "" && (c.Obj == nil || !fixed(l)) {
			changes = append(changes, Change{Ino: l.row})
		}
	}
	if c.Obj == nil || c.What == ctl.Created {
		return changes
	}
	serial, kind := c.Obj.Serial(), c.Obj.Kind()
	for _, l := range lines {
		switch {
		case l.of == kind && l.part == "" && (l.many != nil || !fixed(l)):
			changes = append(changes, Change{Ino: l.ino(serial, 0, 0)})
		case l.objects() == kind && c.What != ctl.Contents && c.What != ctl.Policy:
			changes = append(changes, Change{Dir: l.row, Name: c.Name, Ino: l.many.ino(serial, 0, 0)})
		}
	}
	t.parts.settle(c.Obj, func(p ctl.Part, life uint64) {
		for _, l := range lines {
			if l.of == kind && l.part == p.Dir {
				changes = append(changes, Change{Ino: l.ino(serial, p.N, life)})
			}
		}
	}, func(p ctl.Part, life uint64) {
		in := partsLine(kind, p.Dir)
		dir, ino := in.ino(serial, 0, 0), in.many.ino(serial, p.N, life)
		changes = append(changes, Change{Ino: ino}, Change{Dir: dir, Name: strconv.Itoa(p.N), Ino: ino})
	})
	return changes
}

// partsLine is the directory of an object's parts.
func partsLine(kind, dir string) *line {
	return lines[slices.IndexFunc(lines, func(l *line) bool { return l.of == kind && l.many != nil && l.name() == dir })]
}
