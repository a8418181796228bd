package ninep

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

func TestReadWrite(t *testing.T) {
	tr, _, _ := tree(t)
	for _, version := range []string{"9P2000", "9P2000.u"} {
		addr, _ := serve(t, tr.Root(), Options{}, is(alice))
		c := attached(t, addr, version)
		if e := c.open(1, "vm/web/cpus", proto.Ordwr); e != "" {
			t.Fatal(e)
		}
		if e := c.write(1, "3\n"); e != "" {
			t.Errorf("write: %s", e)
		}
		if got := c.read(1, 0, 100); got != "3\n" {
			t.Errorf("read: %q", got)
		}
		if e := c.open(2, "vm/web/config", proto.Oread); e != "" {
			t.Fatal(e)
		}
		if got := c.read(2, 0, 1<<20); !strings.Contains(got, "cpus 3\n") {
			t.Errorf("config: %q", got)
		}
	}
}

// A write of 64 KiB is one message, and one that is longer is refused whole.
func TestLongWrite(t *testing.T) {
	tr, m, _ := tree(t)
	addr, _ := serve(t, tr.Root(), Options{}, is(alice))
	c := attached(t, addr, "9P2000")
	if e := c.open(1, "vm/web/config", proto.Owrite); e != "" {
		t.Fatal(e)
	}
	text := "cpus 2\n" + strings.Repeat("# remark\n", fs.MaxWrite/9-1)
	if e := c.write(1, text); e != "" {
		t.Errorf("%d bytes: %s", len(text), e)
	}
	if e := c.write(1, "cpus 1\n"+strings.Repeat("#\n", fs.MaxWrite/2)); e != "File too large" {
		t.Errorf("more than %d bytes: %q", fs.MaxWrite, e)
	}
	vm, _ := m.Find("vm", "web")
	if got := vm.Get("cpus"); got != "2" {
		t.Errorf("cpus is %s, want 2", got)
	}
}

// The shortest messages that can be agreed on hold a text in pieces, and of a
// directory whole entries, each once.
func TestShortMessages(t *testing.T) {
	tr, _, _ := tree(t)
	addr, _ := serve(t, tr.Root(), Options{}, is(alice))
	for _, version := range []string{"9P2000", "9P2000.u"} {
		long := attached(t, addr, version)
		short := dial(t, addr)
		short.attach(minMessage, version)
		whole := func(c *raw, path string) (text string, reads int) {
			t.Helper()
			if e := c.open(1, path, proto.Oread); e != "" {
				t.Fatal(e)
			}
			for {
				piece := c.read(1, uint64(len(text)), noID)
				if text += piece; piece == "" {
					c.clunk(1)
					return text, reads
				}
				reads++
			}
		}
		want, _ := whole(long, "help")
		if got, reads := whole(short, "help"); got != want || reads < len(want)/minMessage {
			t.Errorf("%s: %d bytes of help in %d reads, want %d", version, len(got), reads, len(want))
		}
		want, _ = whole(long, "vm/web")
		if got, reads := whole(short, "vm/web"); got != want || reads < 2 {
			t.Errorf("%s: a directory of %d bytes in %d reads, want %d", version, len(got), reads, len(want))
		}
		if len(short.last) > minMessage {
			t.Errorf("%s: a message of %d bytes", version, len(short.last))
		}
		short.open(1, "vm/web", proto.Oread)
		for off := uint64(0); ; {
			piece := []byte(short.read(1, off, noID))
			if len(piece) == 0 {
				break
			}
			off += uint64(len(piece))
			for len(piece) > 0 {
				n := 2 + int(binary.LittleEndian.Uint16(piece))
				if n > len(piece) {
					t.Fatalf("%s: %d bytes of an entry of %d", version, len(piece), n)
				}
				if _, err := checkEntry(piece[:n], version == "9P2000.u"); err != nil {
					t.Error(err)
				}
				piece = piece[n:]
			}
		}
	}
}

