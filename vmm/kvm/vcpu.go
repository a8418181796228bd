package kvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual CPU. Its methods but Interrupt and Proceed are for the
// one thread that runs it, or for any while none does.
type VCPU struct {
	fd   int
	run  *runPage
	page []byte // the mapping of which run is the beginning
}

// Close releases the VCPU, which must not run.
func (c *VCPU) Close() error {
	if c.fd < 0 {
		return nil
	}
	unix.Munmap(c.page)
	err := unix.Close(c.fd)
	c.fd, c.run, c.page = -1, nil, nil
	return err
}

// Regs reads the general registers.
func (c *VCPU) Regs() (r Regs, err error) {
	_, err = ioctlPtr(c.fd, getRegs, &r)
	return r, failed("KVM_GET_REGS", err)
}

// SetRegs writes the general registers.
func (c *VCPU) SetRegs(r *Regs) error {
	_, err := ioctlPtr(c.fd, setRegs, r)
	return failed("KVM_SET_REGS", err)
}

// Sregs reads the special registers.
func (c *VCPU) Sregs() (s Sregs, err error) {
	_, err = ioctlPtr(c.fd, getSregs, &s)
	return s, failed("KVM_GET_SREGS", err)
}

// SetSregs writes the special registers.
func (c *VCPU) SetSregs(s *Sregs) error {
	_, err := ioctlPtr(c.fd, setSregs, s)
	return failed("KVM_SET_SREGS", err)
}

// SetFPU writes the floating-point state.
func (c *VCPU) SetFPU(f *FPU) error {
	_, err := ioctlPtr(c.fd, setFPU, f)
	return failed("KVM_SET_FPU", err)
}

// SetMSRs writes model-specific registers, at most 32.
func (c *VCPU) SetMSRs(msrs []MSR) error {
	if len(msrs) > maxMSRs {
		return failed("KVM_SET_MSRS", errTooMany)
	}
	list := &msrList{n: uint32(len(msrs))}
	copy(list.entries[:], msrs)
	n, err := ioctlPtr(c.fd, setMSRs, list)
	if err == nil && n < len(msrs) {
		err = fmt.Errorf("%#x: refused", msrs[n].Index)
	}
	return failed("KVM_SET_MSRS", err)
}

// Registers of a local APIC, by their offset (Intel SDM vol. 3, 11.4.1), and
// what their delivery mode is, bits 8 to 10 (11.5.1).
const (
	apicLINT0  = 0x350
	apicLINT1  = 0x360
	modeMask   = 7 << 8
	modeNMI    = 4 << 8
	modeExtINT = 7 << 8
)

// WireLAPIC connects the local APIC's pins as on a PC: the PIC at LINT0, NMIs
// at LINT1.
func (c *VCPU) WireLAPIC() error {
	var a lapic
	if _, err := ioctlPtr(c.fd, getLAPIC, &a); err != nil {
		return failed("KVM_GET_LAPIC", err)
	}
	for _, pin := range []struct{ offset, mode uint32 }{{apicLINT0, modeExtINT}, {apicLINT1, modeNMI}} {
		r := (*uint32)(unsafe.Pointer(&a[pin.offset]))
		*r = *r&^modeMask | pin.mode
	}
	_, err := ioctlPtr(c.fd, setLAPIC, &a)
	return failed("KVM_SET_LAPIC", err)
}

// MPState reads what the VCPU waits for.
func (c *VCPU) MPState() (s MPState, err error) {
	_, err = ioctlPtr(c.fd, getMPState, &s)
	return s, failed("KVM_GET_MP_STATE", err)
}

// SetMPState changes it. Writing registers does not wake a halted VCPU; this
// does.
func (c *VCPU) SetMPState(s MPState) error {
	_, err := ioctlPtr(c.fd, setMPState, &s)
	return failed("KVM_SET_MP_STATE", err)
}

// Events reads what is pending.
func (c *VCPU) Events() (e Events, err error) {
	_, err = ioctlPtr(c.fd, getVCPUEvents, &e)
	return e, failed("KVM_GET_VCPU_EVENTS", err)
}

// SetEvents changes it.
func (c *VCPU) SetEvents(e *Events) error {
	_, err := ioctlPtr(c.fd, setVCPUEvents, e)
	return failed("KVM_SET_VCPU_EVENTS", err)
}

// Paused tells a guest that uses kvmclock that it stood still, so that its
// watchdogs do not bark. One that does not use it is not told.
func (c *VCPU) Paused() error {
	_, err := ioctl(c.fd, kvmclockCtrl, 0)
	if err == unix.EINVAL {
		return nil
	}
	return failed("KVM_KVMCLOCK_CTRL", err)
}

// Translate finds the guest-physical address of a linear one by the guest's
// own page tables.
func (c *VCPU) Translate(linear uint64) (physical uint64, ok bool) {
	t := translation{linear: linear}
	_, err := ioctlPtr(c.fd, translate, &t)
	return t.physical, err == nil && t.valid != 0
}
