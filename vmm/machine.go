package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"vmfs/ctl"
	"vmfs/vmm/console"
	"vmfs/vmm/engine"
)

// Bounds of a machine's life.
const (
	goTime   = 15 * time.Second // from go until the CPUs run
	keysTime = 3 * time.Second  // from the power button to Ctrl-Alt-Del, at most
	killTime = 5 * time.Second  // for a killed QEMU to be gone
	// A reboot is several resets: a kernel tries one way after the other,
	// and the BIOS, finding that it ran before, resets once more.
	resetTime = time.Second
)

// The states of a machine, as state says them.
const (
	stateNew      = "new"
	stateRunning  = "running"
	statePaused   = "paused"
	stateStopping = "stopping"
	stateEnded    = "ended"
)

// machine is the one launch of this process, from before it until after it.
type machine struct {
	id    uint32
	accel string

	outward  bool   // this process has a network
	unjailed string // why it has no namespaces, if it has none

	boot   func(context.Context, *engine.Spec, func(engine.Event)) (engine.Engine, error)
	seal   func() error     // called once QEMU runs: no program is executed any more
	tell   func(ctl.Notice) // does not wait
	forget func()           // called when core took the record
	screen *console.Writer
	input  *input
	ended  chan struct{}

	launching sync.Mutex // for launch; held while it is put together or started
	launch    launch
	button    sync.Mutex // held while a button is pressed, one at a time

	mu         sync.Mutex // for what follows; never held while waiting
	about      about
	state      string
	told       bool               // it is too late to change the launch
	giveUp     context.CancelFunc // of a go that is under way
	engine     engine.Engine
	engineName string // "qemu 7.2.22 tcg"
	started    time.Time
	reboots    int
	lastReset  time.Time // the first of several
	stop       *stopping
	kill       *verdict
	exit       *ctl.Exit
	usedLast   ctl.Usage
}

// accelNative is the accel of which no QEMU is a part.
const accelNative = "native"

// stopping is a stop that was asked for.
type stopping struct {
	by       string
	restart  bool
	wait     time.Duration // what the deadline was made of, for the record
	deadline time.Time
	sooner   chan struct{} // has something when the deadline has moved
}

// verdict is what an end by force is recorded as.
type verdict struct {
	who, how string
	failed   bool
}

func newMachine(id uint32, accel string) (*machine, error) {
	screen, err := console.NewWriter()
	if err != nil {
		return nil, err
	}
	return &machine{
		id:     id,
		accel:  accel,
		seal:   func() error { return nil },
		tell:   func(ctl.Notice) {},
		forget: func() {},
		screen: screen,
		input:  newInput(),
		ended:  make(chan struct{}),
		state:  stateNew,
	}, nil
}

// edit changes the launch, which is possible until go.
func (m *machine) edit(change func(*launch) error) error {
	m.launching.Lock()
	defer m.launching.Unlock()
	m.mu.Lock()
	late := m.told || m.state != stateNew
	m.mu.Unlock()
	if late {
		return ctl.Errorf(syscall.EEXIST, "launch: under way already")
	}
	if err := change(&m.launch); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.about = m.launch.about
	return nil
}

// start lets the CPUs go and returns when they run. Whatever it returns,
// there is no second one; an error is the end of the launch.
func (m *machine) start() error {
	m.launching.Lock()
	defer m.launching.Unlock()
	ctx, cancel := context.WithTimeoutCause(context.Background(), goTime,
		ctl.Errorf(syscall.ETIMEDOUT, "go: the CPUs do not run after %v", goTime))
	defer cancel()
	m.mu.Lock()
	if m.told || m.state != stateNew {
		m.mu.Unlock()
		return ctl.Errorf(syscall.EEXIST, "go: under way already")
	}
	m.told = true
	m.giveUp = cancel
	m.mu.Unlock()

	err := m.run(ctx)
	m.launch.release()
	if err != nil {
		m.finish(func(now time.Time) *ctl.Exit { return m.failedStart(err, now) })
	}
	return err
}

// run starts the engine.Engine, connects the console and lets the CPUs go.
func (m *machine) run(ctx context.Context) error {
	spec, err := m.launch.complete()
	if err != nil {
		return err
	}
	spec.ID, spec.Screen = m.id, m.screen
	e, err := m.boot(ctx, spec, m.event)
	if err != nil {
		return err
	}
	go m.input.feed(e.Input())
	if err := m.release(ctx, e); err != nil {
		e.Close()
		<-e.Done()
		return err
	}
	go m.attend(e)
	m.tell(ctl.StateChanged)
	return nil
}

