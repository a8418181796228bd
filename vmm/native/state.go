package native

import (
	"vmfs/vmm/boot"
	"vmfs/vmm/kvm"
)

// setUp gives CPU 0 what boot says that it begins with. The others wait for
// it to start them, as their reset leaves them.
func setUp(v *kvm.VCPU, s boot.State) error {
	sregs, err := v.Sregs()
	if err != nil {
		return err
	}
	sregs.CS = segment(s.CS)
	data := segment(s.DS)
	sregs.DS, sregs.ES, sregs.FS, sregs.GS, sregs.SS = data, data, data, data, data
	sregs.TR = segment(s.TR)
	sregs.GDT = kvm.Table{Base: s.GDTBase, Limit: uint16(s.GDTLimit)}
	sregs.IDT = kvm.Table{}
	sregs.CR0, sregs.CR3, sregs.CR4, sregs.EFER = s.CR0, s.CR3, s.CR4, s.EFER
	if err := v.SetSregs(&sregs); err != nil {
		return err
	}
	// As FNINIT and a reset leave them (Intel SDM vol. 3, table 10-1).
	if err := v.SetFPU(&kvm.FPU{FCW: 0x37f, MXCSR: 0x1f80}); err != nil {
		return err
	}
	return v.SetRegs(&kvm.Regs{RIP: s.RIP, RSP: s.RSP, RBX: s.RBX, RSI: s.RSI, RFLAGS: 2})
}

// segment is a segment register as KVM wants it. The bits of Access are those
// of a descriptor, from bit 40 on (Intel SDM vol. 3, 3.4.5).
func segment(s boot.Segment) kvm.Segment {
	bit := func(n int) uint8 { return uint8(s.Access >> n & 1) }
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector,
		Type: uint8(s.Access & 15), S: bit(4), DPL: uint8(s.Access >> 5 & 3), Present: bit(7),
		AVL: bit(12), L: bit(13), DB: bit(14), G: bit(15),
	}
}