// What is allowed is looked at when a file is opened or walked through, and
// not when it is used.
func TestRevoked(t *testing.T) {
	tr, m, _ := tree(t)
	addr, _ := serve(t, tr.Root(), Options{}, is(bob))
	c := attached(t, addr, "9P2000")
	vm, _ := m.Find("vm", "web")
	if e := c.open(1, "vm/web/status", proto.Oread); e != "" {
		t.Fatal(e)
	}
	if e := c.walk(0, 2, "vm/web"); e != "" {
		t.Fatal(e)
	}
	mode := uint32(0o700)
	if err := vm.SetAccess(alice, "", ctl.AccessChange{Mode: &mode}); err != nil {
		t.Fatal(err)
	}
	if got := c.read(1, 0, 100); got != "stopped\n" {
		t.Errorf("an open file: %q", got)
	}
	if e := c.walk(2, 3, "status"); e != "Permission denied" {
		t.Errorf("walk: %q", e)
	}
	if got := c.try(&proto.TOpen{Header: header(proto.Topen, 1), Fid: 2}); got != "Permission denied" {
		t.Errorf("open: %q", got)
	}
}

// waitFor waits for something that happens soon.
func waitFor(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 3000 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not within 30 s: %s", what)
}

func tread(tag uint16, fid uint32) *proto.TRead {
	return &proto.TRead{Header: header(proto.Tread, tag), Fid: fid, Count: 8192}
}

func tflush(tag, old uint16) *proto.TFlush {
	return &proto.TFlush{Header: header(proto.Tflush, tag), Oldtag: old}
}

// fakes are a directory of files whose reads wait, are deaf to interrupts
// until the channel is closed, or get something when they are interrupted.
func fakes() (d fakeDir, hear chan struct{}) {
	hear = make(chan struct{})
	return fakeDir{
		"waits": {ino: 2, read: waits, write: takes},
		"deaf":  {ino: 3, read: func(context.Context, []byte) (int, error) { <-hear; return 0, nil }, write: takes},
		"got": {ino: 4, read: func(ctx context.Context, p []byte) (int, error) {
			<-ctx.Done()
			return copy(p, "bytes"), nil
		}},
		"full": {ino: 8, read: func(ctx context.Context, _ []byte) (int, error) {
			<-ctx.Done()
			return 0, syscall.ENOSPC
		}},
		"panics": {ino: 5, read: func(context.Context, []byte) (int, error) { panic("as it should") }},
		"long":   {ino: 6, size: 1 << 20, read: func(_ context.Context, p []byte) (int, error) { return len(p), nil }},
		"slow": {ino: 7, write: func(ctx context.Context, _ []byte) error {
			<-ctx.Done()
			return ctx.Err()
		}},
	}, hear
}

func (d fakeDir) opens() (n int) {
	for _, f := range d {
		n += int(f.open.Load())
	}
	return n
}

// wants holds the next answer against its type and its tag.
func (r *raw) wants(kind uint8, tag uint16) {
	r.t.Helper()
	if p := r.receive(); p[4] != kind || binary.LittleEndian.Uint16(p[5:]) != tag {
		r.t.Errorf("answer %d %d, want %d %d", p[4], p[5], kind, tag)
	}
}

// A flush is answered when what it flushed has ended, whose answer comes
// before if it has one that says something.
func TestFlush(t *testing.T) {
	d, _ := fakes()
	addr, _ := serve(t, d, Options{Limits: Limits{Flush: time.Hour}}, is(root)) // nothing is given up
	for _, version := range []string{"9P2000", "9P2000.u"} {
		c := attached(t, addr, version)
		for fid, name := range []string{1: "waits", 2: "got", 3: "full"} {
			if fid == 0 {
				continue
			}
			if e := c.open(uint32(fid), name, proto.Ordwr); e != "" {
				t.Fatal(e)
			}
		}
		c.send(tread(10, 1))
		c.send(tflush(11, 10))
		c.wants(proto.Rflush, 11)
		c.send(tread(10, 2))
		c.send(tflush(11, 10))
		c.wants(proto.Rread, 10)
		c.wants(proto.Rflush, 11)
		c.send(tread(10, 3))
		c.send(tflush(11, 10))
		c.wants(proto.Rerror, 10)
		c.wants(proto.Rflush, 11)
		c.send(tflush(11, 10)) // there is no such request any more
		c.wants(proto.Rflush, 11)
	}
}

