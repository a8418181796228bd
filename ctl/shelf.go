package ctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// shelf has all objects of one kind, and STATE/KIND, where their definitions
// are.
type shelf[T Object] struct {
	m    *Manager
	kind *kind
	wrap func(in shelved, name string, d *definition) T

	// admit refuses by one more, of that name; nil refuses nobody.
	admit func(by Cred, name string) error

	mu      sync.RWMutex
	byName  map[string]T
	byID    map[uint32]T
	serials map[uint64]T
	broken  map[string]bool // names whose definition cannot be read
	foreign map[uint32]bool // ids that are somebody else's
	sorted  []T             // by name; nil when it has to be made again
	objects []Object        // the same
}

// shelved is a shelf, whatever is on it.
type shelved interface {
	find(name string) (Object, bool)
	list() []Object
	create(by Cred, name string, mode, gid uint32) (Object, error)
	remove(who string, o *object) error
	rename(by Cred, o *object, name string) error
	load() error
	dir() string
}

func newShelf[T Object](m *Manager, k *kind, wrap func(in shelved, name string, d *definition) T) *shelf[T] {
	return &shelf[T]{m: m, kind: k, wrap: wrap,
		byName: map[string]T{}, byID: map[uint32]T{}, serials: map[uint64]T{}, broken: map[string]bool{}, foreign: map[uint32]bool{}}
}

func (s *shelf[T]) dir() string { return filepath.Join(s.m.State, s.kind.dir) }

// load reads every definition.
func (s *shelf[T]) load() error {
	entries, err := os.ReadDir(s.dir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".new-") {
			os.RemoveAll(filepath.Join(s.dir(), name)) // a mkdir that a crash cut short
			continue
		}
		if err := s.loadOne(name); err != nil {
			s.m.failed("%s %s: %v: it keeps its name and is not served", s.kind.dir, name, err)
			s.broken[name] = true
		}
	}
	return nil
}

func (s *shelf[T]) loadOne(name string) error {
	if err := s.kind.checkName(name); err != nil {
		return err
	}
	text, slots, err := readSlots(filepath.Join(s.dir(), name))
	if err != nil {
		return err
	}
	d, err := parseDefinition(s.kind, text)
	if err != nil {
		return err
	}
	if other, taken := s.byID[d.id]; taken {
		return fmt.Errorf("id %d is %s's", d.id, other.Name())
	}
	if slots.spoilt {
		s.m.failed("%s %s: %s is not whole: a change was cut short, or somebody else wrote it; %s is served",
			s.kind.dir, name, slotNames[1-slots.at], slotNames[slots.at])
	}
	o := s.wrap(s, name, d)
	o.base().slots = slots
	s.byName[name], s.byID[d.id], s.serials[d.serial] = o, o, o
	s.m.used = max(s.m.used, d.serial+1)
	return nil
}

// named finds an object.
func (s *shelf[T]) named(name string) (o T, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok = s.byName[name]
	return o, ok
}

func (s *shelf[T]) find(name string) (Object, bool) { return s.named(name) }

// numbered finds an object by its id.
func (s *shelf[T]) numbered(id uint32) (o T, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok = s.byID[id]
	return o, ok
}

// serially finds an object by its serial number.
func (s *shelf[T]) serially(serial uint64) (o T, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok = s.serials[serial]
	return o, ok
}

// each calls f with each object, in no order. f is to be quick.
func (s *shelf[T]) each(f func(o T)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, o := range s.byID {
		f(o)
	}
}

// all are the objects, by name. The slice is not to be changed.
func (s *shelf[T]) all() []T {
	sorted, _ := s.lists()
	return sorted
}

func (s *shelf[T]) list() []Object {
	_, objects := s.lists()
	return objects
}

