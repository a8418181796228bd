package fs

import (
	"sync"

	"vmfs/ctl"
)

// disks tells the disks of one number apart that a machine had one after the
// other: who has the directory or a file of the first open does not have the
// second.
type disks struct {
	mu sync.RWMutex
	of map[uint64]*[ctl.MaxDisks]disk // by the machine's serial number
}

type disk struct {
	seen bool   // a Node of it was made, and it is there
	life uint64 // how many there were before it
}

// see gives the life of a disk that is there.
func (d *disks) see(vm *ctl.VM, n int) uint64 {
	d.mu.RLock()
	list := d.of[vm.Serial()]
	if list != nil && list[n].seen {
		defer d.mu.RUnlock()
		return list[n].life
	}
	d.mu.RUnlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = make(map[uint64]*[ctl.MaxDisks]disk)
	}
	if list = d.of[vm.Serial()]; list == nil {
		list = new([ctl.MaxDisks]disk)
		d.of[vm.Serial()] = list
	}
	list[n].seen = true
	return list[n].life
}

// is reports whether a disk that was seen is the one that is there.
func (d *disks) is(vm *ctl.VM, n int, life uint64) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	list := d.of[vm.Serial()]
	return list != nil && list[n].life == life
}

// settle ends the lives of the disks that were seen and are not there any
// more, and calls there and gone of those that were seen.
func (d *disks) settle(vm *ctl.VM, there, gone func(n int, life uint64)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := d.of[vm.Serial()]
	for n := range ctl.MaxDisks {
		switch {
		case list == nil || !list[n].seen:
		case vm.HasDisk(n):
			there(n, list[n].life)
		default:
			gone(n, list[n].life)
			list[n] = disk{life: list[n].life + 1}
		}
	}
	if vm.Removed() {
		delete(d.of, vm.Serial())
	}
}
