// Package virtiotest is the other side of package virtio: a driver, in the
// memory of a guest that does not run. Tests, fuzz targets and the measured
// lines of blk and net use it.
//
// It is a driver that keeps the rules. Where one shall not, RAM, Load and
// Store are at hand. A Driver is for one goroutine.
package virtiotest

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmfs/vmm/ram"
	"vmfs/vmm/virtio"
)

// Registers of section 4.2.2.
const (
	MagicValue        = 0x000
	DeviceFeatures    = 0x010
	DeviceFeaturesSel = 0x014
	DriverFeatures    = 0x020
	DriverFeaturesSel = 0x024
	QueueSel          = 0x030
	QueueNumMax       = 0x034
	QueueNum          = 0x038
	QueueReady        = 0x044
	QueueNotify       = virtio.RegQueueNotify
	InterruptStatus   = 0x060
	InterruptACK      = 0x064
	Status            = 0x070
	QueueDesc         = 0x080
	QueueDriver       = 0x090
	QueueDevice       = 0x0a0
	ConfigGeneration  = 0x0fc
	Config            = 0x100
)

// Bits of Status.
const (
	Acknowledge = 1
	HasDriver   = 2
	DriverOK    = 4
	FeaturesOK  = 8
	NeedsReset  = 0x40
)

// Features of the rings.
const (
	Indirect = 1 << 28
	EventIdx = 1 << 29
	Version1 = 1 << 32
)

// A Driver has a device and its guest's memory.
type Driver struct {
	Dev *virtio.MMIO
	RAM *ram.RAM
	// Interrupts counts them.
	Interrupts atomic.Uint64

	irq      int    // an eventfd
	next     uint64 // the memory before it is given out
	features uint64
}

// New puts a device behind registers, with size bytes of memory. Close ends
// both.
func New(dev virtio.Device, size uint64) (*Driver, error) {
	irq, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("virtiotest: eventfd: %w", err)
	}
	d := &Driver{irq: irq}
	if d.RAM, err = ram.New(size); err != nil {
		unix.Close(irq)
		return nil, err
	}
	if d.Dev, err = virtio.New(dev, d.RAM, d.interrupt); err != nil {
		unix.Close(irq)
		d.RAM.Close()
		return nil, err
	}
	return d, nil
}

// interrupt is what KVM's irqfd is to a guest's CPU: the kernel wakes who
// sleeps, on its thread.
func (d *Driver) interrupt() {
	d.Interrupts.Add(1)
	one := [8]byte{0: 1}
	unix.Write(d.irq, one[:])
}

// Close ends the device and its memory.
func (d *Driver) Close() error {
	d.Dev.Close()
	unix.Close(d.irq)
	return d.RAM.Close()
}

