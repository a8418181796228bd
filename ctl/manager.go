package ctl

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Options are what a Manager is made of.
type Options struct {
	State   string // an existing directory that this process may write
	Boot    string // names this boot of the host; empty if that is not known
	Version string // of the program
	Host    Host
	Log     func(format string, args ...any) // a line for the operator; nil for silence
}

// Manager holds every machine, every switch and the limits of users. It is made
// by Open and lives as long as the process.
type Manager struct {
	Options
	started  time.Time
	log      *eventLog
	refused  refusals
	onChange atomic.Pointer[func(Change)]

	making sync.Mutex // one of mkdir, rmdir, mv and chmod of a file of no object at a time
	root   rootState
	used   uint64 // serial numbers given out

	mu sync.RWMutex // of root

	vms      *shelf[*VM]
	switches *shelf[*Switch]
	users    *shelf[*User]
	kinds    map[string]shelved // by the directory in the tree
	macs     macs
	charging sync.Mutex // one launch is charged at a time
	leases   *leaser

	count    counters
	died     sync.Map     // words of Exited, by id
	behind   sync.RWMutex // read-locked by writes that nobody waits for but Close
	level    atomic.Int32 // of the log
	draining atomic.Bool
	activity *signal // fires when a machine becomes active or ends
}

// Change tells that files are not what they were, for a door that caches.
type Change struct {
	Obj  Object // nil for files of none
	Name string
	What What
}

// What happened to the files of a Change.
type What int

const (
	Created  What = iota // Name is there
	Removed              // Name is gone
	Renamed              // Name is gone, Obj.Name is there
	Contents             // sizes and times
	Policy               // modes and owners
)

// Open loads every definition below o.State and takes up the guests that run.
// A definition that cannot be read keeps its name and is reported; a STATE of
// another format is an error.
func Open(ctx context.Context, o Options) (*Manager, error) {
	root, err := loadRootState(o.State)
	if err != nil {
		return nil, fmt.Errorf("state %s: %w", o.State, err)
	}
	log, err := openEventLog(o.State, o.Boot)
	if err != nil {
		return nil, fmt.Errorf("state %s: %w", o.State, err)
	}
	m := &Manager{Options: o, started: time.Now(), log: log, root: root, used: root.serials, activity: newSignal()}
	m.vms = newShelf(m, machines, m.newVM)
	m.switches = newShelf(m, switches, m.newSwitch)
	m.users = newShelf(m, users, m.newUser)
	m.vms.admit, m.users.admit = m.admitVM, m.admitUser
	m.kinds = map[string]shelved{machines.dir: m.vms, switches.dir: m.switches, users.dir: m.users}
	m.leases = newLeaser(m)
	m.level.Store(logLevels["log info"])
	log.debug = func(line string) { m.tell(2, "%s", line) }
	if err := m.load(); err != nil {
		return nil, err
	}
	if err := m.makeDefault(); err != nil {
		return nil, err
	}
	m.forgetRemoved()
	if err := m.adoptAll(ctx); err != nil {
		return nil, err
	}
	m.reconcile(ctx)
	m.log.append(0, "-", "serving", "-", o.Version)
	return m, nil
}

// Exited says how the guest process of a machine ended, in words, as soon as
// that is known. It decides nothing: that a guest is gone is heard from the
// end of the conversation with it.
func (m *Manager) Exited(id uint32, how string) { m.died.Store(id, how) }

// Close waits until what was done is written. Guests run on; the caller ends
// the process.
func (m *Manager) Close() {
	m.leases.close()
	m.behind.Lock()
	defer m.behind.Unlock()
}

// tell says something to the operator who asked for that level.
func (m *Manager) tell(level int32, format string, args ...any) {
	if m.Log != nil && m.level.Load() >= level {
		m.Log(format, args...)
	}
}

// failed tells of a failure, surprised of what no one has to act on.
func (m *Manager) failed(format string, args ...any)    { m.tell(0, format, args...) }
func (m *Manager) surprised(format string, args ...any) { m.tell(1, format, args...) }

func (m *Manager) removedDir() string { return filepath.Join(m.State, "removed") }

// load reads every definition.
func (m *Manager) load() error {
	if err := m.makeDirs(); err != nil {
		return err
	}
	for _, dir := range sortedKeys(m.kinds) {
		if err := m.kinds[dir].load(); err != nil {
			return err
		}
	}
	for _, vm := range m.VMs() {
		m.macs.note(vm, nil, vm.def.Load())
	}
	return nil
}

