package ctl

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Object is what a directory of the tree stands for: a machine, a switch, or
// the limits of a user.
// All methods may be called from any goroutine.
type Object interface {
	Kind() string   // the directory that it is in
	Name() string   // what it is called now
	ID() uint32     // the lowest number that was free when it was made
	Serial() uint64 // a number that no other object ever had or will have
	Removed() bool  // it is gone: files of it that are still open answer ENOENT

	Get(attr string) string
	Set(by Cred, attr, value string) error
	Parts(dir string) []int
	HasPart(p Part) bool
	AddPart(by Cred, p Part) error
	RemovePart(by Cred, p Part) error

	Config() string
	ConfigOld() string
	Edition() uint64
	Edit(by Cred, text string) error
	Replace(by Cred, text string) error

	Access(path string, def Default) Access
	SetAccess(by Cred, path string, c AccessChange) error
	Modes(def Defaults) string
	SetModes(by Cred, text string, def Defaults) error

	Mtime(file string) time.Time
	EventsText() string
	OpenEvents() *EventReader

	base() *object
	// settle completes a changed definition, before it is looked at further.
	settle(d *definition, by Cred, now time.Time) error
	// apply does what a change means for what runs. With an error all is
	// as it was; undo makes it so if the definition cannot be saved.
	apply(was, now *definition) (undo func(), err error)
	// applied is told that a change of the definition is saved, or that
	// the object is gone.
	applied()
	// idle keeps what cannot be renamed or removed now from becoming so
	// until release is called. EBUSY.
	idle(what string) (release func(), err error)
	// dissolve takes away what there is of it but its definition.
	dissolve() error
	// renamed is told that it has another name.
	renamed()
}

// Actor is an Object that does something: a machine or a switch.
type Actor interface {
	Object
	Status() string
	Check(ctx context.Context) string
	Do(ctx context.Context, by Cred, verb, arg string) error
}

// object is what all Objects have in common: a name, a definition
// that is saved as a whole, a policy.
type object struct {
	m      *Manager
	in     shelved
	kind   *kind
	self   Object
	id     uint32
	serial uint64

	name atomic.Pointer[string]
	left atomic.Bool // it was removed

	edit  sync.Mutex                 // one change of the definition at a time; before any other lock
	def   atomic.Pointer[definition] // read without a lock, never changed in place
	slots slots                      // under edit: where def is kept
}

func (o *object) init(m *Manager, in shelved, self Object, name string, d *definition) {
	o.m, o.in, o.kind, o.self = m, in, d.kind, self
	o.id, o.serial = d.id, d.serial
	o.name.Store(&name)
	o.def.Store(d)
}

func (o *object) base() *object  { return o }
func (o *object) Kind() string   { return o.kind.dir }
func (o *object) Name() string   { return *o.name.Load() }
func (o *object) ID() uint32     { return o.id }
func (o *object) Serial() uint64 { return o.serial }
func (o *object) Removed() bool  { return o.left.Load() }

// path is where it is in the tree, for people.
func (o *object) path() string { return o.kind.dir + "/" + o.Name() }

func (o *object) dir() string { return filepath.Join(o.m.State, o.kind.dir, o.Name()) }

func (o *object) gone() error {
	return Errorf(syscall.ENOENT, "%s: the %s was removed", o.Name(), o.kind.noun)
}

func (o *object) event(name, user, detail string) {
	o.m.log.append(o.serial, o.path(), name, user, detail)
}

func (o *object) notify(w What) { o.m.changed(Change{o.self, o.Name(), w}) }

// failed tells the operator of a failure with it.
func (o *object) failed(err error) { o.m.failed("%s %s: %v", o.kind.dir, o.Name(), err) }

// update changes the definition: f changes a clone, which is saved and takes
// the place of the old one if f says that it did. With an error nothing
// changed.
func (o *object) update(f func(d *definition) (changed bool, err error)) (bool, error) {
	o.edit.Lock()
	defer o.edit.Unlock()
	return o.rewrite(f)
}

// rewrite is update with edit held.
func (o *object) rewrite(f func(d *definition) (changed bool, err error)) (bool, error) {
	if o.Removed() {
		return false, o.gone()
	}
	d := o.def.Load().clone()
	changed, err := f(d)
	if err != nil || !changed {
		return false, err
	}
	if err := o.slots.write(o.dir(), d.text()); err != nil {
		return false, saveError(o.Name(), err)
	}
	o.def.Store(d)
	return true, nil
}

