package ctl

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Verb is a word that ctl and do/VERB take.
type Verb struct {
	Name, Arg, Help string

	// in says what the verb does in each state.
	in map[State]effect
	// act does it, where the effect is does.
	act func(vm *VM, ctx context.Context, by Cred, arg string) error
}

// effect is what a verb does in a state: acts, does nothing, or refuses.
type effect struct {
	acts  bool
	errno syscall.Errno
}

var (
	does    = effect{acts: true}
	nothing = effect{}
)

func refuses(e syscall.Errno) effect { return effect{errno: e} }

// in lists effects in the order of the manual's table: stopped or failed,
// starting, running, paused, stopping.
func in(stopped, starting, running, paused, stopping effect) map[State]effect {
	return map[State]effect{Stopped: stopped, Failed: stopped, Starting: starting, Running: running, Paused: paused, Stopping: stopping}
}

// startIn stands apart for begin, which looks at the state once more.
var startIn = in(does, refuses(syscall.EALREADY), refuses(syscall.EALREADY), refuses(syscall.EALREADY), refuses(syscall.EBUSY))

// Verbs are the verbs of a machine.
var Verbs = []Verb{
	{Name: "start", Help: "returns when the CPUs run, or says why not",
		in: startIn, act: (*VM).doStart},
	{Name: "stop", Arg: "[SECONDS]", Help: "asks the guest, waits SECONDS (120), then kills; returns at once",
		in: in(nothing, does, does, does, does), act: (*VM).doStop},
	{Name: "restart", Arg: "[SECONDS]", Help: "stop and start in one",
		in: in(does, does, does, does, does), act: (*VM).doRestart},
	{Name: "kill", Help: "ends the guest at once",
		in: in(nothing, does, does, does, does), act: (*VM).doKill},
	{Name: "reset", Help: "the button",
		in: in(refuses(syscall.EINVAL), refuses(syscall.EINVAL), does, does, refuses(syscall.EINVAL)), act: (*VM).doReset},
	{Name: "pause", Help: "halts the CPUs",
		in: in(refuses(syscall.EINVAL), refuses(syscall.EINVAL), does, nothing, refuses(syscall.EINVAL)), act: (*VM).doPause},
	{Name: "resume", Help: "lets them run again",
		in: in(refuses(syscall.EINVAL), refuses(syscall.EINVAL), nothing, does, refuses(syscall.EINVAL)), act: (*VM).doResume},
	{Name: "clear-failed", Help: "forgets a failure and the count of fast restarts",
		in: in(does, nothing, does, does, does), act: (*VM).doClear},
}

func verbOf(name string) *Verb {
	if i := slices.IndexFunc(Verbs, func(v Verb) bool { return v.Name == name }); i >= 0 {
		return &Verbs[i]
	}
	return nil
}

func verbNames() string {
	names := make([]string, len(Verbs))
	for i, v := range Verbs {
		names[i] = v.Name
	}
	return strings.Join(names, " ")
}

// Do does a verb. It returns when the verb has done what it does at once;
// only start, restart of a stopped machine and kill wait for the guest
// process. When ctx ends first, a start is undone.
func (vm *VM) Do(ctx context.Context, by Cred, verb, arg string) error {
	v := verbOf(verb)
	if v == nil {
		return Errorf(syscall.EINVAL, "%.40q: no such verb: %s", verb, verbNames())
	}
	if arg != "" && v.Arg == "" {
		return Errorf(syscall.EINVAL, "%s: it takes no argument", verb)
	}
	if _, err := seconds(arg); err != nil {
		return err
	}
	if vm.Removed() {
		return vm.gone()
	}
	vm.mu.Lock()
	state := vm.state
	vm.mu.Unlock()
	switch e := v.in[state]; {
	case e.errno != 0:
		return vm.refuse(e.errno, verb, state)
	case !e.acts:
		return nil
	}
	return v.act(vm, ctx, by, arg)
}

func (vm *VM) refuse(errno syscall.Errno, verb string, state State) error {
	return Errorf(errno, "%s %s: it is %s", verb, vm.Name(), state)
}

// stopTime is how long a guest has to power off when nobody says.
const stopTime = 120 * time.Second

// seconds parses the argument of stop.
func seconds(arg string) (time.Duration, error) {
	if arg == "" {
		return stopTime, nil
	}
	n, err := strconv.ParseUint(arg, 10, 32)
	if err != nil || n > 86400 {
		return 0, Errorf(syscall.EINVAL, "%.20q: not a number of seconds up to a day", arg)
	}
	return time.Duration(n) * time.Second, nil
}

