package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"weak"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

func sends(kind uint8, body ...[]byte) reply {
	return func(c *fakeConn, tag uint16, _ []byte) { c.send(kind, tag, join(body...)) }
}

func raw(p []byte) reply {
	return func(c *fakeConn, _ uint16, _ []byte) { c.Write(p) }
}

// A server that cannot be spoken with is an error, at once.
func TestNotConnected(t *testing.T) {
	for name, does := range map[string]map[uint8]reply{
		"unknown":       {proto.Tversion: sends(proto.Rversion, le32(8192), str("unknown"))},
		"9P2000.L":      {proto.Tversion: sends(proto.Rversion, le32(8192), str("9P2000.L"))},
		"large":         {proto.Tversion: sends(proto.Rversion, le32(1<<20), str("9P2000"))},
		"small":         {proto.Tversion: sends(proto.Rversion, le32(512), str("9P2000"))},
		"short":         {proto.Tversion: sends(proto.Rversion, le32(8192), le16(100))},
		"another":       {proto.Tversion: sends(proto.Rwalk, le16(0))},
		"refused":       {proto.Tversion: sends(proto.Rerror, str("no"))},
		"size 0":        {proto.Tversion: raw(le32(0))},
		"size 6":        {proto.Tversion: raw(append(le32(6), 101, 0))},
		"size 4 GiB":    {proto.Tversion: raw([]byte{0xff, 0xff, 0xff, 0xff, 101, 0, 0})},
		"hangs up":      {proto.Tversion: func(c *fakeConn, _ uint16, _ []byte) { c.Close() }},
		"no attach":     {proto.Tattach: sends(proto.Rerror, str("permission denied"), le32(13))},
		"attach a file": {proto.Tattach: sends(proto.Rattach, qidOf(false, 1))},
		"attach long":   {proto.Tattach: sends(proto.Rattach, qidOf(true, 1), []byte{0})},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, does)
			begin := time.Now()
			if tree, err := New(bg, f.dial, Options{}); err == nil {
				tree.Close()
				t.Error("connected")
			}
			if d := time.Since(begin); d >= connectTime {
				t.Errorf("it was waited for, for %v", d)
			}
		})
	}
	f := newFake(t, map[uint8]reply{proto.Tversion: never})
	ctx, cancel := context.WithTimeout(bg, 50*time.Millisecond)
	defer cancel()
	if _, err := New(ctx, f.dial, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a server that says nothing: %v", err)
	}
}

