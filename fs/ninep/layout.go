package ninep

import (
	"bytes"
	"encoding/binary"
	"syscall"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
)

const (
	headerSize = 4 + 1 + 2 // size, type, tag
	noTag      = ^uint16(0)
	noID       = ^uint32(0)
	maxNames   = 16 // of one Twalk
)

// layout is what follows the tag of a message, a letter a field:
//
//	1 2 4 8  a number of so many bytes
//	s        a string: its length in 2 bytes, then that many
//	n        names: how many in 2 bytes, at most 16, then strings
//	d        data: its length in 4 bytes, then that many
//	e        a directory entry: its length in 2 bytes, then that many
type layout struct {
	plain string // in 9P2000
	tail  string // what 9P2000.u has behind that
}

// layouts has the messages that a client may send.
var layouts = [256]layout{
	proto.Tversion: {"4s", ""},
	proto.Tauth:    {"4ss", "4"},
	proto.Tattach:  {"44ss", "4"},
	proto.Tflush:   {"2", ""},
	proto.Twalk:    {"44n", ""},
	proto.Topen:    {"41", ""},
	proto.Tcreate:  {"4s41", "s"},
	proto.Tread:    {"484", ""},
	proto.Twrite:   {"48d", ""},
	proto.Tclunk:   {"4", ""},
	proto.Tremove:  {"4", ""},
	proto.Tstat:    {"4", ""},
	proto.Twstat:   {"4e", ""},
}

// aboutFid reports whether a message is about a fid that is there, which is its
// first field then.
func aboutFid(kind uint8) bool { return kind >= proto.Twalk }

// entryLayout is that of a directory entry, the length that it begins with
// included.
var entryLayout = layout{"2241484448ssss", "s444"}

// fits reports whether p has these fields and nothing else. tail is where
// those of 9P2000.u are, or would be.
func (l layout) fits(p []byte, dotu bool) (tail []byte, ok bool) {
	tail, ok = skip(p, l.plain)
	rest := tail
	if ok && dotu {
		rest, ok = skip(rest, l.tail)
	}
	return tail, ok && len(rest) == 0
}

// skip gives what is behind the fields of a layout, and false if p does not
// hold them.
func skip(p []byte, fields string) (rest []byte, ok bool) {
	for _, f := range []byte(fields) {
		switch f {
		case 's', 'e':
			p, ok = skipCounted(p, 2)
		case 'd':
			p, ok = skipCounted(p, 4)
		case 'n':
			p, ok = skipNames(p)
		default:
			p, ok = cut(p, uint64(f-'0'))
		}
		if !ok {
			return nil, false
		}
	}
	return p, true
}

func cut(p []byte, n uint64) ([]byte, bool) {
	if uint64(len(p)) < n {
		return nil, false
	}
	return p[n:], true
}

// skipCounted skips a length of so many bytes and what it counts.
func skipCounted(p []byte, bytes int) ([]byte, bool) {
	if len(p) < bytes {
		return nil, false
	}
	n := uint64(binary.LittleEndian.Uint16(p))
	if bytes == 4 {
		n = uint64(binary.LittleEndian.Uint32(p))
	}
	return cut(p[bytes:], n)
}

func skipNames(p []byte) (rest []byte, ok bool) {
	if len(p) < 2 {
		return nil, false
	}
	n := binary.LittleEndian.Uint16(p)
	if n > maxNames {
		return nil, false
	}
	rest, ok = p[2:], true
	for ; n > 0 && ok; n-- {
		rest, ok = skipCounted(rest, 2)
	}
	return rest, ok
}

// request is one message of a client. What 9P2000.u has beside the fields of
// 9P2000 is ^0 where the client did not say it.
type request struct {
	call     proto.FCall
	kind     uint8
	tag      uint16
	named    bool   // it is about the fid of the number about
	about    uint32 // its first field
	uname    uint32 // of Tattach
	uid, gid uint32 // of Twstat

	outstanding
}

// parser has memory for the parts of the messages that come most often.
type parser struct {
	in    bytes.Reader
	walk  proto.TWalk
	names [maxNames]string
	open  proto.TOpen
	read  proto.TRead
	clunk proto.TClunk
}

