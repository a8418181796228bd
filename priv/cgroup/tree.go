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
)

// leafName is the cgroup of the daemon itself, beside the tree of its guests:
// one that limits its children has no processes of its own.
const leafName = "daemon"

// Options are what Open needs to know.
type Options struct {
	Records string // directory of records
	Name    string // of the tree: no other daemon's on this host
	Dir     string // a cgroup for the tree, with nobody in it; empty: where the daemon is
}

// Tree makes and ends the cgroups of guests. Its methods may be called from
// several goroutines, for one guest by one at a time.
type Tree struct {
	host    host
	options Options
	records records

	madeTree          // zero if there is none
	why      string   // why there is none
	limiting []string // controllers that it has
	ooms     oomCounts
}

// Open finds or makes the tree. It does not fail: where there can be none, Why
// says why, and nothing was changed.
func Open(o Options) *Tree { return open(linux, o) }

func open(h host, o Options) *Tree {
	t := &Tree{host: h, options: o, records: records{o.Records}}
	if err := t.plant(); err != nil {
		t.madeTree, t.limiting, t.why = madeTree{}, nil, oneLine(err.Error())
	}
	return t
}

// Why says why guests have no limits, "" if they have some.
func (t *Tree) Why() string { return t.why }

// Path is the directory of the tree, "" if there is none.
func (t *Tree) Path() string { return t.path }

// plant makes the tree, or finds it, and undoes what it did where it cannot.
func (t *Tree) plant() (err error) {
	base, leaf, err := t.base()
	if err != nil {
		return err
	}
	have, err := words(base, "cgroup.controllers")
	if err != nil {
		return err
	}
	for _, c := range controllers {
		if slices.Contains(have, c) {
			t.limiting = append(t.limiting, c)
		}
	}
	if len(t.limiting) == 0 {
		return fmt.Errorf("%s has none of the controllers %s", base, strings.Join(controllers, ", "))
	}
	t.path = filepath.Join(base, t.options.Name)
	known := t.records.trees()
	if i := slices.IndexFunc(known, func(m madeTree) bool { return m.path == t.path }); i >= 0 {
		t.madeTree = known[i]
		known = slices.Delete(known, i, i+1)
	}
	was := t.madeTree
	defer func() {
		if err != nil {
			t.fell(base, was)
			t.records.writeTrees(append(known, was.kept()...))
		}
	}()
	if err := t.arrange(base, leaf, known); err != nil {
		return err
	}
	if t.place, err = t.grow(); err != nil {
		return err
	}
	return t.records.writeTrees(append(known, t.madeTree))
}

// kept is the record, if it is of something that was made.
func (m madeTree) kept() []madeTree {
	if m.number == 0 {
		return nil
	}
	return []madeTree{m}
}

// base says where the tree is to be, and whether the daemon has to go into a
// leaf of that first, or is in one.
func (t *Tree) base() (dir string, leaf bool, err error) {
	if t.options.Dir != "" {
		if _, err := t.host.placeOf(t.options.Dir); err != nil {
			return "", false, err
		}
		return t.options.Dir, false, t.alone(t.options.Dir, 0)
	}
	own, err := t.host.own()
	if err != nil {
		return "", false, err
	}
	if _, err := t.host.placeOf(own); err != nil {
		return "", false, err
	}
	if isRoot(own) { // where priv may make nothing, without the right to pass over modes
		return "", false, fmt.Errorf("%s is the host's; -cgroup names another", own)
	}
	if up := filepath.Dir(own); filepath.Base(own) == leafName && !isRoot(up) {
		// Since the last time, or by systemd's DelegateSubgroup.
		return up, false, cmp.Or(t.mine(up, false), t.alone(up, 0))
	}
	return own, true, cmp.Or(t.alone(own, os.Getpid()), t.mine(own, true))
}

// isRoot reports whether a cgroup is the root of all: it alone has no type.
func isRoot(dir string) bool {
	_, err := os.Lstat(dir + "/cgroup.type")
	return errors.Is(err, fs.ErrNotExist)
}

// mine refuses a cgroup that is systemd's to arrange, and one in which systemd
// would start a daemon again, which it cannot while guests are below.
func (t *Tree) mine(dir string, startedIn bool) error {
	if _, err := os.Stat(t.host.booted); err != nil {
		return nil
	}
	if !t.host.delegated(dir) {
		return fmt.Errorf("%s is systemd's: it was not delegated (Delegate=yes)", dir)
	}
	if startedIn && strings.HasSuffix(dir, ".service") {
		return fmt.Errorf("%s: systemd could not start the daemon again there beside guests; -cgroup names another", dir)
	}
	return nil
}

