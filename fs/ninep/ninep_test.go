package ninep

import (
	"context"
	"net"
	"runtime"
	"strings"
	"sync"
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
	for range 500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not within 5 s: %s", what)
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

// A flush is answered when what it flushed has ended, whose answer comes
// before if it has one that says something; or soon.
func TestFlush(t *testing.T) {
	d, hear := fakes()
	addr, _ := serve(t, d, Options{}, is(root))
	c := attached(t, addr, "9P2000")
	for i, name := range []string{"waits", "deaf", "got"} {
		if e := c.open(uint32(i+1), name, proto.Ordwr); e != "" {
			t.Fatal(e)
		}
	}
	answer := func(kind uint8, tag uint16) {
		t.Helper()
		if p := c.receive(); p[4] != kind || uint16(p[5]) != tag {
			t.Errorf("answer %d %d, want %d %d", p[4], p[5], kind, tag)
		}
	}
	c.send(tread(10, 1))
	start := time.Now()
	c.send(tflush(11, 10))
	answer(proto.Rflush, 11)
	if d := time.Since(start); d > 30*time.Millisecond {
		t.Errorf("flush took %v", d)
	}

	c.send(tread(10, 3))
	c.send(tflush(11, 10))
	answer(proto.Rread, 10)
	answer(proto.Rflush, 11)

	c.send(tread(10, 2))
	for tag := uint16(11); tag < 15; tag++ { // of the read, and of each other
		c.send(tflush(tag, tag-1))
	}
	for tag := uint16(11); tag < 15; tag++ {
		answer(proto.Rflush, tag)
	}
	close(hear)
	time.Sleep(20 * time.Millisecond)
	c.send(tread(10, 2)) // the tag is free, and the answer is to this one
	answer(proto.Rread, 10)
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

// Bounds of one connection and of one user.
func TestLimits(t *testing.T) {
	d, _ := fakes()
	limits := Limits{Fids: 10, Requests: 4, Held: 20000, Conns: 3, Attach: 300 * time.Millisecond, Frame: 300 * time.Millisecond, Write: 300 * time.Millisecond}
	addr, _ := serve(t, d, Options{Limits: limits}, is(alice))

	// one who does not attach, and one who does not end a message
	idle := dial(t, addr)
	half := attached(t, addr, "9P2000")
	half.sendBytes([]byte{100, 0, 0, 0, proto.Tclunk})
	idle.hungUp()
	half.hungUp()

	// connections of one user
	var c *raw
	for range 3 {
		c = attached(t, addr, "9P2000")
	}
	more := dial(t, addr)
	more.hungUp()

	// writes that wait
	c.open(1, "slow", proto.Owrite)
	for tag := range uint16(2) {
		c.send(&proto.TWrite{Header: header(proto.Twrite, 20+tag), Fid: 1, Count: 9000, Data: make([]byte, 9000)})
	}
	if e := c.write(1, strings.Repeat("x", 9000)); e != "Resource temporarily unavailable" {
		t.Errorf("27000 bytes held: %q", e)
	}
	c.send(tflush(5, 20))
	if p := c.receive(); p[4] != proto.Rflush {
		t.Errorf("flush: %q", p)
	}

	// one who never reads
	c.open(2, "long", proto.Oread)
	c.c.(*net.UnixConn).SetReadBuffer(1)
	c.c.SetWriteDeadline(time.Now().Add(5 * time.Second))
	for {
		if _, err := c.c.Write(tread(30, 2).Compose()); err != nil {
			break
		}
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
