package virtio_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// Requests of 5.2.6.
const (
	tIn, tOut, tFlush, tGetID, tDiscard, tZeroes = 0, 1, 4, 8, 11, 13
	sOK, sIOErr, sUnsupported                    = 0, 1, 2
	blkFlushBit, blkROBit                        = 1 << 9, 1 << 5
)

// disk is a block device and its image.
type disk struct {
	*virtiotest.Driver
	t     testing.TB
	image *os.File
	dev   *virtio.Blk
	q     *virtiotest.Queue
	head  uint64 // of the header and the status byte
	hdr   []byte
}

func newImage(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "image"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func newDisk(t testing.TB, size int64, cfg virtio.BlkConfig) *disk {
	t.Helper()
	return newDiskOn(t, newImage(t, size), cfg)
}

// newMemImage is an image whose file system has no FALLOC_FL_ZERO_RANGE.
func newMemImage(t testing.TB, size int64) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd))
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func newDiskOn(t testing.TB, image *os.File, cfg virtio.BlkConfig) *disk {
	t.Helper()
	k := &disk{t: t, image: image}
	cfg.FD = int(k.image.Fd())
	var err error
	if k.dev, err = virtio.NewBlk(cfg); err != nil {
		t.Fatal(err)
	}
	k.Driver = newDriver(t, k.dev, 4<<20)
	k.init(k.Offered())
	return k
}

func (k *disk) init(features uint64) {
	k.t.Helper()
	k.q = initQueues(k.t, k.Driver, features, 64)[0]
	k.head, k.hdr = k.Alloc(32)
}

// do makes a request, with a header and a status of their own, and is its
// status and used length.
func (k *disk) do(kind uint32, at uint64, bufs ...virtiotest.Buf) (byte, uint32) {
	k.t.Helper()
	binary.LittleEndian.PutUint32(k.hdr, kind)
	binary.LittleEndian.PutUint64(k.hdr[8:], at)
	k.hdr[16] = 0xee
	chain := append([]virtiotest.Buf{{Addr: k.head, Len: 16}}, bufs...)
	k.q.Add(append(chain, virtiotest.Buf{Addr: k.head + 16, Len: 1, Write: true})...)
	k.q.Kick()
	u := next(k.t, k.q)
	return k.hdr[16], u.Len
}

func (k *disk) content() []byte {
	k.t.Helper()
	p, err := os.ReadFile(k.image.Name())
	if err != nil {
		k.t.Fatal(err)
	}
	return p
}

// TestBlkRandom writes and reads random pieces, in chains cut at random
// places, and compares with what a file should be.
func TestBlkRandom(t *testing.T) {
	const sectors = 256
	for name, drop := range map[string]uint64{
		"as offered":    0,
		"no flush":      blkFlushBit,
		"no event idx":  virtiotest.EventIdx,
		"only indirect": virtiotest.EventIdx | blkFlushBit,
	} {
		t.Run(name, func(t *testing.T) {
			k := newDisk(t, sectors*512, virtio.BlkConfig{})
			k.init(k.Offered() &^ drop)
			rnd := rand.New(rand.NewPCG(1, 2))
			want := make([]byte, sectors*512)
			addr, data := k.Alloc(sectors * 512)
			for range 500 {
				at := rnd.IntN(sectors)
				n := rnd.IntN(min(sectors-at, 32)) + 1
				write := rnd.IntN(2) == 0
				piece := data[:n*512]
				kind := uint32(tIn)
				if write {
					kind = tOut
					for i := range piece {
						piece[i] = byte(rnd.Uint32())
					}
					copy(want[at*512:], piece)
				} else {
					clear(piece)
				}
				status, used := k.do(kind, uint64(at), cut(rnd, addr, len(piece), !write)...)
				wantUsed := uint32(1)
				if !write {
					wantUsed += uint32(len(piece))
				}
				if status != sOK || used != wantUsed {
					t.Fatalf("%d of %d sectors at %d: status %d, %d used, want %d", kind, n, at, status, used, wantUsed)
				}
				if !bytes.Equal(piece, want[at*512:][:len(piece)]) {
					t.Fatalf("read at %d differs", at)
				}
			}
			if !bytes.Equal(k.content(), want) {
				t.Error("the image differs")
			}
			if status, _ := k.do(tFlush, 0); status != sOK {
				t.Errorf("flush: status %d", status)
			}
		})
	}
}

