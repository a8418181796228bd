package ninep

import (
	"context"
	"math"
	"syscall"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

// How a file is opened: the low bits of the mode of a Topen, and the flags
// beside them.
const (
	modeBits   = 0x03
	openTrunc  = 0x10
	openCExec  = 0x20 // for the client itself
	openRClose = 0x40
	openAppend = 0x80 // of 9P2000.u; here every write appends
)

// waits reports whether a request can wait for something, or for a disk. What
// cannot is answered before the next message is read.
func (r *request) waits() bool {
	switch r.kind {
	case proto.Tread:
		return r.fid.handle != nil && !r.fid.quick
	case proto.Twrite, proto.Tcreate, proto.Tremove, proto.Twstat:
		return true
	}
	return false
}

// operate does what a message asks for. The answer may be in the memory that
// room gives.
func (r *request) operate(room func(n int) []byte) ([]byte, error) {
	switch t := r.call.(type) {
	case *proto.TAuth:
		return nil, syscall.EOPNOTSUPP
	case *proto.TAttach:
		return r.attach(t)
	case *proto.TWalk:
		return r.walk(t, room)
	case *proto.TOpen:
		return r.open(t, room)
	case *proto.TCreate:
		return r.create(t, room)
	case *proto.TRead:
		return r.read(t, room)
	case *proto.TWrite:
		return r.write(t)
	case *proto.TClunk:
		return r.done(r.s.clunk(r), room)
	case *proto.TRemove:
		err := r.s.clunk(r) // it is, whatever comes of the rest
		if err == nil {
			err = r.remove()
		}
		return r.done(err, room)
	case *proto.TStat:
		return r.stat()
	case *proto.TWstat:
		return r.done(r.wstat(&t.Stat), room)
	}
	return nil, syscall.ENOSYS
}

// done is the answer to a Tclunk, Tremove or Twstat.
func (r *request) done(err error, room func(n int) []byte) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	return composeDone(room(headerSize), answerTo(r.kind), r.tag), nil
}

func (r *request) header() proto.Header { return header(answerTo(r.kind), r.tag) }

func (r *request) attach(t *proto.TAttach) ([]byte, error) {
	c := r.s.conn
	switch {
	case t.Afid != noID:
		return nil, ctl.Errorf(syscall.EINVAL, "attach: nothing is authenticated by a fid here")
	case t.Aname != "" && t.Aname != "/":
		return nil, ctl.Errorf(syscall.ENOENT, "attach: there is one tree here, of no name")
	}
	by, err := c.peer.attached(t.Uname, r.uname)
	if err != nil {
		return nil, err
	}
	root := &place{node: c.server.root, name: "/"}
	attr, err := root.node.Attr(r.ctx)
	if err != nil {
		return nil, err
	}
	if err := r.s.add(&fid{id: t.Fid, by: by, at: root}); err != nil {
		return nil, err
	}
	c.hasAttached()
	return (&proto.RAttach{Header: r.header(), Qid: qid(&attr)}).Compose(), nil
}

// hasAttached ends the time for that. The reading goroutine calls it.
func (c *conn) hasAttached() {
	if !c.attached {
		c.attached = true
		c.nc.SetReadDeadline(noDeadline)
	}
}

// usualDepth is how many places of a walk have memory together. A longer walk
// has names in it that lead back up.
const usualDepth = 4

// walk follows names as far as it gets. If that is not all the way, the new
// fid is not made; if it is nowhere, the first name's error is said.
func (r *request) walk(t *proto.TWalk, room func(n int) []byte) ([]byte, error) {
	if r.fid.open() {
		return nil, syscall.EBADF
	}
	var all [maxNames]proto.Qid
	qids := all[:0]
	at, made := r.fid.at, make([]place, min(len(t.Wname), usualDepth))
	var attr fs.Attr
	if len(t.Wname) > 0 {
		var err error
		if attr, err = at.node.Attr(r.ctx); err != nil {
			return nil, err
		}
	}
	for _, name := range t.Wname {
		if len(made) == 0 {
			made = make([]place, 1)
		}
		next, err := at.walk(r.ctx, &r.fid.by, &attr, name, &made[0])
		if err != nil && len(qids) == 0 {
			return nil, err
		}
		if err != nil {
			break
		}
		at, made = next, made[1:]
		qids = append(qids, qid(&attr))
	}
	if len(qids) == len(t.Wname) {
		if err := r.walked(&fid{id: t.Newfid, by: r.fid.by, at: at}); err != nil {
			return nil, err
		}
	}
	return composeWalk(room(headerSize+2+len(qids)*qidSize), r.tag, qids), nil
}

