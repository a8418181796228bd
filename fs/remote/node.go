package remote

import (
	"context"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"weak"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

// node is a file or a directory of the server's: the one of its number, as
// long as that is what its path leads to.
type node struct {
	tree *Tree
	path uint64 // of its qid
	dir  bool

	// Under Tree.places.
	in   *node // nil of the root
	name string
}

// dir and file are what a node is to others.
type (
	dir  struct{ *node }
	file struct{ *node }
)

func (n *node) as() fs.Node {
	if n.dir {
		return dir{n}
	}
	return file{n}
}

const (
	rootIno = 1

	// maxDepth is how deep a directory can lie. A path that the kernel
	// takes is no deeper.
	maxDepth = 2048
)

// ino is the number of the qid, but that the root has its own.
func (n *node) ino() uint64 {
	switch {
	case n == n.tree.root:
		return rootIno
	case n.path <= rootIno:
		return n.path | 1<<63
	}
	return n.path
}

// place finds or makes the node of an entry that the server has in a
// directory. Nobody keeps it here: it goes when all others have forgotten it.
func (t *Tree) place(in *node, name string, q qid) (*node, error) {
	t.places.Lock()
	defer t.places.Unlock()
	n := t.nodes[q.path].Value()
	switch {
	case n == nil:
		n = &node{tree: t, path: q.path, dir: q.dir, in: in, name: name}
		t.nodes[q.path] = weak.Make(n)
		runtime.AddCleanup(n, t.forget, q.path)
		return n, nil
	case n.dir != q.dir:
		return nil, ctl.Errorf(syscall.EIO, "the server has a file and a directory of one number")
	case n.holds(in):
		return nil, ctl.Errorf(syscall.EIO, "the server has a directory in itself")
	}
	n.in, n.name = in, name
	return n, nil
}

func (t *Tree) forget(path uint64) {
	t.places.Lock()
	defer t.places.Unlock()
	if w, ok := t.nodes[path]; ok && w.Value() == nil {
		delete(t.nodes, path)
	}
}

// holds reports whether other is n or below it. Tree.places is held.
func (n *node) holds(other *node) bool {
	for ; other != nil; other = other.in {
		if other == n {
			return true
		}
	}
	return false
}

// names are the path of a node from the root.
func (n *node) names() ([]string, error) {
	n.tree.places.RLock()
	defer n.tree.places.RUnlock()
	var names []string
	for ; n.in != nil; n = n.in {
		if len(names) == maxDepth {
			return nil, syscall.ENAMETOOLONG
		}
		names = append(names, n.name)
	}
	slices.Reverse(names)
	return names, nil
}

// moved notes that a node has another name in its directory.
func (t *Tree) moved(path uint64, name string) {
	t.places.Lock()
	defer t.places.Unlock()
	if n := t.nodes[path].Value(); n != nil {
		n.name = name
	}
}

// reach gives a fid of n, or of an entry of it, to a user. ENOENT if something
// else is where n was.
func (n *node) reach(ctx context.Context, uid uint32, entry ...string) (f fid, q qid, err error) {
	names, err := n.names()
	if err != nil {
		return f, q, err
	}
	c, err := n.tree.connection(ctx)
	if err != nil {
		return f, q, err
	}
	root, err := c.root(ctx, uid)
	if err != nil {
		return f, q, err
	}
	f = c.newFid()
	depth := len(names)
	qids, err := f.walkAll(ctx, root, append(names, entry...))
	if err != nil {
		return f, q, err
	}
	if depth > 0 && (qids[depth-1].path != n.path || qids[depth-1].dir != n.dir) {
		f.clunk(nil)
		return f, q, syscall.ENOENT
	}
	if len(qids) > 0 {
		q = qids[len(qids)-1]
	}
	return f, q, nil
}

func (n *node) Attr(ctx context.Context) (fs.Attr, error) {
	if a, ok := n.tree.cache.attr(n); ok {
		return a, nil
	}
	age := n.tree.cache.age()
	f, _, err := n.reach(ctx, n.tree.uid)
	if err != nil {
		return fs.Attr{}, err
	}
	defer f.clunk(nil)
	a, err := n.stat(ctx, f)
	if err == nil {
		n.tree.cache.keep(age, n, a)
	}
	return a, err
}

// stat asks for the attributes of n, which f is.
func (n *node) stat(ctx context.Context, f fid) (fs.Attr, error) {
	e, err := f.stat(ctx)
	if err != nil {
		return fs.Attr{}, err
	}
	if n != n.tree.root && e.qid.path != n.path || e.qid.dir != n.dir {
		return fs.Attr{}, syscall.ENOENT
	}
	return n.attr(&e, f.c.dotu), nil
}

// attr are the attributes of an entry. Users and groups are the numbers that
// the server has for them; one that has only names is believed those that
// this host knows.
func (n *node) attr(e *entry, dotu bool) fs.Attr {
	a := e.attr
	a.Ino = n.ino()
	if !dotu {
		a.UID, a.GID = n.tree.owners.uid(e.uid), n.tree.owners.gid(e.gid)
	}
	return a
}

func (n *node) SetAttr(ctx context.Context, by ctl.Cred, c ctl.AccessChange) error {
	defer n.tree.cache.forget()
	f, _, err := n.reach(ctx, by.UID)
	if err != nil {
		return err
	}
	defer f.clunk(nil)
	st, uid, gid := untouched(), uint32(noID), uint32(noID)
	if c.Mode != nil {
		if st.Mode, err = n.mode(*c.Mode, f.c.dotu); err != nil {
			return err
		}
	}
	if c.UID != nil {
		uid, st.Uid = *c.UID, userName(*c.UID)
	}
	if c.GID != nil {
		gid, st.Gid = *c.GID, groupName(*c.GID)
	}
	return f.wstat(ctx, &st, uid, gid)
}

// mode is a mode as 9P has it. 9P2000 has no word for bits beside the
// permissions.
func (n *node) mode(bits uint32, dotu bool) (uint32, error) {
	m := bits & 0o777
	if n.dir {
		m |= modeDir
	}
	if !dotu && bits&^0o777 != 0 {
		return 0, syscall.EPERM
	}
	for bit, word := range map[uint32]uint32{syscall.S_ISVTX: modeSticky, syscall.S_ISGID: modeSetGID, syscall.S_ISUID: modeSetUID} {
		if bits&bit != 0 {
			m |= word
		}
	}
	return m, nil
}

func userName(uid uint32) string {
	s := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(s); err == nil {
		return u.Username
	}
	return s
}

func groupName(gid uint32) string {
	s := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(s); err == nil {
		return g.Name
	}
	return s
}

// maxName is how long a name can be, in bytes.
const maxName = 255

// possible reports whether an entry can have this name.
func possible(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}

func (d dir) Lookup(ctx context.Context, name string) (fs.Node, error) {
	t := d.tree
	if n := t.cache.name(d.node, name); n != nil {
		return n.as(), nil
	}
	switch {
	case len(name) > maxName:
		return nil, syscall.ENAMETOOLONG
	case !possible(name):
		return nil, syscall.ENOENT
	}
	age := t.cache.age()
	f, q, err := d.reach(ctx, t.uid, name)
	if err != nil {
		return nil, err
	}
	defer f.clunk(nil)
	n, err := t.place(d.node, name, q)
	if err != nil {
		return nil, err
	}
	a, err := n.stat(ctx, f)
	if err != nil {
		return nil, err
	}
	t.cache.keepName(age, d.node, name, n, a)
	return n.as(), nil
}

// maxEntries is how many a directory can have.
const maxEntries = 1 << 17

func (d dir) List(ctx context.Context) ([]fs.Entry, error) {
	age := d.tree.cache.age()
	f, _, err := d.reach(ctx, d.tree.uid)
	if err != nil {
		return nil, err
	}
	defer f.clunk(nil)
	most, err := f.open(ctx, proto.Oread)
	if err != nil {
		return nil, err
	}
	var list []fs.Entry
	p, off := make([]byte, most), int64(0)
	for {
		n, err := f.read(ctx, answerTime, p, off)
		if n == 0 || err != nil {
			return list, err
		}
		off += int64(n)
		if list, err = d.listed(list, age, p[:n], f.c.dotu); err != nil {
			return nil, err
		}
	}
}

// listed appends the entries of a read. One that cannot be is no entry that a
// user could be shown as another.
func (d dir) listed(list []fs.Entry, age uint64, p []byte, dotu bool) ([]fs.Entry, error) {
	for in := (fields{p: p}); len(in.p) > 0; {
		e, ok := in.entry(dotu)
		if !ok || !possible(e.name) || len(list) == maxEntries {
			return nil, ctl.Errorf(syscall.EIO, "the server lists what cannot be in a directory")
		}
		n, err := d.tree.place(d.node, e.name, e.qid)
		if err != nil {
			return nil, err
		}
		d.tree.cache.keepName(age, d.node, e.name, n, n.attr(&e, dotu))
		list = append(list, fs.Entry{Name: e.name, Node: n.as()})
	}
	return list, nil
}

func (d dir) Mkdir(ctx context.Context, by ctl.Cred, name string, mode uint32) (fs.Node, error) {
	if len(name) > maxName {
		return nil, syscall.ENAMETOOLONG
	}
	defer d.tree.cache.forget()
	f, _, err := d.reach(ctx, by.UID)
	if err != nil {
		return nil, err
	}
	defer f.clunk(nil)
	q, err := f.create(ctx, name, mode)
	if err != nil {
		return nil, err
	}
	n, err := d.tree.place(d.node, name, q)
	if err != nil {
		return nil, err
	}
	return n.as(), nil
}

func (d dir) Rmdir(ctx context.Context, by ctl.Cred, name string) error {
	defer d.tree.cache.forget()
	f, q, err := d.reach(ctx, by.UID, name)
	if err != nil {
		return err
	}
	if !q.dir {
		f.clunk(nil)
		return syscall.ENOTDIR
	}
	return f.remove(ctx)
}

// Rename is within one directory: 9P has no word for another one.
func (d dir) Rename(ctx context.Context, by ctl.Cred, name string, to fs.Dir, newName string) error {
	if other, ok := to.(dir); !ok || other.node != d.node {
		return syscall.EPERM
	}
	if len(newName) > maxName {
		return syscall.ENAMETOOLONG
	}
	defer d.tree.cache.forget()
	f, q, err := d.reach(ctx, by.UID, name)
	if err != nil {
		return err
	}
	defer f.clunk(nil)
	st := untouched()
	st.Name = newName
	if err := f.wstat(ctx, &st, noID, noID); err != nil {
		return err
	}
	d.tree.moved(q.path, newName)
	return nil
}

// Deny does not ask: another server than vmfs might do it.
func (d dir) Deny(context.Context, ctl.Cred, string, string) error { return syscall.EPERM }
