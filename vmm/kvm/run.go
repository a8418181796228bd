package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// runPage is struct kvm_run up to its union. Behind it in the mapping, where
// an exit says, are the bytes of port I/O.
type runPage struct {
	request    uint32 // bytes request_interrupt_window, immediate_exit
	_          uint32
	exitReason uint32
	_          uint32
	_          [2]uint64 // cr8, apic_base
	exit       [256]byte
}

const (
	immediateExit = 1 << 8 // of request
	minRunSize    = int(unsafe.Sizeof(runPage{}))
	maxRunSize    = 64 << 10
)

// Reason is why the guest's CPU stopped.
type Reason uint32

// The reasons that come up with interrupt controllers in the kernel.
const (
	ExitUnknown       Reason = 0
	ExitIO            Reason = 2
	ExitDebug         Reason = 4
	ExitHLT           Reason = 5
	ExitMMIO          Reason = 6
	ExitShutdown      Reason = 8
	ExitFailEntry     Reason = 9
	ExitInternalError Reason = 17
	ExitSystemEvent   Reason = 24
)

var reasons = map[Reason]string{
	ExitUnknown:       "unknown",
	ExitIO:            "port I/O",
	ExitDebug:         "debug",
	ExitHLT:           "halt",
	ExitMMIO:          "memory-mapped I/O",
	ExitShutdown:      "triple fault",
	ExitFailEntry:     "failed entry",
	ExitInternalError: "internal error",
	ExitSystemEvent:   "system event",
}

func (r Reason) String() string {
	if s, ok := reasons[r]; ok {
		return s
	}
	return fmt.Sprintf("exit %d", uint32(r))
}

// Run lets the guest run until it needs something: nil, and the methods below
// say what. EINTR is an interruption, by Interrupt or any signal, and says
// nothing else: the exit of before must not be looked at again. The caller is
// locked to its thread. What an exit that reads was given is taken by the
// guest at the next Run.
func (c *VCPU) Run() error {
	// Not RawSyscall: the runtime would wait for the guest.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), run, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Interrupt makes the next Run, and all that follow until Proceed, return
// EINTR before the guest's next instruction. One that is under way takes a
// signal to its thread as well, sent after this.
func (c *VCPU) Interrupt() { atomic.StoreUint32(&c.run.request, immediateExit) }

// Proceed ends what Interrupt began.
func (c *VCPU) Proceed() { atomic.StoreUint32(&c.run.request, 0) }

// Reason is why the last Run returned nil.
func (c *VCPU) Reason() Reason { return Reason(c.run.exitReason) }

// IO is port I/O: the guest reads or writes Port, Count times Size bytes, all
// of it at the same port.
type IO struct {
	In   bool // the guest reads
	Port uint16
	Size int    // 1, 2 or 4
	Data []byte // Count*Size bytes, what is written or where to put what is read; until the next Run
}

// IO is what an ExitIO wants. A shape that the kernel does not make is an
// error.
func (c *VCPU) IO() (IO, error) {
	in, size := c.run.exit[0] == 0, int(c.run.exit[1])
	port := *(*uint16)(unsafe.Pointer(&c.run.exit[2]))
	count := uint64(*(*uint32)(unsafe.Pointer(&c.run.exit[4])))
	offset := *(*uint64)(unsafe.Pointer(&c.run.exit[8]))
	if size != 1 && size != 2 && size != 4 {
		return IO{}, fmt.Errorf("kvm: port %#x: access of %d bytes", port, size)
	}
	have, n := uint64(len(c.page)), count*uint64(size)
	if offset > have || n > have-offset {
		return IO{}, fmt.Errorf("kvm: port %#x: %d accesses at offset %#x of kvm_run", port, count, offset)
	}
	return IO{In: in, Port: port, Size: size, Data: c.page[offset : offset+n : offset+n]}, nil
}

// MMIO is a load or a store where there is no memory.
type MMIO struct {
	Addr  uint64 // guest-physical
	Write bool
	Data  []byte // 1 to 8 bytes, as with IO
}

// MMIO is what an ExitMMIO wants.
func (c *VCPU) MMIO() (MMIO, error) {
	addr := *(*uint64)(unsafe.Pointer(&c.run.exit[0]))
	n := *(*uint32)(unsafe.Pointer(&c.run.exit[16]))
	if n < 1 || n > 8 {
		return MMIO{}, fmt.Errorf("kvm: address %#x: access of %d bytes", addr, n)
	}
	return MMIO{Addr: addr, Write: c.run.exit[20] != 0, Data: c.run.exit[8 : 8+n : 8+n]}, nil
}

// InternalError is an instruction or an event that KVM could not deal with.
type InternalError struct {
	Suberror uint32
	Data     []uint64 // what it means depends on Suberror
}

// suberrors are the KVM_INTERNAL_ERROR_ of linux/kvm.h.
var suberrors = map[uint32]string{
	1: "an instruction that KVM cannot emulate",
	2: "simultaneous exceptions",
	3: "an event that cannot be delivered",
	4: "an unexpected exit",
}

func (e InternalError) String() string {
	if s, ok := suberrors[e.Suberror]; ok {
		return s
	}
	return fmt.Sprintf("suberror %d", e.Suberror)
}

// InternalError is what an ExitInternalError is about.
func (c *VCPU) InternalError() InternalError {
	e := InternalError{Suberror: *(*uint32)(unsafe.Pointer(&c.run.exit[0]))}
	n := min(*(*uint32)(unsafe.Pointer(&c.run.exit[4])), 16)
	for i := range n {
		e.Data = append(e.Data, *(*uint64)(unsafe.Pointer(&c.run.exit[8+8*i])))
	}
	return e
}

// FailEntry is the processor's number for why an ExitFailEntry did not enter
// the guest.
func (c *VCPU) FailEntry() uint64 { return *(*uint64)(unsafe.Pointer(&c.run.exit[0])) }

// SystemEvent is the type of an ExitSystemEvent: KVM_SYSTEM_EVENT_*.
func (c *VCPU) SystemEvent() uint32 { return *(*uint32)(unsafe.Pointer(&c.run.exit[0])) }