// An answer that cannot be ends the connection, and nothing else.
func TestBroken(t *testing.T) {
	attr := func(tree *Tree) error { _, err := tree.Root().Attr(bg); return err }
	lookup := func(tree *Tree) error { _, err := tree.Root().Lookup(bg, "d"); return err }
	read := func(tree *Tree) error {
		h, err := openFile(tree, fs.Flags{Read: true})
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = h.Read(bg, make([]byte, 10), 0)
		return err
	}
	write := func(tree *Tree) error {
		h, err := openFile(tree, fs.Flags{Write: true})
		if err != nil {
			return err
		}
		defer h.Close()
		return h.Write(bg, []byte("12"))
	}
	for _, c := range []struct {
		name string
		kind uint8
		does reply
		op   func(*Tree) error
	}{
		{"size 4 GiB", proto.Tstat, raw([]byte{0xff, 0xff, 0xff, 0xff, 125, 1, 0}), attr},
		{"size over msize", proto.Tstat, sends(proto.Rstat, make([]byte, 16<<10)), attr},
		{"size 3", proto.Tstat, raw(le32(3)), attr},
		{"another type", proto.Tstat, sends(proto.Rread, le32(0)), attr},
		{"a T-message", proto.Tstat, sends(proto.Tstat, le32(0)), attr},
		{"no tag", proto.Tstat, func(c *fakeConn, _ uint16, _ []byte) { c.send(proto.Rstat, noTag, nil) }, attr},
		{"another's tag", proto.Tstat, func(c *fakeConn, tag uint16, _ []byte) { c.send(proto.Rstat, tag+1, nil) }, attr},
		{"an empty stat", proto.Tstat, sends(proto.Rstat), attr},
		{"a short stat", proto.Tstat, sends(proto.Rstat, le16(60), entryOf("a", true, 1)[:60]), attr},
		{"a stat with more", proto.Tstat, sends(proto.Rstat, le16(9), entryOf("a", true, 1), le16(1)), attr},
		{"an error without a number", proto.Tstat, sends(proto.Rerror, str("no")), attr},
		{"an error longer than it is", proto.Tstat, sends(proto.Rerror, le16(9), le32(1)), attr},
		{"more qids than names", proto.Twalk, sends(proto.Rwalk, le16(2), qidOf(true, 2), qidOf(true, 3)), lookup},
		{"65535 qids", proto.Twalk, sends(proto.Rwalk, le16(65535)), lookup},
		{"no qid", proto.Twalk, sends(proto.Rwalk, le16(0)), lookup},
		{"half a qid", proto.Twalk, sends(proto.Rwalk, le16(1), []byte{1, 2}), lookup},
		{"a short open", proto.Topen, sends(proto.Ropen, qidOf(false, 1)), read},
		{"more data than asked for", proto.Tread, sends(proto.Rread, le32(11), make([]byte, 11)), read},
		{"more data than there is", proto.Tread, sends(proto.Rread, le32(10), make([]byte, 9)), read},
		{"4 GiB of data", proto.Tread, sends(proto.Rread, []byte{0xff, 0xff, 0xff, 0xff}), read},
		{"more written than sent", proto.Twrite, sends(proto.Rwrite, le32(3)), write},
		{"a short Rwrite", proto.Twrite, sends(proto.Rwrite, le16(3)), write},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t, map[uint8]reply{c.kind: c.does})
			tree := f.tree()
			err := c.op(tree)
			if !errors.Is(err, syscall.EPROTO) && !errors.Is(err, syscall.ECONNABORTED) {
				t.Errorf("got %v", err)
			}
			f.do(c.kind, usual[c.kind])
			if err := c.op(tree); err != nil {
				t.Errorf("on the next connection: %v", err)
			}
		})
	}
}

func openFile(tree *Tree, flags fs.Flags) (fs.Handle, error) {
	n, err := tree.Root().Lookup(bg, "file")
	if err != nil {
		return nil, err
	}
	return n.(fs.File).Open(bg, ctl.Cred{}, flags)
}

// Two answers to one request are one too many. One that comes after the next
// request has taken its tag cannot be told from the answer to that; the one
// too many is then the next.
func TestTwoAnswers(t *testing.T) {
	f := newFake(t, map[uint8]reply{proto.Tread: func(c *fakeConn, tag uint16, _ []byte) {
		c.send(proto.Rread, tag, le32(0))
		c.send(proto.Rread, tag, le32(0))
	}})
	h, err := openFile(f.tree(), fs.Flags{Read: true})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for range 10000 {
		if _, err = h.Read(bg, make([]byte, 1), 0); err != nil {
			break
		}
	}
	if !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("after two answers each: %v", err)
	}
}

// The number of an error is Linux's, or else its text's.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		text string
		n    uint32
		want syscall.Errno
	}{
		{"whatever", 16, syscall.EBUSY},
		{"Permission denied", 0, syscall.EACCES},
		{"permission denied", 526, syscall.EACCES},
		{"file does not exist", 1 << 31, syscall.ENOENT},
		{"Disk quota exceeded", 0, syscall.EDQUOT},
		{"Operation already in progress", 0, syscall.EALREADY},
		{"Operation not supported", 0, syscall.EOPNOTSUPP},
		{"Resource temporarily unavailable", 0, syscall.EAGAIN},
		{"nobody knows", 0, syscall.EIO},
		{"nobody knows", 512, syscall.EIO}, // ERESTARTSYS is for the kernel alone
		{strings.Repeat("x", 5000), 0, syscall.EIO},
	} {
		for _, dotu := range []bool{true, false} {
			body, want := str(c.text), c.want
			if dotu {
				body = append(body, le32(int(c.n))...)
			} else if c.text == "whatever" {
				want = syscall.EIO
			}
			err, ok := refusal(body, dotu)
			if !ok || !errors.Is(err, want) || len(err.Error()) > 300 {
				t.Errorf("%.20q %d: got %.50v, want %v", c.text, c.n, err, want)
			}
		}
	}
}

