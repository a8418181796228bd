package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Where Intel's virtualization keeps what it needs in the guest's address
// space: three pages and one, below the 256 KiB of a firmware's ROM, which
// there is not, and above the registers of every device.
const (
	tssAddr         = 0xfffbd000
	identityMapAddr = 0xfffbc000
)

// VM is a virtual machine: a guest-physical address space with interrupt
// controllers (PIC, IOAPIC, a local APIC for each VCPU) and a timer (PIT) in
// the kernel. Its methods but Close may be called at the same time.
type VM struct {
	fd      int
	runSize int
}

// CreateVM makes a VM without memory and VCPUs. Close releases it.
func (s *System) CreateVM() (*VM, error) {
	fd, err := ioctl(s.fd, createVM, 0)
	if err != nil {
		return nil, failed("KVM_CREATE_VM", err)
	}
	unix.CloseOnExec(fd)
	vm := &VM{fd: fd, runSize: s.runSize}
	if err := vm.setUp(); err != nil {
		vm.Close()
		return nil, err
	}
	return vm, nil
}

// setUp does what must come before the first VCPU.
func (vm *VM) setUp() error {
	if _, err := ioctl(vm.fd, setTSSAddr, tssAddr); err != nil {
		return failed("KVM_SET_TSS_ADDR", err)
	}
	identity := uint64(identityMapAddr)
	if _, err := ioctlPtr(vm.fd, setIdentityMapAddr, &identity); err != nil {
		return failed("KVM_SET_IDENTITY_MAP_ADDR", err)
	}
	if _, err := ioctl(vm.fd, createIRQChip, 0); err != nil {
		return failed("KVM_CREATE_IRQCHIP", err)
	}
	if err := vm.maskPIC(); err != nil {
		return err
	}
	if _, err := ioctlPtr(vm.fd, createPIT2, &pitConfig{flags: pitSpeakerDummy}); err != nil {
		return failed("KVM_CREATE_PIT2", err)
	}
	return vm.withoutPMU()
}

// maskPIC leaves the two PICs as a firmware does, with every line masked: the
// first 16 lines are theirs too, and a guest that finds nothing of them in
// ACPI's tables does not touch them. One that uses them sets them up.
func (vm *VM) maskPIC() error {
	for id := range uint32(2) {
		chip := &irqChip{id: id}
		if _, err := ioctlPtr(vm.fd, getIRQChip, chip); err != nil {
			return failed("KVM_GET_IRQCHIP", err)
		}
		chip.mask = 0xff
		if _, err := ioctlPtr(vm.fd, setIRQChip, chip); err != nil {
			return failed("KVM_SET_IRQCHIP", err)
		}
	}
	return nil
}

// withoutPMU keeps a guest from the host's performance counters. A kernel
// that cannot do that shows none that CPUID does not announce.
func (vm *VM) withoutPMU() error {
	can, err := ioctl(vm.fd, checkExtension, capPMU)
	if err != nil || can&pmuDisable == 0 {
		return nil
	}
	_, err = ioctlPtr(vm.fd, enableCap, &capability{cap: capPMU, args: [4]uint64{pmuDisable}})
	return failed("KVM_ENABLE_CAP PMU_CAPABILITY", err)
}

// SetMemory makes p the guest's memory from the guest-physical address addr
// on. p is a mapping of whole pages that stays where it is until the VM is
// closed. Each slot is set once.
func (vm *VM) SetMemory(slot uint32, addr uint64, p []byte) error {
	if len(p) == 0 {
		return failed("KVM_SET_USER_MEMORY_REGION", unix.EINVAL)
	}
	_, err := ioctlPtr(vm.fd, setUserMemoryRegion, &memoryRegion{
		slot:    slot,
		guest:   addr,
		size:    uint64(len(p)),
		address: uint64(uintptr(unsafe.Pointer(&p[0]))),
	})
	return failed("KVM_SET_USER_MEMORY_REGION", err)
}

// IRQFD makes every write to the eventfd fd an edge on the interrupt line gsi.
// It holds until the VM is closed; fd may be closed sooner.
func (vm *VM) IRQFD(fd int, gsi uint32) error {
	_, err := ioctlPtr(vm.fd, irqfd, &irqFD{fd: uint32(fd), gsi: gsi})
	return failed(fmt.Sprintf("KVM_IRQFD %d", gsi), err)
}

// Doorbell is a store of the guest's that rings an eventfd and does not leave
// the kernel.
type Doorbell struct {
	Addr  uint64
	PIO   bool   // Addr is a port
	Len   uint32 // of the store, in bytes: 1, 2, 4 or 8
	Match bool   // only a store of Value does it
	Value uint64
}

// IOEventFD makes the store d ring the eventfd fd. It holds until the VM is
// closed; fd may be closed sooner.
func (vm *VM) IOEventFD(fd int, d Doorbell) error {
	e := ioEventFD{addr: d.Addr, len: d.Len, fd: int32(fd)}
	if d.PIO {
		e.flags |= ioEventPIO
	}
	if d.Match {
		e.flags |= ioEventMatch
		e.match = d.Value
	}
	_, err := ioctlPtr(vm.fd, ioeventfd, &e)
	return failed(fmt.Sprintf("KVM_IOEVENTFD %#x", d.Addr), err)
}

// CreateVCPU makes the VCPU whose APIC id is id. The first, 0, is the one
// that boots. Its Close releases it; the VM lives until then.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl(vm.fd, createVCPU, uintptr(id))
	if err != nil {
		return nil, failed(fmt.Sprintf("KVM_CREATE_VCPU %d", id), err)
	}
	unix.CloseOnExec(fd)
	page, err := unix.Mmap(fd, 0, vm.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kvm: map kvm_run of CPU %d: %w", id, err)
	}
	return &VCPU{fd: fd, run: (*runPage)(unsafe.Pointer(&page[0])), page: page}, nil
}

// Close gives up the VM. Its memory is let go when the last VCPU is closed.
func (vm *VM) Close() error {
	if vm.fd < 0 {
		return nil
	}
	err := unix.Close(vm.fd)
	vm.fd = -1
	return err
}

// SupportedCPUID is what CPUID can say on this host, at best.
func (s *System) SupportedCPUID() ([]CPUIDEntry, error) {
	list := &cpuidList{n: maxCPUID}
	if _, err := ioctlPtr(s.fd, getSupportedCPUID, list); err != nil {
		return nil, failed("KVM_GET_SUPPORTED_CPUID", err)
	}
	if list.n == 0 || list.n > maxCPUID {
		return nil, fmt.Errorf("kvm: KVM_GET_SUPPORTED_CPUID: %d entries", list.n)
	}
	return list.entries[:list.n], nil
}

var errTooMany = errors.New("too many entries")

// SetCPUID says what CPUID answers on this VCPU. It must come before its
// first instruction.
func (c *VCPU) SetCPUID(entries []CPUIDEntry) error {
	if len(entries) > maxCPUID {
		return failed("KVM_SET_CPUID2", errTooMany)
	}
	list := &cpuidList{n: uint32(len(entries))}
	copy(list.entries[:], entries)
	_, err := ioctlPtr(c.fd, setCPUID2, list)
	runtime.KeepAlive(list)
	return failed("KVM_SET_CPUID2", err)
}
