package virtio_test

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// walled is memory between pages that nobody may touch: one region at 0 and
// one at 4 GiB, so that there is a hole between. What leaves it is a fault.
type walled struct{ low, high []byte }

const (
	lowSize  = 64 << 10
	highAddr = 4 << 30
	highSize = 8 << 10
)

func newWalled(t testing.TB) *walled {
	t.Helper()
	region := func(n int) []byte {
		p, err := unix.Mmap(-1, 0, n+8192, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(p) })
		mem := p[4096 : 4096+n : 4096+n]
		if err := unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE); err != nil {
			t.Fatal(err)
		}
		return mem
	}
	return &walled{region(lowSize), region(highSize)}
}

var errOutside = errors.New("outside")

func (w *walled) Slice(addr, n uint64) ([]byte, error) {
	mem := w.low
	if addr >= highAddr {
		addr -= highAddr
		mem = w.high
	}
	if addr > uint64(len(mem)) || n > uint64(len(mem))-addr {
		return nil, errOutside
	}
	return mem[addr : addr+n : addr+n], nil
}

// source is where a hostile guest has its numbers from: a generator, or a
// fuzzer's bytes until they end.
type source struct {
	rnd  *rand.Rand
	data []byte
}

func (s *source) byte() byte {
	if s.rnd != nil {
		return byte(s.rnd.Uint32())
	}
	if len(s.data) == 0 {
		return 0
	}
	b := s.data[0]
	s.data = s.data[1:]
	return b
}

func (s *source) more() bool      { return s.rnd != nil || len(s.data) > 0 }
func (s *source) n(limit int) int { return int(s.byte()) % limit }
func (s *source) half() uint16    { return uint16(s.byte()) | uint16(s.byte())<<8 }
func (s *source) word() uint32    { return uint32(s.half()) | uint32(s.half())<<16 }
func (s *source) one(in int) bool { return s.n(in) == 0 }

// addr is an address: mostly one in memory, or just at an end of it.
func (s *source) addr() uint64 {
	switch s.n(16) {
	case 0:
		return uint64(s.word())<<32 | uint64(s.word())
	case 1:
		return lowSize - uint64(s.n(64))
	case 2:
		return highAddr + uint64(s.half()%highSize)
	case 3:
		return highAddr + highSize - uint64(s.n(64))
	}
	return uint64(s.half())
}

// size is the length of a buffer: mostly one that a device likes.
func (s *source) size() uint32 {
	switch s.n(8) {
	case 0:
		return s.word()
	case 1:
		return uint32(s.n(32))
	case 2:
		return 1
	case 3:
		return 16
	case 4:
		return 512
	case 5:
		return 1536
	}
	return uint32(s.half() % 4096)
}

// hostile is a guest that does anything.
type hostile struct {
	dev   *virtio.MMIO
	mem   *walled
	s     *source
	event func(s *source) // something that the host does
	avail uint16
}

const (
	hostileQueue = 16 // descriptors; the rings stand at these addresses
	hostileDesc  = 0x0000
	hostileAvail = 0x0400
	hostileUsed  = 0x0800
	hostileStep  = 0x1000 // between the rings of two queues
)

func (h *hostile) store(reg uint64, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	h.dev.Write(reg, p[:])
}

// begin initializes the device as it should be, but for what the source
// says.
func (h *hostile) begin() {
	s := h.s
	h.store(virtiotest.Status, 0)
	h.avail = 0
	h.store(virtiotest.Status, 3)
	for i := range uint32(2) {
		h.store(virtiotest.DeviceFeaturesSel, i)
		h.store(virtiotest.DriverFeaturesSel, i)
		var p [4]byte
		h.dev.Read(virtiotest.DeviceFeatures, p[:])
		f := binary.LittleEndian.Uint32(p[:])
		if i == 0 {
			without := s.word()
			f &^= without & s.word()
		}
		h.store(virtiotest.DriverFeatures, f)
	}
	h.store(virtiotest.Status, 11)
	for i := range h.dev.Queues() {
		h.store(virtiotest.QueueSel, uint32(i))
		h.store(virtiotest.QueueNum, hostileQueue)
		base := uint32(i%2) * hostileStep
		h.store(virtiotest.QueueDesc, base+hostileDesc)
		h.store(virtiotest.QueueDriver, base+hostileAvail)
		h.store(virtiotest.QueueDevice, base+hostileUsed)
		h.store(virtiotest.QueueDesc+4, 0)
		h.store(virtiotest.QueueDriver+4, 0)
		h.store(virtiotest.QueueDevice+4, 0)
		clear(h.mem.low[int(base)+hostileAvail:][:512])
		clear(h.mem.low[int(base)+hostileUsed:][:512])
		if s.one(16) {
			h.register()
		}
		h.store(virtiotest.QueueReady, 1)
	}
	h.store(virtiotest.Status, 15)
}

