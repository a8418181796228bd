package qemu

import (
	"context"
	"fmt"
	"os"
)

// drive is the name of the cdrom drive.
const drive = "cdrom"

// medium is what was put into the drive: the first, 0, when QEMU started.
type medium int

// empty is no medium.
const empty medium = -1

func (m medium) name() string { return fmt.Sprintf("medium%d", m) }

// set is the number by which QEMU knows the medium's descriptor, beyond those
// of the command line's disks.
func (m medium) set() int { return 1000 + int(m) }

// nodes are the medium's, the lower one first.
func (m medium) nodes() []any {
	return []any{
		fileNode(m.name(), m.set(), true),
		format{"raw", m.name(), m.name() + "-file", true, "unmap"},
	}
}

// Insert puts f into the cdrom drive, in the place of what is there; nil
// empties it. The guest is not asked: what it has locked is taken from it as
// with a bent paper clip. f, which is open for reading, stays the caller's.
// On an error what was there before is there, unless QEMU answers no more.
// Not to be called twice at a time.
func (vm *VM) Insert(ctx context.Context, f *os.File) error {
	next := empty
	if f != nil {
		next = vm.media
		vm.media++
		if err := vm.offer(ctx, next, f); err != nil {
			vm.withdraw(ctx, next)
			return vm.why(err)
		}
	}
	if err := vm.exchange(ctx, next); err != nil {
		ctx = context.WithoutCancel(ctx)
		vm.exchange(ctx, vm.medium)
		vm.withdraw(ctx, next)
		return vm.why(err)
	}
	vm.withdraw(ctx, vm.medium)
	vm.medium = next
	return nil
}

// offer makes a medium of f that can be put into the drive.
func (vm *VM) offer(ctx context.Context, m medium, f *os.File) error {
	if err := vm.monitor.give(ctx, "add-fd", map[string]int{"fdset-id": m.set()}, f); err != nil {
		return err
	}
	for _, n := range m.nodes() {
		if err := vm.monitor.execute(ctx, "blockdev-add", n); err != nil {
			return err
		}
	}
	return nil
}

// exchange empties the drive and puts m into it, if that is any.
func (vm *VM) exchange(ctx context.Context, m medium) error {
	steps := []step{
		{"blockdev-open-tray", map[string]any{"id": drive, "force": true}},
		{"blockdev-remove-medium", map[string]any{"id": drive}},
		{"blockdev-insert-medium", map[string]any{"id": drive, "node-name": m.name()}},
		{"blockdev-close-tray", map[string]any{"id": drive}},
	}
	for i, s := range steps {
		if i == 2 && m == empty {
			continue
		}
		if err := vm.monitor.execute(ctx, s.command, s.args); err != nil {
			return err
		}
	}
	return nil
}

type step struct {
	command string
	args    map[string]any
}

// withdraw forgets a medium that is not in the drive, so that nobody holds its
// file. What of it is not there cannot be forgotten, and need not be.
func (vm *VM) withdraw(ctx context.Context, m medium) {
	if m == empty {
		return
	}
	vm.monitor.execute(ctx, "blockdev-del", map[string]any{"node-name": m.name()})
	vm.monitor.execute(ctx, "blockdev-del", map[string]any{"node-name": m.name() + "-file"})
	vm.monitor.execute(ctx, "remove-fd", map[string]any{"fdset-id": m.set()})
}