// What is listed can be in a directory, and ends.
func TestListing(t *testing.T) {
	list := func(entries []byte) error {
		sent := false
		f := newFake(t, map[uint8]reply{proto.Tread: func(c *fakeConn, tag uint16, _ []byte) {
			p := entries
			if sent {
				p = nil
			}
			sent = true
			c.send(proto.Rread, tag, append(le32(len(p)), p...))
		}})
		_, err := f.tree().Root().List(bg)
		return err
	}
	good := entryOf("good", false, 7)
	if err := list(good); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/", "a\x00b", strings.Repeat("x", 256)} {
		if err := list(append(slices.Clone(good), entryOf(name, false, 8)...)); !errors.Is(err, syscall.EIO) {
			t.Errorf("%.20q: %v", name, err)
		}
	}
	for name, entries := range map[string][]byte{
		"half an entry": good[:20], "a byte more": append(slices.Clone(good), 0), "a size of 0": le16(0),
		"two of one number": join(good, entryOf("dir", true, 7)),
	} {
		if err := list(entries); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", name, err)
		}
	}

	page := bytes.Repeat(entryOf("again", false, 9), 150)
	f := newFake(t, map[uint8]reply{proto.Tread: sends(proto.Rread, le32(len(page)), page)})
	if _, err := f.tree().Root().List(bg); !errors.Is(err, syscall.EIO) {
		t.Errorf("a directory without end: %v", err)
	}
}

// A directory that is in itself is nowhere.
func TestLoop(t *testing.T) {
	tree := newFake(t, map[uint8]reply{}).tree()
	a, err := tree.Root().Lookup(bg, "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.(fs.Dir).Lookup(bg, "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if _, err := b.(fs.Dir).Lookup(bg, name); !errors.Is(err, syscall.EIO) {
			t.Errorf("a/b/%s: %v", name, err)
		}
	}
}

// opened is a file of a fake, open for reading.
func opened(t *testing.T, does map[uint8]reply, flags fs.Flags) (*fake, fs.Handle) {
	t.Helper()
	f := newFake(t, does)
	h, err := openFile(f.tree(), flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return f, h
}

// interruptedRead reads, and is interrupted a little later.
func interruptedRead(h fs.Handle) (text string, err error) {
	ctx, cancel := context.WithCancel(bg)
	time.AfterFunc(30*time.Millisecond, cancel)
	p := make([]byte, 10)
	n, err := h.Read(ctx, p, 0)
	return string(p[:n]), err
}

// A read is interrupted when the server says so; what it gives all the same
// is taken; and a server that does not answer holds nobody.
func TestInterrupted(t *testing.T) {
	_, h := opened(t, map[uint8]reply{proto.Tread: never}, fs.Flags{Read: true})
	if text, err := interruptedRead(h); text != "" || err != context.Canceled {
		t.Errorf("flushed: %q, %v", text, err)
	}

	var read uint16
	does := map[uint8]reply{
		proto.Tread: func(_ *fakeConn, tag uint16, _ []byte) { read = tag },
		proto.Tflush: func(c *fakeConn, tag uint16, _ []byte) {
			c.send(proto.Rread, read, append(le32(3), "abc"...))
			c.send(proto.Rflush, tag, nil)
		},
	}
	_, h = opened(t, does, fs.Flags{Read: true})
	for range 3 {
		if text, err := interruptedRead(h); text != "abc" || err != nil {
			t.Errorf("answered before the flush: %q, %v", text, err)
		}
	}

	_, h = opened(t, map[uint8]reply{proto.Tread: never, proto.Tflush: never}, fs.Flags{Read: true})
	if text, err := interruptedRead(h); text != "" || !errors.Is(err, context.Canceled) || !errors.As(err, new(abandoned)) {
		t.Errorf("never answered: %q, %v", text, err)
	}
	if _, err := interruptedRead(h); !errors.Is(err, context.Canceled) {
		t.Errorf("the next read: %v", err)
	}
}

// Whoever has a signal while he asks for what is refused hears why: the runtime
// of a Go program, for one, sends itself many.
func TestRefusedMeanwhile(t *testing.T) {
	var asked uint16
	ctx, cancel := context.WithCancel(bg)
	tree := newFake(t, map[uint8]reply{
		proto.Twstat: func(_ *fakeConn, tag uint16, _ []byte) { asked = tag; cancel() },
		proto.Tflush: func(c *fakeConn, tag uint16, body []byte) {
			if f := (fields{p: body}); asked != 0 && f.u16() == asked {
				c.send(proto.Rerror, asked, append(str("File exists"), le32(int(syscall.EEXIST))...))
			}
			c.send(proto.Rflush, tag, nil)
		},
	}).tree()
	root := tree.Root()
	if err := root.Rename(ctx, ctl.Cred{}, "a", root, "b"); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("got %v", err)
	}
}

