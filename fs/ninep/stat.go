package ninep

import (
	"syscall"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

// typeDir is the type of a directory's qid.
const typeDir = 0x80

// qid names a file for ever. Its version changes with each change of what has
// a size; that of a text made at each read is 0, of which Linux keeps nothing.
func qid(a *fs.Attr) proto.Qid {
	q := proto.Qid{Uid: a.Ino}
	if a.Dir {
		q.Qtype = typeDir
	}
	if (a.Dir || a.Size > 0) && !a.Mtime.IsZero() {
		ns := uint64(a.Mtime.UnixNano())
		q.Vers = max(1, uint32(ns>>10)) // in microseconds
	}
	return q
}

// mode are the bits of a stat: permissions, that it is a directory, and in
// 9P2000.u the sticky bit.
func mode(a *fs.Attr, dotu bool) uint32 {
	m := a.Mode & 0o777
	if a.Dir {
		m |= permDir
	}
	if dotu && a.Mode&syscall.S_ISVTX != 0 {
		m |= permSticky
	}
	return m
}

// appendStat adds the entry that a name has to p.
func (s *session) appendStat(p []byte, name string, a *fs.Attr) []byte {
	names := &s.conn.server.names
	st := proto.Stat{Qid: qid(a), Mode: mode(a, s.dotu), Name: name, Uid: names.user(a.UID), Gid: names.group(a.GID)}
	if !a.Mtime.IsZero() {
		st.Mtime = uint32(a.Mtime.Unix())
		st.Atime = st.Mtime
	}
	if !a.Dir {
		st.Length = uint64(a.Size)
	}
	if s.dotu {
		return appendEntry(p, &st, &[2]uint32{a.UID, a.GID})
	}
	return appendEntry(p, &st, nil)
}

func (r *request) stat() ([]byte, error) {
	at := r.fid.at
	attr, err := at.node.Attr(r.ctx)
	if err != nil {
		return nil, err
	}
	name, err := at.nameNow(r.ctx, &attr)
	if err != nil {
		return nil, err
	}
	entry := r.s.appendStat(nil, name, &attr)
	if len(entry) > int(r.s.most)-headerSize-2 {
		return nil, syscall.EMSGSIZE
	}
	return composeStat(r.tag, entry), nil
}

// readDir fills p with whole entries from an offset on: 0, or where the last
// read ended.
func (r *request) readDir(p []byte, off uint64) (int, error) {
	l := r.fid.list
	l.mu.Lock()
	defer l.mu.Unlock()
	if off == 0 {
		entries, err := r.fid.at.node.(fs.Dir).List(r.ctx)
		if err != nil {
			return 0, err
		}
		l.entries, l.next = entries, 0
	}
	if off != l.next {
		return 0, ctl.Errorf(syscall.EINVAL, "read: a directory has no entry at %d", off)
	}
	n := 0
	for len(l.entries) > 0 {
		e := l.entries[0]
		attr, err := e.Node.Attr(r.ctx)
		if err != nil { // removed meanwhile
			l.entries = l.entries[1:]
			continue
		}
		entry := r.s.appendStat(p[:n], e.Name, &attr)
		if len(entry) > len(p) {
			if n == 0 {
				return 0, ctl.Errorf(syscall.EINVAL, "read: %d bytes are too few for an entry", len(p))
			}
			break
		}
		n = len(entry)
		l.entries = l.entries[1:]
	}
	l.next += uint64(n)
	return n, nil
}

// wish is what a Twstat wants to have changed.
type wish struct {
	access ctl.AccessChange
	name   string // empty: stays
	length bool
	times  bool
}

// wstat changes all that is asked for, or nothing. What says that nothing
// should be asks for the changes so far to outlast a power cut, as they will.
func (r *request) wstat(st *proto.Stat) error {
	attr, err := r.fid.at.node.Attr(r.ctx)
	if err != nil {
		return err
	}
	w, err := r.wish(st, &attr)
	if err != nil {
		return err
	}
	if w == (wish{}) {
		return nil
	}
	if err := r.mayWish(&w, &attr); err != nil {
		return err
	}
	return r.grant(&w, &attr)
}

// wish reads what an entry wants. EPERM for what nobody may change.
func (r *request) wish(st *proto.Stat, attr *fs.Attr) (w wish, err error) {
	if st.Type != 1<<16-1 && st.Type != 0 || st.Dev != noID && st.Dev != 0 ||
		!untouched(st.Qid) && st.Qid.Uid != attr.Ino {
		return w, ctl.Errorf(syscall.EPERM, "wstat: type, dev and qid are what they are")
	}
	w.length = st.Length != 1<<64-1
	w.times = st.Mtime != noID || st.Atime != noID
	if w.length && st.Length != 0 && attr.Dir {
		return w, syscall.EISDIR
	}
	if st.Mode != noID {
		m, err := r.modeWish(st.Mode, attr)
		if err != nil {
			return w, err
		}
		w.access.Mode = &m
	}
	if w.access.UID, err = idWish(st.Uid, r.uid, userID); err != nil {
		return w, err
	}
	if w.access.GID, err = idWish(st.Gid, r.gid, groupID); err != nil {
		return w, err
	}
	if st.Name != "" {
		now, err := r.fid.at.nameNow(r.ctx, attr)
		if err != nil {
			return w, err
		}
		if st.Name != now {
			w.name = st.Name
		}
	}
	return w, nil
}

func untouched(q proto.Qid) bool { return q.Qtype == 1<<8-1 && q.Vers == noID && q.Uid == 1<<64-1 }

// modeWish are the mode bits that are asked for. 9P2000 has no word for the
// sticky bit; it stays.
func (r *request) modeWish(m uint32, attr *fs.Attr) (uint32, error) {
	if m&permDir != 0 != attr.Dir {
		return 0, ctl.Errorf(syscall.EPERM, "wstat: a directory stays one, and nothing else becomes one")
	}
	known := uint32(permDir | 0o777)
	bits := m & 0o777
	if r.s.dotu {
		known |= permSticky | permSetUID | permSetGID
		for perm, bit := range map[uint32]uint32{permSticky: syscall.S_ISVTX, permSetUID: syscall.S_ISUID, permSetGID: syscall.S_ISGID} {
			if m&perm != 0 {
				bits |= bit
			}
		}
	} else {
		bits |= attr.Mode & syscall.S_ISVTX
	}
	if m&^known != 0 {
		return 0, ctl.Errorf(syscall.EPERM, "wstat: mode %#o: there are no such bits here", m)
	}
	return bits, nil
}

// idWish is the user or group that is asked for: the number of 9P2000.u if
// there is one, or else the name. It is nil if there is neither.
func idWish(name string, number uint32, look func(string) (uint32, error)) (*uint32, error) {
	if number != noID {
		return &number, nil
	}
	if name == "" {
		return nil, nil
	}
	id, err := look(name)
	if err != nil {
		return nil, err
	}
	return &id, nil
}

// mayWish reports whether the request's user may have all of it.
func (r *request) mayWish(w *wish, attr *fs.Attr) error {
	by := &r.fid.by
	writes := r.fid.flags.Write || may(by, attr, ctl.MayWrite)
	switch {
	case w.length && !writes:
		return syscall.EACCES
	case w.times && !writes && by.UID != attr.UID:
		return syscall.EPERM
	}
	if err := mayChange(by, attr, w.access); err != nil {
		return err
	}
	if w.name == "" {
		return nil
	}
	return r.mayRename(attr)
}

func (r *request) mayRename(attr *fs.Attr) error {
	up := r.fid.at.up
	if up == nil {
		return syscall.EBUSY
	}
	dir, err := up.node.Attr(r.ctx)
	if err != nil {
		return err
	}
	return mayRemove(&r.fid.by, &dir, attr)
}

// grant does what is asked for. Lengths and times mean nothing here. If the
// name cannot be had, the rest becomes what it was.
func (r *request) grant(w *wish, attr *fs.Attr) error {
	n, by := r.fid.at.node, r.fid.by
	if w.access != (ctl.AccessChange{}) {
		if err := n.SetAttr(r.ctx, by, w.access); err != nil {
			return err
		}
	}
	if w.name == "" {
		return nil
	}
	err := r.rename(attr, w.name)
	if err != nil && w.access != (ctl.AccessChange{}) {
		was := ctl.AccessChange{Mode: &attr.Mode, UID: &attr.UID, GID: &attr.GID}
		n.SetAttr(r.s.ctx, by, was) // it could be what it was a moment ago
	}
	return err
}

func (r *request) rename(attr *fs.Attr, name string) error {
	now, err := r.fid.at.nameNow(r.ctx, attr)
	if err != nil {
		return err
	}
	d := r.fid.at.up.node.(fs.Dir)
	return d.Rename(r.ctx, r.fid.by, now, d, name)
}