// parse makes r what a frame says. The frame is held against the layout of its
// type first: what parses then believes what is counted. A Twrite's data is the
// frame's own memory, and what a Twalk, Topen, Tread or Tclunk is made of the
// parser's, until it parses the next. With an error r has no more than its kind
// and its tag.
func (r *request) parse(m *parser, frame []byte, dotu bool) error {
	*r = request{kind: frame[4], tag: binary.LittleEndian.Uint16(frame[5:]), uname: noID, uid: noID, gid: noID}
	tail, err := checkLayout(frame, dotu)
	if err != nil {
		return err
	}
	if r.named = aboutFid(r.kind); r.named {
		r.about = number4(frame[headerSize:])
	}
	if r.call = m.often(frame[headerSize:], r.kind, r.tag); r.call != nil {
		return nil
	}
	if r.kind == proto.Twstat {
		tail, err = checkEntry(frame[headerSize+4+2:], dotu)
		if err != nil {
			return err
		}
	}
	m.in.Reset(frame)
	call, err := proto.ParseCall(&m.in)
	if err != nil {
		return ctl.Errorf(syscall.EMSGSIZE, "message of type %d: %v", r.kind, err)
	}
	r.call = call
	if len(tail) > 0 {
		r.parseTail(tail)
	}
	return nil
}

// often parses the messages that come so often that go9p's parser, which has
// each field copied to memory of its own, is a third of the time that they
// take. Of a Twrite it takes no more than 65535 bytes, besides. It is nil for
// the others.
func (m *parser) often(p []byte, kind uint8, tag uint16) proto.FCall {
	h := header(kind, tag)
	switch kind {
	case proto.Twalk:
		m.walk = proto.TWalk{Header: h, Fid: number4(p), Newfid: number4(p[4:])}
		m.walkNames(p[8:])
		return &m.walk
	case proto.Topen:
		m.open = proto.TOpen{Header: h, Fid: number4(p), Mode: proto.Mode(p[4])}
		return &m.open
	case proto.Tread:
		m.read = proto.TRead{Header: h, Fid: number4(p), Offset: number8(p[4:]), Count: number4(p[12:])}
		return &m.read
	case proto.Tclunk:
		m.clunk = proto.TClunk{Header: h, Fid: number4(p)}
		return &m.clunk
	case proto.Twrite:
		return &proto.TWrite{Header: h, Fid: number4(p), Offset: number8(p[4:]), Count: number4(p[12:]), Data: p[16:]}
	}
	return nil
}

// walkNames parses the names of a Twalk.
func (m *parser) walkNames(p []byte) {
	n := binary.LittleEndian.Uint16(p)
	p = p[2:]
	for i := range n {
		size := 2 + binary.LittleEndian.Uint16(p)
		if name := p[2:size]; m.names[i] != string(name) { // the same walk comes again and again
			m.names[i] = string(name)
		}
		p = p[size:]
	}
	m.walk.Nwname, m.walk.Wname = n, m.names[:n]
}

func number4(p []byte) uint32 { return binary.LittleEndian.Uint32(p) }
func number8(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }

// checkLayout gives what 9P2000.u has behind the message.
func checkLayout(frame []byte, dotu bool) (tail []byte, err error) {
	kind := frame[4]
	l := layouts[kind]
	if l.plain == "" {
		return nil, ctl.Errorf(syscall.ENOSYS, "message of type %d: it is none of a client's in 9P2000", kind)
	}
	tail, ok := l.fits(frame[headerSize:], dotu)
	if !ok {
		return nil, ctl.Errorf(syscall.EINVAL, "message of type %d: its fields and its %d bytes do not fit", kind, len(frame))
	}
	return tail, nil
}

// checkEntry is checkLayout for the entry of a Twstat.
func checkEntry(entry []byte, dotu bool) (tail []byte, err error) {
	tail, ok := entryLayout.fits(entry, dotu)
	if !ok || int(binary.LittleEndian.Uint16(entry)) != len(entry)-2 {
		return nil, ctl.Errorf(syscall.EINVAL, "wstat: the entry's fields and its %d bytes do not fit", len(entry))
	}
	return tail, nil
}

