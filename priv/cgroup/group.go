package cgroup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// oomCounts has, of guests whose cgroup is gone, how often they were killed
// for the memory that they used.
type oomCounts struct {
	mu    sync.Mutex
	count map[uint32]uint64
}

func (o *oomCounts) set(id uint32, n uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n == 0 {
		delete(o.count, id)
		return
	}
	if o.count == nil {
		o.count = make(map[uint32]uint64)
	}
	o.count[id] = n
}

func (o *oomCounts) get(id uint32) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count[id]
}

// Make makes the cgroup of a guest, to be born in, with its limits; the caller
// closes it. Nil without an error means that the guest has none, which is then
// on record with the reason; an error, that something is left and nothing may
// be started.
func (t *Tree) Make(id uint32, n Need) (*os.File, error) {
	if err := t.End(id, 0); err != nil {
		return nil, err
	}
	t.ooms.set(id, 0)
	if t.why != "" {
		return nil, t.Without(id, t.why)
	}
	l, err := n.limits()
	if err != nil {
		return nil, err
	}
	f, err := t.make(id, l)
	if err != nil {
		return nil, t.Without(id, err.Error())
	}
	return f, nil
}

// Without notes that a guest has no cgroup, and why. One that was made for it
// is removed.
func (t *Tree) Without(id uint32, why string) error {
	if err := t.End(id, 0); err != nil {
		return err
	}
	return t.records.write(guestRecord(id), guest{why: oneLine(why)}.text())
}

// make makes a cgroup that has all limits, or leaves nothing.
func (t *Tree) make(id uint32, l limits) (f *os.File, err error) {
	path := filepath.Join(t.path, groupName(id))
	if err := t.host.mkdir(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.host.rmdir(path)
			t.records.remove(guestRecord(id))
		}
	}()
	p, err := t.host.placeOf(path)
	if err != nil {
		return nil, err
	}
	for _, c := range t.limiting {
		for _, s := range l.settings(c) {
			err := set(path, s.file, s.value)
			if s.file == "memory.swap.max" && errors.Is(err, fs.ErrNotExist) {
				continue // a kernel that counts no swap
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if err := t.records.write(guestRecord(id), guest{place: p}.text()); err != nil {
		return nil, err
	}
	return os.Open(path)
}

func groupName(id uint32) string { return "vm-" + strconv.FormatUint(uint64(id), 10) }

// State is what is to be said of a guest's cgroup: its path and limits, or
// "none: " and why; and how often the kernel killed in it because it had used
// all of its memory.
func (t *Tree) State(id uint32) (text string, ooms uint64) {
	g, err := t.records.guest(id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "none: it was started by a daemon that made none", t.ooms.get(id)
	case err != nil:
		return "none: " + oneLine(err.Error()), 0
	case g.path == "":
		return "none: " + g.why, 0
	case !t.host.there(g.place):
		return "none: " + oneLine(g.path) + " is gone", t.ooms.get(id)
	}
	ooms, _ = number(g.path, "memory.events", "oom_kill")
	return oneLine(g.path) + limitsText(g.path), ooms
}

// limitsText is " KEY VALUE" for each limit that a cgroup has.
func limitsText(dir string) string {
	var b strings.Builder
	for _, f := range []struct{ key, file string }{
		{"memory", "memory.max"}, {"tasks", "pids.max"}, {"cpu_weight", "cpu.weight"},
	} {
		v, err := words(dir, f.file)
		if err != nil || len(v) != 1 {
			continue
		}
		if n, err := strconv.ParseUint(v[0], 10, 64); err == nil && f.key == "memory" && n%(1<<20) == 0 {
			v[0] = strconv.FormatUint(n>>20, 10) + "M"
		}
		b.WriteString(" " + f.key + " " + v[0])
	}
	return b.String()
}

// End kills whatever is in the cgroup of a guest, removes it and forgets it,
// after limit at most. Nil if there is none.
func (t *Tree) End(id uint32, limit time.Duration) error {
	g, err := t.records.guest(id)
	if errors.Is(err, fs.ErrNotExist) {
		return t.endUnknown(id)
	}
	if err == nil && g.path != "" && t.host.there(g.place) {
		if n, err := number(g.path, "memory.events", "oom_kill"); err == nil {
			t.ooms.set(id, n)
		}
		if err := t.end(g.path, limit); err != nil {
			return err
		}
	}
	t.records.remove(guestRecord(id))
	return nil
}

// endUnknown removes a cgroup that was made and not yet on record: it is empty.
func (t *Tree) endUnknown(id uint32) error {
	if t.path == "" {
		return nil
	}
	path := filepath.Join(t.path, groupName(id))
	if _, err := t.host.placeOf(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return t.host.rmdir(path)
}

// end kills what is in a cgroup and removes it.
func (t *Tree) end(path string, limit time.Duration) error {
	if err := set(path, "cgroup.kill", "1"); err != nil {
		return err
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		n, err := number(path, "cgroup.events", "populated")
		if err == nil && n == 0 {
			err = t.host.rmdir(path)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				return nil
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s: killed, but not gone within %v: %w", path, limit, cmp.Or(err, errPopulated))
		}
	}
}

var errPopulated = errors.New("processes are in it")

// Sweep ends the cgroups of guests that do not live any more, and removes the
// trees of earlier daemons where nobody is left. It tells of what it could not
// remove.
func (t *Tree) Sweep(lives func(id uint32) bool, limit time.Duration) error {
	ids, err := t.records.guests()
	if err != nil {
		return err
	}
	var failed []error
	for _, id := range ids {
		if !lives(id) {
			failed = append(failed, t.End(id, limit))
		}
	}
	if err := t.sweepUnknown(ids); err != nil {
		failed = append(failed, err)
	}
	left := slices.DeleteFunc(t.records.trees(), func(m madeTree) bool {
		return m.path != t.path && t.clear(m)
	})
	return errors.Join(append(failed, t.records.writeTrees(left))...)
}

// sweepUnknown removes from the tree what is not on record.
func (t *Tree) sweepUnknown(known []uint32) error {
	if t.path == "" {
		return nil
	}
	entries, err := os.ReadDir(t.path)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), "vm-")
		id, err := strconv.ParseUint(text, 10, 32)
		if !ok || err != nil || !e.IsDir() || slices.Contains(known, uint32(id)) {
			continue
		}
		failed = append(failed, t.host.rmdir(filepath.Join(t.path, e.Name())))
	}
	return errors.Join(failed...)
}