// What does not end is given up soon, and never answered: its tag is free.
func TestFlushOfTheDeaf(t *testing.T) {
	d, hear := fakes()
	addr, _ := serve(t, d, Options{}, is(root))
	c := attached(t, addr, "9P2000")
	if e := c.open(2, "deaf", proto.Ordwr); e != "" {
		t.Fatal(e)
	}
	c.send(tread(10, 2))
	for tag := uint16(11); tag < 15; tag++ { // of the read, and of each other
		c.send(tflush(tag, tag-1))
	}
	for tag := uint16(11); tag < 15; tag++ {
		c.wants(proto.Rflush, tag)
	}
	c.send(tread(10, 2))
	close(hear) // both end now, and one is answered
	c.wants(proto.Rread, 10)
	c.send(tflush(11, 10))
	c.wants(proto.Rflush, 11)
	c.clunk(2)
}

// A clunk interrupts what still waits for the file, and closes it after that.
func TestClunk(t *testing.T) {
	d, hear := fakes()
	defer close(hear)
	addr, _ := serve(t, d, Options{}, is(root))
	c := attached(t, addr, "9P2000")
	c.open(1, "waits", proto.Oread)
	c.open(2, "deaf", proto.Oread)
	c.send(tread(10, 1))
	c.send(tread(11, 2))
	c.send(&proto.TClunk{Header: header(proto.Tclunk, 1), Fid: 1})
	var kinds string
	for range 2 {
		kinds += string('0' + rune(c.receive()[5]))
	}
	if kinds != "1:" && kinds != ":1" {
		t.Errorf("answers %q", kinds)
	}
	if d["waits"].open.Load() != 0 {
		t.Error("the file is still open")
	}
	c.clunk(2)
	if d["deaf"].open.Load() != 1 {
		t.Error("a file was closed while it is read")
	}
}

// Whoever hangs up leaves nothing behind.
func TestHangUp(t *testing.T) {
	d, hear := fakes()
	close(hear)
	addr, s := serve(t, d, Options{}, is(alice))
	before := runtime.NumGoroutine()
	for range 10 {
		c := attached(t, addr, "9P2000.u")
		for fid := uint32(1); fid < 50; fid++ {
			if e := c.open(fid, "waits", proto.Oread); e != "" {
				t.Fatal(e)
			}
			c.send(tread(uint16(fid)+10, fid))
		}
		c.c.Close()
	}
	waitFor(t, "no file open", func() bool { return d.opens() == 0 })
	waitFor(t, "no goroutine more", func() bool { return runtime.NumGoroutine() <= before })
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.users) != 0 || len(s.conns) != 0 {
		t.Errorf("%d users, %d connections", len(s.users), len(s.conns))
	}
}

func TestPanic(t *testing.T) {
	d, _ := fakes()
	addr, _ := serve(t, d, Options{}, is(root))
	c := attached(t, addr, "9P2000")
	c.open(1, "panics", proto.Oread)
	if e := c.try(tread(1, 1)); e != "Input/output error" {
		t.Errorf("a panic: %q", e)
	}
	if e := c.walk(0, 2, "waits"); e != "" {
		t.Error(e)
	}
}

// One who does not attach, and one who does not end a message, is hung up on.
func TestTooSlow(t *testing.T) {
	d, _ := fakes()
	const soon = 50 * time.Millisecond
	addr, _ := serve(t, d, Options{Limits: Limits{Attach: soon}}, is(alice))
	dial(t, addr).hungUp()
	version := dial(t, addr)
	version.c.Write((&proto.TRVersion{Header: header(proto.Tversion, noTag), Msize: 8192, Version: "9P2000"}).Compose()) // an error is that it was too slow
	version.hungUp()

	addr, _ = serve(t, d, Options{Limits: Limits{Frame: soon}}, is(alice))
	for _, half := range [][]byte{{100}, {100, 0, 0, 0, proto.Tclunk}} {
		c := attached(t, addr, "9P2000")
		c.sendBytes(half)
		c.hungUp()
	}
}

