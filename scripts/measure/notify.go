package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"vmfs/vmm/native/nativetest"
	"vmfs/vmm/virtio/virtiotest"
)

// stores are how many a guest makes between two looks at its clock.
const stores = 64

// notifyKernel is a guest that, for ever, prints how many ticks of its clock
// some notifications of its only device, the source of entropy, take, and as
// many stores to another register; 4 bytes each. If served, the queue is ready:
// a thread sleeps until it is notified.
func (b *bench) notifyKernel(served bool) (string, error) {
	ready := uint32(0)
	if served {
		ready = 1
	}
	const desc, avail, used = 0x10000, 0x11000, 0x12000
	reg := func(off uint32) uint32 { return nativetest.VirtioBase + off }
	a := nativetest.New()
	for _, s := range [][2]uint32{
		{virtiotest.Status, virtiotest.Acknowledge | virtiotest.HasDriver},
		{virtiotest.DriverFeaturesSel, 1}, {virtiotest.DriverFeatures, 1}, // VERSION_1
		{virtiotest.Status, virtiotest.Acknowledge | virtiotest.HasDriver | virtiotest.FeaturesOK},
		{virtiotest.QueueNum, 8}, {virtiotest.QueueDesc, desc}, {virtiotest.QueueDriver, avail}, {virtiotest.QueueDevice, used},
		{virtiotest.QueueReady, ready},
		{virtiotest.Status, virtiotest.Acknowledge | virtiotest.HasDriver | virtiotest.FeaturesOK | virtiotest.DriverOK},
	} {
		a.Store(reg(s[0]), s[1])
	}
	a.Label("again")
	for _, off := range []uint32{virtiotest.QueueNotify, virtiotest.InterruptACK} {
		a.Bytes(0x0f, 0x31).Bytes(0x89, 0xc3) // rdtsc; mov ebx, eax
		for range stores {
			a.Store(reg(off), 0)
		}
		a.Bytes(0x0f, 0x31).Bytes(0x29, 0xd8).Port(nativetest.SerialPort) // rdtsc; sub eax, ebx
		for range 4 {
			a.Out().Bytes(0xc1, 0xe8, 8) // shr eax, 8
		}
	}
	path := filepath.Join(b.dir, "notify")
	image, err := a.Jmp("again").Image()
	if err == nil {
		err = os.WriteFile(path, image, 0o644)
	}
	return path, err
}

// notification holds a store that rings a queue's eventfd, until the guest's
// next instruction, against one that leaves the guest for the monitor.
func (b *bench) notification() (line, error) {
	l, err := b.notify(false)
	l.what = "a queue's notification, to an exit"
	return l, err
}

// notificationAsleep is the same if there is somebody to be woken: who, on a
// machine without a free core, may run before the guest goes on.
func (b *bench) notificationAsleep() (line, error) {
	l, err := b.notify(true)
	l.what = "the same, of a device that sleeps"
	return l, err
}

func (b *bench) notify(served bool) (line, error) {
	kernel, err := b.notifyKernel(served)
	if err == nil {
		err = needKVM()
	}
	if err != nil {
		return line{}, err
	}
	t, err := b.startNative(kernel)
	if err != nil {
		return line{}, err
	}
	defer t.end()
	t.seen = 0 // the start waited for a first byte
	var bells, exits []int64
	var ratios []float64
	for range 25 * b.pairs {
		var p [8]byte
		if err := t.fill(p[:]); err != nil {
			return line{}, err
		}
		bell, exit := binary.LittleEndian.Uint32(p[:]), binary.LittleEndian.Uint32(p[4:])
		bells, exits = append(bells, int64(bell)), append(exits, int64(exit))
		ratios = append(ratios, float64(bell)/float64(exit))
	}
	ticks := func(all []int64) string { return fmt.Sprintf("%d ticks", median(all)/stores) }
	return line{ours: ticks(bells), peer: ticks(exits),
		ratio: median(ratios), aim: 0.25, unit: "x"}, nil
}