// Load reads a register.
func (d *Driver) Load(reg uint64) uint32 {
	var p [4]byte
	d.Dev.Read(reg, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

// Store writes a register.
func (d *Driver) Store(reg uint64, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	d.Dev.Write(reg, p[:])
}

func (d *Driver) store64(reg, v uint64) {
	d.Store(reg, uint32(v))
	d.Store(reg+4, uint32(v>>32))
}

// Offered are the features of the device.
func (d *Driver) Offered() uint64 {
	d.Store(DeviceFeaturesSel, 1)
	f := uint64(d.Load(DeviceFeatures)) << 32
	d.Store(DeviceFeaturesSel, 0)
	return f | uint64(d.Load(DeviceFeatures))
}

// Reset resets the device and gives all memory back.
func (d *Driver) Reset() {
	d.Store(Status, 0)
	d.next = 0
}

// Negotiate resets the device and agrees on features (3.1.1).
func (d *Driver) Negotiate(features uint64) error {
	d.Reset()
	d.features = features
	d.Store(Status, Acknowledge)
	d.Store(Status, Acknowledge|HasDriver)
	d.Store(DriverFeaturesSel, 0)
	d.Store(DriverFeatures, uint32(features))
	d.Store(DriverFeaturesSel, 1)
	d.Store(DriverFeatures, uint32(features>>32))
	d.Store(Status, Acknowledge|HasDriver|FeaturesOK)
	if d.Load(Status)&FeaturesOK == 0 {
		return fmt.Errorf("virtiotest: features %#x are refused", features)
	}
	return nil
}

// Init is Negotiate, all queues with at most size descriptors, and DRIVER_OK.
func (d *Driver) Init(features uint64, size int) ([]*Queue, error) {
	if err := d.Negotiate(features); err != nil {
		return nil, err
	}
	var queues []*Queue
	for i := range d.Dev.Queues() {
		q, err := d.Queue(i, size)
		if err != nil {
			return nil, err
		}
		queues = append(queues, q)
	}
	d.Store(Status, Acknowledge|HasDriver|FeaturesOK|DriverOK)
	if s := d.Load(Status); s&NeedsReset != 0 {
		return nil, fmt.Errorf("virtiotest: status %#x after DRIVER_OK: %w", s, d.Dev.Failure())
	}
	return queues, nil
}

// Alloc is n bytes of memory, at a multiple of 64, or of 4096 if they are as
// many, until Reset.
func (d *Driver) Alloc(n int) (addr uint64, p []byte) {
	align := uint64(64)
	if n >= 4096 {
		align = 4096
	}
	addr = (d.next + align - 1) &^ (align - 1)
	d.next = addr + uint64(n)
	p, err := d.RAM.Slice(addr, uint64(n))
	if err != nil {
		panic(err) // a test's memory is too small
	}
	clear(p)
	return addr, p
}

// A Queue is a driver's half of a split virtqueue (2.7.13).
type Queue struct {
	d                 *Driver
	n, size           int
	desc, avail, used []byte
	chains            []int // descriptors of the chain that begins there
	free              []uint16
	availIdx, usedIdx uint16
	kicked            uint16
}

// Queue makes queue n with at most size descriptors ready.
func (d *Driver) Queue(n, size int) (*Queue, error) {
	d.Store(QueueSel, uint32(n))
	size = min(size, int(d.Load(QueueNumMax)))
	q := &Queue{d: d, n: n, size: size, chains: make([]int, size)}
	addrs := [3]uint64{}
	addrs[0], q.desc = d.Alloc(16 * size)
	addrs[1], q.avail = d.Alloc(6 + 2*size)
	addrs[2], q.used = d.Alloc(6 + 8*size)
	for i := range size {
		q.free = append(q.free, uint16(size-1-i))
	}
	d.Store(QueueNum, uint32(size))
	d.store64(QueueDesc, addrs[0])
	d.store64(QueueDriver, addrs[1])
	d.store64(QueueDevice, addrs[2])
	d.Store(QueueReady, 1)
	if d.Load(QueueReady) != 1 {
		return nil, fmt.Errorf("virtiotest: queue %d does not become ready: %w", n, d.Dev.Failure())
	}
	return q, nil
}

// Buf is memory of a request.
type Buf struct {
	Addr  uint64
	Len   int
	Write bool // for the device
}

// desc is a descriptor.
func putDesc(p []byte, b Buf, flags, next uint16) {
	if b.Write {
		flags |= 2
	}
	binary.LittleEndian.PutUint64(p, b.Addr)
	binary.LittleEndian.PutUint32(p[8:], uint32(b.Len))
	binary.LittleEndian.PutUint16(p[12:], flags)
	binary.LittleEndian.PutUint16(p[14:], next)
}

// Add makes a chain available and is its head. The device sees it after
// Kick. There must be as many free descriptors as there are bufs.
func (q *Queue) Add(bufs ...Buf) uint16 {
	head := q.free[len(q.free)-1]
	for i, b := range bufs {
		at := q.take()
		flags, next := uint16(0), uint16(0)
		if i < len(bufs)-1 {
			flags, next = 1, q.free[len(q.free)-1]
		}
		putDesc(q.desc[16*int(at):], b, flags, next)
	}
	q.offer(head, len(bufs))
	return head
}

// AddIndirect is Add with a table (2.7.5.3) at table, of 16 bytes a buffer.
func (q *Queue) AddIndirect(table uint64, bufs ...Buf) uint16 {
	p, err := q.d.RAM.Slice(table, uint64(16*len(bufs)))
	if err != nil {
		panic(err)
	}
	for i, b := range bufs {
		flags := uint16(1)
		if i == len(bufs)-1 {
			flags = 0
		}
		putDesc(p[16*i:], b, flags, uint16(i+1))
	}
	head := q.take()
	putDesc(q.desc[16*int(head):], Buf{Addr: table, Len: len(p)}, 4, 0)
	q.offer(head, 1)
	return head
}

func (q *Queue) take() uint16 {
	at := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	return at
}

func (q *Queue) offer(head uint16, descriptors int) {
	q.chains[head] = descriptors
	binary.LittleEndian.PutUint16(q.avail[4+2*(int(q.availIdx)%q.size):], head)
	q.availIdx++
}

// word is the flags and the index of a ring.
func word(ring []byte) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&ring[0])) }

