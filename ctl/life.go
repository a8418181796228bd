package ctl

import (
	"context"
	"sync"
	"time"
)

// changed wakes who waits for a change of the machine's state and tells the
// doors.
func (vm *VM) changed() {
	vm.sinceAny.fire()
	vm.notify(Contents)
}

// turn notes a state that the running guest is in now. An event is made once,
// whoever hears of it first: the verb that asked, or the guest's own notice.
func (vm *VM) turn(s State, who string) {
	vm.mu.Lock()
	turned := vm.turnTo(s)
	vm.mu.Unlock()
	vm.turned(turned, s, who)
}

// turnTo is turn's half with mu held. It reports whether the state is new.
func (vm *VM) turnTo(s State) bool {
	old := vm.state
	if vm.launch == nil || old == s || old == Starting || old == Stopping {
		return false
	}
	vm.state, vm.since = s, time.Now()
	vm.turns++
	return true
}

// turned is turn's half without mu.
func (vm *VM) turned(isNew bool, s State, who string) {
	if !isNew {
		return
	}
	vm.event(map[State]string{Running: "resumed", Paused: "paused", Stopping: "stopping"}[s], who, "")
	vm.changed()
}

// watch follows a launch until its end, and records that.
func (vm *VM) watch(l *launch) {
	vm.mu.Lock()
	g := l.guest
	vm.mu.Unlock()
	for {
		select {
		case n, ok := <-g.Notices():
			if !ok {
				vm.finish(l, vm.vanished(l))
				return
			}
			tooFast := n == Rebooted && vm.rebooted(l)
			if exit := vm.refresh(l); exit != nil {
				vm.finish(l, exit)
				return
			}
			if tooFast { // it was told to end and did not
				ctx, cancel := context.WithTimeout(context.Background(), undoTime)
				vm.force(ctx, l, &Exit{Failed: true, Who: "host", How: "rebooted too fast"})
				cancel()
			}
		case <-l.gone:
			vm.finish(l, vm.vanished(l))
			return
		}
	}
}

// refresh asks the guest process how it is. It returns the exit record when
// the launch has ended.
func (vm *VM) refresh(l *launch) *Exit {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	for {
		vm.mu.Lock()
		turns := vm.turns
		vm.mu.Unlock()
		st, err := l.guest.State(ctx)
		switch {
		case err != nil:
			return nil // if it is gone, Notices says so
		case !vm.heard(l, st, turns):
			continue
		case st.State != "ended":
			return nil
		case st.Exit == nil:
			return &Exit{Failed: true, Who: "host", How: "ended without a record", At: time.Now()}
		}
		return st.Exit
	}
}

// heard takes what the guest process said, unless the machine has turned
// since then: that may be older than what the verb knew that turned it.
func (vm *VM) heard(l *launch, st GuestState, turns uint64) bool {
	vm.mu.Lock()
	if vm.turns != turns {
		vm.mu.Unlock()
		return false
	}
	l.state = st
	s, isNew, who := vm.state, false, l.asker
	switch st.State {
	case "running", "paused", "stopping":
		s = State(st.State)
		isNew = vm.turnTo(s)
	}
	vm.mu.Unlock()
	vm.turned(isNew, s, who)
	return true
}

// vanished is the record of a guest process that ended without one.
func (vm *VM) vanished(l *launch) *Exit {
	exit := Exit{Failed: true, Who: "host", How: "the guest process died", At: time.Now()}
	if asked := l.killed.Load(); asked != nil {
		asked.At = exit.At
		return asked
	}
	for range 20 { // how is heard from elsewhere, a little later
		if how, ok := vm.m.died.Load(vm.id); ok {
			exit.How += ": " + how.(string)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return &exit
}

// rebooted counts a guest's own reboot as a launch, and ends a guest that
// reboots too fast.
//
// It reports whether it was too fast.
func (vm *VM) rebooted(l *launch) bool {
	vm.m.count.reboots.Add(1)
	vm.event("rebooted", "-", "")
	vm.mu.Lock()
	fast := vm.nextFast()
	if fast < fastLimit {
		vm.fast, vm.lastRun = fast, time.Now()
	}
	g := l.guest
	vm.mu.Unlock()
	vm.notify(Contents)
	if fast < fastLimit {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	if err := g.Kill(ctx, "host", "rebooted too fast", true); err != nil {
		vm.failed(err)
	}
	return true
}

// finish records the end of a launch: its console and its exit record are
// kept before the guest process is let go.
func (vm *VM) finish(l *launch, how *Exit) {
	l.finished.Store(true)
	vm.keepConsole(l)
	exit := *how
	vm.overBounds(&exit)
	exit.How, exit.Who = oneLine(exit.How), oneWord(exit.Who)
	if now := time.Now(); exit.At.After(now) { // a time that no file could say, for one
		exit.At = now
	}
	if exit.Failed {
		vm.m.count.failedEnds.Add(1)
	} else {
		vm.m.count.ends.Add(1)
	}
	_, err := vm.update(func(d *definition) (bool, error) {
		d.exit, d.active, d.launched, d.failed = &exit, 0, nil, ""
		if exit.Failed {
			d.failed = exit.How
		}
		return true, nil
	})
	if err != nil {
		vm.failed(err)
	}
	vm.release(l)

	b := before{Stopped, "", exit.At}
	if exit.Failed {
		b.state, b.reason = Failed, exit.How
	}
	vm.over(l, b)
	vm.event(endWord(exit.Failed), exit.Who, exit.How)
	switch {
	case exit.Restart && !vm.m.draining.Load():
		vm.restartBy(exit.Who)
	case !exit.Failed && vm.Get("ephemeral") == "yes":
		if err := vm.in.remove("-", &vm.object); err != nil {
			vm.failed(err)
		}
	}
}

// release lets the guest process go, and sees to it that it is gone.
func (vm *VM) release(l *launch) {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	vm.mu.Lock()
	g := l.guest
	vm.mu.Unlock()
	if g != nil {
		g.Forget(ctx)
		g.Close()
	}
	if err := vm.m.Host.End(ctx, vm.id); err != nil {
		vm.failed(err)
	}
	vm.releaseNICs(ctx, l)
}

// adoptWait is how long a daemon waits before it serves for guest processes
// that do not answer.
const adoptWait = 500 * time.Millisecond

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

// adoptTime bounds each try to speak to a guest process that is there.
const adoptTime = 5 * time.Second

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

// statusText is status without its newline. Called with mu held.
func (vm *VM) statusText() string {
	if vm.state == Failed && vm.reason != "" {
		return string(Failed) + " " + vm.reason
	}
	return string(vm.state)
}

// Status is the text of status.
func (vm *VM) Status() string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.statusText() + "\n"
}

// Waiter waits for the end of the launch that was current when it was made.
type Waiter struct {
	vm *VM
	l  *launch
}

// OpenWait makes a Waiter.
func (vm *VM) OpenWait() *Waiter {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return &Waiter{vm, vm.launch}
}

// Done reports whether Wait returns at once.
func (w *Waiter) Done() bool { return w.l == nil || isClosed(w.l.ended) }

// Wait returns the status that ended the launch, with a newline; the present
// one at once if there was no launch.
func (w *Waiter) Wait(ctx context.Context) (string, error) {
	if w.l == nil {
		return w.vm.Status(), nil
	}
	select {
	case <-w.l.ended:
		return w.l.status + "\n", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