func (s *shelf[T]) lists() ([]T, []Object) {
	s.mu.RLock()
	sorted, objects := s.sorted, s.objects
	s.mu.RUnlock()
	if sorted != nil {
		return sorted, objects
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sorted == nil {
		s.sorted, s.objects = make([]T, 0, len(s.byName)), make([]Object, 0, len(s.byName))
		for _, name := range sortedKeys(s.byName) {
			s.sorted, s.objects = append(s.sorted, s.byName[name]), append(s.objects, s.byName[name])
		}
	}
	return s.sorted, s.objects
}

// create makes an object that belongs to by and gid.
func (s *shelf[T]) create(by Cred, name string, mode, gid uint32) (Object, error) {
	return s.make(by, name, mode, gid)
}

func (s *shelf[T]) make(by Cred, name string, mode, gid uint32) (o T, err error) {
	return s.makeOf(by, name, mode, gid, nil, "")
}

// makeOf is make of an object of which fill, unless it is nil, says more; how
// is the detail of the event.
func (s *shelf[T]) makeOf(by Cred, name string, mode, gid uint32, fill func(d *definition) error, how string) (o T, err error) {
	if err := s.kind.checkName(name); err != nil {
		return o, err
	}
	s.m.making.Lock()
	defer s.m.making.Unlock()
	if s.taken(name) {
		return o, Errorf(syscall.EEXIST, "mkdir %s: the name is taken", name)
	}
	if s.admit != nil {
		if err := s.admit(by, name); err != nil {
			return o, err
		}
	}
	if o, err = s.add(name, Access{mode, by.UID, gid}, fill); err != nil {
		return o, err
	}
	o.base().event("created", by.String(), how)
	s.m.changed(Change{o, name, Created})
	return o, nil
}

// add makes an object, whole or not at all. Called with making held.
func (s *shelf[T]) add(name string, a Access, fill func(d *definition) error) (o T, err error) {
	serial, err := s.m.nextSerial()
	if err != nil {
		return o, saveError("mkdir "+name, err)
	}
	d := newDefinition(s.kind, s.freeID(), serial, time.Now())
	d.nodes[""] = node{int64(a.Mode & 0o1777), int64(a.UID), int64(a.GID)}
	if fill != nil {
		if err := fill(d); err != nil {
			return o, err
		}
	}
	made := s.wrap(s, name, d)
	undo, err := made.apply(newDefinition(s.kind, d.id, serial, d.created), d)
	if err != nil {
		return o, err
	}
	slots, err := s.store(name, d)
	if err != nil {
		if undo != nil {
			undo()
		}
		return o, saveError("mkdir "+name, err)
	}
	o = made
	o.base().slots = slots
	s.mu.Lock()
	s.byName[name], s.byID[d.id], s.serials[d.serial], s.sorted = o, o, o, nil
	s.mu.Unlock()
	return o, nil
}

func (s *shelf[T]) taken(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.byName[name]
	return ok || s.broken[name]
}

// store makes STATE/KIND/NAME, whole or not at all.
func (s *shelf[T]) store(name string, d *definition) (kept slots, err error) {
	tmp, dir := filepath.Join(s.dir(), ".new-"+name), filepath.Join(s.dir(), name)
	err = os.Mkdir(tmp, 0o700)
	if err == nil {
		kept, err = newSlots(tmp, d.text())
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err == nil {
		err = syncDir(s.dir())
	}
	if err != nil {
		os.RemoveAll(tmp)
		os.RemoveAll(dir) // the name was free
	}
	return kept, err
}

// freeID is the lowest id that nothing has. Called with making held.
func (s *shelf[T]) freeID() uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id := uint32(1); ; id++ {
		if _, used := s.byID[id]; !used && !s.foreign[id] {
			return id
		}
	}
}

// remove forgets an object: its directory goes to STATE/removed.
func (s *shelf[T]) remove(who string, o *object) error {
	s.m.making.Lock()
	defer s.m.making.Unlock()
	release, err := o.self.idle("rmdir")
	if err != nil {
		return err
	}
	defer release()
	name := o.Name()
	if err := o.self.dissolve(); err != nil {
		return Errorf(Errno(err), "rmdir %s: %v", name, err)
	}
	if err := s.discard(name, o.serial); err != nil {
		return saveError("rmdir "+name, err)
	}
	err = syncDir(s.m.removedDir(), s.dir())
	o.left.Store(true)
	o.event("removed", who, "")
	s.mu.Lock()
	delete(s.byName, name)
	delete(s.byID, o.id)
	delete(s.serials, o.serial)
	s.sorted = nil
	s.mu.Unlock()
	o.self.applied()
	s.m.changed(Change{o.self, name, Removed})
	return saveError("rmdir "+name, err)
}

// discard puts an object's directory among the removed ones. Its time is when
// it was removed, for forgetRemoved, so that comes first.
func (s *shelf[T]) discard(name string, serial uint64) error {
	dir, now := filepath.Join(s.dir(), name), time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return os.Rename(dir, filepath.Join(s.m.removedDir(), name+"."+strconv.FormatUint(serial, 10)))
}

// rename gives an object another name.
func (s *shelf[T]) rename(by Cred, o *object, name string) error {
	if s.kind.fixed {
		return Errorf(syscall.EPERM, "mv %s: what it is about is its name", o.Name())
	}
	if err := s.kind.checkName(name); err != nil {
		return err
	}
	s.m.making.Lock()
	defer s.m.making.Unlock()
	old := o.Name()
	if s.taken(name) {
		return Errorf(syscall.EEXIST, "mv %s %s: the name is taken", old, name)
	}
	release, err := o.self.idle("mv")
	if err != nil {
		return err
	}
	defer release()
	if err := os.Rename(filepath.Join(s.dir(), old), filepath.Join(s.dir(), name)); err != nil {
		return saveError("mv "+old, err)
	}
	err = syncDir(s.dir())
	s.mu.Lock()
	delete(s.byName, old)
	s.byName[name], s.sorted = o.self.(T), nil
	o.name.Store(&name)
	s.mu.Unlock()
	o.self.renamed()
	o.event("renamed", by.String(), old)
	s.m.changed(Change{o.self, old, Renamed})
	return saveError("mv "+old, err)
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
