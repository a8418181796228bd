package native

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// device is registers that a CPU reads and writes: p is the bytes of one
// access at the offset off from where the device is. Any number of CPUs call
// at once.
type device interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

// bus is an address space of devices: the I/O ports, or guest-physical
// addresses without memory. Where no device is, reads give ones and writes
// vanish, as on a PC.
type bus struct {
	windows []window // ascending, disjoint
	strays  atomic.Uint64
}

type window struct {
	start, end uint64 // [start, end)
	dev        device
}

// add puts a device at size addresses from start on.
func (b *bus) add(start, size uint64, dev device) error {
	w := window{start, start + size, dev}
	if size == 0 || w.end <= start {
		return fmt.Errorf("bus: %d addresses at %#x", size, start)
	}
	i, _ := slices.BinarySearchFunc(b.windows, start, window.after)
	if i > 0 && b.windows[i-1].end > start || i < len(b.windows) && b.windows[i].start < w.end {
		return fmt.Errorf("bus: %#x: two devices", start)
	}
	b.windows = slices.Insert(b.windows, i, w)
	return nil
}

func (w window) after(addr uint64) int {
	switch {
	case w.start < addr:
		return -1
	case w.start > addr:
		return 1
	}
	return 0
}

// find is the device at addr, how far into it that is, and how many of n
// bytes are its.
func (b *bus) find(addr uint64, n int) (dev device, off uint64, has int) {
	i, found := slices.BinarySearchFunc(b.windows, addr, window.after)
	if !found {
		i--
	}
	if i < 0 || addr >= b.windows[i].end {
		b.strays.Add(1)
		return nil, 0, 0
	}
	w := b.windows[i]
	return w.dev, addr - w.start, int(min(uint64(n), w.end-addr))
}

func (b *bus) read(addr uint64, p []byte) {
	dev, off, n := b.find(addr, len(p))
	for i := n; i < len(p); i++ {
		p[i] = 0xff
	}
	if dev != nil {
		dev.Read(off, p[:n])
	}
}

func (b *bus) write(addr uint64, p []byte) {
	if dev, off, n := b.find(addr, len(p)); dev != nil {
		dev.Write(off, p[:n])
	}
}
