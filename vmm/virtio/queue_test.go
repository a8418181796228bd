package virtio_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// raw is a queue of 16 descriptors that a test writes itself.
type raw struct {
	*virtiotest.Driver
	desc, avail, used []byte
}

const rawSize = 16

// newRaw makes queue 0 of a device raw, with data at dataAddr.
func newRaw(t testing.TB, dev virtio.Device, features uint64) *raw {
	t.Helper()
	r := &raw{Driver: newDriver(t, dev, 1<<16)}
	r.init(t, features)
	return r
}

func (r *raw) init(t testing.TB, features uint64) {
	t.Helper()
	if err := r.Negotiate(features); err != nil {
		t.Fatal(err)
	}
	r.Store(virtiotest.QueueNum, rawSize)
	for reg, p := range map[uint64]*[]byte{
		virtiotest.QueueDesc:   &r.desc,
		virtiotest.QueueDriver: &r.avail,
		virtiotest.QueueDevice: &r.used,
	} {
		var addr uint64
		addr, *p = r.Alloc(512)
		r.Store(reg, uint32(addr))
	}
	r.Store(virtiotest.QueueReady, 1)
	r.Store(virtiotest.Status, 15)
}

// d is a descriptor as it stands in memory.
type d struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

const (
	fNext     = 1
	fWrite    = 2
	fIndirect = 4
)

func put(p []byte, descs ...d) {
	for i, d := range descs {
		binary.LittleEndian.PutUint64(p[16*i:], d.addr)
		binary.LittleEndian.PutUint32(p[16*i+8:], d.len)
		binary.LittleEndian.PutUint16(p[16*i+12:], d.flags)
		binary.LittleEndian.PutUint16(p[16*i+14:], d.next)
	}
}

// offer makes heads available and notifies.
func (r *raw) offer(idx uint16, heads ...uint16) {
	for i, h := range heads {
		binary.LittleEndian.PutUint16(r.avail[4+2*i:], h)
	}
	binary.LittleEndian.PutUint16(r.avail[2:], idx)
	r.Store(virtiotest.QueueNotify, 0)
}

// TestBadChains offers what 2.7 forbids. The device is left in need of a
// reset, with the reason, and works after one.
func TestBadChains(t *testing.T) {
	const (
		data  = 0x8000
		table = 0x9000
		end   = 1 << 16
	)
	loop := make([]d, rawSize)
	for i := range loop {
		loop[i] = d{data, 1, fNext | fWrite, uint16(i+1) % rawSize}
	}
	for _, c := range []struct {
		name     string
		idx      uint16
		head     uint16
		desc     []d
		indirect []d
		features uint64
		want     string
	}{
		{name: "index jumps", idx: 17, desc: []d{{data, 1, fWrite, 0}}, want: "further ahead"},
		{name: "index goes back", idx: 0xffff, desc: []d{{data, 1, fWrite, 0}}, want: "further ahead"},
		{name: "head past the table", idx: 1, head: 16, want: "past the table"},
		{name: "huge head", idx: 1, head: 0xffff, want: "past the table"},
		{name: "next past the table", idx: 1, desc: []d{{data, 1, fWrite | fNext, 16}}, want: "past the table"},
		{name: "loop", idx: 1, desc: []d{{data, 1, fWrite | fNext, 0}}, want: "loop"},
		{name: "long loop", idx: 1, desc: loop, want: "loop"},
		{name: "outside", idx: 1, desc: []d{{end, 1, fWrite, 0}}, want: "outside"},
		{name: "over the end", idx: 1, desc: []d{{end - 1, 2, fWrite, 0}}, want: "outside"},
		{name: "wraps", idx: 1, desc: []d{{1<<64 - 1, 2, fWrite, 0}}, want: "outside"},
		{name: "huge length", idx: 1, desc: []d{{data, 1<<32 - 1, fWrite, 0}}, want: "outside"},
		{name: "readable after writable", idx: 1, desc: []d{{data, 1, fWrite | fNext, 1}, {data, 1, 0, 0}}, want: "readable"},
		{name: "indirect not agreed on", idx: 1, features: virtiotest.Version1,
			desc: []d{{table, 16, fIndirect, 0}}, indirect: []d{{data, 1, fWrite, 0}}, want: "indirect"},
		{name: "indirect with next", idx: 1, desc: []d{{table, 16, fIndirect | fNext, 1}}, want: "indirect"},
		{name: "nested", idx: 1, desc: []d{{table, 16, fIndirect, 0}}, indirect: []d{{table, 16, fIndirect, 0}}, want: "indirect"},
		{name: "empty table", idx: 1, desc: []d{{table, 0, fIndirect, 0}}, want: "table"},
		{name: "torn table", idx: 1, desc: []d{{table, 24, fIndirect, 0}}, want: "table"},
		{name: "table outside", idx: 1, desc: []d{{end - 16, 32, fIndirect, 0}}, want: "outside"},
		{name: "next past the indirect table", idx: 1, desc: []d{{table, 32, fIndirect, 0}},
			indirect: []d{{data, 1, fWrite | fNext, 2}}, want: "past the table"},
		{name: "indirect loop", idx: 1, desc: []d{{table, 16, fIndirect, 0}},
			indirect: []d{{data, 1, fWrite | fNext, 0}}, want: "loop"},
		{name: "nothing to write", idx: 1, desc: []d{{data, 1, 0, 0}}, want: "rng"},
		{name: "empty", idx: 1, desc: []d{{0, 0, fWrite, 0}}, want: "rng"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.features == 0 {
				c.features = ringFeatures
			}
			r := newRaw(t, virtio.NewRNG(), c.features)
			put(r.desc, c.desc...)
			p, err := r.RAM.Slice(table, 512)
			if err != nil {
				t.Fatal(err)
			}
			put(p, c.indirect...)
			r.offer(c.idx, c.head)
			if err := needsReset(t, r.Driver); !strings.Contains(err.Error(), c.want) {
				t.Errorf("reason %q, want %q in it", err, c.want)
			}
			if got := binary.LittleEndian.Uint16(r.used[2:]); got != 0 {
				t.Errorf("%d chains were used", got)
			}
			works(t, r.Driver)
		})
	}
}