// release seals this process and lets the CPUs go.
func (m *machine) release(ctx context.Context, e engine.Engine) error {
	if err := m.seal(); err != nil {
		return err
	}
	if err := e.Continue(ctx); err != nil {
		return err
	}
	runs, err := e.Running(ctx)
	if err != nil {
		return err
	}
	if !runs {
		return ctl.Errorf(syscall.EIO, "go: the CPUs do not run")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil { // asked to end meanwhile
		return context.Cause(ctx)
	}
	m.engine, m.state, m.started, m.giveUp = e, stateRunning, time.Now(), nil
	m.engineName = e.Name()
	return nil
}

// attend waits for the engine's end and records it.
func (m *machine) attend(e engine.Engine) {
	<-e.Done()
	used, _ := e.Usage()
	e.Close()
	m.finish(func(now time.Time) *ctl.Exit {
		m.usedLast = used
		return record(e.End(), m.stop, m.kill, now)
	})
}

// finish records the end, once. exit is called with mu held.
func (m *machine) finish(exit func(time.Time) *ctl.Exit) {
	m.mu.Lock()
	if m.state == stateEnded {
		m.mu.Unlock()
		return
	}
	m.exit = exit(time.Now())
	m.state, m.engine, m.giveUp = stateEnded, nil, nil
	m.mu.Unlock()
	m.input.close()
	close(m.ended)
	m.tell(ctl.StateChanged)
}

// failedStart is the record of a launch that did not come to run.
func (m *machine) failedStart(err error, now time.Time) *ctl.Exit {
	exit := &ctl.Exit{Failed: true, Who: "host", How: printable(err.Error(), "failed"), At: now}
	switch {
	case m.kill != nil:
		exit.Failed, exit.Who, exit.How = m.kill.failed, m.kill.who, m.kill.how
	case m.stop != nil:
		exit.Failed, exit.Who, exit.How, exit.Restart = false, m.stop.by, "stop", m.stop.restart
	}
	return exit
}

// record says how a launch ended, from how its engine did and what was asked
// for.
func record(end engine.End, stop *stopping, kill *verdict, now time.Time) *ctl.Exit {
	exit := &ctl.Exit{At: now}
	switch {
	case kill != nil && end.Killed: // else it came too late
		exit.Failed, exit.Who, exit.How = kill.failed, kill.who, kill.how
	case end.Reason == engine.GuestPanic:
		exit.Failed, exit.Who, exit.How = true, "guest", "panic"
	case stop != nil && (end.Reason == engine.GuestOff || end.Reason == engine.Quit):
		exit.Who, exit.How = stop.by, "stop"
	case end.Reason == engine.GuestOff:
		exit.Who, exit.How = "guest", "power-off"
	case end.Reason == engine.GuestCrash:
		exit.Failed, exit.Who, exit.How = true, "guest", printable(end.Text, "crash")
	default:
		exit.Failed, exit.Who, exit.How = true, "host", printable(end.Text, "failed")
	}
	if stop != nil {
		exit.Restart = stop.restart
	}
	return exit
}

// event is called by the engine and must not wait.
func (m *machine) event(e engine.Event) {
	m.mu.Lock()
	var news []ctl.Notice
	switch {
	case e == engine.GuestReset && m.state == stateStopping:
		// It was asked to end and chose to begin again: that is the end.
		if e := m.engine; e != nil {
			go e.Quit(context.Background())
		}
	case e == engine.HostReset:
		m.lastReset = time.Now()
	case e == engine.GuestReset && time.Since(m.lastReset) > resetTime:
		m.lastReset = time.Now()
		m.reboots++
		news = append(news, ctl.Rebooted)
	case e == engine.Stopped && m.state == stateRunning:
		m.state = statePaused
		news = append(news, ctl.StateChanged)
	case e == engine.Resumed && m.state == statePaused:
		m.state = stateRunning
		news = append(news, ctl.StateChanged)
	}
	m.mu.Unlock()
	for _, n := range news {
		m.tell(n)
	}
}

// press presses a button, which do does, if the machine is in one of states.
// In the state idle there is nothing to do.
func (m *machine) press(what, idle string, states []string, do func(engine.Engine) error) error {
	m.button.Lock()
	defer m.button.Unlock()
	m.mu.Lock()
	state, e := m.state, m.engine
	m.mu.Unlock()
	if state == idle {
		return nil
	}
	if slices.Contains(states, state) {
		return unlessEnded(what, e, do(e))
	}
	return ctl.Errorf(syscall.EINVAL, "%s: the machine is %s", what, state)
}

// unlessEnded turns the error of a button whose machine ended under it into
// that.
func unlessEnded(what string, e engine.Engine, err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-e.Done():
		return ctl.Errorf(syscall.EINVAL, "%s: the machine is ended", what)
	default:
		return err
	}
}

func (m *machine) pause(ctx context.Context) error {
	return m.press("pause", statePaused, []string{stateRunning}, func(e engine.Engine) error {
		return m.moved(e.Pause(ctx), stateRunning, statePaused)
	})
}

func (m *machine) resume(ctx context.Context) error {
	return m.press("resume", stateRunning, []string{statePaused}, func(e engine.Engine) error {
		return m.moved(e.Continue(ctx), statePaused, stateRunning)
	})
}

func (m *machine) reset(ctx context.Context) error {
	return m.press("reset", "", []string{stateRunning, statePaused}, func(e engine.Engine) error {
		return e.Reset(ctx)
	})
}

