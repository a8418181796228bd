// Package kvm is the kernel's KVM interface for x86-64 with types: the
// ioctls of a system, a virtual machine and a virtual CPU that a monitor with
// in-kernel interrupt controllers needs, in the order that works. See the
// kernel's Documentation/virt/kvm/api.rst; names here are its names.
//
// It trusts the kernel, but for what a guest decides in an exit, which it
// bounds. It cannot open anything: it gets /dev/kvm as an open file. A VM
// belongs to the process that made it; its descriptors are no use in another.
package kvm

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls, numbered as linux/kvm.h has them for x86-64. The size of what
// each takes is part of its number; a test compares.
const (
	getAPIVersion       = 0xae00
	createVM            = 0xae01
	checkExtension      = 0xae03
	getVCPUMmapSize     = 0xae04
	getSupportedCPUID   = 0xc008ae05
	createVCPU          = 0xae41
	setUserMemoryRegion = 0x4020ae46
	setTSSAddr          = 0xae47
	setIdentityMapAddr  = 0x4008ae48
	createIRQChip       = 0xae60
	getIRQChip          = 0xc208ae62
	setIRQChip          = 0x8208ae63
	irqfd               = 0x4020ae76
	createPIT2          = 0x4040ae77
	ioeventfd           = 0x4040ae79
	enableCap           = 0x4068aea3
	run                 = 0xae80
	getRegs             = 0x8090ae81
	setRegs             = 0x4090ae82
	getSregs            = 0x8138ae83
	setSregs            = 0x4138ae84
	translate           = 0xc018ae85
	setMSRs             = 0x4008ae89
	setFPU              = 0x41a0ae8d
	getLAPIC            = 0x8400ae8e
	setLAPIC            = 0x4400ae8f
	setCPUID2           = 0x4008ae90
	getMPState          = 0x8004ae98
	setMPState          = 0x4004ae99
	getVCPUEvents       = 0x8040ae9f
	setVCPUEvents       = 0x4040aea0
	kvmclockCtrl        = 0xaead
)

// Ioctls are the numbers of all that this package calls, for a filter.
var Ioctls = []uint32{
	getAPIVersion, createVM, checkExtension, getVCPUMmapSize, getSupportedCPUID,
	createVCPU, setUserMemoryRegion, setTSSAddr, setIdentityMapAddr, createIRQChip,
	getIRQChip, setIRQChip, irqfd, createPIT2, ioeventfd, enableCap, run, getRegs, setRegs, getSregs, setSregs,
	translate, setMSRs, setFPU, getLAPIC, setLAPIC, setCPUID2, getMPState, setMPState,
	getVCPUEvents, setVCPUEvents, kvmclockCtrl,
}

// Extensions of KVM_CHECK_EXTENSION.
const (
	capIRQChip       = 0
	capUserMemory    = 3
	capSetTSSAddr    = 4
	capExtCPUID      = 7
	capMPState       = 14
	capIRQFD         = 32
	capPIT2          = 33
	capIOEventFD     = 36
	capIdentityMap   = 37
	capVCPUEvents    = 41
	capMaxVCPUs      = 66
	capTSCDeadline   = 72
	capImmediateExit = 136
	capPMU           = 212
)

// needed are the extensions without which there is no machine.
var needed = []struct {
	number uintptr
	name   string
}{
	{capIRQChip, "IRQCHIP"},
	{capUserMemory, "USER_MEMORY"},
	{capSetTSSAddr, "SET_TSS_ADDR"},
	{capExtCPUID, "EXT_CPUID"},
	{capMPState, "MP_STATE"},
	{capIRQFD, "IRQFD"},
	{capPIT2, "PIT2"},
	{capIOEventFD, "IOEVENTFD"},
	{capIdentityMap, "SET_IDENTITY_MAP_ADDR"},
	{capVCPUEvents, "VCPU_EVENTS"},
	{capTSCDeadline, "TSC_DEADLINE_TIMER"},
	{capImmediateExit, "IMMEDIATE_EXIT"},
}

const apiVersion = 12 // the only one since Linux 2.6.22

// ErrNotKVM is wrapped by New's error for a file that is something else.
var ErrNotKVM = errors.New("not KVM")

// System is /dev/kvm.
type System struct {
	file    *os.File
	fd      int
	runSize int
}

// New makes sure that f is /dev/kvm, open for reading and writing, of a
// kernel that has all that this package needs. On success f is the System's.
func New(f *os.File) (*System, error) {
	s := &System{file: f, fd: int(f.Fd())}
	version, err := ioctl(s.fd, getAPIVersion, 0)
	if err != nil {
		return nil, fmt.Errorf("kvm: %s: %w: %w", f.Name(), ErrNotKVM, err)
	}
	if version != apiVersion {
		return nil, fmt.Errorf("kvm: %s: API version %d, not %d", f.Name(), version, apiVersion)
	}
	for _, c := range needed {
		if n, err := ioctl(s.fd, checkExtension, c.number); err != nil || n < 1 {
			return nil, fmt.Errorf("kvm: this kernel lacks KVM_CAP_%s", c.name)
		}
	}
	if s.runSize, err = ioctl(s.fd, getVCPUMmapSize, 0); err != nil {
		return nil, fmt.Errorf("kvm: KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	if s.runSize < minRunSize || s.runSize > maxRunSize {
		return nil, fmt.Errorf("kvm: a kvm_run of %d bytes", s.runSize)
	}
	return s, nil
}

// Close closes /dev/kvm. VMs that were made are not affected.
func (s *System) Close() error { return s.file.Close() }

// MaxVCPUs is how many VCPUs a VM may have.
func (s *System) MaxVCPUs() int {
	n, err := ioctl(s.fd, checkExtension, capMaxVCPUs)
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// ioctl is an ioctl whose argument is a number. The signals by which Go stops
// goroutines interrupt it; it is then made again. KVM_RUN is not called by
// this: there an interruption is an answer.
func ioctl(fd int, request, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// ioctlPtr is an ioctl that reads or writes *p.
func ioctlPtr[T any](fd int, request uintptr, p *T) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(p)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// failed names the ioctl in its error.
func failed(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("kvm: %s: %w", name, err)
}
