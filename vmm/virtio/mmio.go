package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Size is how many bytes of the guest's address space an MMIO answers for.
const Size = 0x1000

// RegQueueNotify is the register whose writes a NotifyFD stands for: four
// bytes, the queue's index.
const RegQueueNotify = 0x050

// The other registers (4.2.2), by their offset.
const (
	regMagicValue        = 0x000
	regVersion           = 0x004
	regDeviceID          = 0x008
	regVendorID          = 0x00c
	regDeviceFeatures    = 0x010
	regDeviceFeaturesSel = 0x014
	regDriverFeatures    = 0x020
	regDriverFeaturesSel = 0x024
	regQueueSel          = 0x030
	regQueueNumMax       = 0x034
	regQueueNum          = 0x038
	regQueueReady        = 0x044
	regInterruptStatus   = 0x060
	regInterruptACK      = 0x064
	regStatus            = 0x070
	regQueueDescLow      = 0x080
	regQueueDescHigh     = 0x084
	regQueueDriverLow    = 0x090
	regQueueDriverHigh   = 0x094
	regQueueDeviceLow    = 0x0a0
	regQueueDeviceHigh   = 0x0a4
	regSHMLenLow         = 0x0b0
	regSHMBaseHigh       = 0x0bc
	regConfigGeneration  = 0x0fc
	regConfig            = 0x100
)

const (
	magicValue = 0x74726976
	version    = 2
	vendorID   = 0x73666d76 // "vmfs"
)

// Bits of InterruptStatus.
const (
	intUsed   = 1
	intConfig = 2
)

// MMIO is a device behind the registers of section 4.2. All methods may be
// called at the same time.
type MMIO struct {
	dev     Device
	mem     Memory
	irq     func()
	offered uint64

	// What Serve and the interrupt's handler touch, without the lock.
	status     atomic.Uint32
	intStatus  atomic.Uint32
	generation atomic.Uint32
	failure    atomic.Pointer[error]

	mu          sync.Mutex // guards the rest
	deviceSel   uint32
	driverSel   uint32
	queueSel    uint32
	driver      uint64 // the features that the driver accepts
	driverWrong bool   // it accepts some past the 64th
	paused      bool
	closed      bool
	slots       []slot
}

// slot is a queue's place. A queue in it is a queue that is ready.
type slot struct {
	max     uint16
	kick    int
	config  ringConfig
	queue   *Queue
	serving chan struct{} // closed when Serve has returned; nil when there is none
}

// New puts a device behind registers. The interrupt function is called for
// each interrupt, from any goroutine, after InterruptStatus was set; it is an
// edge, and must not wait. Close ends it; the device's files are the caller's.
func New(dev Device, mem Memory, interrupt func()) (*MMIO, error) {
	m := &MMIO{dev: dev, mem: mem, irq: interrupt, offered: dev.Features() | featRing}
	for i, max := range dev.QueueSizes() {
		if max == 0 || max > MaxQueueSize || max&(max-1) != 0 {
			m.Close()
			return nil, fmt.Errorf("virtio: queue %d: size %d is not a power of two up to %d", i, max, MaxQueueSize)
		}
		kick, err := newKick()
		if err != nil {
			m.Close()
			return nil, err
		}
		m.slots = append(m.slots, slot{max: max, kick: kick})
	}
	dev.Attach(m)
	return m, nil
}

// Queues is how many queues the device has.
func (m *MMIO) Queues() int { return len(m.slots) }

// NotifyFD is an eventfd to be signalled for a write of n to RegQueueNotify,
// as KVM_IOEVENTFD does. It lives until Close.
func (m *MMIO) NotifyFD(n int) int { return m.slots[n].kick }