// insert changes what is in the cdrom drive; nil leaves it empty. f stays the
// caller's; its lock is QEMU's then. A machine that has ended has no drive,
// and nothing happens.
func (m *machine) insert(ctx context.Context, f *os.File) error {
	if f != nil {
		if err := lockMedium(f); err != nil {
			return err
		}
	}
	return m.press("cdrom", stateEnded, []string{stateRunning, statePaused, stateStopping}, func(e engine.Engine) error {
		return e.Insert(ctx, f)
	})
}

// moved changes the state after a button that worked, if the engine's event
// has not done so yet.
func (m *machine) moved(err error, from, to string) error {
	if err != nil {
		return err
	}
	m.mu.Lock()
	change := m.state == from
	if change {
		m.state = to
	}
	m.mu.Unlock()
	if change {
		m.tell(ctl.StateChanged)
	}
	return nil
}

// stopIn asks the guest to power off and kills it after wait. On a machine
// that is stopping already the shorter deadline holds, and nothing else
// changes; on one that has ended nothing happens.
func (m *machine) stopIn(wait time.Duration, by string, restart bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	deadline := time.Now().Add(wait)
	switch {
	case m.state == stateEnded:
	case m.stop != nil:
		if deadline.Before(m.stop.deadline) {
			m.stop.deadline, m.stop.wait = deadline, wait
			select {
			case m.stop.sooner <- struct{}{}:
			default:
			}
		}
	default:
		m.stop = &stopping{by: by, restart: restart, wait: wait, deadline: deadline, sooner: make(chan struct{}, 1)}
		if m.state == stateNew {
			m.abandon()
			return
		}
		paused := m.state == statePaused
		m.state = stateStopping
		go m.ladder(m.engine, m.stop, paused)
	}
}

// abandon ends a launch that does not run yet. mu is held.
func (m *machine) abandon() {
	if m.giveUp != nil {
		m.giveUp() // start records the end
		return
	}
	if m.told {
		return
	}
	m.told = true
	go func() {
		m.finish(func(now time.Time) *ctl.Exit { return m.failedStart(errors.New("not started"), now) })
		m.launching.Lock() // a file that cannot be read may keep it for long
		defer m.launching.Unlock()
		m.launch.release()
	}()
}

// ladder is how a guest is stopped: the power button, Ctrl-Alt-Del for those
// that do not know the button, and force. It ends with the machine, whether
// anybody is there to see it or not.
func (m *machine) ladder(e engine.Engine, s *stopping, paused bool) {
	m.tell(ctl.StateChanged)
	m.powerButton(e, paused)
	m.mu.Lock()
	keys := time.After(min(keysTime, s.wait/2))
	m.mu.Unlock()
	for {
		m.mu.Lock()
		left := time.Until(s.deadline)
		m.mu.Unlock()
		select {
		case <-e.Done():
			return
		case <-s.sooner:
		case <-keys:
			keys = nil
			go e.CtrlAltDel(context.Background())
		case <-time.After(left):
			m.noAnswer(e, s)
			return
		}
	}
}

// powerButton presses it, after a pause is over: a guest that stands still
// does not feel it. What goes wrong here the deadline takes care of.
func (m *machine) powerButton(e engine.Engine, paused bool) {
	m.button.Lock()
	defer m.button.Unlock()
	if paused {
		e.Continue(context.Background())
	}
	e.PowerButton(context.Background())
}

// noAnswer is the last rung.
func (m *machine) noAnswer(e engine.Engine, s *stopping) {
	m.mu.Lock()
	if m.kill == nil {
		m.kill = &verdict{who: s.by, how: fmt.Sprintf("stop: no answer in %d s, killed", int(s.wait.Seconds()))}
	}
	m.mu.Unlock()
	e.Kill()
}

// end kills the machine and waits a moment until it is gone. On one that has
// ended nothing happens.
func (m *machine) end(v verdict) {
	m.mu.Lock()
	if m.state != stateEnded && m.kill == nil {
		m.kill = &v
	}
	switch {
	case m.state == stateEnded:
	case m.engine != nil:
		m.engine.Kill()
	default:
		m.abandon()
	}
	m.mu.Unlock()
	select {
	case <-m.ended:
	case <-time.After(killTime):
	}
}

// phase is the state, and whether the launch was told to go or to end.
func (m *machine) phase() (state string, told bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state, m.told
}

// status is what is known of the launch.
func (m *machine) status() ctl.GuestState {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := ctl.GuestState{
		Generation: m.about.generation,
		Name:       m.about.name,
		State:      m.state,
		Started:    m.started,
		Reboots:    m.reboots,
		Engine:     m.engineName,
		Reason:     m.reason(),
	}
	if m.exit != nil {
		exit := *m.exit
		s.Exit = &exit
	}
	return s
}

// usage is what the launch costs, or what it has cost.
func (m *machine) usage() (ctl.Usage, error) {
	m.mu.Lock()
	e, last := m.engine, m.usedLast
	m.mu.Unlock()
	if e == nil {
		return last, nil
	}
	return e.Usage()
}

// close ends what there is, and releases the console.
func (m *machine) close() {
	m.end(verdict{who: "host", how: "the guest process ended", failed: true})
	if m.launching.TryLock() {
		m.launch.release()
		m.launching.Unlock()
	}
	m.screen.Close()
}
