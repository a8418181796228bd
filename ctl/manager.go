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

// Manager holds every machine. It is made by Open and lives as long as the
// process.
type Manager struct {
	Options
	started  time.Time
	log      *eventLog
	refused  refusals
	onChange atomic.Pointer[func(Change)]

	late lateSync

	making sync.Mutex // one of mkdir, rmdir, mv and chmod of a machineless file at a time
	root   rootState
	used   uint64 // serial numbers given out

	mu     sync.RWMutex
	byName map[string]*VM
	byID   map[uint32]*VM
	sorted []*VM // by name; nil when it has to be made again

	count    counters
	died     sync.Map     // words of Exited, by id
	behind   sync.RWMutex // read-locked by writes that nobody waits for but Close
	level    atomic.Int32 // of the log
	draining atomic.Bool
	activity *signal // fires when a machine becomes active or ends
}

// Change tells that files are not what they were, for a door that caches.
type Change struct {
	VM   *VM // nil for files of no machine
	Name string
	What What
}

// What happened to the files of a Change.
type What int

const (
	Created  What = iota // Name is there
	Removed              // Name is gone
	Renamed              // Name is gone, VM.Name is there
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
	m := &Manager{Options: o, started: time.Now(), log: log, root: root, used: root.serials,
		byName: map[string]*VM{}, byID: map[uint32]*VM{}, activity: newSignal()}
	m.level.Store(logLevels["log info"])
	log.debug = func(line string) { m.tell(2, "%s", line) }
	if err := m.load(); err != nil {
		return nil, err
	}
	m.forgetRemoved()
	if err := m.adoptAll(ctx); err != nil {
		return nil, err
	}
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
	m.late.sync()
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

func (m *Manager) vmDir() string      { return filepath.Join(m.State, "vm") }
func (m *Manager) removedDir() string { return filepath.Join(m.State, "removed") }

// load reads every definition.
func (m *Manager) load() error {
	if err := m.makeDirs(); err != nil {
		return err
	}
	entries, err := os.ReadDir(m.vmDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".new-") {
			os.RemoveAll(filepath.Join(m.vmDir(), name)) // a mkdir that a crash cut short
			continue
		}
		if err := m.loadVM(name); err != nil {
			m.failed("vm %s: %v: it keeps its name and is not served", name, err)
			m.byName[name] = nil
		}
	}
	return nil
}

// makeDirs makes the directories below STATE that are not there.
func (m *Manager) makeDirs() error {
	made := false
	for _, dir := range []string{m.vmDir(), m.removedDir()} {
		switch err := os.Mkdir(dir, 0o700); {
		case err == nil:
			made = true
		case !os.IsExist(err):
			return err
		}
	}
	if !made {
		return nil
	}
	return syncDir(m.State)
}

func (m *Manager) loadVM(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(m.vmDir(), name, "definition"))
	if err != nil {
		return err
	}
	d, err := parseDefinition(string(text))
	if err != nil {
		return err
	}
	if other := m.byID[d.id]; other != nil {
		return fmt.Errorf("id %d is %s's", d.id, other.Name())
	}
	vm := newVM(m, name, d)
	m.byName[name], m.byID[d.id] = vm, vm
	m.used = max(m.used, d.serial+1)
	return nil
}

// keptRemoved is how long a removed definition stays in STATE/removed.
const keptRemoved = 30 * 24 * time.Hour

