package ctl

import (
	"context"
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
