package ninep

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
	"vmfs/fs"
)

var (
	root  = ctl.Cred{}
	alice = ctl.Cred{UID: 52001, GID: 52001}
	bob   = ctl.Cred{UID: 52002, GID: 52002, Groups: []uint32{52100}}
	bg    = context.Background()
)

// tree makes a tree with a machine, web, that alice owns and that can start.
func tree(t testing.TB) (*fs.Tree, *ctl.Manager, *ctltest.Host) {
	t.Helper()
	host := ctltest.NewHost()
	m, err := ctl.Open(bg, ctl.Options{State: t.TempDir(), Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	vm, err := m.Create(alice, "web", 0o755, alice.GID)
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := vm.Set(alice, "kernel", kernel); err != nil {
		t.Fatal(err)
	}
	return fs.New(m), m, host
}

// serve serves root on a unix socket of the test. All who connect to it are
// who peer says at that moment.
func serve(t testing.TB, dir fs.Dir, o Options, peer func() Peer) (addr string, s *Server) {
	t.Helper()
	o.Log = t.Logf
	s = New(dir, o)
	addr = filepath.Join(t.TempDir(), "9p.sock")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- s.Serve(l, func(context.Context, net.Conn) (Peer, error) { return peer(), nil })
	}()
	t.Cleanup(func() {
		l.Close()
		if err := <-done; err != net.ErrClosed {
			t.Errorf("Serve: %v", err)
		}
		s.Close()
	})
	return addr, s
}

func is(c ctl.Cred) func() Peer {
	return func() Peer { return Peer{Cred: c, Believed: c.UID == 0} }
}

// raw is the client's end of a connection, which sends what a test wants.
type raw struct {
	t  testing.TB
	c  net.Conn
	in *bufio.Reader

	last []byte // answer of rpc and try
}

func dial(t testing.TB, addr string) *raw {
	t.Helper()
	c, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &raw{t: t, c: c, in: bufio.NewReaderSize(c, 256<<10)}
}

// attached is a connection on which fid 0 is the root.
func attached(t testing.TB, addr, version string) *raw {
	t.Helper()
	r := dial(t, addr)
	r.attach(MaxMessage, version)
	return r
}

// attach agrees on messages of at most so many bytes and makes fid 0 the root.
func (r *raw) attach(most uint32, version string) {
	r.t.Helper()
	r.rpc(&proto.TRVersion{Header: header(proto.Tversion, noTag), Msize: most, Version: version})
	if version == "9P2000" {
		r.rpc(&proto.TAttach{Header: header(proto.Tattach, 1), Fid: 0, Afid: noID})
		return
	}
	p := (&proto.TAttach{Header: header(proto.Tattach, 1), Fid: 0, Afid: noID}).Compose()
	r.sendBytes(sized(binary.LittleEndian.AppendUint32(p, noID)))
	if a := r.receive(); a[4] != proto.Rattach {
		r.t.Fatalf("attach: %q", a)
	}
}

func (r *raw) sendBytes(p []byte) {
	r.t.Helper()
	if _, err := r.c.Write(p); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) send(m proto.FCall) { r.t.Helper(); r.sendBytes(m.Compose()) }

// receive reads an answer, as bytes.
func (r *raw) receive() []byte {
	r.t.Helper()
	p, err := r.receiveBy(30 * time.Second)
	if err != nil {
		r.t.Fatalf("receive: %v", err)
	}
	return p
}

func (r *raw) receiveBy(d time.Duration) ([]byte, error) {
	r.c.SetReadDeadline(time.Now().Add(d))
	defer r.c.SetReadDeadline(noDeadline)
	head, err := r.in.Peek(4)
	if err != nil {
		return nil, err
	}
	p := make([]byte, binary.LittleEndian.Uint32(head))
	_, err = io.ReadFull(r.in, p)
	return p, err
}

// rpc sends a message and wants its answer, which is no error.
func (r *raw) rpc(m proto.FCall) []byte {
	r.t.Helper()
	if err := r.try(m); err != "" {
		r.t.Fatalf("%v: %s", m, err)
	}
	return r.last
}

// try sends a message and gives the error that it was answered with.
func (r *raw) try(m proto.FCall) string {
	r.t.Helper()
	r.send(m)
	p := r.receive()
	r.last = p
	if p[4] == proto.Rerror {
		return string(p[9 : 9+binary.LittleEndian.Uint16(p[7:])])
	}
	if want := m.Compose()[4] + 1; p[4] != want {
		r.t.Fatalf("answer of type %d, want %d", p[4], want)
	}
	return ""
}

func (r *raw) walk(fid, newfid uint32, path string) string {
	r.t.Helper()
	var names []string
	if path != "" {
		names = strings.Split(path, "/")
	}
	e := r.try(&proto.TWalk{Header: header(proto.Twalk, 1), Fid: fid, Newfid: newfid, Nwname: uint16(len(names)), Wname: names})
	if e == "" && int(binary.LittleEndian.Uint16(r.last[7:])) != len(names) {
		return "short"
	}
	return e
}

func (r *raw) open(fid uint32, path string, mode proto.Mode) string {
	r.t.Helper()
	if e := r.walk(0, fid, path); e != "" {
		return e
	}
	return r.try(&proto.TOpen{Header: header(proto.Topen, 1), Fid: fid, Mode: mode})
}

func (r *raw) read(fid uint32, off uint64, n uint32) string {
	r.t.Helper()
	p := r.rpc(&proto.TRead{Header: header(proto.Tread, 1), Fid: fid, Offset: off, Count: n})
	return string(p[readHeader:])
}

func (r *raw) write(fid uint32, text string) string {
	r.t.Helper()
	return r.try(&proto.TWrite{Header: header(proto.Twrite, 1), Fid: fid, Count: uint32(len(text)), Data: []byte(text)})
}

func (r *raw) clunk(fid uint32) string {
	r.t.Helper()
	return r.try(&proto.TClunk{Header: header(proto.Tclunk, 1), Fid: fid})
}

// hungUp wants the server to hang up, after whatever it says.
func (r *raw) hungUp() {
	r.t.Helper()
	r.c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, r.in); err != nil && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
		r.t.Errorf("the server did not hang up: %v", err)
	}
}