// register writes or reads any register, in any width.
func (h *hostile) register() {
	s := h.s
	p := make([]byte, 8)
	n := []int{4, 4, 4, 4, 1, 2, 8, s.n(9)}[s.n(8)]
	reg := uint64(s.n(64)) * 4
	if s.one(8) {
		reg = uint64(s.half()) % (virtio.Size + 8)
	}
	if s.one(2) {
		h.dev.Read(reg, p[:n])
		return
	}
	binary.LittleEndian.PutUint32(p, uint32(s.n(32)))
	if s.one(4) {
		binary.LittleEndian.PutUint32(p, s.word())
	}
	h.dev.Write(reg, p[:n])
}

// chain writes a chain that may be one, in table or in an indirect table, and
// makes it available.
func (h *hostile) chain() {
	s := h.s
	base := s.n(2) * hostileStep
	table, at, n := h.mem.low[base+hostileDesc:], s.n(hostileQueue), 1+s.n(5)
	if s.one(4) {
		off := 0x2000 + int(s.half())%0x2000
		put(table[16*at:], d{uint64(off), uint32(16 * n), fIndirect, 0})
		h.links(h.mem.low[off:], 0, n, 64)
	} else {
		h.links(table, at, n, hostileQueue)
	}
	ring := h.mem.low[base+hostileAvail:]
	binary.LittleEndian.PutUint16(ring[4+2*(int(h.avail)%hostileQueue):], uint16(at))
	h.avail++
	if s.one(64) {
		h.avail = s.half()
	}
	binary.LittleEndian.PutUint16(ring[2:], h.avail)
	h.store(virtiotest.QueueNotify, uint32(base/hostileStep))
	if s.one(4) {
		h.settle(h.mem.low[base+hostileUsed:])
	}
}

// settle lets the device come to what is available, if it does.
func (h *hostile) settle(used []byte) {
	for range 200 {
		if binary.LittleEndian.Uint16(used[2:]) == h.avail || h.dev.Failure() != nil {
			return
		}
		runtime.Gosched()
	}
}

// links writes n linked descriptors from index at on.
func (h *hostile) links(table []byte, at, n, limit int) {
	s := h.s
	readable := s.n(n + 1)
	for i := range n {
		flags, next := uint16(0), uint16((at+1)%limit)
		if i < n-1 {
			flags = fNext
		}
		if i >= readable {
			flags |= fWrite
		}
		if s.one(128) {
			flags, next = s.half()%8, s.half()
		}
		desc := d{s.addr(), s.size(), flags, next}
		if i == 0 && s.one(2) { // a header, of a request that blk knows
			desc = d{0x4000, []uint32{16, 32}[s.n(2)], flags, next}
			binary.LittleEndian.PutUint32(h.mem.low[0x4000:], uint32(s.n(16)))
			binary.LittleEndian.PutUint64(h.mem.low[0x4008:], uint64(s.byte()))
			seg(h.mem.low[0x4010:], uint64(s.byte()), uint32(s.byte()), uint32(s.n(3)))
		}
		put(table[16*at:], desc)
		at = (at + 1) % limit
	}
}

// step is one thing that it does.
func (h *hostile) step() {
	s := h.s
	switch s.n(32) {
	case 0:
		h.begin()
	case 1, 2, 3, 4:
		h.register()
	case 5:
		h.mem.low[s.half()] = s.byte()
	case 6:
		binary.LittleEndian.PutUint64(h.mem.low[s.half()&^7:], uint64(s.word()))
	case 7:
		h.dev.Pause()
		h.dev.Resume()
	case 8, 9:
		h.event(s)
	case 10:
		h.store(virtiotest.QueueNotify, uint32(s.n(4)))
	default:
		h.chain()
	}
}