func (r *request) walked(f *fid) error {
	if f.id == r.fid.id {
		return r.s.replace(r.fid, f)
	}
	return r.s.add(f)
}

// walk goes to an entry, whose place it makes at entry, or up. attr are the
// attributes of where it is, and then of where it came to.
func (at *place) walk(ctx context.Context, by *ctl.Cred, attr *fs.Attr, name string, entry *place) (*place, error) {
	d, ok := at.node.(fs.Dir)
	if !ok {
		return nil, syscall.ENOTDIR
	}
	if !may(by, attr, ctl.MaySearch) {
		return nil, syscall.EACCES
	}
	next := at.up
	switch {
	case name == ".." && next == nil:
		next = at
	case name != "..":
		n, err := d.Lookup(ctx, name)
		if err != nil {
			return nil, err
		}
		*entry = place{node: n, name: name, up: at}
		next = entry
	}
	a, err := next.node.Attr(ctx)
	*attr = a
	return next, err
}

// leastRoom is how much is set aside for a read, in bytes; more only if the
// file was longer when it was opened. Clients ask for all that a message can
// have, however little there is, and thousands may wait.
const leastRoom = 4 << 10

func (r *request) open(t *proto.TOpen, room func(n int) []byte) ([]byte, error) {
	if r.fid.open() {
		return nil, syscall.EBADF
	}
	flags, err := openFlags(uint8(t.Mode), r.s.dotu)
	if err != nil {
		return nil, err
	}
	attr, err := r.fid.at.node.Attr(r.ctx)
	if err != nil {
		return nil, err
	}
	exec := uint8(t.Mode)&modeBits == uint8(proto.Oexec)
	want := flags
	want.Write = want.Write || uint8(t.Mode)&openTrunc != 0
	if want.Write && attr.Dir {
		return nil, syscall.EISDIR
	}
	if err := mayOpen(&r.fid.by, &attr, want, exec); err != nil {
		return nil, err
	}
	if err := r.opened(r.fid.at, &attr, flags); err != nil {
		return nil, err
	}
	return composeOpen(room(openSize), proto.Ropen, r.tag, qid(&attr)), nil
}

// openFlags are those of a mode. EINVAL for one that cannot be, EPERM for
// remove-on-close: what is here is not removed in passing.
func openFlags(mode uint8, dotu bool) (fs.Flags, error) {
	rest := mode &^ (modeBits | openTrunc | openCExec)
	if dotu {
		rest &^= openAppend
	}
	switch {
	case rest&openRClose != 0:
		return fs.Flags{}, ctl.Errorf(syscall.EPERM, "open: nothing is removed when it is closed")
	case rest != 0:
		return fs.Flags{}, ctl.Errorf(syscall.EINVAL, "open: mode %#x", mode)
	}
	m := mode & modeBits
	return fs.Flags{Read: m != uint8(proto.Owrite), Write: m == uint8(proto.Owrite) || m == uint8(proto.Ordwr)}, nil
}

// opened gives the request's fid what is opened at a place.
func (r *request) opened(at *place, attr *fs.Attr, flags fs.Flags) error {
	f := &fid{id: r.fid.id, by: r.fid.by, at: at, flags: flags, room: int(min(max(attr.Size, leastRoom), MaxMessage))}
	if file, ok := at.node.(fs.File); ok {
		h, err := file.Open(r.ctx, f.by, flags)
		if err != nil {
			return err
		}
		f.handle = h
		// What has a size is at hand; so the contract says.
		f.quick = attr.Size > 0
	} else {
		f.list = &listing{}
	}
	if err := r.s.replace(r.fid, f); err != nil {
		f.close()
		return err
	}
	return nil
}

// The permission bits of 9P2000.u that make something other than a file.
const (
	permDir     = 1 << 31
	permSymlink = 0x02000000
	permLink    = 0x01000000
	permDevice  = 0x00800000
	permPipe    = 0x00200000
	permSocket  = 0x00100000
	permSetUID  = 0x00080000
	permSetGID  = 0x00040000
	permSticky  = 0x00010000
)

