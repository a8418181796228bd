package remote

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"syscall"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/fs"
)

const (
	headerSize = 4 + 1 + 2 // size, type, tag
	ioHeader   = 24        // what a message of data has beside them, at most
	noTag      = ^uint16(0)
	noID       = ^uint32(0)
	maxNames   = 16 // of one Twalk

	// mostMessage is the longest message that is agreed on: a write of
	// fs.MaxWrite bytes fits, and one that is too long comes whole to who
	// says that it is.
	mostMessage  = 128 << 10
	leastMessage = 8 << 10 // a Twalk of the longest names fits
)

// The bits of a mode that are not permissions.
const (
	modeDir    = 1 << 31
	modeSticky = 1 << 16 // the other three are words of 9P2000.u
	modeSetGID = 1 << 18
	modeSetUID = 1 << 19
)

// Messages are composed by go9p, without a tag; conn gives them one. It has
// no fields of 9P2000.u: these are put behind.

func header(kind uint8) proto.Header { return proto.Header{Type: kind} }

// with appends fields to a message.
func with(frame []byte, fields ...uint32) []byte {
	for _, f := range fields {
		frame = binary.LittleEndian.AppendUint32(frame, f)
	}
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)))
	return frame
}

func setTag(frame []byte, tag uint16) { binary.LittleEndian.PutUint16(frame[5:], tag) }

// wstat is a Twstat that leaves all as it is that st does, and ids too if
// 9P2000.u is spoken.
func wstat(fid uint32, st *proto.Stat, dotu bool, uid, gid uint32) []byte {
	entry := st.Compose()
	if dotu {
		entry = append(entry, 0, 0)
		for _, id := range []uint32{uid, gid, noID} {
			entry = binary.LittleEndian.AppendUint32(entry, id)
		}
		binary.LittleEndian.PutUint16(entry, uint16(len(entry)-2))
	}
	p := make([]byte, headerSize, headerSize+4+2+len(entry))
	p[4] = proto.Twstat
	p = binary.LittleEndian.AppendUint32(p, fid)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(entry)))
	return with(append(p, entry...))
}

// untouched is a Stat that asks for no change.
func untouched() proto.Stat {
	return proto.Stat{
		Type: 1<<16 - 1, Dev: noID, Qid: proto.Qid{Qtype: 1<<8 - 1, Vers: noID, Uid: 1<<64 - 1},
		Mode: noID, Atime: noID, Mtime: noID, Length: 1<<64 - 1,
	}
}

// answer is a message of the server's.
type answer struct {
	kind uint8
	tag  uint16
	body []byte
}

var errSize = errors.New("a message of a size that cannot be")

// readAnswer reads a message of at most so many bytes. Its memory is its own.
func readAnswer(r io.Reader, most uint32) (answer, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return answer{}, err
	}
	size := binary.LittleEndian.Uint32(head[:])
	if size < headerSize || size > most {
		return answer{}, errSize
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return answer{}, err
	}
	a := answer{kind: head[4], tag: binary.LittleEndian.Uint16(head[5:]), body: make([]byte, size-headerSize)}
	_, err := io.ReadFull(r, a.body)
	return a, err
}

// fields takes a message apart. What is not there is zero, and remembered.
type fields struct {
	p     []byte
	short bool
}

// next is the next n bytes, or nil.
func (f *fields) next(n int) []byte {
	if f.short || len(f.p) < n {
		f.short = true
		return nil
	}
	p := f.p[:n:n]
	f.p = f.p[n:]
	return p
}

func (f *fields) u8() uint8 {
	if p := f.next(1); p != nil {
		return p[0]
	}
	return 0
}

func (f *fields) u16() uint16 {
	if p := f.next(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (f *fields) u32() uint32 {
	if p := f.next(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (f *fields) u64() uint64 {
	if p := f.next(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (f *fields) text() string { return string(f.next(int(f.u16()))) }

func (f *fields) qid() qid {
	q := qid{dir: f.u8()&0x80 != 0, vers: f.u32()}
	q.path = f.u64()
	return q
}

// whole reports whether all was there and nothing is left.
func (f *fields) whole() bool { return !f.short && len(f.p) == 0 }

// qid is who a file is.
type qid struct {
	dir  bool
	vers uint32
	path uint64
}

// entry is what a stat, or a directory, says of a file.
type entry struct {
	name     string
	qid      qid
	uid, gid string
	attr     fs.Attr
}

// entry reads a directory entry. A false is one that cannot be.
func (f *fields) entry(dotu bool) (e entry, ok bool) {
	in := fields{p: f.next(int(f.u16()))}
	in.next(2 + 4) // type, dev
	e.qid = in.qid()
	mode := in.u32()
	in.u32() // atime
	mtime := in.u32()
	length := in.u64()
	e.name, e.uid, e.gid = in.text(), in.text(), in.text()
	in.text() // who wrote last
	e.attr = fs.Attr{Dir: e.qid.dir, Mode: permissions(mode, dotu), Mtime: modified(mtime, e.qid.vers)}
	if dotu {
		in.text() // extension
		e.attr.UID, e.attr.GID = in.u32(), in.u32()
		in.u32()
	}
	if !e.qid.dir {
		e.attr.Size = int64(length)
	}
	return e, !f.short && in.whole() && length <= math.MaxInt64 && (mode&modeDir != 0) == e.qid.dir
}

func permissions(mode uint32, dotu bool) uint32 {
	bits := mode & 0o777
	if dotu && mode&modeSticky != 0 {
		bits |= syscall.S_ISVTX
	}
	return bits
}

// modified is a time of a file. 9P has whole seconds; what vmfs serves has in
// its qid's version the time in units of 1024 ns, whose low 32 bits say which
// one of the second it was. A version of another server's is hardly ever such
// a time; then it is the second.
func modified(sec, vers uint32) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	begin := int64(sec) * int64(time.Second)
	end := begin + int64(time.Second) - 1
	first := begin >> 10
	if since := int64(vers - uint32(first)); since <= end>>10-first {
		return time.Unix(0, max(begin, (first+since)<<10))
	}
	return time.Unix(int64(sec), 0)
}
