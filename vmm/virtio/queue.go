package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Flags of a descriptor (2.7.5), of the available (2.7.6) and of the used
// ring (2.7.8).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1
)

// descSize is the size of a descriptor in bytes.
const descSize = 16

// batch is how many requests are completed before the driver hears of them,
// unless there are no more.
const batch = 16

// Where the driver broke the rules of the rings; Failure has them with more.
var (
	errAvailJump = errors.New("the available index is further ahead than the queue is long")
	errHead      = errors.New("the available ring names a descriptor past the table")
	errNext      = errors.New("a descriptor is followed by one past the table")
	errLong      = errors.New("a chain is a loop, or longer than the queue")
	errOrder     = errors.New("a readable descriptor follows a writable one")
	errIndirect  = errors.New("an indirect table where none may be")
	errTable     = errors.New("an indirect table is not a positive number of descriptors long")
	errBytes     = errors.New("a chain has 4 GiB or more")
)

// A Queue is a split virtqueue (2.7) that is ready, as its Device sees it. It
// belongs to the goroutine in Serve.
type Queue struct {
	mem      Memory
	size     uint16
	maxChain int // descriptors in a chain
	eventIdx bool
	indirect bool

	desc, avail, used unsafe.Pointer // of descSize*size, 6+2*size, 6+8*size bytes

	availIdx  uint16 // as last loaded
	lastAvail uint16 // the next chain to take
	usedIdx   uint16 // the next used element
	published uint16 // the used index that the driver sees
	flags     uint16 // of the used ring

	chain     Chain
	kick      int // an eventfd
	stop      atomic.Bool
	err       error
	interrupt func()
}

// ringConfig is what the registers say of a queue.
type ringConfig struct {
	size              uint32
	desc, avail, used uint64 // guest-physical addresses
}

// newQueue checks the registers of a queue that becomes ready and finds its
// rings.
func newQueue(mem Memory, c ringConfig, maxSize uint16, features uint64) (*Queue, error) {
	if c.size == 0 || c.size > uint32(maxSize) || c.size&(c.size-1) != 0 {
		return nil, fmt.Errorf("queue size %d: not a power of two up to %d", c.size, maxSize)
	}
	n := uint64(c.size)
	desc, err1 := ring(mem, "descriptor table", c.desc, 16, descSize*n)
	avail, err2 := ring(mem, "available ring", c.avail, 2, 6+2*n)
	used, err3 := ring(mem, "used ring", c.used, 4, 6+8*n)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	q := &Queue{
		mem:      mem,
		size:     uint16(c.size),
		maxChain: int(maxSize), // a driver short of memory makes a shorter ring, not shorter chains
		eventIdx: features&featEventIdx != 0,
		indirect: features&featIndirect != 0,
		desc:     desc,
		avail:    avail,
		used:     used,
		chain:    makeChain(int(maxSize)),
	}
	return q, nil
}