// Nor does it end what the server is about to answer.
func TestAnsweredMeanwhile(t *testing.T) {
	ctx, cancel := context.WithCancel(bg)
	f := newFake(t, map[uint8]reply{
		proto.Tcreate: func(c *fakeConn, tag uint16, _ []byte) {
			cancel()
			time.Sleep(10 * time.Millisecond)
			c.send(proto.Rerror, tag, append(str("File exists"), le32(int(syscall.EEXIST))...))
		},
	})
	if _, err := f.tree().Root().Mkdir(ctx, ctl.Cred{}, "a", 0o755); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("got %v", err)
	}
	if n := f.requests(proto.Tflush); n != 0 {
		t.Errorf("%d flushes of what was answered", n)
	}
}

// O_NONBLOCK gives what there is, and otherwise end of file.
func TestNonBlock(t *testing.T) {
	_, h := opened(t, map[uint8]reply{proto.Tread: never}, fs.Flags{Read: true, NonBlock: true})
	if n, err := h.Read(bg, make([]byte, 10), 0); n != 0 || err != nil {
		t.Errorf("where it would wait: %d, %v", n, err)
	}
	_, h = opened(t, map[uint8]reply{proto.Tread: sends(proto.Rread, le32(1), []byte("x"))}, fs.Flags{Read: true, NonBlock: true})
	if n, err := h.Read(bg, make([]byte, 10), 0); n != 1 || err != nil {
		t.Errorf("where there is something: %d, %v", n, err)
	}
}

