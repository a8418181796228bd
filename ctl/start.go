package ctl

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// launch is one start of one machine, from its first step until its end is
// recorded. Whatever arrives late from it finds another launch, or none, in
// its VM and is dropped.
type launch struct {
	generation uint64
	started    time.Time
	undo       context.CancelCauseFunc // ends the start; no effect later
	ended      chan struct{}           // closed when the end is recorded
	status     string                  // the status that ended it, once ended
	killed     atomic.Pointer[Exit]    // what to record if the process just vanishes
	finished   atomic.Bool             // its end is being recorded
	gone       chan struct{}           // closed by lost
	goneOnce   sync.Once

	// Under VM.mu.
	guest   Guest  // nil before it was spawned, or while it does not answer
	asker   string // who asked last, for the event of what follows
	restart bool   // start again when this start is undone

	state   GuestState // as it was heard last
	pid     int
	bounds  string         // its cgroup, for info
	console *launchConsole // nil before there is one
	logged  bool           // its console is in STATE/vm/NAME/console
	nics    []*nic
}

// lost says that the guest process is known to be gone.
func (l *launch) lost() { l.goneOnce.Do(func() { close(l.gone) }) }

// Fast restarts: a launch, or a reboot by the guest, less than fastTime after
// the last one counts; the one that would be the third such in a row is
// refused (VM_START_RATE_SEC and _LIMIT of vmd).
const (
	fastTime  = 6 * time.Second
	fastLimit = 3
)

// startTime bounds a start, nativeTime one with the native engine, and
// undoTime what follows when it failed.
const (
	startTime  = 15 * time.Second
	nativeTime = 5 * time.Second
	undoTime   = 5 * time.Second
)

// Steps are what a start does, in order, with NICSteps after record. A test
// ends the processes at each.
var Steps = []string{"check", "open", "record", "spawn", "give", "go", "running"}

func (vm *VM) doStart(ctx context.Context, by Cred, _ string) error {
	return vm.start(ctx, by.String())
}

// start launches the machine and returns when its CPUs run. When it fails,
// all that it opened is closed and the machine is failed; when ctx ended it,
// the machine is what it was.
func (vm *VM) start(ctx context.Context, who string) error {
	own, undo := context.WithCancelCause(ctx)
	defer undo(nil)
	l, before, err := vm.begin(who, undo)
	if err != nil {
		return err
	}
	own, cancel := context.WithTimeoutCause(own, startTime, tooLong(startTime))
	defer cancel()
	vm.event("starting", who, "")
	if err = vm.perform(own, l); err == nil {
		go vm.watch(l)
		return nil
	}
	if cause := context.Cause(own); cause != nil {
		err = cause
	}
	return vm.abandon(l, before, who, err)
}

// tooLong is why a start ends that lasts longer than it may.
func tooLong(limit time.Duration) error {
	return Errorf(syscall.ETIMEDOUT, "the guest did not run within %v", limit)
}

// startEnded is the cause when another verb ends a start.
type startEnded struct{ verb, by string }

func (e *startEnded) Error() string { return "ended by " + e.verb + " of " + e.by }

// before is what a machine was before a start, or is without one.
type before struct {
	state  State
	reason string
	since  time.Time
}

// begin makes the machine starting, if it may start now.
func (vm *VM) begin(who string, undo context.CancelCauseFunc) (*launch, before, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	b := before{vm.state, vm.reason, vm.since}
	switch {
	case vm.Removed():
		return nil, b, vm.gone()
	case vm.launch != nil:
		return nil, b, vm.refuse(startIn[vm.state].errno, "start", vm.state)
	case vm.held:
		return nil, b, Errorf(syscall.EBUSY, "start %s: it is being removed or renamed", vm.Name())
	case vm.m.draining.Load():
		return nil, b, Errorf(syscall.EBUSY, "start %s: the daemon is shutting down", vm.Name())
	case vm.nextFast() >= fastLimit:
		return nil, b, Errorf(syscall.EAGAIN, "start %s: started %d times in a row within %v of each other; allowed again in %v, or after clear-failed",
			vm.Name(), fastLimit, fastTime, vm.startAllowed().Round(time.Millisecond))
	}
	l := &launch{undo: undo, ended: make(chan struct{}), gone: make(chan struct{}), asker: who}
	vm.launch = l
	vm.state, vm.reason, vm.since = Starting, "", time.Now()
	return l, b, nil
}

// nextFast is what the count of fast restarts would be with a launch now.
func (vm *VM) nextFast() int {
	if vm.lastRun.IsZero() || time.Since(vm.lastRun) >= fastTime {
		return 0
	}
	return vm.fast + 1
}

// startAllowed is how long a start is still refused as too fast.
func (vm *VM) startAllowed() time.Duration {
	if vm.nextFast() < fastLimit {
		return 0
	}
	return fastTime - time.Since(vm.lastRun)
}