// half is two bytes of a ring.
func half(p []byte) *uint16 { return (*uint16)(unsafe.Pointer(&p[0])) }

// Kick shows the device what was added, and notifies it if it wants that.
// It is whether it did.
func (q *Queue) Kick() bool {
	word(q.avail).Store(uint32(q.availIdx) << 16)
	old := q.kicked
	q.kicked = q.availIdx
	if q.d.features&EventIdx != 0 {
		event := *half(q.used[4+8*q.size:])
		if q.availIdx-event-1 >= q.availIdx-old {
			return false
		}
	} else if word(q.used).Load()&1 != 0 {
		return false
	}
	q.d.Store(QueueNotify, uint32(q.n))
	return true
}

// patience is how long a driver waits for an interrupt.
const patience = time.Minute

// Used is a chain that the device gave back.
type Used struct {
	Head uint16
	Len  uint32
}

// Poll is the next chain that the device gave back, if there is one.
func (q *Queue) Poll() (Used, bool) {
	if uint16(word(q.used).Load()>>16) == q.usedIdx {
		return Used{}, false
	}
	e := q.used[4+8*(int(q.usedIdx)%q.size):]
	u := Used{uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:])}
	q.usedIdx++
	at := u.Head
	for i := range q.chains[u.Head] {
		if i > 0 {
			at = binary.LittleEndian.Uint16(q.desc[16*int(at)+14:])
		}
		q.free = append(q.free, at)
	}
	q.chains[u.Head] = 0
	return u, true
}

// Want asks for an interrupt once the device has given n more chains back than
// Poll has taken.
func (q *Queue) Want(n int) {
	*half(q.avail[4+2*q.size:]) = q.usedIdx + uint16(n) - 1
	word(q.avail).Store(word(q.avail).Load()) // a barrier
}

// Next waits for the next chain that the device gives back, as a driver does:
// it sleeps until an interrupt, or loses patience.
func (q *Queue) Next() (Used, error) {
	if u, ok := q.Poll(); ok {
		return u, nil
	}
	deadline := time.Now().Add(patience)
	for {
		q.Want(1)
		if u, ok := q.Poll(); ok {
			return u, nil
		}
		if err := q.d.sleep(deadline); err != nil {
			return Used{}, err
		}
	}
}

// WaitN waits until n chains are there for Poll.
func (q *Queue) WaitN(n int) error {
	q.Want(n)
	if q.have() >= n {
		return nil
	}
	deadline := time.Now().Add(patience)
	for q.have() < n {
		if err := q.d.sleep(deadline); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) have() int { return int(uint16(word(q.used).Load()>>16) - q.usedIdx) }

// sleep waits for an interrupt and acknowledges it.
func (d *Driver) sleep(deadline time.Time) error {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("virtiotest: no interrupt; status %#x: %w", d.Load(Status), d.Dev.Failure())
		}
		fds := []unix.PollFd{{Fd: int32(d.irq), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, int(left.Milliseconds())+1); n > 0 {
			break
		}
	}
	var count [8]byte
	unix.Read(d.irq, count[:])
	d.Store(InterruptACK, d.Load(InterruptStatus))
	if d.Load(Status)&NeedsReset != 0 {
		return fmt.Errorf("virtiotest: the device needs a reset: %w", d.Dev.Failure())
	}
	return nil
}

// Desc is the descriptor table.
func (q *Queue) Desc() []byte { return q.desc }