// Failure is why the device needs a reset, or nil.
func (m *MMIO) Failure() error {
	if p := m.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Read is the guest's load of len(p) bytes at offset off. The registers are
// loaded as aligned words only (4.2.2.2); whatever else is tried, and what no
// register is at, is zero.
func (m *MMIO) Read(off uint64, p []byte) {
	clear(p)
	switch {
	case off >= regConfig && off < Size:
		m.dev.ReadConfig(int(off-regConfig), p)
	case off < regConfig && off%4 == 0 && len(p) == 4:
		binary.LittleEndian.PutUint32(p, m.load(off))
	}
}

// Write is the guest's store of p at offset off. As Read, it takes aligned
// words; no device here has a configuration that can be written.
func (m *MMIO) Write(off uint64, p []byte) {
	if off < regConfig && off%4 == 0 && len(p) == 4 {
		m.store(off, binary.LittleEndian.Uint32(p))
	}
}

func (m *MMIO) load(off uint64) uint32 {
	switch off {
	case regMagicValue:
		return magicValue
	case regVersion:
		return version
	case regDeviceID:
		return m.dev.ID()
	case regVendorID:
		return vendorID
	case regInterruptStatus:
		return m.intStatus.Load()
	case regStatus:
		return m.status.Load()
	case regConfigGeneration:
		return m.generation.Load()
	}
	if off >= regSHMLenLow && off <= regSHMBaseHigh {
		return ^uint32(0) // there is no shared memory region
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loadSelected(off)
}

// loadSelected is the registers that a selector register chooses from.
func (m *MMIO) loadSelected(off uint64) uint32 {
	if off == regDeviceFeatures && m.deviceSel < 2 {
		return uint32(m.offered >> (32 * m.deviceSel))
	}
	s := m.selected()
	switch {
	case s == nil:
	case off == regQueueNumMax:
		return uint32(s.max)
	case off == regQueueReady && s.queue != nil:
		return 1
	}
	return 0
}

// selected is the queue that QueueSel chose, or nil.
func (m *MMIO) selected() *slot {
	if uint64(m.queueSel) < uint64(len(m.slots)) {
		return &m.slots[m.queueSel]
	}
	return nil
}

func (m *MMIO) store(off uint64, v uint32) {
	switch off {
	case RegQueueNotify:
		m.notify(v)
		return
	case regInterruptACK:
		m.intStatus.And(^v)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch off {
	case regDeviceFeaturesSel:
		m.deviceSel = v
	case regDriverFeaturesSel:
		m.driverSel = v
	case regDriverFeatures:
		m.setDriverFeatures(v)
	case regQueueSel:
		m.queueSel = v
	case regStatus:
		m.setStatus(v & statusMask)
	default:
		if s := m.selected(); s != nil {
			m.storeQueue(s, off, v)
		}
	}
}

func (m *MMIO) notify(n uint32) {
	if uint64(n) < uint64(len(m.slots)) {
		signal(m.slots[n].kick)
	}
}

// setDriverFeatures takes 32 features, as long as they are not agreed on.
func (m *MMIO) setDriverFeatures(v uint32) {
	switch {
	case m.status.Load()&statusFeaturesOK != 0:
	case m.driverSel < 2:
		shift := 32 * m.driverSel
		m.driver = m.driver&^(0xffffffff<<shift) | uint64(v)<<shift
	case v != 0:
		m.driverWrong = true
	}
}

// storeQueue is the registers of the selected queue. While it is ready, only
// QueueReady can be written (4.2.2.2).
func (m *MMIO) storeQueue(s *slot, off uint64, v uint32) {
	if off == regQueueReady {
		m.setReady(s, v&1 != 0)
		return
	}
	if s.queue != nil {
		return
	}
	switch off {
	case regQueueNum:
		s.config.size = v
	case regQueueDescLow:
		setLow(&s.config.desc, v)
	case regQueueDescHigh:
		setHigh(&s.config.desc, v)
	case regQueueDriverLow:
		setLow(&s.config.avail, v)
	case regQueueDriverHigh:
		setHigh(&s.config.avail, v)
	case regQueueDeviceLow:
		setLow(&s.config.used, v)
	case regQueueDeviceHigh:
		setHigh(&s.config.used, v)
	}
}

func setLow(x *uint64, v uint32)  { *x = *x&^0xffffffff | uint64(v) }
func setHigh(x *uint64, v uint32) { *x = *x&0xffffffff | uint64(v)<<32 }

// setReady makes a queue ready, which comes after the features are agreed on
// (3.1.1), or takes it away; then nothing of it is touched any more when the
// driver's store is over.
func (m *MMIO) setReady(s *slot, ready bool) {
	switch {
	case !ready:
		m.stop(s)
		s.queue = nil
	case s.queue == nil && m.status.Load()&statusFeaturesOK != 0:
		q, err := newQueue(m.mem, s.config, s.max, m.driver)
		if err != nil {
			m.fail(err)
			return
		}
		q.kick, q.interrupt = s.kick, m.usedInterrupt
		s.queue = q
		m.serve()
	}
}

// setStatus is the driver's store to Status: a reset, or further steps of
// the initialization (3.1.1). It cannot take steps back.
func (m *MMIO) setStatus(v uint32) {
	if v == 0 {
		m.reset()
		return
	}
	steps := v &^ (m.status.Load() | statusNeedsReset)
	if steps&statusFeaturesOK != 0 && !m.featuresAcceptable() {
		steps &^= statusFeaturesOK
	}
	m.status.Or(steps)
	if steps&statusDriverOK != 0 {
		m.driverOK()
	}
}

// featuresAcceptable is whether the driver accepts what was offered, and can
// work with a modern device. What a feature requires of others, none of the
// devices here depends on.
func (m *MMIO) featuresAcceptable() bool {
	return m.driver&^m.offered == 0 && !m.driverWrong && m.driver&featVersion1 != 0
}

func (m *MMIO) driverOK() {
	if m.status.Load()&statusFeaturesOK == 0 {
		m.fail(errors.New("DRIVER_OK without FEATURES_OK"))
		return
	}
	if err := m.dev.Start(m.driver); err != nil {
		m.fail(err)
		return
	}
	m.serve()
}

// serve starts serving each queue that is ready and not served, if the driver
// and we are ready too.
func (m *MMIO) serve() {
	if m.status.Load()&(statusDriverOK|statusNeedsReset) != statusDriverOK || m.paused || m.closed {
		return
	}
	for i := range m.slots {
		s := &m.slots[i]
		if s.queue == nil || s.serving != nil || s.queue.err != nil {
			continue
		}
		s.queue.stop.Store(false)
		s.serving = make(chan struct{})
		go m.serveQueue(i, s.queue, s.serving)
	}
}

func (m *MMIO) serveQueue(i int, q *Queue, done chan<- struct{}) {
	defer close(done)
	m.dev.Serve(i, q)
	if q.err != nil {
		m.fail(fmt.Errorf("queue %d: %w", i, q.err))
		return
	}
	q.Publish()
}

// stop ends serving the queues, and returns when nothing of them is in work.
// What they have not begun they keep. The lock is held, so Serve takes it
// nowhere.
func (m *MMIO) stop(slots ...*slot) {
	for _, s := range slots {
		if s.serving != nil {
			s.queue.stop.Store(true)
			signal(s.kick)
		}
	}
	for _, s := range slots {
		if s.serving != nil {
			<-s.serving
			s.serving = nil
		}
	}
}

func (m *MMIO) all() []*slot {
	all := make([]*slot, len(m.slots))
	for i := range m.slots {
		all[i] = &m.slots[i]
	}
	return all
}

// reset is the device's reset (2.4): when it returns, which is when the
// driver's store does, the device is as New made it.
func (m *MMIO) reset() {
	m.stop(m.all()...)
	for i := range m.slots {
		m.slots[i].queue, m.slots[i].config = nil, ringConfig{}
	}
	m.driver, m.driverWrong = 0, false
	m.deviceSel, m.driverSel, m.queueSel = 0, 0, 0
	m.failure.Store(nil)
	m.status.Store(0)
	m.intStatus.Store(0)
}

// fail gives the device up until a reset (2.1.2). The queues that are served
// still stop by themselves: one that failed has, the others do no harm.
func (m *MMIO) fail(err error) {
	m.failure.CompareAndSwap(nil, &err)
	if m.status.Or(statusNeedsReset)&statusDriverOK != 0 {
		m.ConfigChanged()
	}
}

// Pause ends serving: when it returns, no request is in work and no goroutine
// of the device touches the memory, until Resume. The registers still answer.
func (m *MMIO) Pause() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = true
	m.stop(m.all()...)
}

// Resume goes on where Pause was.
func (m *MMIO) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = false
	m.serve()
}

// Close ends serving for ever and closes the eventfds. The guest's CPUs must
// have ended.
func (m *MMIO) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.stop(m.all()...)
	m.closed = true
	for i := range m.slots {
		unix.Close(m.slots[i].kick)
	}
}

// Kick implements Host. It takes the lock, so that no closed eventfd is
// signalled.
func (m *MMIO) Kick(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.notify(uint32(n))
	}
}

// ConfigChanged implements Host.
func (m *MMIO) ConfigChanged() {
	m.generation.Add(1)
	if m.status.Load()&statusDriverOK != 0 {
		m.interrupt(intConfig)
	}
}

func (m *MMIO) usedInterrupt() { m.interrupt(intUsed) }

// interrupt sets InterruptStatus first: a guest that gets the edge finds the
// reason.
func (m *MMIO) interrupt(why uint32) {
	m.intStatus.Or(why)
	m.irq()
}