// perform does the Steps. Files that it opened are closed when it returns:
// the guest process has its own.
func (vm *VM) perform(ctx context.Context, l *launch) error {
	began := time.Now()
	vm.changed()
	d := vm.def.Load()
	if err := vm.charge(d); err != nil {
		return err
	}
	atStep(vm.m.State, "check")
	engines, err := vm.chooser(ctx, d)
	if err != nil {
		return err
	}
	if _, err := engines.choose(nil); err != nil {
		return err
	}
	if err := d.complete(); err != nil {
		return err
	}
	spec := &Launch{ID: vm.id, Name: vm.Name()}
	d.describe(spec)
	defer spec.Close()

	atStep(vm.m.State, "open")
	if err := vm.open(ctx, d, spec); err != nil {
		return err
	}
	if err := engines.settle(spec); err != nil {
		return err
	}
	if spec.Accel == accelNative {
		late := time.AfterFunc(nativeTime-time.Since(began), func() { l.undo(tooLong(nativeTime)) })
		defer late.Stop()
		vm.unpackedKernel(ctx, d, spec)
	}
	atStep(vm.m.State, "record")
	if err := vm.recordLaunch(l, d, spec); err != nil {
		return err
	}
	if err := vm.connect(ctx, l, d, spec); err != nil {
		return err
	}
	g, err := vm.spawn(ctx, l, spec)
	if err != nil {
		return err
	}
	atStep(vm.m.State, "give")
	if err := g.Give(ctx, spec); err != nil {
		return vm.nameHolder(err, spec)
	}
	atStep(vm.m.State, "go")
	if err := g.Go(ctx); err != nil {
		return err
	}
	atStep(vm.m.State, "running")
	return vm.ran(ctx, l)
}

// spawn starts the guest process of a launch.
func (vm *VM) spawn(ctx context.Context, l *launch, spec *Launch) (Guest, error) {
	atStep(vm.m.State, "spawn")
	vm.m.died.Delete(vm.id)
	g, pid, err := vm.m.Host.Spawn(ctx, spec.process())
	if err != nil {
		return nil, err
	}
	vm.mu.Lock()
	l.guest, l.pid = g, pid
	l.console = newLaunchConsole(g.Console())
	vm.mu.Unlock()
	vm.changed() // who waits for a console has one
	vm.learnBounds(ctx, l)
	return g, nil
}

// complete refuses what no engine could start.
func (d *definition) complete() error {
	if err := d.understood(); err != nil {
		return err
	}
	for _, attr := range []string{"initrd", "cmdline"} {
		if d.get(attr) != "" && d.get("kernel") == "" {
			return Errorf(syscall.EINVAL, "%s: it needs a kernel", attr)
		}
	}
	if d.get("kernel") != "" && d.get("firmware") != "" {
		return Errorf(syscall.EINVAL, "firmware: a kernel is set too, and starts without it")
	}
	if d.get("boot") == "cdrom" && d.get("cdrom") == "" {
		return Errorf(syscall.EINVAL, "boot: there is no cdrom")
	}
	for _, n := range d.numbers("disk") {
		if d.get(diskAttr(n, "path")) == "" {
			return Errorf(syscall.EINVAL, "disk/%d: it has no path", n)
		}
	}
	for _, n := range d.numbers("nic") {
		if err := d.alone(n); err != nil {
			return err
		}
	}
	return nil
}

// describe fills in what is said in the definition itself.
func (d *definition) describe(spec *Launch) {
	spec.CPUs = atoi(d.get("cpus"))
	spec.MemoryMiB = atoi(strings.TrimSuffix(d.get("memory"), "M"))
	spec.Boot = d.get("boot")
	spec.Cmdline = d.get("cmdline")
}

// atoi reads a canonical number.
func atoi(s string) (n int) {
	for _, c := range s {
		n = n*10 + int(c-'0')
	}
	return n
}

// recordLaunch gives the launch its generation, for good, before anything of
// it exists. A format that was looked at is kept from now on.
func (vm *VM) recordLaunch(l *launch, was *definition, spec *Launch) error {
	_, err := vm.update(func(d *definition) (bool, error) {
		if d.get("cdrom") != was.get("cdrom") {
			return false, Errorf(syscall.EAGAIN, "cdrom: changed while the machine was starting")
		}
		if n, differs := was.nicsDiffer(d); differs {
			return false, Errorf(syscall.EAGAIN, "nic/%d: changed while the machine was starting", n)
		}
		d.generation++
		spec.Generation = d.generation
		vm.mu.Lock()
		l.generation = d.generation
		vm.mu.Unlock()
		d.launched = was.values()
		for _, disk := range spec.Disks {
			format := diskAttr(disk.N, "format")
			if d.parts[Part{"disk", disk.N}] && d.get(format) == "auto" && d.get(diskAttr(disk.N, "path")) == was.get(diskAttr(disk.N, "path")) {
				d.attrs[format] = value{disk.Images[0].Format, d.attrs[diskAttr(disk.N, "path")].uid, time.Now()}
				d.settled[disk.N] = true
				d.launched[format] = disk.Images[0].Format
			}
		}
		return true, nil
	})
	return err
}

