package native

import (
	"bytes"
	"testing"

	"vmfs/vmm/engine"
	"vmfs/vmm/native/nativetest"
	"vmfs/vmm/virtio"
)

// Registers of virtio over MMIO (VIRTIO 1.2, 4.2.2) that ringProgram uses.
const (
	regDriverFeatures = nativetest.VirtioBase + 0x20
	regFeaturesSel    = nativetest.VirtioBase + 0x24
	regQueueNum       = nativetest.VirtioBase + 0x38
	regQueueReady     = nativetest.VirtioBase + 0x44
	regQueueNotify    = nativetest.VirtioBase + virtio.RegQueueNotify
	regIntStatus      = nativetest.VirtioBase + 0x60
	regIntACK         = nativetest.VirtioBase + 0x64
	regStatus         = nativetest.VirtioBase + 0x70
	regDesc           = nativetest.VirtioBase + 0x80
	regAvail          = nativetest.VirtioBase + 0x90
	regUsed           = nativetest.VirtioBase + 0xa0
)

// Where ringProgram has its ring, and a request.
const (
	desc, avail, used    = 0x10000, 0x11000, 0x12000
	header, data, result = 0x13000, 0x14000, 0x15000
	handled              = 0x2000
)

// setUpRing makes the program's device ready, in 10 stores: it accepts
// VERSION_1 alone.
func setUpRing(a *nativetest.Program) {
	for _, s := range [][2]uint32{
		{regStatus, 1 | 2}, {regFeaturesSel, 1}, {regDriverFeatures, 1}, {regStatus, 1 | 2 | 8},
		{regQueueNum, 8}, {regDesc, desc}, {regAvail, avail}, {regUsed, used}, {regQueueReady, 1},
		{regStatus, 1 | 2 | 4 | 8},
	} {
		a.Store(s[0], s[1])
	}
	for i, d := range [][4]uint32{
		{header, 0, 16, 1 | 1<<16},    // next: 1
		{data, 0, 512, 1 | 2 | 2<<16}, // written by the device; next: 2
		{result, 0, 1, 2},
	} {
		for word, v := range d {
			a.Store(desc+16*uint32(i)+4*uint32(word), v)
		}
	}
}

// ask makes the n-th request: kind 0 reads, 1 writes.
func ask(a *nativetest.Program, n, kind, sector uint32) {
	a.Store(header, kind).Store(header+8, sector).Store(result, 0xff)
	a.Store(avail, n<<16).Store(regQueueNotify, 0)
}

// TestRing reads a sector of a disk and writes it to another: the store that
// notifies rings an eventfd and does not exit, and the answer is an
// interrupt.
func TestRing(t *testing.T) {
	a := nativetest.New().Jmp("start")
	a.Label("used").Load(regIntStatus).Save(regIntACK)
	a.LoadByte(result).TestAL(0xff).Jnz("bad").Inc(handled)
	a.Load(handled).TestAL(1).Jz("second")
	a.Print("read ").LoadByte(data).Port(nativetest.SerialPort).Out()
	a.Store(desc+16+12, 1|2<<16) // the device reads it now
	ask(a, 2, 1, 3)
	a.EOI()
	a.Label("second").Print(" written").PowerOff()
	a.Label("bad").Print("bad").PowerOff()
	a.Label("start").Interrupts(map[byte]string{nativetest.VirtioLine: "used"})
	setUpRing(a)
	ask(a, 1, 0, 1)
	a.Idle()

	image := make([]byte, 4*512)
	copy(image[512:], bytes.Repeat([]byte("sector 1"), 64))
	disk := nativetest.File(t, image)
	g := start(t, a, func(s *engine.Spec) {
		s.Disks = []engine.Disk{{Images: []engine.Image{{File: disk, Format: "raw"}}}}
	})
	if end := g.ends(); end.Reason != engine.GuestOff || g.printed() != "read s written" {
		t.Fatalf("end %+v, printed %q", end, g.printed())
	}
	got := make([]byte, 512)
	if _, err := disk.ReadAt(got, 3*512); err != nil || !bytes.Equal(got, image[512:1024]) {
		t.Errorf("the other sector has %.20q, %v", got, err)
	}
	// Ten stores, and a load and a store an interrupt: no notification.
	if e := g.Exits(); e.MMIO != 10+2*2 {
		t.Errorf("%d exits for registers, want %d", e.MMIO, 10+2*2)
	}
}

// TestPauseQueues pauses and resets a machine whose disk is always busy.
func TestPauseQueues(t *testing.T) {
	a := nativetest.New().Jmp("start")
	a.Label("used").Load(regIntStatus).Save(regIntACK).Inc(handled)
	// The next request: avail.idx = handled + 1.
	a.Load(handled).Bytes(0x40).Bytes(0xc1, 0xe0, 16).Save(avail) // inc eax; shl eax, 16
	a.Store(regQueueNotify, 0).EOI()
	a.Label("start").Interrupts(map[byte]string{nativetest.VirtioLine: "used"})
	setUpRing(a)
	ask(a, 1, 0, 1)
	a.Idle()
	g := start(t, a, func(s *engine.Spec) {
		s.Disks = []engine.Disk{{Images: []engine.Image{{File: nativetest.File(t, make([]byte, 4096)), Format: "raw"}}}}
	})
	for range 5 {
		before := g.word(handled)
		g.until("ten requests", func() bool { return g.word(handled) > before+10 })
		g.Pause(t.Context())
		ring := g.word(used)
		if again := g.word(used); again != ring {
			t.Errorf("paused, the used ring went from %#x to %#x", ring, again)
		}
		g.Continue(t.Context())
	}
	for n := range 3 {
		g.Reset(t.Context())
		g.until("a reset", func() bool { return g.resetCount() == n+1 })
		g.until("requests again", func() bool { return g.word(handled) > 10 })
	}
}
