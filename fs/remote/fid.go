package remote

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
)

// answerTime is how long a request may take that waits for nothing, so that
// one directory that its server does not list holds no one else for ever: the
// kernel lets nobody interrupt who waits for its lock. writeWait is the same
// for a write, which may start a machine.
const (
	answerTime = 20 * time.Second
	writeWait  = time.Minute
)

// fid is a file that the server knows by a number.
type fid struct {
	c  *conn
	id uint32
}

// newFid is a number of which the server does not know yet.
func (c *conn) newFid() fid {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.fids); n > 0 {
		id := c.fids[n-1]
		c.fids = c.fids[:n-1]
		return fid{c, id}
	}
	c.lastID++
	return fid{c, c.lastID}
}

// unused gives back a number of which the server knows nothing.
func (f fid) unused() {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.c.fids = append(f.c.fids, f.id)
}

// clunk ends a fid. Nobody waits for that; then, if it is there, is called
// when it has happened, and only then is the number used again. A server that
// takes no more requests is hung up on, since that ends its fids too.
func (f fid) clunk(then func()) {
	frame := (&proto.TClunk{Header: header(proto.Tclunk), Fid: f.id}).Compose()
	_, err := f.c.send(frame, func(answer) {
		f.c.fids = append(f.c.fids, f.id)
		if then != nil {
			go then()
		}
	})
	if errors.Is(err, errFull) {
		f.c.die(err)
	}
}

// walk makes f what is found under names, from another fid, and gives the
// qids on the way: fewer than names, and no f, if that was not all the way.
func (f fid) walk(ctx context.Context, from uint32, names []string) ([]qid, error) {
	m := proto.TWalk{Header: header(proto.Twalk), Fid: from, Newfid: f.id, Nwname: uint16(len(names)), Wname: names}
	body, err := f.c.rpc(ctx, answerTime, m.Compose(), func() { f.clunk(nil) })
	if err != nil {
		return nil, err
	}
	in := fields{p: body}
	n := int(in.u16())
	if n > len(names) || n == 0 && len(names) > 0 {
		return nil, f.c.die(broken(fmt.Sprintf("a walk of %d names led to %d", len(names), n)))
	}
	qids := make([]qid, n)
	for i := range qids {
		qids[i] = in.qid()
	}
	if !in.whole() {
		return nil, f.c.die(broken("an Rwalk that cannot be"))
	}
	return qids, nil
}

// attach asks for the root as a user sees it. His name counts, if he has one:
// this host's numbers need not be the server's.
func (c *conn) attach(id, uid uint32) []byte {
	name, number := userName(uid), uint32(noID)
	if _, err := strconv.ParseUint(name, 10, 32); err == nil {
		number = uid
	}
	frame := (&proto.TAttach{Header: header(proto.Tattach), Fid: id, Afid: noID, Uname: name}).Compose()
	if c.dotu {
		frame = with(frame, number)
	}
	return frame
}

func (c *conn) attached(body []byte) error {
	in := fields{p: body}
	if q := in.qid(); !in.whole() || !q.dir {
		return c.die(broken("what is attached to is no directory"))
	}
	return nil
}

// mostRoots is how many users attach by one connection.
const mostRoots = 1000

// root is the fid of the root for a user, who attaches if he has not yet.
func (c *conn) root(ctx context.Context, uid uint32) (uint32, error) {
	if id, ok := c.rootOf(uid); ok {
		return id, nil
	}
	f := c.newFid()
	body, err := f.c.rpc(ctx, answerTime, c.attach(f.id, uid), func() { f.clunk(nil) })
	if err != nil {
		f.failed(err)
		return 0, err
	}
	if err := c.attached(body); err != nil {
		return 0, err
	}
	c.mu.Lock()
	id, there := c.roots[uid]
	full := len(c.roots) >= mostRoots
	if !there && !full {
		c.roots[uid] = f.id
	}
	c.mu.Unlock()
	switch {
	case there: // he came twice at once
		f.clunk(nil)
		return id, nil
	case full:
		f.clunk(nil)
		return 0, ctl.Errorf(syscall.EAGAIN, "more than %d users", mostRoots)
	}
	return f.id, nil
}

func (c *conn) rootOf(uid uint32) (uint32, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id, ok := c.roots[uid]
	return id, ok
}

// failed gives back the number of a fid that was not made, unless it may
// still be.
func (f fid) failed(why error) {
	if !errors.As(why, new(abandoned)) {
		f.unused()
	}
}