// cut is n bytes at addr in up to 20 pieces.
func cut(rnd *rand.Rand, addr uint64, n int, write bool) []virtiotest.Buf {
	var bufs []virtiotest.Buf
	for n > 0 {
		k := n
		if len(bufs) < 19 {
			k = rnd.IntN(n + 1)
		}
		bufs = append(bufs, virtiotest.Buf{Addr: addr, Len: k, Write: write})
		addr += uint64(k)
		n -= k
	}
	return bufs
}

// TestBlkFraming puts a request in descriptors that no driver would make: the
// header in three, the status at the end of the data (2.7.4.1).
func TestBlkFraming(t *testing.T) {
	k := newDisk(t, 8*512, virtio.BlkConfig{})
	k.image.WriteAt(bytes.Repeat([]byte{7}, 512), 3*512)
	addr, p := k.Alloc(1024)
	binary.LittleEndian.PutUint64(k.hdr[8:], 3)
	k.q.Add(virtiotest.Buf{Addr: k.head, Len: 5}, virtiotest.Buf{Addr: k.head + 5, Len: 10}, virtiotest.Buf{Addr: k.head + 15, Len: 1},
		virtiotest.Buf{Addr: addr, Len: 100, Write: true}, virtiotest.Buf{Addr: addr + 100, Len: 413, Write: true})
	p[512] = 0xee
	k.q.Kick()
	if u := next(t, k.q); u.Len != 513 || p[512] != sOK || !bytes.Equal(p[:512], bytes.Repeat([]byte{7}, 512)) {
		t.Errorf("used %d, status %d, data %x", u.Len, p[512], p[:16])
	}
	// a header with data behind it in one descriptor
	copy(p, k.hdr[:16])
	p[0] = tOut
	copy(p[16:], bytes.Repeat([]byte{9}, 512))
	k.q.Add(virtiotest.Buf{Addr: addr, Len: 528}, virtiotest.Buf{Addr: k.head + 16, Len: 1, Write: true})
	k.q.Kick()
	if u := next(t, k.q); u.Len != 1 || k.hdr[16] != sOK || !bytes.Equal(k.content()[3*512:4*512], bytes.Repeat([]byte{9}, 512)) {
		t.Errorf("used %d, status %d", u.Len, k.hdr[16])
	}
}

func TestBlkRefuses(t *testing.T) {
	k := newDisk(t, 8*512+100, virtio.BlkConfig{ID: "serial"})
	addr, p := k.Alloc(8192)
	in := func(n int) virtiotest.Buf { return virtiotest.Buf{Addr: addr, Len: n, Write: true} }
	out := func(n int) virtiotest.Buf { return virtiotest.Buf{Addr: addr, Len: n} }
	for _, c := range []struct {
		name   string
		kind   uint32
		at     uint64
		buf    virtiotest.Buf
		status byte
		used   uint32
	}{
		{"the last sector", tIn, 7, in(512), sOK, 513},
		{"over the end", tIn, 7, in(1024), sIOErr, 0},
		{"behind the end", tIn, 8, in(512), sIOErr, 0},
		{"far behind", tIn, 1 << 55, in(512), sIOErr, 0},
		{"wraps", tIn, 1<<64 - 1, in(512), sIOErr, 0},
		{"half a sector", tIn, 0, in(256), sIOErr, 0},
		{"write over the end", tOut, 7, out(1024), sIOErr, 1},
		{"write behind", tOut, 1 << 55, out(512), sIOErr, 1},
		{"no data", tIn, 0, in(0), sOK, 1},
		{"unknown", 99, 0, in(512), sUnsupported, 0},
		{"scsi", 2, 0, in(512), sUnsupported, 0},
		{"serial number", tGetID, 0, in(20), sOK, 21},
		{"part of it", tGetID, 0, in(3), sOK, 4},
		{"discard without segments", tDiscard, 0, out(0), sIOErr, 1},
		{"discard of a piece of one", tDiscard, 0, out(15), sIOErr, 1},
		{"discard of too many", tDiscard, 0, out(17 * 16), sIOErr, 1},
		{"write zeroes of two", tZeroes, 0, out(32), sIOErr, 1},
	} {
		if status, used := k.do(c.kind, c.at, c.buf); status != c.status || used != c.used {
			t.Errorf("%s: status %d, %d used, want %d, %d", c.name, status, used, c.status, c.used)
		}
	}
	k.do(tGetID, 0, in(20))
	if got := string(p[:20]); got != "serial"+string(make([]byte, 14)) {
		t.Errorf("serial number %q", got)
	}
	if got := len(k.content()); got != 8*512+100 {
		t.Errorf("the image has %d bytes", got)
	}
}