// A server that reads nothing holds nobody, and gets no more than a bound.
func TestNotRead(t *testing.T) {
	stuck := make(chan struct{})
	f, h := opened(t, map[uint8]reply{proto.Twrite: func(*fakeConn, uint16, []byte) { <-stuck }}, fs.Flags{Write: true})
	t.Cleanup(func() { close(stuck); f.close() })
	p := make([]byte, 16000)
	full := 0
	for range 2 * mostUnsent / len(p) {
		c := h.(*handle).c
		m := proto.TWrite{Header: header(proto.Twrite), Count: uint32(len(p)), Data: p}
		if _, err := c.send(m.Compose(), nil); errors.Is(err, errFull) {
			full++
		}
	}
	if full == 0 {
		t.Errorf("%d bytes were taken for a server that reads none", 2*mostUnsent)
	}
	ctx, cancel := context.WithTimeout(bg, 30*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := h.Write(ctx, p); err == nil {
		t.Error("written")
	}
	if d := time.Since(begin); d >= writeTime {
		t.Errorf("an interrupted write took %v", d)
	}
}

// What was walked to although nobody waited any more is clunked.
func TestLateWalk(t *testing.T) {
	late := make(chan func(), 1)
	f := newFake(t, map[uint8]reply{proto.Tflush: never, proto.Twalk: func(c *fakeConn, tag uint16, body []byte) {
		late <- func() { usualWalk(c, tag, body) }
	}})
	tree := f.tree()
	ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
	defer cancel()
	if _, err := tree.Root().Attr(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	clunked := f.requests(proto.Tclunk)
	(<-late)()
	eventually(t, "a late walk is clunked", func() bool { return f.requests(proto.Tclunk) == clunked+1 })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not within 30 s: %s", what)
}

// A server that says nothing, though it was asked what is always answered, is
// hung up on.
func TestSilent(t *testing.T) {
	f := newFake(t, map[uint8]reply{proto.Tflush: never})
	nc, err := f.dial(bg)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConn(nc, 0)
	if err != nil {
		t.Fatal(err)
	}
	go c.read()
	go c.write()
	c.watch(20 * time.Millisecond)
	if !errors.Is(c.why(), syscall.ETIMEDOUT) {
		t.Errorf("got %v", c.why())
	}
}

// A lost connection is lost to what is open, and back for all else.
func TestLost(t *testing.T) {
	f, h := opened(t, map[uint8]reply{proto.Tread: never}, fs.Flags{Read: true})
	tree := h.(*handle).tree
	before, err := tree.Root().Lookup(bg, "d")
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, f.close)
	if _, err := h.Read(bg, make([]byte, 1), 0); !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("a read that waited: %v", err)
	}
	eventually(t, "the tree knows it", func() bool { c, _, _ := tree.present(); return c == nil })
	if _, err = before.Attr(bg); !errors.Is(err, syscall.EHOSTDOWN) {
		t.Errorf("at first: %v", err)
	}
	impatient, cancel := context.WithCancel(bg)
	cancel() // so it is no error of the connection's if anything is waited for
	if _, err = before.Attr(impatient); !errors.Is(err, syscall.EHOSTDOWN) {
		t.Errorf("then: %v", err)
	}
	f.listen()
	eventually(t, "the tree is back", func() bool { _, err := before.Attr(bg); return err == nil })
	if _, err := h.Read(bg, make([]byte, 1), 0); !errors.Is(err, syscall.ECONNABORTED) {
		t.Errorf("what was open, on a new connection: %v", err)
	}
	after, err := tree.Root().Lookup(bg, "d")
	if err != nil || after != before {
		t.Errorf("the same directory: %v, %v", after, err)
	}
}