// walkAll walks any number of names from a root, and gives a qid for each.
// If one is not there, the error is the one that the server has for that: a
// walk that ends early does not say why, and is gone as far as it goes, to ask
// from there.
func (f fid) walkAll(ctx context.Context, from uint32, names []string) (qids []qid, err error) {
	defer func() {
		switch {
		case err == nil:
		case from == f.id:
			f.clunk(nil)
		default:
			f.failed(err)
		}
	}()
	for len(qids) < len(names) || from != f.id {
		step := names[len(qids):min(len(names), len(qids)+maxNames)]
		found, err := f.walk(ctx, from, step)
		if err == nil && len(found) < len(step) {
			step = step[:len(found)]
			found, err = f.walk(ctx, from, step)
		}
		if err == nil && len(found) < len(step) {
			err = syscall.ENOENT // it goes while we look
		}
		if err != nil {
			return nil, err
		}
		from = f.id
		qids = append(qids, found...)
	}
	return qids, nil
}

func (f fid) stat(ctx context.Context) (entry, error) {
	m := proto.TStat{Header: header(proto.Tstat), Fid: f.id}
	body, err := f.c.rpc(ctx, answerTime, m.Compose(), nil)
	if err != nil {
		return entry{}, err
	}
	in := fields{p: body}
	in.u16() // its length, which is said twice
	e, ok := in.entry(f.c.dotu)
	if !ok || !in.whole() {
		return entry{}, f.c.die(broken("an Rstat that cannot be"))
	}
	return e, nil
}

// open gives the most bytes that one read or write may have.
func (f fid) open(ctx context.Context, mode proto.Mode) (most int, err error) {
	m := proto.TOpen{Header: header(proto.Topen), Fid: f.id, Mode: mode}
	body, err := f.c.rpc(ctx, answerTime, m.Compose(), nil)
	if err != nil {
		return 0, err
	}
	_, most, err = f.opened(body)
	return most, err
}

// create makes a directory in the one that f is; f is then the new one, open.
func (f fid) create(ctx context.Context, name string, mode uint32) (qid, error) {
	m := proto.TCreate{Header: header(proto.Tcreate), Fid: f.id, Name: name, Perm: modeDir | mode&0o777}
	frame := m.Compose()
	if f.c.dotu {
		frame = with(append(frame, 0, 0)) // no extension
	}
	body, err := f.c.rpc(ctx, answerTime, frame, nil)
	if err != nil {
		return qid{}, err
	}
	q, _, err := f.opened(body)
	if err == nil && !q.dir {
		err = f.c.die(broken("a directory was asked for, and no directory made"))
	}
	return q, err
}

// opened reads an Ropen or an Rcreate.
func (f fid) opened(body []byte) (q qid, most int, err error) {
	in := fields{p: body}
	q = in.qid()
	iounit := in.u32()
	if !in.whole() {
		return q, 0, f.c.die(broken("an answer to Topen or Tcreate that cannot be"))
	}
	most = int(f.c.most - ioHeader)
	if iounit > 0 && int64(iounit) < int64(most) {
		most = int(iounit)
	}
	return q, most, nil
}

// read reads at most len(p) bytes.
func (f fid) read(ctx context.Context, limit time.Duration, p []byte, off int64) (int, error) {
	m := proto.TRead{Header: header(proto.Tread), Fid: f.id, Offset: uint64(off), Count: uint32(len(p))}
	body, err := f.c.rpc(ctx, limit, m.Compose(), nil)
	if err != nil {
		return 0, err
	}
	in := fields{p: body}
	n := in.u32()
	if data := in.p; !in.short && int64(n) == int64(len(data)) && len(data) <= len(p) {
		return copy(p, data), nil
	}
	return 0, f.c.die(broken("an Rread of more than was asked for, or than there is"))
}

// write sends p as one message.
func (f fid) write(ctx context.Context, p []byte, off int64) error {
	m := proto.TWrite{Header: header(proto.Twrite), Fid: f.id, Offset: uint64(off), Count: uint32(len(p)), Data: p}
	body, err := f.c.rpc(ctx, writeWait, m.Compose(), nil)
	if err != nil {
		return err
	}
	in := fields{p: body}
	n := in.u32()
	switch {
	case !in.whole() || int64(n) > int64(len(p)):
		return f.c.die(broken("an Rwrite of more than was written"))
	case int(n) < len(p):
		return ctl.Errorf(syscall.EIO, "the server took %d of %d bytes", n, len(p))
	}
	return nil
}

// remove removes the file; f is gone, whatever comes of it.
func (f fid) remove(ctx context.Context) error {
	_, err := f.c.rpc(ctx, answerTime, (&proto.TRemove{Header: header(proto.Tremove), Fid: f.id}).Compose(), nil)
	switch {
	case errors.As(err, new(abandoned)): // the number is lost
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		f.clunk(nil)
	default:
		f.unused()
	}
	return err
}

// wstat changes what st does not leave as it is.
func (f fid) wstat(ctx context.Context, st *proto.Stat, uid, gid uint32) error {
	_, err := f.c.rpc(ctx, answerTime, wstat(f.id, st, f.c.dotu, uid, gid), nil)
	return err
}