// seg is a segment of a discard or write zeroes request.
func seg(p []byte, at uint64, n, flags uint32) {
	binary.LittleEndian.PutUint64(p, at)
	binary.LittleEndian.PutUint32(p[8:], n)
	binary.LittleEndian.PutUint32(p[12:], flags)
}

func TestBlkDiscardAndZero(t *testing.T) {
	for name, make := range map[string]func(testing.TB, int64) *os.File{"file": newImage, "memory": newMemImage} {
		t.Run(name, func(t *testing.T) {
			k := newDiskOn(t, make(t, 64*512), virtio.BlkConfig{})
			discardAndZero(t, k)
			k.init(k.Offered() &^ blkFlushBit)
			discardAndZero(t, k)
		})
	}
}

func discardAndZero(t *testing.T, k *disk) {
	addr, p := k.Alloc(256)
	for _, c := range []struct {
		name   string
		kind   uint32
		at     uint64
		n      uint32
		flags  uint32
		status byte
		zero   bool
	}{
		{"discard", tDiscard, 8, 8, 0, sOK, false},
		{"discard with unmap", tDiscard, 8, 8, 1, sUnsupported, false},
		{"discard with an unknown flag", tDiscard, 8, 8, 2, sUnsupported, false},
		{"discard over the end", tDiscard, 60, 5, 0, sIOErr, false},
		{"discard that wraps", tDiscard, 1<<64 - 1, 2, 0, sIOErr, false},
		{"discard of nothing", tDiscard, 8, 0, 0, sOK, false},
		{"zeroes", tZeroes, 3, 5, 0, sOK, true},
		{"zeroes with unmap", tZeroes, 3, 20, 1, sOK, true},
		{"zeroes with an unknown flag", tZeroes, 3, 5, 4, sUnsupported, false},
		{"zeroes over the end", tZeroes, 0, 65, 0, sIOErr, false},
		{"too many zeroes", tZeroes, 0, 1 << 30, 0, sIOErr, false},
	} {
		ones := bytes.Repeat([]byte{1}, 64*512)
		if _, err := k.image.WriteAt(ones, 0); err != nil {
			t.Fatal(err)
		}
		seg(p, c.at, c.n, c.flags)
		if status, used := k.do(c.kind, 0, virtiotest.Buf{Addr: addr, Len: 16}); status != c.status || used != 1 {
			t.Errorf("%s: status %d, want %d", c.name, status, c.status)
		}
		if c.zero {
			clear(ones[c.at*512:][:c.n*512])
		}
		if got := k.content(); (c.zero || c.status != sOK) && !bytes.Equal(got, ones) {
			t.Errorf("%s: the image differs", c.name)
		}
	}
}

func TestBlkReadOnly(t *testing.T) {
	k := newDisk(t, 64*512, virtio.BlkConfig{ReadOnly: true})
	if k.Offered()&blkROBit == 0 {
		t.Error("not offered as read only")
	}
	addr, p := k.Alloc(1024)
	for i := range p {
		p[i] = 1
	}
	for kind, want := range map[uint32]byte{tOut: sIOErr, tDiscard: sUnsupported, tZeroes: sUnsupported} {
		if status, _ := k.do(kind, 0, virtiotest.Buf{Addr: addr, Len: 512}); status != want {
			t.Errorf("request %d: status %d, want %d", kind, status, want)
		}
	}
	if !bytes.Equal(k.content(), make([]byte, 64*512)) {
		t.Error("the image was written")
	}
}

