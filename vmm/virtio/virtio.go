// Package virtio is the guest's devices: block, network, console and entropy
// as Virtual I/O Device (VIRTIO) 1.2 describes them, behind the registers of
// virtio over MMIO. Section numbers in this package are of that text. It is
// the modern interface only: split virtqueues with VIRTIO_F_VERSION_1,
// VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC.
//
// An MMIO is the registers and the queues of one Device. Whoever runs the
// guest's CPUs calls Read and Write when the guest touches the registers, and
// may have the kernel signal NotifyFD itself. Each queue that the guest made
// ready is served by a goroutine of its own, which sleeps in the kernel until
// that descriptor is signalled, on a thread. So that none of them waits for a
// vCPU's thread to return from the guest, GOMAXPROCS should be at least the
// vCPUs and the queues together. KVM is not needed to run any of it.
//
// It trusts nothing that the guest writes: registers, rings, descriptors and
// requests. Whatever of them a decision rests on is loaded once, checked, and
// used as it was loaded, since the guest's CPUs run meanwhile. A guest that
// breaks the rules of the rings finds DEVICE_NEEDS_RESET in the device's
// status, and Failure has the reason; a request that is merely wrong gets the
// error its section names. No access leaves the Memory.
//
// It cannot take back what it began: a reset, and a pause, wait for the
// requests that the host has begun to serve, and so for the host's disk.
package virtio

// Memory is the guest's memory.
type Memory interface {
	// Slice is the n bytes at the guest-physical address addr: the memory
	// itself, not a copy. It is an error if they are not all memory without
	// a gap, whatever addr and n are. What is memory begins and ends at
	// multiples of 4, for the guest and in this process.
	Slice(addr, n uint64) ([]byte, error)
}

// A Device is what is behind the registers: one of the types of section 5.
// The methods from Start on are called by its MMIO only.
type Device interface {
	// ID is the device type.
	ID() uint32
	// Features are the bits (2.2) that are offered beside those of the rings.
	Features() uint64
	// QueueSizes are the largest sizes of its queues: powers of two up to
	// MaxQueueSize.
	QueueSizes() []uint16
	// ReadConfig copies the configuration space (2.5) from offset off on to
	// p. What lies behind its end it leaves alone.
	ReadConfig(off int, p []byte)

	// Attach tells the device, once and before anything else, where it is.
	Attach(host Host)
	// Start is the driver's DRIVER_OK, with the features it accepted.
	Start(features uint64) error
	// Serve handles queue n until q.Wait is false. It runs beside Serve of
	// the device's other queues, and keeps nothing of q when it returns,
	// since the next may be after a reset. After Pause it is called again
	// with the q it had.
	Serve(n int, q *Queue)
}

var (
	_ Device = (*Blk)(nil)
	_ Device = (*Net)(nil)
	_ Device = (*Console)(nil)
	_ Device = (*RNG)(nil)
)

// Host is what a device may ask of its MMIO, at any time.
type Host interface {
	// Kick wakes Serve of queue n, as the guest would. Serve itself, and who
	// holds a lock that Serve takes, must not call it.
	Kick(n int)
	// ConfigChanged tells the driver to read the configuration again (2.5).
	ConfigChanged()
}

// Types of devices (5).
const (
	idNet     = 1
	idBlk     = 2
	idConsole = 3
	idRNG     = 4
)

// Feature bits of the rings and the transport (6).
const (
	featIndirect = 1 << 28
	featEventIdx = 1 << 29
	featVersion1 = 1 << 32

	featRing = featIndirect | featEventIdx | featVersion1
)

// Bits of the device status (2.1).
const (
	statusDriverOK   = 4
	statusFeaturesOK = 8
	statusNeedsReset = 0x40
	statusMask       = 0xff
)
