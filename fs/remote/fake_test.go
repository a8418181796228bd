package remote

import (
	"bufio"
	"context"
	"encoding/binary"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/knusbaum/go9p/proto"
)

// reply is what a fake server does with a request.
type reply func(c *fakeConn, tag uint16, body []byte)

// fake is a server that does what a test says, and otherwise what is right:
// it has directories only, whatever they are called, with a file called file.
type fake struct {
	t    testing.TB
	path string
	l    net.Listener

	mu    sync.Mutex
	does  map[uint8]reply
	seen  []uint8 // the types of all requests
	conns []net.Conn
}

type fakeConn struct {
	net.Conn
	fake *fake
	mu   sync.Mutex
}

func newFake(t testing.TB, does map[uint8]reply) *fake {
	f := &fake{t: t, path: filepath.Join(t.TempDir(), "s"), does: does}
	f.listen()
	t.Cleanup(f.close)
	return f
}

func (f *fake) listen() {
	f.t.Helper()
	l, err := net.Listen("unix", f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.mu.Lock()
	f.l = l
	f.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
			go f.serve(&fakeConn{Conn: c, fake: f})
		}
	}()
}

// close ends the server and all its connections.
func (f *fake) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.l.Close()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
}

func (f *fake) do(kind uint8, r reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.does[kind] = r
}

func (f *fake) serve(c *fakeConn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		m, err := readAnswer(in, mostMessage)
		if err != nil {
			return
		}
		f.mu.Lock()
		f.seen = append(f.seen, m.kind)
		r := f.does[m.kind]
		f.mu.Unlock()
		if r == nil {
			r = usual[m.kind]
		}
		r(c, m.tag, m.body)
	}
}

// requests counts those of a type.
func (f *fake) requests(kind uint8) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.seen {
		if k == kind {
			n++
		}
	}
	return n
}

func (c *fakeConn) send(kind uint8, tag uint16, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Write(message(kind, tag, body))
}

func message(kind uint8, tag uint16, body []byte) []byte {
	p := binary.LittleEndian.AppendUint32(nil, uint32(headerSize+len(body)))
	p = append(p, kind)
	p = binary.LittleEndian.AppendUint16(p, tag)
	return append(p, body...)
}

func str(s string) []byte {
	return append(binary.LittleEndian.AppendUint16(nil, uint16(len(s))), s...)
}

func le16(n int) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(n)) }
func le32(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }

func join(parts ...[]byte) (p []byte) {
	for _, part := range parts {
		p = append(p, part...)
	}
	return p
}

func qidOf(dir bool, path uint64) []byte {
	p := []byte{0, 0, 0, 0, 0}
	if dir {
		p[0] = 0x80
	}
	return binary.LittleEndian.AppendUint64(p, path)
}

// entryOf is a directory entry in 9P2000.u.
func entryOf(name string, dir bool, path uint64) []byte {
	mode := uint32(0o644)
	if dir {
		mode = modeDir | 0o755
	}
	p := join(make([]byte, 6), qidOf(dir, path), le32(int(mode)), le32(0), le32(0), make([]byte, 8),
		str(name), str("u"), str("g"), str(""), str(""), le32(1), le32(2), le32(0))
	return append(le16(len(p)), p...)
}

// pathOf is a number for a name: that of its bytes.
func pathOf(name string) (n uint64) {
	for _, b := range []byte(name) {
		n = n<<8 | uint64(b)
	}
	return n + 100
}

// places remembers what fids are, so that a fake can stat them.
type places struct {
	mu sync.Mutex
	at map[net.Conn]map[uint32]string
}

var fids = places{at: map[net.Conn]map[uint32]string{}}

func (p *places) set(c net.Conn, fid uint32, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at[c] == nil {
		p.at[c] = map[uint32]string{}
	}
	p.at[c][fid] = name
}

func (p *places) get(c net.Conn, fid uint32) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[c][fid]
}

var usual map[uint8]reply

func init() {
	done := func(kind uint8) reply {
		return func(c *fakeConn, tag uint16, _ []byte) { c.send(kind+1, tag, nil) }
	}
	usual = map[uint8]reply{
		proto.Tversion: func(c *fakeConn, tag uint16, _ []byte) {
			c.send(proto.Rversion, tag, join(le32(16<<10), str("9P2000.u")))
		},
		proto.Tattach: func(c *fakeConn, tag uint16, _ []byte) { c.send(proto.Rattach, tag, qidOf(true, 1)) },
		proto.Twalk:   usualWalk,
		proto.Tstat: func(c *fakeConn, tag uint16, body []byte) {
			f := fields{p: body}
			name := fids.get(c, f.u32())
			e := entryOf(name, name != "file", pathOf(name))
			c.send(proto.Rstat, tag, append(le16(len(e)), e...))
		},
		proto.Topen: func(c *fakeConn, tag uint16, _ []byte) {
			c.send(proto.Ropen, tag, append(qidOf(false, pathOf("file")), 0, 0, 0, 0))
		},
		proto.Tread: func(c *fakeConn, tag uint16, _ []byte) { c.send(proto.Rread, tag, le32(0)) },
		proto.Twrite: func(c *fakeConn, tag uint16, body []byte) {
			c.send(proto.Rwrite, tag, body[12:16])
		},
		proto.Tflush:  done(proto.Tflush),
		proto.Tclunk:  done(proto.Tclunk),
		proto.Tremove: done(proto.Tremove),
		proto.Twstat:  done(proto.Twstat),
	}
}

func usualWalk(c *fakeConn, tag uint16, body []byte) {
	f := fields{p: body}
	f.u32()
	newfid := f.u32()
	n := int(f.u16())
	answer := le16(n)
	name := "/"
	for range n {
		name = f.text()
		answer = append(answer, qidOf(name != "file", pathOf(name))...)
	}
	fids.set(c, newfid, name)
	c.send(proto.Rwalk, tag, answer)
}

// never is the reply of one who does not.
func never(*fakeConn, uint16, []byte) {}

func (f *fake) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", f.path)
}

// tree is a tree of the fake.
func (f *fake) tree() *Tree {
	f.t.Helper()
	t, err := New(bg, f.dial, Options{Log: func(string, ...any) {}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(t.Close)
	return t
}
