package ctl

import (
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// State is a word of status.
type State string

const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Paused   State = "paused"
	Stopping State = "stopping"
	Failed   State = "failed"
)

// VM is one machine. All methods may be called from any goroutine.
type VM struct {
	m      *Manager
	id     uint32
	serial uint64

	name    atomic.Pointer[string]
	removed atomic.Bool

	edit     sync.Mutex                 // one change of the definition at a time; before mu
	def      atomic.Pointer[definition] // read without a lock, never changed in place
	unsynced bool                       // under edit: the file is def, but a power cut may bring the former back

	mu       sync.Mutex
	state    State
	reason   string    // why it is failed
	since    time.Time // of state
	turns    uint64    // how often turn changed state
	launch   *launch   // from the start on until its end is recorded; nil otherwise
	held     bool      // mkdir's counterparts are at work: no start now
	fast     int       // launches in a row that came too fast
	lastRun  time.Time // of the last launch or guest reboot, monotonic
	logSize  int64     // of console.log, when it was looked at last
	logTime  time.Time
	kept     int64 // bytes in STATE/vm/NAME/console
	sinceAny *signal
}

func newVM(m *Manager, name string, d *definition) *VM {
	vm := &VM{m: m, id: d.id, serial: d.serial, state: Stopped, since: d.changed, sinceAny: newSignal()}
	vm.name.Store(&name)
	vm.def.Store(d)
	if d.failed != "" {
		vm.state, vm.reason = Failed, d.failed
	}
	if d.exit != nil {
		vm.since = d.exit.At
	}
	vm.kept, vm.logTime = keptLog(vm.consolePath())
	vm.logSize = vm.kept
	return vm
}

// Name is what the machine is called now.
func (vm *VM) Name() string { return *vm.name.Load() }

// ID is the lowest number that was free when the machine was made.
func (vm *VM) ID() uint32 { return vm.id }

// Serial is a number that no other machine ever had or will have.
func (vm *VM) Serial() uint64 { return vm.serial }

// Removed reports whether the machine is gone: files of it that are still
// open then answer ENOENT.
func (vm *VM) Removed() bool { return vm.removed.Load() }

func (vm *VM) dir() string         { return filepath.Join(vm.m.vmDir(), vm.Name()) }
func (vm *VM) consolePath() string { return filepath.Join(vm.dir(), "console") }

// Active reports whether there is a launch: the machine is neither stopped
// nor failed.
func (vm *VM) Active() bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.launch != nil
}

// idle keeps the machine from being started or edited until release is
// called. EBUSY if it is active.
func (vm *VM) idle(what string) (release func(), err error) {
	vm.edit.Lock()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.launch != nil || vm.removed.Load() {
		vm.edit.Unlock()
		if vm.launch == nil {
			return nil, vm.gone()
		}
		return nil, Errorf(syscall.EBUSY, "%s %s: it is %s", what, vm.Name(), vm.state)
	}
	vm.held = true
	return func() {
		vm.mu.Lock()
		vm.held = false
		vm.mu.Unlock()
		vm.edit.Unlock()
	}, nil
}

func (vm *VM) gone() error { return Errorf(syscall.ENOENT, "%s: the machine was removed", vm.Name()) }

func (vm *VM) event(name, user, detail string) {
	vm.m.log.append(vm.serial, "vm/"+vm.Name(), name, user, detail)
}

func (vm *VM) notify(w What) { vm.m.changed(Change{vm, vm.Name(), w}) }

// update changes the definition: f changes a clone, which is saved and takes
// the place of the old one if f says that it did. With an error and changed,
// it is changed, but a power cut may undo that.
func (vm *VM) update(f func(d *definition) (changed bool, err error)) (bool, error) {
	vm.edit.Lock()
	defer vm.edit.Unlock()
	changed, err := vm.rewrite(f)
	if changed {
		err = vm.sync()
	}
	return changed, err
}

// rewrite is update but for the sync of the directory, which it leaves to be
// done. Called with edit held.
func (vm *VM) rewrite(f func(d *definition) (changed bool, err error)) (bool, error) {
	if vm.removed.Load() {
		return false, vm.gone()
	}
	d := vm.def.Load().clone()
	changed, err := f(d)
	if err != nil || !changed {
		return false, err
	}
	if err := replaceFile(vm.dir(), "definition", d.text()); err != nil {
		return false, saveError(vm.Name(), err)
	}
	vm.def.Store(d)
	vm.unsynced = true
	return true, nil
}

// sync makes what rewrite did outlast a power cut. Called with edit held.
func (vm *VM) sync() error {
	if !vm.unsynced || vm.removed.Load() {
		return nil
	}
	vm.unsynced = false
	return saveError(vm.Name(), syncDir(vm.dir()))
}

// Sync returns when all changes so far of the machine will outlast a power
// cut.
func (vm *VM) Sync() error {
	vm.edit.Lock()
	defer vm.edit.Unlock()
	return vm.sync()
}

