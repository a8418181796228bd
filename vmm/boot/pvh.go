package boot

import "vmfs/vmm/ram"

// The structures of the x86/HVM direct boot ABI (xen/include/public/arch-x86/
// hvm/start_info.h). Linux takes nothing below version 1 from a hypervisor
// that is not Xen.
const (
	startMagic   = 0x336ec578
	startVersion = 1
	startSize    = 56
	moduleSize   = 32
	rangeSize    = 24
)

// enterPVH writes hvm_start_info with what it points to, and returns the
// registers of its section "CPU state".
func enterPVH(m *ram.RAM, entry uint64, b *booted) (State, error) {
	ranges := memoryMap(m)
	info := make(table, startSize)
	info.u32(0, startMagic)
	info.u32(4, startVersion)
	info.u64(24, cmdlineAddr)
	info.u64(32, b.rsdp)
	info.u64(40, memmapAddr)
	info.u32(48, uint32(len(ranges)))
	if b.initrdSize > 0 {
		info.u32(12, 1)
		info.u64(16, modulesAddr)
		module := make(table, moduleSize)
		module.u64(0, b.initrd)
		module.u64(8, b.initrdSize)
		if err := put(m, modulesAddr, module); err != nil {
			return State{}, err
		}
	}
	memmap := make(table, rangeSize*len(ranges))
	for i, r := range ranges {
		memmap.u64(rangeSize*i, r.addr)
		memmap.u64(rangeSize*i+8, r.size)
		memmap.u32(rangeSize*i+16, uint32(r.kind))
	}
	if err := put(m, memmapAddr, memmap); err != nil {
		return State{}, err
	}
	if err := put(m, startInfoAddr, info); err != nil {
		return State{}, err
	}
	s, err := flat(m, PVH32, code32)
	s.RIP, s.RBX = entry, startInfoAddr
	return s, err
}