// parseTail reads the fields of 9P2000.u that matter here. A Tcreate's
// extension is for files that no tree here makes.
func (r *request) parseTail(tail []byte) {
	switch r.kind {
	case proto.Tattach:
		r.uname = binary.LittleEndian.Uint32(tail)
	case proto.Twstat:
		ids, _ := skip(tail, "s")
		r.uid, r.gid = binary.LittleEndian.Uint32(ids), binary.LittleEndian.Uint32(ids[4:])
	}
}

// The answers. Those that go9p does not compose are the ones that are given
// most often, for which there is memory already, and what has fields of
// 9P2000.u.

func header(kind uint8, tag uint16) proto.Header { return proto.Header{Type: kind, Tag: tag} }

// answerTo is the type of the answer to a message.
func answerTo(kind uint8) uint8 { return kind + 1 }

// composeError says err in a text that Linux knows, with its number in 9P2000.u.
func composeError(tag uint16, err error, dotu bool) []byte {
	errno := ctl.Errno(err)
	p := (&proto.RError{Header: header(proto.Rerror, tag), Ename: ename(errno)}).Compose()
	if dotu {
		p = binary.LittleEndian.AppendUint32(p, uint32(errno))
		sized(p)
	}
	return p
}

// sized writes a message's length into it.
func sized(p []byte) []byte {
	binary.LittleEndian.PutUint32(p, uint32(len(p)))
	return p
}

const readHeader = headerSize + 4 // of an Rread, before its data

const (
	qidSize  = 1 + 4 + 8
	openSize = headerSize + qidSize + 4 // of an Ropen
)

// composeWalk makes an Rwalk in the memory of p.
func composeWalk(p []byte, tag uint16, qids []proto.Qid) []byte {
	p = append(begun(p, proto.Rwalk, tag), byte(len(qids)), 0)
	for _, q := range qids {
		p = appendQid(p, q)
	}
	return sized(p)
}

// composeOpen makes an Ropen or Rcreate. Messages of any size are alike here,
// so it names none.
func composeOpen(p []byte, kind uint8, tag uint16, q proto.Qid) []byte {
	return sized(append(appendQid(begun(p, kind, tag), q), 0, 0, 0, 0))
}

// composeDone makes an answer that says no more than its type.
func composeDone(p []byte, kind uint8, tag uint16) []byte { return sized(begun(p, kind, tag)) }

// begun is the header of a message that is made in the memory of p. Its size
// is not there yet.
func begun(p []byte, kind uint8, tag uint16) []byte {
	return append(p[:0], 0, 0, 0, 0, kind, byte(tag), byte(tag>>8))
}

func appendQid(p []byte, q proto.Qid) []byte {
	p = binary.LittleEndian.AppendUint32(append(p, q.Qtype), q.Vers)
	return binary.LittleEndian.AppendUint64(p, q.Uid)
}

// composeRead completes an Rread whose n bytes of data are behind its header.
func composeRead(p []byte, tag uint16, n int) []byte {
	p = p[:readHeader+n]
	p[4] = proto.Rread
	binary.LittleEndian.PutUint16(p[5:], tag)
	binary.LittleEndian.PutUint32(p[7:], uint32(n))
	return sized(p)
}

func composeStat(tag uint16, entry []byte) []byte {
	p := make([]byte, headerSize, headerSize+2+len(entry))
	p[4] = proto.Rstat
	binary.LittleEndian.PutUint16(p[5:], tag)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(entry)))
	return sized(append(p, entry...))
}

// appendEntry adds a directory entry to p. ids are those of 9P2000.u, if it
// is spoken.
func appendEntry(p []byte, st *proto.Stat, ids *[2]uint32) []byte {
	at := len(p)
	p = append(p, st.Compose()...)
	if ids != nil {
		p = append(p, 0, 0) // no extension
		p = binary.LittleEndian.AppendUint32(p, ids[0])
		p = binary.LittleEndian.AppendUint32(p, ids[1])
		p = binary.LittleEndian.AppendUint32(p, noID) // nobody knows who wrote last
		binary.LittleEndian.PutUint16(p[at:], uint16(len(p)-at-2))
	}
	return p
}