// configure is update by a user: a new edition, an event.
func (vm *VM) configure(by Cred, file string, f func(d *definition, now time.Time) (bool, error)) error {
	vm.edit.Lock()
	listed := vm.unsynced
	cdrom := drive{vm: vm, was: vm.def.Load().attrs["cdrom"]}
	changed, err := vm.rewrite(func(d *definition) (bool, error) {
		now, was := time.Now(), d.said()
		changed, err := f(d, now)
		if changed && err == nil {
			d.edition++
			d.changed, d.old = now, was
			err = cdrom.change(d.attrs["cdrom"])
		}
		return changed, err
	})
	if err != nil {
		cdrom.undo()
	}
	vm.edit.Unlock()
	if changed && !listed {
		vm.m.late.add(vm)
	}
	if changed {
		vm.event("config", by.String(), file)
		vm.notify(Contents)
	}
	return err
}

// Get reads an attribute by its path below the machine: its value, else its
// default, else nothing.
func (vm *VM) Get(attr string) string { return vm.def.Load().get(attr) }

// Set writes one; an empty value gives the default back.
func (vm *VM) Set(by Cred, attr, value string) error {
	return vm.configure(by, attr, func(d *definition, now time.Time) (bool, error) {
		return d.set(by, attr, value, now)
	})
}

// Disks are the numbers of the disks, in order.
func (vm *VM) Disks() []int { return sortedKeys(vm.def.Load().disks) }

// HasDisk reports whether there is a disk n.
func (vm *VM) HasDisk(n int) bool { return vm.def.Load().disks[n] }

// AddDisk makes a disk without values. EEXIST.
func (vm *VM) AddDisk(by Cred, n int) error {
	return vm.configure(by, diskAttr(n, ""), func(d *definition, _ time.Time) (bool, error) {
		if n < 0 || n >= MaxDisks {
			return false, Errorf(syscall.EINVAL, "disk/%d: a disk is numbered 0 to %d", n, MaxDisks-1)
		}
		if d.disks[n] {
			return false, Errorf(syscall.EEXIST, "disk/%d: it is there", n)
		}
		d.disks[n] = true
		return true, nil
	})
}

// RemoveDisk removes a disk's values, never its image. ENOENT.
func (vm *VM) RemoveDisk(by Cred, n int) error {
	return vm.configure(by, diskAttr(n, ""), func(d *definition, _ time.Time) (bool, error) {
		return true, d.removeDisk(n)
	})
}

// Untouched reports whether nothing was ever done with the machine but to
// make it.
func (vm *VM) Untouched() bool {
	d := vm.def.Load()
	return d.edition == 0 && d.generation == 0 && len(d.nodes) == 1 && d.failed == "" && !vm.Active()
}

// Config is the definition flattened, from begin to end.
func (vm *VM) Config() string { return vm.def.Load().config() }

// ConfigOld is the definition before its last change; empty before the first.
func (vm *VM) ConfigOld() string {
	d := vm.def.Load()
	if d.edition == 0 {
		return ""
	}
	return flat(d.old)
}

// Edition counts the changes of the definition.
func (vm *VM) Edition() uint64 { return vm.def.Load().edition }

// Edit applies the lines of one write, all or none.
func (vm *VM) Edit(by Cred, text string) error {
	return vm.configure(by, "config", func(d *definition, now time.Time) (bool, error) {
		return d.edit(by, text, now)
	})
}

// Replace puts a whole definition, begin and end included, in the place of
// the present one, or refuses it whole.
func (vm *VM) Replace(by Cred, text string) error {
	return vm.configure(by, "config", func(d *definition, now time.Time) (bool, error) {
		return d.replace(by, text, now)
	})
}

// Access is who may do what with a file of the machine, by its path below the
// machine; "" is its directory. Only the mode of def counts: a file that was
// not given to anybody belongs to the owner and the group of the directory.
func (vm *VM) Access(path string, def Access) Access {
	return vm.def.Load().access(path, def.Mode)
}

// SetAccess changes it, for good.
func (vm *VM) SetAccess(by Cred, path string, c AccessChange) error {
	changed, err := vm.update(func(d *definition) (bool, error) {
		return change(d.nodes, path, c), nil
	})
	if changed {
		vm.event("access", by.String(), path)
		vm.notify(Policy)
	}
	return err
}

// Mtime is when a file of the machine changed last, by its path below the
// machine.
func (vm *VM) Mtime(file string) time.Time {
	d := vm.def.Load()
	switch file {
	case "config", "config.old", "edition":
		return d.changed
	case "status":
		vm.mu.Lock()
		defer vm.mu.Unlock()
		return vm.since
	case "pending":
		vm.mu.Lock()
		defer vm.mu.Unlock()
		return latest(d.changed, vm.since)
	case "events.log":
		return latest(d.created, vm.m.log.last(vm.serial))
	case "console.log":
		return latest(d.created, vm.consoleTime())
	}
	if v, ok := d.attrs[file]; ok {
		return v.mtime
	}
	return d.created
}

func latest(a ...time.Time) time.Time { return slices.MaxFunc(a, time.Time.Compare) }

// EventsText is what the last events of all have of this machine.
func (vm *VM) EventsText() string { return vm.m.log.text(vm.serial) }

// OpenEvents reads the machine's events from now on.
func (vm *VM) OpenEvents() *EventReader { return vm.m.log.reader(vm) }