// target is a device, and what the host does to it meanwhile.
type target struct {
	name string
	make func(t testing.TB) (virtio.Device, func(*source))
}

// targets are all devices.
var targets = []target{
	{"blk", func(t testing.TB) (virtio.Device, func(*source)) { return hostileBlk(t, virtio.BlkConfig{Queues: 2}) }},
	{"blk-ro", func(t testing.TB) (virtio.Device, func(*source)) {
		return hostileBlk(t, virtio.BlkConfig{ReadOnly: true})
	}},
	{"net", hostileNet},
	{"console", hostileConsole},
	{"rng", func(testing.TB) (virtio.Device, func(*source)) { return virtio.NewRNG(), func(*source) {} }},
}

func hostileBlk(t testing.TB, cfg virtio.BlkConfig) (virtio.Device, func(*source)) {
	image := newImage(t, 1<<20)
	cfg.FD = int(image.Fd())
	dev, err := virtio.NewBlk(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return dev, func(s *source) {
		image.Truncate(int64(s.half()) << 4)
		dev.Resize()
	}
}

func hostileNet(t testing.TB) (virtio.Device, func(*source)) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		t.Cleanup(func() { unix.Close(fd) })
	}
	dev, err := virtio.NewNet(virtio.NetConfig{FD: fds[0]})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 70000)
	return dev, func(s *source) {
		unix.Write(fds[1], buf[:int(s.half())%3000+1])
		unix.Read(fds[1], buf)
		dev.SetLink(!s.one(8))
	}
}

func hostileConsole(t testing.TB) (virtio.Device, func(*source)) {
	dev := virtio.NewConsole(io.Discard)
	typed := make(chan int, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range typed {
			dev.Write(make([]byte, n))
		}
	}()
	t.Cleanup(func() {
		dev.Close()
		close(typed)
		<-done
	})
	return dev, func(s *source) {
		select {
		case typed <- int(s.half() % 6000):
		default:
		}
	}
}

func newHostile(t testing.TB, target target, s *source) *hostile {
	t.Helper()
	h := &hostile{mem: newWalled(t), s: s}
	dev, event := target.make(t)
	h.event = event
	var err error
	if h.dev, err = virtio.New(dev, h.mem, func() {}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.dev.Close)
	return h
}

// TestHostile lets a guest do a million random things to each device. It may
// find what it gets; it must not crash the process, touch what is not its
// memory, or make anything wait for ever. VMFS_SEED repeats a run.
func TestHostile(t *testing.T) {
	for _, target := range targets {
		t.Run(target.name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			if v := os.Getenv("VMFS_SEED"); v != "" {
				seed = parseSeed(t, v)
			}
			t.Logf("VMFS_SEED=%d", seed)
			h := newHostile(t, target, &source{rnd: rand.New(rand.NewPCG(seed, 0))})
			h.begin()
			resets := 0
			for range rounds(1_000_000) {
				h.step()
				if h.dev.Failure() != nil {
					resets++
					h.begin()
				}
			}
			t.Logf("%d resets were needed", resets)
		})
	}
}

func parseSeed(t *testing.T, v string) uint64 {
	t.Helper()
	var n uint64
	for _, c := range v {
		if c < '0' || c > '9' {
			t.Fatalf("VMFS_SEED=%s is no number", v)
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// fuzz is a fuzz target of a device: the bytes are the guest. What the device
// does depends on the moment too, so minimizing finds no end: use
// -fuzzminimizetime 5x.
func fuzz(f *testing.F, target target) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for n := 16; n <= 1024; n *= 4 {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h := newHostile(t, target, &source{data: data})
		h.begin()
		for h.s.more() {
			h.step()
		}
	})
}

func FuzzBlk(f *testing.F)     { fuzz(f, targets[0]) }
func FuzzNet(f *testing.F)     { fuzz(f, targets[2]) }
func FuzzConsole(f *testing.F) { fuzz(f, targets[3]) }
func FuzzRNG(f *testing.F)     { fuzz(f, targets[4]) }