// Bounds of one connection and of one user.
func TestLimits(t *testing.T) {
	d, _ := fakes()
	limits := Limits{Fids: 3, Requests: 4, Held: 20000, Conns: 3}
	addr, s := serve(t, d, Options{Limits: limits}, is(alice))
	var all [3]*raw
	for i := range all {
		all[i] = attached(t, addr, "9P2000")
	}
	dial(t, addr).hungUp()

	// files: of a connection, and of all connections of a user
	c := all[0]
	for fid := range uint32(2) {
		if e := c.walk(0, fid+1, ""); e != "" {
			t.Fatal(e)
		}
	}
	if e := c.walk(0, 9, ""); e != "Too many open files" {
		t.Errorf("a fourth fid: %q", e)
	}
	if e := c.walk(1, 1, "slow"); e != "" { // it is no more of them
		t.Error(e)
	}
	if e := c.try(&proto.TOpen{Header: header(proto.Topen, 1), Fid: 1, Mode: proto.Owrite}); e != "" {
		t.Error(e)
	}

	// writes that wait
	for tag := range uint16(2) {
		c.send(&proto.TWrite{Header: header(proto.Twrite, 20+tag), Fid: 1, Count: 9000, Data: make([]byte, 9000)})
	}
	if e := c.write(1, strings.Repeat("x", 9000)); e != "Resource temporarily unavailable" {
		t.Errorf("27000 bytes held: %q", e)
	}
	c.send(tflush(5, 20))
	c.wants(proto.Rflush, 5)

	// requests that wait, beside which flush and clunk get through
	for tag := range uint16(3) {
		c.send(&proto.TWrite{Header: header(proto.Twrite, 30+tag), Fid: 1, Count: 1, Data: []byte("x")})
	}
	if e := c.write(1, "x"); e != "Resource temporarily unavailable" {
		t.Errorf("a fifth request: %q", e)
	}
	c.send(tflush(5, 30))
	c.wants(proto.Rflush, 5)
	if e := c.clunk(2); e != "" {
		t.Error(e)
	}
	for _, c := range all {
		c.c.Close()
	}
	waitFor(t, "nothing is counted", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return d.opens() == 0 && len(s.conns) == 0 && len(s.users) == 0
	})
}

// A user has four times the files of a connection, and twice its requests.
func TestLimitsOfUser(t *testing.T) {
	d, _ := fakes()
	addr, _ := serve(t, d, Options{Limits: Limits{Fids: 4, Requests: 2, Conns: 10}}, is(alice))
	for range 4 {
		c := attached(t, addr, "9P2000")
		for fid := range uint32(3) {
			if e := c.walk(0, fid+1, ""); e != "" {
				t.Fatal(e)
			}
		}
	}
	c := dial(t, addr)
	c.rpc(&proto.TRVersion{Header: header(proto.Tversion, noTag), Msize: 8192, Version: "9P2000"})
	if e := c.try(&proto.TAttach{Header: header(proto.Tattach, 1), Afid: noID}); e != "Too many open files" {
		t.Errorf("a seventeenth fid: %q", e)
	}

	addr, _ = serve(t, d, Options{Limits: Limits{Requests: 2}}, is(alice))
	for i := range 3 {
		c := attached(t, addr, "9P2000")
		if e := c.open(1, "waits", proto.Oread); e != "" {
			t.Fatal(e)
		}
		if i == 2 {
			if e := c.try(tread(7, 1)); e != "Resource temporarily unavailable" {
				t.Errorf("a fifth request: %q", e)
			}
			break
		}
		c.send(tread(7, 1))
		c.send(tread(8, 1))
		c.walk(0, 2, "") // what comes before it has been counted
	}
}