// works sees that an entropy device gives entropy after a reset.
func works(t *testing.T, drv *virtiotest.Driver) {
	t.Helper()
	q := initQueues(t, drv, ringFeatures, 16)[0]
	addr, p := drv.Alloc(32)
	q.Add(virtiotest.Buf{Addr: addr, Len: 32, Write: true})
	q.Kick()
	if u := next(t, q); u.Len != 32 || bytes.Equal(p, make([]byte, 32)) {
		t.Errorf("after a reset: %d bytes, %x", u.Len, p)
	}
}

// TestChainForms offers chains of each form that 2.7 allows, with and without
// EVENT_IDX, often enough for the indices to wrap.
func TestChainForms(t *testing.T) {
	for _, features := range []uint64{ringFeatures, ringFeatures &^ virtiotest.EventIdx} {
		drv := newDriver(t, virtio.NewRNG(), 1<<20)
		q := initQueues(t, drv, features, 8)[0]
		addr, p := drv.Alloc(64)
		tab, tabs := drv.Alloc(64)
		w := func(off, n int) virtiotest.Buf {
			return virtiotest.Buf{Addr: addr + uint64(off), Len: n, Write: true}
		}
		rounds := 1<<16 + 100
		if testing.Short() {
			rounds = 1 << 12
		}
		var got uint64
		for i := range rounds {
			clear(p)
			switch i % 4 {
			case 0:
				q.Add(w(0, 8))
			case 1:
				q.Add(w(0, 1), w(1, 0), w(1, 3), w(4, 4))
			case 2:
				q.AddIndirect(tab, w(0, 3), w(3, 5))
			case 3: // a chain, then a table, not aligned
				r := q.Add(virtiotest.Buf{Addr: addr, Len: 2, Write: true}, w(2, 6))
				second := binary.LittleEndian.Uint16(q.Desc()[16*int(r)+14:])
				put(tabs[1:], d{addr + 2, 6, fWrite, 0})
				put(q.Desc()[16*int(second):], d{tab + 1, 16, fIndirect | fWrite, 0})
			}
			q.Kick()
			u := next(t, q)
			if u.Len != 8 || !bytes.Equal(p[8:], make([]byte, 56)) {
				t.Fatalf("round %d: %d bytes, %x", i, u.Len, p)
			}
			got |= binary.LittleEndian.Uint64(p)
		}
		if got != 1<<64-1 {
			t.Errorf("bits that never were set: %x", ^got)
		}
	}
}

// TestSuppression counts notifications and interrupts of 8 chains at once:
// with EVENT_IDX one of each at most, and none that is not wanted.
func TestSuppression(t *testing.T) {
	for _, features := range []uint64{ringFeatures, ringFeatures &^ virtiotest.EventIdx} {
		drv := newDriver(t, virtio.NewRNG(), 1<<20)
		q := initQueues(t, drv, features, 64)[0]
		addr, _ := drv.Alloc(64)
		kicks := 0
		const rounds = 200
		before := drv.Interrupts.Load()
		for range rounds {
			for range 8 {
				q.Add(virtiotest.Buf{Addr: addr, Len: 8, Write: true})
			}
			if q.Kick() {
				kicks++
			}
			if err := q.WaitN(8); err != nil {
				t.Fatal(err)
			}
			for range 8 {
				q.Poll()
			}
		}
		if got := drv.Interrupts.Load() - before; kicks > rounds || got > rounds {
			t.Errorf("features %#x: %d kicks, %d interrupts for %d batches", features, kicks, got, rounds)
		}
	}
}
