package kvm

// The structures of linux/kvm.h and asm/kvm.h, field for field.

// Regs are the general registers of a VCPU.
type Regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

// Segment is a segment register with what is cached of its descriptor.
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8 // 0..15, see Intel SDM vol. 3, 3.4.5.1
	Present, DPL, DB, S, L, G, AVL uint8 // DPL is 0..3, the others 0 or 1
	Unusable                       uint8
	_                              uint8
}

// Table is GDTR or IDTR.
type Table struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs are the special registers of a VCPU.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                Table
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// FPU is the floating-point state of a VCPU.
type FPU struct {
	FPR        [8][16]byte
	FCW        uint16
	FSW        uint16
	FTWX       uint8
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]byte
	MXCSR      uint32
	_          uint32
}

// CPUIDEntry is what the instruction CPUID answers for one leaf.
type CPUIDEntry struct {
	Leaf, Index, Flags uint32
	EAX, EBX, ECX, EDX uint32
	_                  [3]uint32
}

// significantIndex says that a leaf has several entries, told apart by Index.
const significantIndex = 1

// maxCPUID is more than any kernel has: KVM_MAX_CPUID_ENTRIES.
const maxCPUID = 256

type cpuidList struct {
	n, _    uint32
	entries [maxCPUID]CPUIDEntry
}

// MSR is a model-specific register and its value.
type MSR struct {
	Index uint32
	_     uint32
	Value uint64
}

const maxMSRs = 32

type msrList struct {
	n, _    uint32
	entries [maxMSRs]MSR
}

// Events are what is pending or being delivered to a VCPU.
type Events struct {
	Exception struct {
		Injected, Number, HasError, Pending uint8
		Error                               uint32
	}
	Interrupt struct{ Injected, Number, Soft, Shadow uint8 }
	NMI       struct {
		Injected, Pending, Masked uint8
		_                         uint8
	}
	SIPIVector          uint32
	Flags               uint32
	SMI                 struct{ SMM, Pending, InsideNMI, LatchedInit uint8 }
	TripleFault         uint8
	_                   [26]byte
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// MPState is what a VCPU waits for.
type MPState uint32

// The states. Beside its registers, a VCPU is brought out of HLT by these.
const (
	Runnable      MPState = 0
	Uninitialized MPState = 1 // waits for an INIT
	InitReceived  MPState = 2 // waits for a SIPI
	Halted        MPState = 3
)

type memoryRegion struct {
	slot, _              uint32
	guest, size, address uint64
}

// irqChip is a controller's state, here one of the two PICs'.
type irqChip struct {
	id, _ uint32
	_     [2]uint8 // requests
	mask  uint8
	_     [13]uint8
	_     [496]uint8
}

type pitConfig struct {
	flags uint32
	_     [15]uint32
}

const pitSpeakerDummy = 1 // port 0x61 stays in the kernel

type irqFD struct {
	fd, gsi uint32
	_       [24]byte // flags, a descriptor for level interrupts
}

type ioEventFD struct {
	match, addr uint64
	len         uint32
	fd          int32
	flags       uint32
	_           [36]byte
}

// Flags of ioEventFD.
const (
	ioEventMatch = 1
	ioEventPIO   = 2
)

type capability struct {
	cap, _ uint32
	args   [4]uint64
	_      [64]byte
}

const pmuDisable = 1

type translation struct {
	linear, physical uint64
	valid            uint8
	_                [7]uint8
}

type lapic [1024]byte
