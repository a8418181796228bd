package ctl

import (
	"context"
	"sync"
	"time"
)

// adoptWait is how long a daemon waits before it serves for guest processes
// that do not answer.
const adoptWait = 500 * time.Millisecond

// adoptTime bounds each try to speak to a guest process that is there.
const adoptTime = 5 * time.Second

// adoptAll takes up the guests that run, and records the end of those that
// ended while no daemon was there.
func (m *Manager) adoptAll(ctx context.Context) error {
	procs, err := m.Host.Guests(ctx)
	if err != nil {
		return err
	}
	alive := make(map[uint32]bool)
	var wg sync.WaitGroup
	for _, p := range procs {
		alive[p.ID] = true
		vm, ok := m.vms.numbered(p.ID)
		if !ok {
			m.surprised("guest process %d runs a machine %d that is not defined in %s: it is left alone", p.PID, p.ID, m.State)
			m.vms.foreign[p.ID] = true
			continue
		}
		l := vm.present(p.PID)
		wg.Go(func() { vm.adopt(l) })
	}
	settled := make(chan struct{})
	go func() { wg.Wait(); close(settled) }()
	select {
	case <-settled:
	case <-time.After(adoptWait):
	}
	for _, vm := range m.VMs() {
		if d := vm.def.Load(); d.active != 0 && !alive[vm.id] {
			vm.lostWhileAway(d)
		}
	}
	return nil
}

func (vm *VM) lostWhileAway(d *definition) {
	l := &launch{generation: d.active, ended: make(chan struct{}), gone: make(chan struct{}), nics: vm.launchedNICs(d)}
	vm.mu.Lock()
	vm.launch = l
	vm.mu.Unlock()
	vm.finish(l, &Exit{Failed: true, Who: "host", How: "the guest process died while the daemon was away", At: time.Now()})
}

// present makes a launch of a guest process that is there, as yet unheard of.
func (vm *VM) present(pid int) *launch {
	d := vm.def.Load()
	l := &launch{generation: d.generation, pid: pid, nics: vm.launchedNICs(d), ended: make(chan struct{}), gone: make(chan struct{}), undo: func(error) {}}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.launch, vm.state, vm.reason = l, Running, ""
	charge := d.launchCharge() // also beyond what its owner may have now
	vm.charged.Store(&charge)
	return l
}

// adopt takes up the guest process of a machine. One that does not answer
// counts as running, and is tried again until it answers or is gone.
func (vm *VM) adopt(l *launch) {
	for said := false; !vm.tryAdopt(l); said = true {
		if !said {
			vm.m.surprised("vm %s: its guest process %d does not answer; trying on", vm.Name(), l.pid)
		}
		select {
		case <-l.gone:
			vm.finish(l, vm.vanished(l))
			return
		case <-time.After(adoptTime):
		}
	}
}

// tryAdopt reports whether the matter is settled.
func (vm *VM) tryAdopt(l *launch) bool {
	ctx, cancel := context.WithTimeout(context.Background(), adoptTime)
	defer cancel()
	g, err := vm.m.Host.Adopt(ctx, vm.id)
	var st GuestState
	if err == nil {
		if st, err = g.State(ctx); err != nil {
			g.Close()
		}
	}
	if err != nil {
		return vm.adoptFailed(l)
	}
	if recorded := vm.def.Load().generation; st.Generation != recorded && st.State != "new" {
		// It was recorded before there was a process: who says another lies.
		vm.m.surprised("vm %s: its guest process %d says it is generation %d, not %d", vm.Name(), l.pid, st.Generation, recorded)
		st.Generation = recorded
	}
	vm.mu.Lock()
	l.guest, l.state, l.generation, l.started = g, st, st.Generation, st.Started
	l.console = newLaunchConsole(g.Console())
	vm.since, vm.lastRun = st.Started, monotonic(st.Started)
	vm.mu.Unlock()
	vm.learnBounds(ctx, l)
	switch st.State {
	case "new":
		vm.undoOrphan(l)
		return true
	case "ended":
		exit := st.Exit
		if exit == nil {
			exit = vm.vanished(l)
		}
		vm.finish(l, exit)
		return true
	}
	vm.mu.Lock()
	vm.state = map[string]State{"paused": Paused, "stopping": Stopping}[st.State]
	if vm.state == "" {
		vm.state = Running
	}
	vm.mu.Unlock()
	vm.event("adopted", "-", "generation "+utoa(l.generation))
	vm.changed()
	vm.recordAdopted(l)
	go vm.watch(l)
	return true
}

// adoptFailed looks whether the process is still there at all.
func (vm *VM) adoptFailed(l *launch) bool {
	ctx, cancel := context.WithTimeout(context.Background(), adoptTime)
	defer cancel()
	procs, err := vm.m.Host.Guests(ctx)
	if err != nil {
		return false
	}
	for _, p := range procs {
		if p.ID == vm.id {
			return false
		}
	}
	if vm.def.Load().active == 0 {
		vm.undoOrphan(l) // it was never told go and ended by itself
	} else {
		vm.finish(l, vm.vanished(l))
	}
	return true
}

// undoOrphan ends a guest process whose start the daemon did not live to
// finish: nothing was launched.
func (vm *VM) undoOrphan(l *launch) {
	vm.release(l)
	vm.undone(l, before{Stopped, "", time.Now()}, "-", "the daemon ended during the start")
}

func (vm *VM) recordAdopted(l *launch) {
	_, err := vm.update(func(d *definition) (bool, error) {
		if d.active == l.generation && d.failed == "" && d.generation >= l.generation {
			return false, nil
		}
		d.active, d.failed = l.generation, ""
		d.generation = max(d.generation, l.generation)
		return true, nil
	})
	if err != nil {
		vm.failed(err)
	}
}

// monotonic gives a wall time of before this process a reading of its clock.
func monotonic(t time.Time) time.Time { return time.Now().Add(-time.Since(t)) }
