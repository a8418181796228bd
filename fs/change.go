package fs

import (
	"strconv"

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
	switch c.What {
	case ctl.Created, ctl.Removed, ctl.Renamed:
		t.moved.Store(t.m.EventsChanged().UnixNano())
	}
	watchers := t.watchers.Load()
	if watchers == nil {
		return
	}
	changes := t.changes(c)
	for _, f := range *watchers {
		f(changes)
	}
}

// changes translates.
func (t *Tree) changes(c ctl.Change) []Change {
	changes := make([]Change, 0, 2*len(lines))
	for _, l := range lines {
		if !l.ofVM {
			changes = append(changes, Change{Ino: l.row})
		}
	}
	if c.VM == nil || c.What == ctl.Created {
		return changes
	}
	for _, l := range lines {
		if l.ofVM {
			changes = l.changes(changes, c.VM)
		}
		if l.many != nil && !l.ofVM && c.What != ctl.Contents && c.What != ctl.Policy {
			changes = append(changes, Change{Dir: l.row, Name: c.Name, Ino: l.many.ino(c.VM.Serial(), 0)})
		}
	}
	return changes
}

// changes are those of one line of a machine.
func (l *line) changes(changes []Change, vm *ctl.VM) []Change {
	serial := vm.Serial()
	if !l.disk {
		changes = append(changes, Change{Ino: l.ino(serial, 0)})
	}
	for n := range l.below {
		switch {
		case !l.disk:
		case vm.HasDisk(n):
			changes = append(changes, Change{Ino: l.ino(serial, n)})
		}
	}
	if l.many == nil {
		return changes
	}
	for n := range ctl.MaxDisks {
		if !vm.HasDisk(n) {
			ino := l.many.ino(serial, n)
			changes = append(changes, Change{Ino: ino}, Change{Dir: l.ino(serial, 0), Name: strconv.Itoa(n), Ino: ino})
		}
	}
	return changes
}
