package ctl

import (
	"path/filepath"
	"slices"
	"strings"
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

// VM is one machine.
type VM struct {
	object

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

	charged atomic.Pointer[amounts] // what its launch counts for its owner; nil if there is none
}

func (m *Manager) newVM(in shelved, name string, d *definition) *VM {
	vm := &VM{state: Stopped, since: d.changed, sinceAny: newSignal()}
	vm.init(m, in, vm, name, d)
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
	if vm.launch != nil || vm.Removed() {
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

// settle draws the MACs of NICs that are new.
func (vm *VM) settle(d *definition, by Cred, now time.Time) error {
	return vm.m.macs.drawMACs(d, by, now)
}

// apply takes the MACs, changes what is in the drive of a machine that runs,
// and what its NICs are plugged into.
func (vm *VM) apply(was, now *definition) (undo func(), err error) {
	var done []func()
	undo = func() {
		for _, f := range slices.Backward(done) {
			f()
		}
	}
	for _, step := range []func(was, now *definition) (func(), error){
		func(was, now *definition) (func(), error) { return vm.m.macs.change(vm, was, now) },
		vm.changeMedium,
		vm.replugAll,
	} {
		back, err := step(was, now)
		if err != nil {
			undo()
			return nil, err
		}
		if back != nil {
			done = append(done, back)
		}
	}
	return undo, nil
}

// applied lets switches forget the leases of NICs that are not theirs any
// more.
func (vm *VM) applied() {
	if vm.Removed() {
		vm.m.macs.note(vm, vm.def.Load(), nil)
		vm.sinceAny.fire() // there is no next launch to wait for
	}
	for _, sw := range vm.m.switches.all() {
		sw.forget(vm)
	}
}

func (vm *VM) dissolve() error { return nil }
func (vm *VM) renamed()        {}

// Untouched reports whether nothing was ever done with the machine but to
// make it.
func (vm *VM) Untouched() bool {
	d := vm.def.Load()
	return d.edition == 0 && d.generation == 0 && len(d.nodes) == 1 && d.failed == "" && !vm.Active()
}

// Mtime is when a file of the machine changed last, by its path below the
// machine.
func (vm *VM) Mtime(file string) time.Time {
	switch file {
	case "status":
		vm.mu.Lock()
		defer vm.mu.Unlock()
		return vm.since
	case "pending":
		vm.mu.Lock()
		defer vm.mu.Unlock()
		return latest(vm.def.Load().changed, vm.since)
	case "console.log":
		return latest(vm.def.Load().created, vm.consoleTime())
	}
	if strings.HasSuffix(file, "/ifname") || strings.HasSuffix(file, "/address") {
		vm.mu.Lock()
		defer vm.mu.Unlock()
		return latest(vm.def.Load().created, vm.since)
	}
	return vm.mtime(file)
}

func latest(a ...time.Time) time.Time { return slices.MaxFunc(a, time.Time.Compare) }