// configure is update by a user: a new edition, an event, and what the change
// means for what runs.
func (o *object) configure(by Cred, file string, f func(d *definition, now time.Time) (bool, error)) error {
	changed, err := o.configured(by, f)
	if changed {
		o.self.applied()
		o.event("config", by.String(), file)
		o.notify(Contents)
	}
	return err
}

func (o *object) configured(by Cred, f func(d *definition, now time.Time) (bool, error)) (bool, error) {
	o.edit.Lock()
	defer o.edit.Unlock()
	var undo func()
	changed, err := o.rewrite(func(d *definition) (bool, error) {
		now, was := time.Now(), o.def.Load()
		changed, err := f(d, now)
		if err != nil || !changed {
			return false, err
		}
		if err := o.self.settle(d, by, now); err != nil {
			return false, err
		}
		d.edition++
		d.changed, d.old = now, was.said()
		undo, err = o.self.apply(was, d)
		return true, err
	})
	if err != nil && undo != nil {
		undo()
	}
	return changed, err
}

// Get reads an attribute by its path below the object: its value, else its
// default, else nothing.
func (o *object) Get(attr string) string { return o.def.Load().get(attr) }

// Set writes one; an empty value gives the default back.
func (o *object) Set(by Cred, attr, value string) error {
	return o.configure(by, attr, func(d *definition, now time.Time) (bool, error) {
		return d.set(by, attr, value, now)
	})
}

// Parts are the numbers of the parts in a directory, in order.
func (o *object) Parts(dir string) []int { return o.def.Load().numbers(dir) }

// HasPart reports whether there is such a part.
func (o *object) HasPart(p Part) bool { return o.def.Load().parts[p] }

// AddPart makes a part without values. EEXIST.
func (o *object) AddPart(by Cred, p Part) error {
	return o.configure(by, p.String(), func(d *definition, _ time.Time) (bool, error) {
		return true, d.addPart(p)
	})
}

// RemovePart removes a part's values, never the image of a disk. ENOENT.
func (o *object) RemovePart(by Cred, p Part) error {
	return o.configure(by, p.String(), func(d *definition, _ time.Time) (bool, error) {
		return true, d.removePart(by, p)
	})
}

// Config is the definition flattened, from begin to end.
func (o *object) Config() string { return o.def.Load().config() }

// ConfigOld is the definition before its last change; empty before the first.
func (o *object) ConfigOld() string {
	d := o.def.Load()
	if d.edition == 0 {
		return ""
	}
	return flat(d.old)
}

// Edition counts the changes of the definition.
func (o *object) Edition() uint64 { return o.def.Load().edition }

// Edit applies the lines of one write, all or none.
func (o *object) Edit(by Cred, text string) error {
	return o.configure(by, "config", func(d *definition, now time.Time) (bool, error) {
		return d.edit(by, text, now)
	})
}

// Replace puts a whole definition, begin and end included, in the place of
// the present one, or refuses it whole.
func (o *object) Replace(by Cred, text string) error {
	return o.configure(by, "config", func(d *definition, now time.Time) (bool, error) {
		return d.replace(by, text, now)
	})
}

// Access is who may do what with a file of the object, by its path below it;
// "" is its directory. A file that was not given to anybody, and is not root's
// by default, belongs to the owner and the group of the directory.
func (o *object) Access(path string, def Default) Access {
	return o.def.Load().access(path, def)
}

// SetAccess changes it, for good.
func (o *object) SetAccess(by Cred, path string, c AccessChange) error {
	changed, err := o.update(func(d *definition) (bool, error) {
		return change(d.nodes, path, c), nil
	})
	if changed {
		o.event("access", by.String(), path)
		o.notify(Policy)
	}
	return err
}

// mtime is when a file that every kind has changed last, by its path below
// the object.
func (o *object) mtime(file string) time.Time {
	d := o.def.Load()
	switch file {
	case "config", "config.old", "edition":
		return d.changed
	case "events.log":
		return latest(d.created, o.m.log.last(o.serial))
	}
	if v, ok := d.attrs[file]; ok {
		return v.mtime
	}
	return d.created
}

// EventsText is what the last events of all have of this object.
func (o *object) EventsText() string { return o.m.log.text(o.serial) }

// OpenEvents reads the object's events from now on.
func (o *object) OpenEvents() *EventReader { return o.m.log.reader(o) }