// askTime bounds a request to a guest process that should answer at once.
const askTime = 5 * time.Second

// ask asks the guest process of the present launch, if there is one.
func (vm *VM) ask(ctx context.Context, by Cred, f func(ctx context.Context, g Guest) error) error {
	vm.mu.Lock()
	l := vm.launch
	var g Guest
	if l != nil {
		g, l.asker = l.guest, by.String()
	}
	vm.mu.Unlock()
	if l == nil {
		return nil // it ended meanwhile
	}
	if g == nil {
		return Errorf(syscall.EAGAIN, "%s: its guest process does not answer", vm.Name())
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	err := f(ctx, g)
	if err == context.DeadlineExceeded {
		return Errorf(syscall.EAGAIN, "%s: its guest process does not answer", vm.Name())
	}
	return err
}

func (vm *VM) doStop(ctx context.Context, by Cred, arg string) error {
	return vm.stop(ctx, by, arg, false)
}

func (vm *VM) doRestart(ctx context.Context, by Cred, arg string) error {
	if !vm.Active() {
		return vm.start(ctx, by.String())
	}
	return vm.stop(ctx, by, arg, true)
}

func (vm *VM) stop(ctx context.Context, by Cred, arg string, restart bool) error {
	if ended, err := vm.endStart(ctx, by, "stop", restart); ended {
		return err
	}
	wait, _ := seconds(arg)
	err := vm.ask(ctx, by, func(ctx context.Context, g Guest) error {
		return g.Stop(ctx, wait, by.String(), restart)
	})
	if err == nil {
		vm.turn(Stopping, by.String())
		vm.seeStopped(by, wait)
	}
	return err
}

// stopGrace is how long after its deadline a guest process that keeps it
// itself may take to end.
const stopGrace = 3 * time.Second

// seeStopped ends a guest process that does not keep the deadline of a stop.
func (vm *VM) seeStopped(by Cred, wait time.Duration) {
	vm.mu.Lock()
	l := vm.launch
	vm.mu.Unlock()
	if l == nil {
		return
	}
	go func() {
		ctx := context.Background()
		if gone, _ := l.endsWithin(ctx, wait+stopGrace); gone {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, undoTime)
		defer cancel()
		if err := vm.force(ctx, l, &Exit{Who: by.String(), How: "stop: the guest process did not end it, killed"}); err != nil {
			vm.m.failed("stop %s: %v", vm.Name(), err)
		}
	}()
}

// doKill returns when the guest is gone, so that rmdir may follow.
func (vm *VM) doKill(ctx context.Context, by Cred, _ string) error {
	vm.mu.Lock()
	l := vm.launch
	vm.mu.Unlock()
	if l == nil {
		return nil
	}
	if ended, err := vm.endStart(ctx, by, "kill", false); ended {
		return err
	}
	err := vm.ask(ctx, by, func(ctx context.Context, g Guest) error {
		return g.Kill(ctx, by.String(), "kill", false)
	})
	if err == nil {
		if gone, err := l.endsWithin(ctx, askTime); gone || err != nil {
			return err
		} // it says yes and lives on
	}
	if err := vm.force(ctx, l, &Exit{Who: by.String(), How: "kill"}); err != nil {
		return err
	}
	if gone, err := l.endsWithin(ctx, askTime); gone || err != nil {
		return err
	}
	return Errorf(syscall.ETIMEDOUT, "kill %s: its guest process is still there", vm.Name())
}

// force ends a guest process that does not end when it is asked to.
func (vm *VM) force(ctx context.Context, l *launch, exit *Exit) error {
	l.killed.Store(exit)
	if isClosed(l.ended) {
		return nil // the next launch has the same id
	}
	if err := vm.m.Host.End(ctx, vm.id); err != nil {
		return err
	}
	l.lost()
	return nil
}

// endsWithin waits for the end of a launch.
func (l *launch) endsWithin(ctx context.Context, limit time.Duration) (bool, error) {
	select {
	case <-l.ended:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	case <-time.After(limit):
		return false, nil
	}
}

func (vm *VM) doReset(ctx context.Context, by Cred, _ string) error {
	err := vm.ask(ctx, by, func(ctx context.Context, g Guest) error { return g.Reset(ctx) })
	if err == nil {
		vm.event("reset", by.String(), "")
	}
	return err
}

func (vm *VM) doPause(ctx context.Context, by Cred, _ string) error {
	err := vm.ask(ctx, by, func(ctx context.Context, g Guest) error { return g.Pause(ctx) })
	if err == nil {
		vm.turn(Paused, by.String())
	}
	return err
}

func (vm *VM) doResume(ctx context.Context, by Cred, _ string) error {
	err := vm.ask(ctx, by, func(ctx context.Context, g Guest) error { return g.Resume(ctx) })
	if err == nil {
		vm.turn(Running, by.String())
	}
	return err
}

func (vm *VM) doClear(_ context.Context, by Cred, _ string) error {
	_, err := vm.update(func(d *definition) (bool, error) {
		changed := d.failed != ""
		d.failed = ""
		return changed, nil
	})
	if err != nil {
		return err
	}
	vm.mu.Lock()
	vm.fast, vm.lastRun = 0, time.Time{}
	if vm.state == Failed {
		vm.state, vm.reason, vm.since = Stopped, "", time.Now()
	}
	vm.mu.Unlock()
	vm.event("cleared", by.String(), "")
	vm.changed()
	return nil
}

// Input gives bytes to the console of the running guest, all or none.
func (vm *VM) Input(ctx context.Context, by Cred, p []byte) error {
	if vm.Removed() {
		return vm.gone()
	}
	if !vm.Active() {
		return Errorf(syscall.EAGAIN, "console: %s is %s", vm.Name(), strings.TrimSpace(vm.Status()))
	}
	return vm.ask(ctx, by, func(ctx context.Context, g Guest) error { return g.Input(ctx, p) })
}

// DaemonVerbs are the verbs of the root's ctl.
var DaemonVerbs = []struct{ Name, Arg, Help string }{
	{"shutdown", "", "stops all guests, each by its own ladder, then the daemon"},
	{"reset", "vms|switches|all", "kills all guests, forgets failures and fast restarts; takes down what was made of switches; or both"},
	{"log", "error|info|debug", "what the daemon says on standard error: failures; and what surprised it (info); and every event"},
}

var logLevels = map[string]int32{"log error": 0, "log info": 1, "log debug": 2}

// Ctl does a verb of the root's ctl.
func (m *Manager) Ctl(ctx context.Context, by Cred, line string) error {
	switch line {
	case "shutdown":
		return m.shutdown(ctx, by)
	case "reset vms":
		return m.resetVMs(ctx, by)
	case "reset switches":
		return m.resetSwitches(ctx, by)
	case "reset all":
		err := m.resetVMs(ctx, by)
		if also := m.resetSwitches(ctx, by); err == nil {
			err = also
		}
		return err
	case "log error", "log info", "log debug":
		m.level.Store(logLevels[line])
		return nil
	}
	return Errorf(syscall.EINVAL, "%.40q: not a verb of the daemon: shutdown, reset vms|switches|all, log error|info|debug", line)
}

// resetVMs kills every guest and forgets every failure. It goes on past a
// machine that resists and reports the first.
func (m *Manager) resetVMs(ctx context.Context, by Cred) error {
	var first error
	for _, vm := range m.VMs() {
		err := vm.Do(ctx, by, "kill", "")
		if err == nil {
			err = vm.Do(ctx, by, "clear-failed", "")
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// resetSwitches takes down every switch.
func (m *Manager) resetSwitches(ctx context.Context, by Cred) error {
	var first error
	for _, sw := range m.switches.all() {
		if err := sw.Do(ctx, by, "down", ""); first == nil {
			first = err
		}
	}
	return first
}

// shutdown asks every guest to power off and returns; when all have ended,
// the daemon ends. No machine can be started from then on.
func (m *Manager) shutdown(ctx context.Context, by Cred) error {
	if err := m.Host.Draining(ctx); err != nil {
		return err
	}
	if m.draining.Swap(true) {
		return nil
	}
	m.log.append(0, "-", "shutdown", by.String(), "")
	for _, vm := range m.VMs() {
		if err := vm.Do(ctx, by, "stop", ""); err != nil {
			m.failed("shutdown: %v", err)
		}
	}
	go func() {
		m.WaitIdle(context.Background())
		if err := m.resetSwitches(context.Background(), by); err != nil {
			m.failed("shutdown: %v", err)
		}
		if err := m.Host.Shutdown(context.Background()); err != nil {
			m.failed("shutdown: %v", err)
		}
	}()
	return nil
}