// makeDirs makes the directories below STATE that are not there. What a daemon
// that was killed did in them is certain from here on.
func (m *Manager) makeDirs() error {
	dirs := []string{m.removedDir()}
	for _, s := range m.kinds {
		dirs = append(dirs, s.dir())
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return syncDir(append(dirs, m.State)...)
}

// Find finds an object in a directory of objects.
func (m *Manager) Find(dir, name string) (Object, bool) { return m.kinds[dir].find(name) }

// List has the objects of a directory, by name. The slice is not to be
// changed, and is the same as long as none comes or goes.
func (m *Manager) List(dir string) []Object { return m.kinds[dir].list() }

// Make makes an object that belongs to by and gid. mode is the directory's.
// EINVAL for a name that none can have, EEXIST.
func (m *Manager) Make(by Cred, dir, name string, mode, gid uint32) (Object, error) {
	return m.kinds[dir].create(by, name, mode, gid)
}

// VM finds a machine; nil if there is none of that name.
func (m *Manager) VM(name string) *VM {
	vm, _ := m.vms.named(name)
	return vm
}

// VMs are all machines, by name. The slice is not to be changed.
func (m *Manager) VMs() []*VM { return m.vms.all() }

// Create is Make of a machine.
func (m *Manager) Create(by Cred, name string, mode, gid uint32) (*VM, error) {
	return m.vms.make(by, name, mode, gid)
}

// Switch finds a switch; nil if there is none of that name.
func (m *Manager) Switch(name string) *Switch {
	sw, _ := m.switches.named(name)
	return sw
}

// CreateFree makes a machine with a name that is free: vm and a number.
func (m *Manager) CreateFree(by Cred, mode, gid uint32) (*VM, error) {
	for n := 1; ; n++ {
		name := "vm" + strconv.Itoa(n)
		if m.vms.taken(name) {
			continue
		}
		vm, err := m.Create(by, name, mode, gid)
		if Errno(err) != syscall.EEXIST {
			return vm, err
		}
	}
}

// nextSerial gives a number that was never given before, over restarts too.
// Called with making held.
func (m *Manager) nextSerial() (uint64, error) {
	if m.used >= m.root.serials {
		r := m.root
		r.serials = m.used + serialBlock
		if err := m.setRoot(r); err != nil {
			return 0, err
		}
	}
	m.used++
	return m.used - 1, nil
}

// Remove forgets an object: its directory goes to STATE/removed. EBUSY while
// a machine is active, or a switch has NICs attached.
func (m *Manager) Remove(by Cred, o Object) error {
	return o.base().in.remove(by.String(), o.base())
}

// Rename gives an object that could be removed another name. EEXIST if that
// is taken, EBUSY.
func (m *Manager) Rename(by Cred, o Object, name string) error {
	return o.base().in.rename(by, o.base(), name)
}

// setRoot changes what is known of no object, for good. Called with making
// held.
func (m *Manager) setRoot(r rootState) error {
	if err := replaceFile(m.State, "vmfs", r.text()); err != nil {
		return err
	}
	m.mu.Lock()
	m.root = r
	m.mu.Unlock()
	return syncDir(m.State)
}

// Access is who may do what with a file of no object, by its path below the
// root; def is what holds until somebody changes it.
func (m *Manager) Access(path string, def Access) Access {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if n, ok := m.root.nodes[path]; ok {
		return n.over(def)
	}
	return def
}

// SetAccess changes it, for good.
func (m *Manager) SetAccess(by Cred, path string, c AccessChange) error {
	m.making.Lock()
	defer m.making.Unlock()
	r := m.root
	r.nodes = make(map[string]node, len(m.root.nodes)+1)
	for k, v := range m.root.nodes {
		r.nodes[k] = v
	}
	if !change(r.nodes, path, c) {
		return nil
	}
	if err := m.setRoot(r); err != nil {
		return saveError("chmod "+path, err)
	}
	m.log.append(0, "-", "access", by.String(), path)
	m.changed(Change{nil, path, Policy})
	return nil
}

// Refused remembers for err that by was refused something of a file, by its
// path below the root.
func (m *Manager) Refused(by Cred, file string, err error) {
	m.count.refusals.Add(1)
	m.refused.add(by, file, err)
}

// Refusals is what a user was refused of files whose path begins with prefix;
// what everyone was, for root.
func (m *Manager) Refusals(uid uint32, prefix string) string { return m.refused.text(uid, prefix) }

// EventsText is the last events of all.
func (m *Manager) EventsText() string { return m.log.text(0) }

// EventsChanged is when the last of them was.
func (m *Manager) EventsChanged() time.Time { return m.log.last(0) }

// OpenEvents reads all events from now on.
func (m *Manager) OpenEvents() *EventReader { return m.log.reader(nil) }

// OnChange says whom to tell of changes. f may be called while the change is
// not over, and is to make none.
func (m *Manager) OnChange(f func(Change)) { m.onChange.Store(&f) }

func (m *Manager) changed(c Change) {
	if f := m.onChange.Load(); f != nil {
		(*f)(c)
	}
}

// Started is when the daemon began.
func (m *Manager) Started() time.Time { return m.started }

// Idle reports whether no machine is active.
func (m *Manager) Idle() bool {
	return !slices.ContainsFunc(m.VMs(), (*VM).Active)
}

// WaitIdle waits until no machine is active.
func (m *Manager) WaitIdle(ctx context.Context) error {
	for {
		changed := m.activity.wait()
		if m.Idle() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Version is the text of version: the program, its protocols, the engines of
// this host.
func (m *Manager) Version(ctx context.Context) string {
	var b strings.Builder
	fmt.Fprintf(&b, "vmfs %s\nstate %d\n", m.Options.Version, format)
	e, err := m.Host.Engines(ctx)
	switch {
	case err != nil:
		fmt.Fprintf(&b, "engines unknown: %s\n", oneLine(err.Error()))
		return b.String()
	case e.QEMU == "":
		b.WriteString("qemu no: " + noQEMU + "\n")
	default:
		fmt.Fprintf(&b, "qemu %s %s\n", oneWord(e.QEMUVersion), e.QEMU)
	}
	if e.KVM {
		b.WriteString("kvm yes\n")
	} else {
		fmt.Fprintf(&b, "kvm no: %s\n", oneLine(e.KVMReason))
	}
	return b.String()
}

// signal wakes all who wait.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func newSignal() *signal { return &signal{ch: make(chan struct{})} }

// wait is closed at the next fire.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.ch)
	s.ch = make(chan struct{})
}