// ran notes that the CPUs run.
func (vm *VM) ran(ctx context.Context, l *launch) error {
	st, err := l.guest.State(ctx)
	if err != nil {
		return err
	}
	vm.mu.Lock()
	if ctx.Err() != nil { // ended meanwhile
		vm.mu.Unlock()
		return context.Cause(ctx)
	}
	fast := vm.nextFast()
	vm.fast, vm.lastRun = fast, time.Now()
	l.started, l.state = vm.lastRun, st
	vm.state, vm.since = Running, vm.lastRun
	who := l.asker
	vm.mu.Unlock()
	vm.m.count.starts.Add(1)
	vm.event("running", who, "generation "+utoa(l.generation))
	vm.changed()
	// The start is answered without waiting for the disk: a guest that is
	// found running is adopted whether or not this was written.
	vm.m.behind.RLock()
	go func() {
		defer vm.m.behind.RUnlock()
		vm.recordActive(l)
	}()
	return nil
}

func (vm *VM) recordActive(l *launch) {
	_, err := vm.update(func(d *definition) (bool, error) {
		if l.finished.Load() {
			return false, nil
		}
		d.active, d.failed = l.generation, ""
		return true, nil
	})
	if err != nil && !vm.Removed() {
		vm.failed(err)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// abandon undoes a start that did not succeed and says what the starter is
// told.
func (vm *VM) abandon(l *launch, b before, who string, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	vm.mu.Lock()
	g, restart := l.guest, l.restart
	vm.mu.Unlock()
	if g != nil {
		vm.keepConsole(l)
		g.Close()
	}
	if l.generation != 0 {
		if eerr := vm.m.Host.End(ctx, vm.id); eerr != nil {
			vm.failed(eerr)
		}
	}
	vm.releaseNICs(ctx, l)
	var by *startEnded
	switch {
	case errors.As(err, &by):
		vm.undone(l, before{Stopped, "", time.Now()}, by.by, by.Error())
		// Not EINTR: a shell would write once more, and so start again.
		err = Errorf(syscall.EAGAIN, "start %s: %v", vm.Name(), by)
	case errors.Is(err, context.Canceled):
		vm.undone(l, b, who, "interrupted")
		err = Errorf(syscall.EINTR, "start %s: interrupted", vm.Name())
	default:
		err = Errorf(Errno(err), "start %s: %v", vm.Name(), err)
		vm.m.count.failedStarts.Add(1)
		vm.fail(l, who, err.Error())
	}
	if restart {
		vm.restartBy(who)
	}
	return err
}

// undone gives the machine the state b after a start that was ended.
func (vm *VM) undone(l *launch, b before, who, why string) {
	vm.over(l, b)
	vm.event("undone", who, why)
}

// fail makes the machine failed, for good, with a reason.
func (vm *VM) fail(l *launch, who, reason string) {
	reason = oneLine(reason)
	_, err := vm.update(func(d *definition) (bool, error) {
		d.failed, d.active, d.launched = reason, 0, nil
		return true, nil
	})
	if err != nil {
		vm.failed(err)
	}
	vm.over(l, before{Failed, reason, time.Now()})
	vm.event("failed", who, reason)
}

// over takes a launch whose end is recorded out of the machine, which is b from
// then on. That is one step: whoever sees it stopped may start or remove it.
func (vm *VM) over(l *launch, b before) {
	vm.mu.Lock()
	vm.state, vm.reason, vm.since = b.state, b.reason, b.since
	l.status = vm.statusText()
	vm.launch = nil
	vm.charged.Store(nil)
	vm.mu.Unlock()
	close(l.ended)
	vm.changed()
	vm.m.activity.fire()
}

// endStart ends a start that is under way, and waits until it is undone.
func (vm *VM) endStart(ctx context.Context, by Cred, verb string, restart bool) (bool, error) {
	vm.mu.Lock()
	l := vm.launch
	starting := l != nil && vm.state == Starting
	if starting {
		l.restart, l.asker = restart, by.String()
		l.undo(&startEnded{verb, by.String()}) // with mu held: ran either saw it or is over
	}
	vm.mu.Unlock()
	if !starting {
		return false, nil
	}
	select {
	case <-l.ended:
		return true, nil
	case <-ctx.Done():
		return true, ctx.Err()
	}
}

// restartBy starts the machine again on its own time.
func (vm *VM) restartBy(who string) {
	go func() {
		if err := vm.start(context.Background(), who); err != nil {
			vm.m.failed("restart %s: %v", vm.Name(), err)
		}
	}()
}