func (m *Manager) forgetRemoved() {
	dir := m.removedDir()
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keptRemoved {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// VM finds a machine; nil if there is none of that name.
func (m *Manager) VM(name string) *VM {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.byName[name]
}

// VMs are all machines, by name. The slice is not to be changed.
func (m *Manager) VMs() []*VM {
	m.mu.RLock()
	list := m.sorted
	m.mu.RUnlock()
	if list != nil {
		return list
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sorted == nil {
		m.sorted = make([]*VM, 0, len(m.byName))
		for _, name := range sortedKeys(m.byName) {
			if vm := m.byName[name]; vm != nil {
				m.sorted = append(m.sorted, vm)
			}
		}
	}
	return m.sorted
}

// Create makes a machine that belongs to by and gid. mode is the directory's.
// EINVAL for a name that none can have, EEXIST.
func (m *Manager) Create(by Cred, name string, mode, gid uint32) (*VM, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	m.making.Lock()
	defer m.making.Unlock()
	if m.taken(name) {
		return nil, Errorf(syscall.EEXIST, "mkdir %s: the name is taken", name)
	}
	serial, err := m.nextSerial()
	if err != nil {
		return nil, saveError("mkdir "+name, err)
	}
	d := newDefinition(m.freeID(), serial, time.Now())
	d.nodes[""] = node{int64(mode & 0o1777), int64(by.UID), int64(gid)}
	if err := m.store(name, d); err != nil {
		return nil, saveError("mkdir "+name, err)
	}
	vm := newVM(m, name, d)
	m.mu.Lock()
	m.byName[name], m.byID[d.id], m.sorted = vm, vm, nil
	m.mu.Unlock()
	vm.event("created", by.String(), "")
	m.changed(Change{vm, name, Created})
	return vm, nil
}

// CreateFree makes a machine with a name that is free: vm and a number.
func (m *Manager) CreateFree(by Cred, mode, gid uint32) (*VM, error) {
	for n := 1; ; n++ {
		name := "vm" + strconv.Itoa(n)
		if m.taken(name) {
			continue
		}
		vm, err := m.Create(by, name, mode, gid)
		if Errno(err) != syscall.EEXIST {
			return vm, err
		}
	}
}

func (m *Manager) taken(name string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.byName[name]
	return ok
}

// store makes STATE/vm/NAME, whole or not at all.
func (m *Manager) store(name string, d *definition) error {
	tmp, dir := filepath.Join(m.vmDir(), ".new-"+name), filepath.Join(m.vmDir(), name)
	err := os.Mkdir(tmp, 0o700)
	if err == nil {
		err = writeFile(filepath.Join(tmp, "definition"), d.text())
	}
	if err == nil {
		err = syncDir(tmp)
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err == nil {
		err = syncDir(m.vmDir())
	}
	if err != nil {
		os.RemoveAll(tmp)
		os.RemoveAll(dir) // the name was free
	}
	return err
}

// freeID is the lowest id that no machine has. Called with making held.
func (m *Manager) freeID() uint32 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	id := uint32(1)
	for {
		if _, used := m.byID[id]; !used {
			return id
		}
		id++
	}
}

// nextSerial gives a number that was never given before, over restarts too.
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

// Remove forgets a machine: its directory goes to STATE/removed. EBUSY while
// it is active.
func (m *Manager) Remove(by Cred, vm *VM) error { return m.remove(by.String(), vm) }

func (m *Manager) remove(who string, vm *VM) error {
	m.making.Lock()
	defer m.making.Unlock()
	release, err := vm.idle("rmdir")
	if err != nil {
		return err
	}
	defer release()
	name := vm.Name()
	if err := m.discard(name, vm.serial); err != nil {
		return saveError("rmdir "+name, err)
	}
	err = syncDir(m.removedDir(), m.vmDir())
	vm.removed.Store(true)
	vm.event("removed", who, "")
	m.mu.Lock()
	delete(m.byName, name)
	delete(m.byID, vm.id)
	m.sorted = nil
	m.mu.Unlock()
	m.changed(Change{vm, name, Removed})
	return saveError("rmdir "+name, err)
}

// discard puts a machine's directory among the removed ones. Its time is when
// it was removed, for forgetRemoved, so that comes first.
func (m *Manager) discard(name string, serial uint64) error {
	dir, now := filepath.Join(m.vmDir(), name), time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return os.Rename(dir, filepath.Join(m.removedDir(), name+"."+strconv.FormatUint(serial, 10)))
}

// Rename gives a machine that is not active another name. EEXIST if that is
// taken, EBUSY while the machine is active.
func (m *Manager) Rename(by Cred, vm *VM, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	m.making.Lock()
	defer m.making.Unlock()
	old := vm.Name()
	if m.taken(name) {
		return Errorf(syscall.EEXIST, "mv %s %s: the name is taken", old, name)
	}
	release, err := vm.idle("mv")
	if err != nil {
		return err
	}
	defer release()
	if err := os.Rename(filepath.Join(m.vmDir(), old), filepath.Join(m.vmDir(), name)); err != nil {
		return saveError("mv "+old, err)
	}
	err = syncDir(m.vmDir())
	m.mu.Lock()
	delete(m.byName, old)
	m.byName[name], m.sorted = vm, nil
	vm.name.Store(&name)
	m.mu.Unlock()
	vm.event("renamed", by.String(), old)
	m.changed(Change{vm, old, Renamed})
	return saveError("mv "+old, err)
}

// setRoot changes what is known of no machine, for good. Called with making
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

// Access is who may do what with a file of no machine, by its path below the
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

// OnChange says whom to tell of changes; f is called with no lock held.
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
		b.WriteString("qemu no: qemu-system-x86_64 is not installed (package qemu-system-x86)\n")
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