// A request that was answered is one no more.
func TestLimitsOfAnswered(t *testing.T) {
	d, hear := fakes()
	close(hear)
	addr, _ := serve(t, d, Options{Limits: Limits{Requests: 1, Held: 9100}}, is(root))
	c := attached(t, addr, "9P2000")
	if e := c.open(1, "deaf", proto.Ordwr); e != "" {
		t.Fatal(e)
	}
	for n := range 500 {
		if e := c.try(tread(1, 1)); e != "" {
			t.Fatalf("read %d: %s", n, e)
		}
		if e := c.write(1, strings.Repeat("x", 9000)); e != "" {
			t.Fatalf("write %d: %s", n, e)
		}
	}
}

// One who never reads is hung up on, and what he has open closed.
func TestNeverReads(t *testing.T) {
	d, _ := fakes()
	addr, _ := serve(t, d, Options{Limits: Limits{Write: 50 * time.Millisecond}}, is(alice))
	c := attached(t, addr, "9P2000")
	if e := c.open(2, "long", proto.Oread); e != "" {
		t.Fatal(e)
	}
	c.c.(*net.UnixConn).SetReadBuffer(1)
	c.c.SetWriteDeadline(time.Now().Add(30 * time.Second))
	var err error
	for err == nil {
		_, err = c.c.Write(tread(30, 2).Compose())
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the server did not hang up")
	}
	waitFor(t, "no file open", func() bool { return d.opens() == 0 })
}

// Whatever others do, root comes in.
func TestRootComesIn(t *testing.T) {
	d, _ := fakes()
	var mu sync.Mutex
	peer := Peer{Cred: alice}
	addr, _ := serve(t, d, Options{Limits: Limits{Conns: 4, AllConns: 8}}, func() Peer {
		mu.Lock()
		defer mu.Unlock()
		peer.UID++
		return peer
	})
	for range 8 {
		attached(t, addr, "9P2000")
	}
	dial(t, addr).hungUp()
	mu.Lock()
	peer.UID = noID // and then 0
	mu.Unlock()
	attached(t, addr, "9P2000")
}

// Those who do not say who they are keep out nobody who does, also before their
// time is over.
func TestStrangers(t *testing.T) {
	d, _ := fakes()
	s := New(d, Options{Log: t.Logf, Limits: Limits{Attach: time.Hour}})
	defer s.Close()
	addr := filepath.Join(t.TempDir(), "9p.sock")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go s.Serve(l, func(ctx context.Context, c net.Conn) (Peer, error) { // who says a byte is alice
		defer context.AfterFunc(ctx, func() { c.Close() })()
		_, err := c.Read(make([]byte, 1))
		return Peer{Cred: alice}, err
	})
	silent := make([]*raw, maxStrangers+10)
	for i := range silent {
		silent[i] = dial(t, addr)
	}
	good := dial(t, addr)
	good.sendBytes([]byte{0})
	good.attach(MaxMessage, "9P2000")
	for _, first := range silent[:10] {
		first.hungUp()
	}
	last := silent[len(silent)-1]
	last.sendBytes([]byte{0})
	last.attach(MaxMessage, "9P2000")
}

func BenchmarkStatus(b *testing.B) {
	tr, _, _ := tree(b)
	addr, _ := serve(b, tr.Root(), Options{}, is(alice))
	c := attached(b, addr, "9P2000")
	for b.Loop() {
		if e := c.open(1, "vm/web/status", proto.Oread); e != "" {
			b.Fatal(e)
		}
		if got := c.read(1, 0, 8192); got != "stopped\n" {
			b.Fatal(got)
		}
		c.clunk(1)
	}
}

// A thousand readers that wait cost little each.
func TestBlockedReaders(t *testing.T) {
	d, _ := fakes()
	addr, _ := serve(t, d, Options{}, is(root))
	c := attached(t, addr, "9P2000")
	memory := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()
	const readers = 1000
	for fid := uint32(1); fid <= readers; fid++ {
		c.open(fid, "waits", proto.Oread)
		r := tread(uint16(fid)+10, fid)
		r.Count = MaxMessage - 24
		c.send(r)
	}
	waitFor(t, "all to read", func() bool { return runtime.NumGoroutine() > readers })
	each := (memory() - before) / readers
	t.Logf("%d bytes each", each)
	if each > 16<<10 {
		t.Errorf("a waiting read costs %d bytes, want at most 16384", each)
	}
}