func (r *request) create(t *proto.TCreate, room func(n int) []byte) ([]byte, error) {
	d, ok := r.fid.at.node.(fs.Dir)
	if !ok {
		return nil, syscall.ENOTDIR
	}
	if r.fid.open() {
		return nil, syscall.EBADF
	}
	by := &r.fid.by
	dir, err := d.Attr(r.ctx)
	if err == nil && !may(by, &dir, ctl.MaySearch) {
		err = syscall.EACCES
	}
	if err != nil {
		return nil, err
	}
	if _, err := d.Lookup(r.ctx, t.Name); err == nil || t.Name == "." || t.Name == ".." {
		return nil, syscall.EEXIST
	}
	if err := mayChangeEntry(by, &dir); err != nil {
		return nil, err
	}
	if t.Perm&permDir == 0 {
		return nil, d.Deny(r.ctx, *by, creation(t.Perm, r.s.dotu), t.Name)
	}
	if flags, err := openFlags(t.Mode, r.s.dotu); err != nil || flags.Write || t.Mode&openTrunc != 0 {
		return nil, ctl.Errorf(syscall.EINVAL, "create %.80q: mode %#x of a directory", t.Name, t.Mode)
	}
	n, err := d.Mkdir(r.ctx, *by, t.Name, t.Perm&0o777)
	if err != nil {
		return nil, err
	}
	attr, err := n.Attr(r.ctx)
	if err != nil {
		return nil, err
	}
	made := &place{node: n, name: t.Name, up: r.fid.at}
	if err := r.opened(made, &attr, fs.Flags{Read: true}); err != nil {
		return nil, err
	}
	return composeOpen(room(openSize), proto.Rcreate, r.tag, qid(&attr)), nil
}

// creation names what a Tcreate would make, for Deny.
func creation(perm uint32, dotu bool) string {
	switch {
	case !dotu:
	case perm&permSymlink != 0:
		return "symlink"
	case perm&permLink != 0:
		return "link"
	case perm&(permDevice|permPipe|permSocket) != 0:
		return "mknod"
	}
	return "create"
}

func (r *request) read(t *proto.TRead, room func(n int) []byte) ([]byte, error) {
	f := r.fid
	if !f.open() || !f.flags.Read {
		return nil, syscall.EBADF
	}
	count := int(min(t.Count, r.s.most-readHeader))
	if f.handle != nil {
		count = min(count, f.room)
	}
	answer := room(readHeader + count)
	var n int
	var err error
	switch {
	case f.list != nil:
		n, err = r.readDir(answer[readHeader:], t.Offset)
	case t.Offset > math.MaxInt64:
		err = syscall.EINVAL
	case count > 0:
		n, err = f.handle.Read(r.ctx, answer[readHeader:], int64(t.Offset))
	}
	if err != nil {
		return nil, err
	}
	return composeRead(answer, r.tag, n), nil
}

func (r *request) write(t *proto.TWrite) ([]byte, error) {
	if r.fid.handle == nil || !r.fid.flags.Write {
		return nil, syscall.EBADF
	}
	if err := r.fid.handle.Write(r.ctx, t.Data); err != nil {
		return nil, err
	}
	return (&proto.RWrite{Header: r.header(), Count: t.Count}).Compose(), nil
}

// remove removes what the request's fid is at. Only directories can be.
func (r *request) remove() error {
	at := r.fid.at
	if at.up == nil {
		return syscall.EBUSY
	}
	d := at.up.node.(fs.Dir)
	dir, err := d.Attr(r.ctx)
	if err != nil {
		return err
	}
	attr, err := at.node.Attr(r.ctx)
	if err != nil {
		return err
	}
	name, err := at.nameNow(r.ctx, &attr)
	if err != nil {
		return err
	}
	if err := mayRemove(&r.fid.by, &dir, &attr); err != nil {
		return err
	}
	if !attr.Dir {
		return d.Deny(r.ctx, r.fid.by, "unlink", name)
	}
	return d.Rmdir(r.ctx, r.fid.by, name)
}

// nameNow is the name that a place's node has now: it may have another than
// when it was walked to, and another node may have that one.
func (at *place) nameNow(ctx context.Context, attr *fs.Attr) (string, error) {
	if at.up == nil {
		return at.name, nil
	}
	d := at.up.node.(fs.Dir)
	is := func(n fs.Node) bool {
		a, err := n.Attr(ctx)
		return err == nil && a.Ino == attr.Ino
	}
	if n, err := d.Lookup(ctx, at.name); err == nil && is(n) {
		return at.name, nil
	}
	entries, err := d.List(ctx)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if is(e.Node) {
			return e.Name, nil
		}
	}
	return "", syscall.ENOENT
}