// alone refuses a cgroup with another process in it than pid.
func (t *Tree) alone(dir string, pid int) error {
	pids, err := words(dir, "cgroup.procs")
	if err != nil {
		return err
	}
	for _, p := range pids {
		if p != strconv.Itoa(pid) {
			return fmt.Errorf("%s is not the daemon's alone: process %s%s is in it", dir, p, called(p))
		}
	}
	return nil
}

// called is " (NAME)" of a process, if there is one to be seen.
func called(pid string) string {
	name, err := os.ReadFile("/proc/" + pid + "/comm")
	if err != nil {
		return ""
	}
	return " (" + strings.TrimSpace(string(name)) + ")"
}

// arrange makes a cgroup one that limits its children.
func (t *Tree) arrange(base string, leaf bool, others []madeTree) error {
	have, err := words(base, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	for _, c := range t.limiting {
		if !slices.Contains(have, c) {
			t.enabled = append(t.enabled, c)
		}
	}
	t.leaf = t.leaf || leaf
	if err := t.records.writeTrees(append(others, t.madeTree)); err != nil {
		return err
	}
	if leaf {
		if err := t.move(base, filepath.Join(base, leafName)); err != nil {
			return err
		}
	}
	return enable(base, t.enabled)
}

// move moves the daemon into a leaf, which is made.
func (t *Tree) move(from, to string) error {
	if err := t.host.mkdir(to); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := set(to, "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
		return err
	}
	return t.alone(from, 0) // somebody came meanwhile
}

func enable(dir string, controllers []string) error {
	for _, c := range controllers {
		if err := set(dir, "cgroup.subtree_control", "+"+c); err != nil {
			return err
		}
	}
	return nil
}

// grow makes the directory of the tree, or takes the one that is on record.
func (t *Tree) grow() (place, error) {
	p, err := t.host.placeOf(t.path)
	if err == nil && p.number == t.number {
		return p, enable(t.path, t.limiting)
	}
	if err == nil {
		// Of a daemon that ended before it could say so, or of nobody we know.
		if err := t.host.rmdir(t.path); err != nil {
			return place{}, fmt.Errorf("%s is there, and no record says by whom: %w", t.path, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return place{}, err
	}
	if err := t.host.mkdir(t.path); err != nil {
		return place{}, err
	}
	if p, err = t.host.placeOf(t.path); err == nil {
		err = enable(t.path, t.limiting)
	}
	if err != nil {
		t.host.rmdir(t.path)
		return place{}, err
	}
	return p, nil
}

// fell undoes an attempt to make the tree, but not what was there before.
func (t *Tree) fell(base string, was madeTree) {
	if was.number == 0 && t.number != 0 {
		t.host.rmdir(t.path)
	}
	t.restore(base, madeTree{enabled: without(t.enabled, was.enabled), leaf: t.leaf && !was.leaf})
}

func without(list, less []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(less, s) })
}

// restore takes back what arrange did to a cgroup.
func (t *Tree) restore(base string, m madeTree) {
	for _, c := range m.enabled {
		set(base, "cgroup.subtree_control", "-"+c)
	}
	if !m.leaf {
		return
	}
	leaf, self := filepath.Join(base, leafName), strconv.Itoa(os.Getpid())
	if pids, err := words(leaf, "cgroup.procs"); err == nil && slices.Contains(pids, self) {
		set(base, "cgroup.procs", self)
	}
	t.host.rmdir(leaf)
}

// clear removes a tree without guests, and takes back what was done for it.
// It reports whether it is gone.
func (t *Tree) clear(m madeTree) bool {
	now, err := t.host.placeOf(m.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil || m.number != 0 && now.number != m.number:
		return true // another's, or no cgroup any more
	case t.host.rmdir(m.path) != nil:
		return false
	}
	t.restore(filepath.Dir(m.path), m)
	return true
}

// Close removes the tree and what was arranged for it, if no guest is left.
// Nobody may be started any more.
func (t *Tree) Close() {
	if t == nil {
		return
	}
	var left []madeTree
	for _, m := range t.records.trees() {
		if !t.clear(m) {
			left = append(left, m)
		}
	}
	t.records.writeTrees(left)
}

// oneLine makes control bytes harmless in a log.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
