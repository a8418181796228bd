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
		t.moved.Store(time.Now().UnixNano())
	}
	changes := t.changes(c)
	if watchers := t.watchers.Load(); watchers != nil {
		for _, f := range *watchers {
			f(changes)
		}
	}
}

// changes translates. It names more than what changed: all files of the
// machine, and the few of none; not the directories, if it is contents.
func (t *Tree) changes(c ctl.Change) []Change {
	changes := make([]Change, 0, 2*len(lines))
	for _, l := range lines {
		if !l.ofVM && (l.kind != directory || c.VM == nil || c.What != ctl.Contents) {
			changes = append(changes, Change{Ino: l.row})
		}
	}
	if c.VM == nil || c.What == ctl.Created {
		return changes
	}
	serial := c.VM.Serial()
	for _, l := range lines {
		switch {
		case l.ofVM && !l.disk:
			changes = append(changes, Change{Ino: l.ino(serial, 0, 0)})
		case !l.ofVM && l.many != nil && c.What != ctl.Contents && c.What != ctl.Policy:
			changes = append(changes, Change{Dir: l.row, Name: c.Name, Ino: l.many.ino(serial, 0, 0)})
		}
	}
	t.disks.settle(c.VM, func(n int, life uint64) {
		for _, l := range lines {
			if l.disk {
				changes = append(changes, Change{Ino: l.ino(serial, n, life)})
			}
		}
	}, func(n int, life uint64) {
		dir, ino := disksLine.ino(serial, 0, 0), disksLine.many.ino(serial, n, life)
		changes = append(changes, Change{Ino: ino}, Change{Dir: dir, Name: strconv.Itoa(n), Ino: ino})
	})
	return changes
}

// disksLine is the directory of a machine's disks.
var disksLine = lines[slices.IndexFunc(lines, func(l *line) bool { return l.path == "vm/NAME/disk" })]