// What nobody uses any more is forgotten, and numbers are used again.
func TestForgotten(t *testing.T) {
	f := newFake(t, map[uint8]reply{})
	tree := f.tree()
	goroutines := runtime.NumGoroutine()
	for i := range 2000 {
		if _, err := tree.Root().Lookup(bg, "d"+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676))); err != nil {
			t.Fatal(err)
		}
	}
	tree.cache.forget()
	eventually(t, "the nodes are gone", func() bool {
		runtime.GC()
		tree.places.Lock()
		defer tree.places.Unlock()
		return len(tree.nodes) < 10
	})
	c, err := tree.connection(bg)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	if c.lastID > 100 || c.last > 100 {
		t.Errorf("%d fids and %d tags were used", c.lastID, c.last)
	}
	c.mu.Unlock()
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// FuzzServer sends a server's bytes to one that asks everything.
func FuzzServer(f *testing.F) {
	walked := message(proto.Rwalk, 1, append(le16(1), qidOf(true, 5)...))
	e := entryOf("a", true, 5)
	f.Add(join(walked, message(proto.Rstat, 1, append(le16(len(e)), e...))), true)
	f.Add(join(walked, message(proto.Rerror, 1, append(str("no"), le32(2)...))), true)
	f.Add(join(message(proto.Rwalk, 1, append(le16(1), qidOf(false, 5)...)), message(proto.Ropen, 1, append(qidOf(false, 5), le32(10)...)),
		message(proto.Rread, 1, append(le32(2), "ab"...)), message(proto.Rwrite, 1, le32(2))), false)
	f.Add(join(walked, message(proto.Rcreate, 1, append(qidOf(true, 6), le32(0)...)), message(proto.Rremove, 1, nil)), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 111, 1, 0}, true)
	f.Fuzz(func(t *testing.T, p []byte, dotu bool) {
		ours, theirs := net.Pipe()
		c := &conn{
			nc: ours, in: bufio.NewReader(ours), most: leastMessage, dotu: dotu, roots: map[uint32]uint32{0: 0},
			dead: make(chan struct{}), wake: make(chan struct{}, 1), calls: map[uint16]*call{},
		}
		go func() {
			first := make([]byte, 4)
			theirs.Read(first)
			go func() {
				for p := make([]byte, 4096); ; {
					if _, err := theirs.Read(p); err != nil {
						return
					}
				}
			}()
			theirs.Write(p)
			theirs.Close()
		}()
		c.start()
		g := c.newFid()
		g.walkAll(bg, rootFid, []string{"a"})
		g.stat(bg)
		g.open(bg, proto.Oread)
		n, err := g.read(bg, 0, make([]byte, 10), 0)
		if n > 10 || n > 0 && err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		g.write(bg, []byte("ab"), 0)
		g.create(bg, "a", 0)
		g.remove(bg)
		c.die(errClosed)
	})
}

// FuzzEntries takes directories apart.
func FuzzEntries(f *testing.F) {
	f.Add(entryOf("a", true, 5), true)
	f.Add(append(entryOf("", false, 0), entryOf("..", false, 1<<63)...), true)
	f.Add([]byte{0xff, 0xff, 0}, false)
	f.Fuzz(func(t *testing.T, p []byte, dotu bool) {
		tree := &Tree{nodes: map[uint64]weak.Pointer[node]{}}
		tree.root = &node{tree: tree, dir: true}
		list, err := dir{tree.root}.listed(nil, 0, p, dotu)
		for _, e := range list {
			if err == nil && !possible(e.Name) {
				t.Errorf("listed %q", e.Name)
			}
		}
	})
}

// A time is what it was to the server, to the microsecond.
func TestModified(t *testing.T) {
	for _, ns := range []int64{0, 1, 999, 1024, 500_000_000, 999_999_999} {
		for _, sec := range []int64{1, 1_700_000_000, 4_000_000_000} {
			was := time.Unix(sec, ns)
			got := modified(uint32(sec), uint32(was.UnixNano()>>10))
			if d := was.Sub(got); d < 0 || d > 1024 {
				t.Errorf("%v became %v", was, got)
			}
			if other := modified(uint32(sec), uint32(was.UnixNano()>>10)+1<<31); !other.Equal(time.Unix(sec, 0)) {
				t.Errorf("another's version: %v became %v", was, other)
			}
		}
	}
	if !modified(0, 5).IsZero() {
		t.Error("no time became one")
	}
}

func TestParseAddr(t *testing.T) {
	for s, want := range map[string]string{
		"unix!/run/vmfs/9p.sock": "unix!/run/vmfs/9p.sock", "unix!a!b": "unix!a!b",
		"tcp!host": "tcp!host!5640", "tcp!::1!564": "tcp!::1!564", "tls!host.example.org!1": "tls!host.example.org!1",
	} {
		if a, err := ParseAddr(s); err != nil || a.String() != want {
			t.Errorf("%s: got %v, %v, want %s", s, a, err, want)
		}
	}
	for _, s := range []string{"", "unix", "unix!", "unix!@x", "unix!a\x00", "tcp", "tcp!", "tcp!!1", "tcp!h!", "tcp!h!0", "tcp!h!65536",
		"tcp!h!x", "tcp!h!1!2", "udp!h!1", "host", "host:564"} {
		if a, err := ParseAddr(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, a)
		}
	}
}
