package virtio_test

import (
	"strings"
	"testing"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

func TestRegisters(t *testing.T) {
	d := newDriver(t, virtio.NewRNG(), 1<<16)
	for _, c := range []struct {
		reg  uint64
		want uint32
	}{
		{0x000, 0x74726976},
		{0x004, 2},
		{0x008, 4},
		{virtiotest.QueueNumMax, 64},
		{virtiotest.QueueReady, 0},
		{virtiotest.Status, 0},
		{virtiotest.InterruptStatus, 0},
		{0x0b0, 0xffffffff}, // no shared memory
		{0x0bc, 0xffffffff},
		{0x0c0, 0},
		{0x100, 0},
		{0xffc, 0},
		{0x1000, 0},
		{1 << 63, 0},
	} {
		if got := d.Load(c.reg); got != c.want {
			t.Errorf("register %#x: got %#x, want %#x", c.reg, got, c.want)
		}
	}
	if got := d.Offered(); got != ringFeatures {
		t.Errorf("features %#x, want %#x", got, uint64(ringFeatures))
	}
	d.Store(virtiotest.QueueSel, 1)
	if got := d.Load(virtiotest.QueueNumMax); got != 0 {
		t.Errorf("a queue that is not there has size %d", got)
	}
	d.Store(virtiotest.DeviceFeaturesSel, 2)
	if got := d.Load(virtiotest.DeviceFeatures); got != 0 {
		t.Errorf("features past the 64th: %#x", got)
	}
}

// TestWidths tries what is not an aligned word.
func TestWidths(t *testing.T) {
	d := newDriver(t, virtio.NewRNG(), 1<<16)
	for _, n := range []int{0, 1, 2, 3, 8, 16} {
		p := make([]byte, n)
		for i := range p {
			p[i] = 0xff
		}
		d.Dev.Write(virtiotest.Status, p)
		d.Dev.Read(0, p)
		if strings.Trim(string(p), "\x00") != "" {
			t.Errorf("%d bytes of MagicValue: %x", n, p)
		}
	}
	d.Dev.Write(virtiotest.Status+1, []byte{1, 1, 1, 1})
	if got := d.Load(virtiotest.Status); got != 0 {
		t.Errorf("status %#x after stores that are no words", got)
	}
}

func TestNegotiate(t *testing.T) {
	d := newDriver(t, virtio.NewRNG(), 1<<16)
	for _, c := range []struct {
		features uint64
		ok       bool
	}{
		{virtiotest.Version1, true},
		{ringFeatures, true},
		{0, false},
		{virtiotest.EventIdx, false},
		{virtiotest.Version1 | 1, false},
		{virtiotest.Version1 | 1<<34, false}, // packed rings
		{^uint64(0), false},
	} {
		if err := d.Negotiate(c.features); (err == nil) != c.ok {
			t.Errorf("features %#x: %v", c.features, err)
		}
	}
	d.Reset()
	d.Store(virtiotest.DriverFeaturesSel, 3)
	d.Store(virtiotest.DriverFeatures, 1)
	d.Store(virtiotest.DriverFeaturesSel, 1)
	d.Store(virtiotest.DriverFeatures, 1)
	d.Store(virtiotest.Status, 11)
	if got := d.Load(virtiotest.Status); got != 3 {
		t.Errorf("status %#x with a feature past the 64th, want 3", got)
	}
}

// TestStatusOrder skips steps of the initialization, and takes some back.
func TestStatusOrder(t *testing.T) {
	d := newDriver(t, virtio.NewRNG(), 1<<16)
	d.Store(virtiotest.Status, virtiotest.DriverOK)
	if err := needsReset(t, d); !strings.Contains(err.Error(), "FEATURES_OK") {
		t.Errorf("DRIVER_OK at once: %v", err)
	}
	d.Reset()
	if got := d.Load(virtiotest.Status); got != 0 || d.Dev.Failure() != nil {
		t.Errorf("after reset: status %#x, %v", got, d.Dev.Failure())
	}
	if _, err := d.Init(ringFeatures, 16); err != nil {
		t.Fatal(err)
	}
	d.Store(virtiotest.Status, virtiotest.Acknowledge)
	if got := d.Load(virtiotest.Status); got != 15 {
		t.Errorf("status %#x after steps were taken back, want 15", got)
	}
	d.Store(virtiotest.DriverFeatures, 0)
	d.Store(virtiotest.Status, virtiotest.NeedsReset)
	if got := d.Load(virtiotest.Status); got != 15 {
		t.Errorf("status %#x: the driver set DEVICE_NEEDS_RESET", got)
	}
}

func TestQueueSetup(t *testing.T) {
	const size = 1 << 16
	d := newDriver(t, virtio.NewRNG(), size)
	for _, c := range []struct {
		name              string
		num               uint32
		desc, avail, used uint64
		ok                bool
	}{
		{"whole", 16, 0x1000, 0x2000, 0x3000, true},
		{"least", 1, 16, 2, 4, true},
		{"at the end", 16, size - 256, size - 38, size - 136, true},
		{"no size", 0, 0x1000, 0x2000, 0x3000, false},
		{"not a power of two", 12, 0x1000, 0x2000, 0x3000, false},
		{"too large", 128, 0x1000, 0x2000, 0x3000, false},
		{"huge", 1 << 31, 0x1000, 0x2000, 0x3000, false},
		{"unaligned table", 16, 0x1008, 0x2000, 0x3000, false},
		{"unaligned available ring", 16, 0x1000, 0x2001, 0x3000, false},
		{"unaligned used ring", 16, 0x1000, 0x2000, 0x3002, false},
		{"table over the end", 16, size - 240, 0x2000, 0x3000, false},
		{"available ring over the end", 16, 0x1000, size - 36, 0x3000, false},
		{"used ring over the end", 16, 0x1000, 0x2000, size - 132, false},
		{"table that wraps", 16, 1<<64 - 16, 0x2000, 0x3000, false},
		{"used ring in the hole", 16, 0x1000, 0x2000, 0xd0000000, false},
	} {
		if err := d.Negotiate(ringFeatures); err != nil {
			t.Fatal(err)
		}
		d.Store(virtiotest.QueueNum, c.num)
		for i, addr := range []uint64{c.desc, c.avail, c.used} {
			d.Store(virtiotest.QueueDesc+uint64(i)*16, uint32(addr))
			d.Store(virtiotest.QueueDesc+uint64(i)*16+4, uint32(addr>>32))
		}
		d.Store(virtiotest.QueueReady, 1)
		d.Store(virtiotest.Status, 15)
		ready, status := d.Load(virtiotest.QueueReady), d.Load(virtiotest.Status)
		if want := uint32(15); c.ok && (ready != 1 || status != want) {
			t.Errorf("%s: ready %d, status %#x, %v", c.name, ready, status, d.Dev.Failure())
		}
		if want := uint32(15 | virtiotest.NeedsReset); !c.ok && (ready != 0 || status != want) {
			t.Errorf("%s: ready %d, status %#x, want 0, %#x", c.name, ready, status, want)
		}
	}
}

// TestQueueReadyLocks sees that a queue cannot be moved while it is ready.
func TestQueueReadyLocks(t *testing.T) {
	d := newDriver(t, virtio.NewRNG(), 1<<16)
	q := initQueues(t, d, ringFeatures, 16)[0]
	d.Store(virtiotest.QueueDesc, 1)
	d.Store(virtiotest.QueueNum, 3)
	addr, p := d.Alloc(64)
	q.Add(virtiotest.Buf{Addr: addr, Len: 64, Write: true})
	q.Kick()
	if u := next(t, q); u.Len != 64 || string(p) == string(make([]byte, 64)) {
		t.Errorf("used %d bytes: %x", u.Len, p)
	}
	d.Store(virtiotest.QueueReady, 0)
	if got := d.Load(virtiotest.QueueReady); got != 0 {
		t.Errorf("QueueReady %d", got)
	}
	d.Store(virtiotest.QueueReady, 1) // size 16 still, since the stores were void
	if got := d.Load(virtiotest.QueueReady); got != 1 {
		t.Errorf("QueueReady %d, %v", got, d.Dev.Failure())
	}
}