// ring finds a part of a queue in memory.
func ring(mem Memory, what string, addr, align, n uint64) (unsafe.Pointer, error) {
	if addr%align != 0 {
		return nil, fmt.Errorf("%s at %#x: not a multiple of %d", what, addr, align)
	}
	p, err := mem.Slice(addr, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return start(p), nil
}

// Next is the next chain that the driver made available, or nil if there is
// none, if the queue shall stop, or if the driver broke the rules. It is
// valid until the next call.
func (q *Queue) Next() *Chain {
	if q.stop.Load() || q.err != nil || !q.available() {
		return nil
	}
	if err := q.next(&q.chain); err != nil {
		q.Fail(err)
		return nil
	}
	return &q.chain
}

// available looks whether there is a chain to take.
func (q *Queue) available() bool {
	if q.availIdx != q.lastAvail {
		return true
	}
	q.availIdx = load16(unsafe.Add(q.avail, 2))
	if q.availIdx-q.lastAvail > q.size {
		q.Fail(errAvailJump)
		return false
	}
	return q.availIdx != q.lastAvail
}

// next takes the chain that the available ring has next.
func (q *Queue) next(c *Chain) error {
	slot := q.lastAvail & (q.size - 1)
	head := load16(unsafe.Add(q.avail, 4+2*uintptr(slot)))
	q.lastAvail++
	if head >= q.size {
		return errHead
	}
	c.reset(head)
	return q.walk(c)
}

// table is descriptors: those of the queue or an indirect table.
type table struct {
	base unsafe.Pointer
	n    uint32
}

// walk follows a chain from its head to its end, over at most one indirect
// table, which may be its last descriptor (2.7.5.3).
func (q *Queue) walk(c *Chain) error {
	t := table{q.desc, uint32(q.size)}
	nested := false
	i := uint32(c.head)
	for count := 1; ; count++ {
		if count > q.maxChain {
			return errLong
		}
		p := unsafe.Add(t.base, descSize*uintptr(i))
		addr, rest := load64(p), load64(unsafe.Add(p, 8))
		n, flags, next := uint32(rest), uint16(rest>>32), uint32(rest>>48)
		if flags&descIndirect != 0 {
			if !q.indirect || nested || flags&descNext != 0 {
				return errIndirect
			}
			var err error
			if t, err = q.table(addr, n); err != nil {
				return err
			}
			nested, i = true, 0
			count--
			continue
		}
		if err := q.add(c, addr, n, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		if i = next; i >= t.n {
			return errNext
		}
	}
}

// table finds an indirect table of n bytes.
func (q *Queue) table(addr uint64, n uint32) (table, error) {
	if n == 0 || n%descSize != 0 {
		return table{}, errTable
	}
	p, err := q.mem.Slice(addr, uint64(n))
	if err != nil {
		return table{}, fmt.Errorf("indirect table: %w", err)
	}
	return table{start(p), n / descSize}, nil
}

// add appends a descriptor's memory to a chain.
func (q *Queue) add(c *Chain, addr uint64, n uint32, write bool) error {
	if !write && c.writeLen > 0 {
		return errOrder
	}
	if n == 0 {
		return nil
	}
	p, err := q.mem.Slice(addr, uint64(n))
	if err != nil {
		return fmt.Errorf("descriptor: %w", err)
	}
	c.iov = append(c.iov, iovec(p))
	if write {
		c.writeLen += uint64(n)
	} else {
		c.readLen += uint64(n)
		c.writable++
	}
	if c.readLen+c.writeLen > 1<<32-1 {
		return errBytes
	}
	return nil
}

// untake makes the last n chains that next took be taken again.
func (q *Queue) untake(n int) { q.lastAvail -= uint16(n) }

// Done gives a chain back, with n bytes written to the front of what the
// device may write of it (2.7.8). The driver hears of it by and by: at the
// latest when Next has no more and Wait is called.
func (q *Queue) Done(c *Chain, n uint32) {
	q.done(c.head, n)
	if q.usedIdx-q.published >= batch {
		q.Publish()
	}
}

func (q *Queue) done(head uint16, n uint32) {
	slot := uintptr(q.usedIdx & (q.size - 1))
	elem := unsafe.Add(q.used, 4+8*slot)
	store32(elem, uint32(head))
	store32(unsafe.Add(elem, 4), n)
	q.usedIdx++
}

// Publish shows the driver what is done, and interrupts it if it wants that
// (2.7.7).
func (q *Queue) Publish() {
	old := q.published
	if q.usedIdx == old {
		return
	}
	q.published = q.usedIdx
	q.storeUsed()
	if q.wanted(old) {
		q.interrupt()
	}
}

// storeUsed stores the flags and the index of the used ring, one word.
func (q *Queue) storeUsed() { publish32(q.used, uint32(q.flags)|uint32(q.published)<<16) }

// wanted is whether the driver wants to hear that the used index went on from
// old.
func (q *Queue) wanted(old uint16) bool {
	if !q.eventIdx {
		return load16(q.avail)&availNoInterrupt == 0
	}
	event := load16(unsafe.Add(q.avail, 4+2*uintptr(q.size)))
	return q.published-event-1 < q.published-old
}

// arm asks the driver to notify about the next chain (2.7.10), and is false if
// there is one already.
func (q *Queue) arm() bool {
	if q.eventIdx {
		store16(unsafe.Add(q.used, 4+8*uintptr(q.size)), q.lastAvail)
	} else {
		q.flags = 0
	}
	q.storeUsed() // in either case what was stored comes before the load
	return !q.available() && q.err == nil
}

// disarm says that no notification is needed. With EVENT_IDX the index that
// was waited for has passed, and nothing needs to be said.
func (q *Queue) disarm() {
	if !q.eventIdx {
		q.flags = usedNoNotify
		q.storeUsed()
	}
}

// Wait publishes, and sleeps until there are chains or somebody called Kick.
// It is false when Serve shall return.
func (q *Queue) Wait() bool {
	q.Publish()
	if q.running() && q.arm() {
		drain(q.kick)
	}
	q.disarm()
	return q.running()
}

// Poll publishes, and sleeps until fd is readable, the time is over or
// somebody kicks the queue; the driver is not asked to. A negative fd is
// none, a negative time for ever. It is false when Serve shall return.
func (q *Queue) Poll(fd int, timeout time.Duration) bool {
	q.Publish()
	if !q.running() {
		return false
	}
	fds := [2]unix.PollFd{{Fd: int32(q.kick), Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLIN}}
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(int64(timeout))
		ts = &t
	}
	if _, err := unix.Ppoll(fds[:], ts, nil); err == nil && fds[0].Revents != 0 {
		drain(q.kick)
	}
	return q.running()
}

func (q *Queue) running() bool { return q.err == nil && !q.stop.Load() }

// Fail gives the device up: the driver has to reset it. The first error
// stays.
func (q *Queue) Fail(err error) {
	if q.err == nil {
		q.err = err
	}
}

// newKick makes the eventfd by which a queue is woken.
func newKick() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("virtio: eventfd: %w", err)
	}
	return fd, nil
}

// drain waits until an eventfd is signalled and forgets how often.
func drain(fd int) {
	var count [8]byte
	unix.Read(fd, count[:]) // an interrupted one is a spurious wake-up
}

// signal signals an eventfd.
func signal(fd int) {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	unix.Write(fd, one[:])
}