// TestBlkHostError takes the image away.
func TestBlkHostError(t *testing.T) {
	k := newDisk(t, 64*512, virtio.BlkConfig{})
	addr, _ := k.Alloc(4096)
	if err := k.image.Truncate(9 * 512); err != nil {
		t.Fatal(err)
	}
	buf := virtiotest.Buf{Addr: addr, Len: 2048, Write: true}
	if status, used := k.do(tIn, 8, buf); status != sIOErr || used != 512 {
		t.Errorf("a read of a shorter image: status %d, %d used, want %d, 512", status, used, sIOErr)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), int(k.image.Fd()), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	buf.Write = false
	if status, _ := k.do(tOut, 0, buf); status != sIOErr {
		t.Errorf("a write that fails: status %d", status)
	}
	if status, _ := k.do(tFlush, 0); status != sIOErr {
		t.Errorf("a flush that fails: status %d", status)
	}
}

func TestBlkConfig(t *testing.T) {
	k := newDisk(t, 64*512+511, virtio.BlkConfig{Queues: 2})
	le := binary.LittleEndian
	read := func(off uint64, n int) []byte {
		p := make([]byte, n)
		k.Dev.Read(virtiotest.Config+off, p)
		return p
	}
	if got := le.Uint64(read(0, 8)); got != 64 {
		t.Errorf("capacity %d, want 64", got)
	}
	if got := [...]uint32{le.Uint32(read(8, 4)), le.Uint32(read(12, 4)), le.Uint32(read(20, 4))}; got != [...]uint32{1 << 20, 254, 512} {
		t.Errorf("limits %v", got)
	}
	if got := le.Uint16(read(34, 2)); got != 2 || k.Dev.Queues() != 2 {
		t.Errorf("%d queues, %d in the configuration, want 2", k.Dev.Queues(), got)
	}
	if got := read(58, 8); !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("behind the configuration: %x", got)
	}
	gen := k.Load(virtiotest.ConfigGeneration)
	k.image.Truncate(1 << 42)
	if got := le.Uint64(read(0, 8)); got != 1<<33 || k.Load(virtiotest.ConfigGeneration) == gen {
		t.Errorf("capacity %#x in generation %d, want %#x in another than %d", got, k.Load(virtiotest.ConfigGeneration), 1<<33, gen)
	}
	if k.Load(virtiotest.InterruptStatus)&2 == 0 {
		t.Error("no configuration interrupt")
	}
}

func TestNewBlkRefuses(t *testing.T) {
	f := newImage(t, 512)
	app, err := os.OpenFile(f.Name(), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	for name, cfg := range map[string]virtio.BlkConfig{
		"appends":     {FD: int(app.Fd())},
		"closed":      {FD: -1},
		"long serial": {FD: int(f.Fd()), ID: "123456789012345678901"},
		"many queues": {FD: int(f.Fd()), Queues: 17},
	} {
		if _, err := virtio.NewBlk(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestBlkBadRequests are those without a place for the answer.
func TestBlkBadRequests(t *testing.T) {
	k := newDisk(t, 64*512, virtio.BlkConfig{})
	for name, bufs := range map[string][]virtiotest.Buf{
		"short header": {{Addr: 0x8000, Len: 15}, {Addr: 0x8000, Len: 1, Write: true}},
		"no header":    {{Addr: 0x8000, Len: 64, Write: true}},
		"no status":    {{Addr: 0x8000, Len: 64}},
	} {
		k.init(k.Offered())
		k.q.Add(bufs...)
		k.q.Kick()
		t.Logf("%s: %v", name, needsReset(t, k.Driver))
	}
	k.init(k.Offered())
	if status, _ := k.do(tFlush, 0); status != sOK {
		t.Errorf("after resets: status %d", status)
	}
}

// TestBlkNoGarbage sees that a request allocates nothing.
func TestBlkNoGarbage(t *testing.T) {
	k := newDisk(t, 1<<20, virtio.BlkConfig{})
	addr, _ := k.Alloc(64 << 10)
	bufs := []virtiotest.Buf{{Addr: k.head, Len: 16}, {Addr: addr, Len: 4096, Write: true}, {Addr: k.head + 16, Len: 1, Write: true}}
	round := func(n int) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range n {
			for range 16 {
				k.q.Add(bufs...)
			}
			k.q.Kick()
			for done := 0; done < 16; {
				if _, ok := k.q.Poll(); ok {
					done++
				} else {
					runtime.Gosched()
				}
			}
		}
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	round(10)
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	least := round(500)
	for try := 0; try < 10 && least > 50; try++ { // the runtime's threads count too
		least = min(least, round(500))
	}
	if least > 50 {
		t.Errorf("%d allocations for 8000 requests", least)
	}
}
