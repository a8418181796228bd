package kvm

import "math/bits"

// Quirk is a host whose KVM announces what does not work there.
type Quirk string

// The quirks.
const (
	NoQuirk Quirk = ""
	// KVMPVM is the module kvm_pvm, which runs guests without hardware
	// virtualization and interprets much of their code.
	KVMPVM Quirk = "kvm_pvm"
)

// CPU is one VCPU among those of its VM. They are cores of one package, with
// a thread each.
type CPU struct {
	ID    int // also of its APIC
	Count int // of all
	Quirk Quirk
}

// mask is what is taken out of a leaf: bits of each register.
type mask struct {
	leaf, index        uint32
	eax, ebx, ecx, edx uint32
	why                string
}

// hidden is what KVM supports and a guest does not get. The bits are those of
// the Intel SDM vol. 2, CPUID, and the AMD APM vol. 3, appendix E.
var hidden = []mask{
	{leaf: 0x1, ecx: 1<<3 | 1<<15 | 1<<27, why: "MONITOR and PDCM need the host's; OSXSAVE is KVM's to set"},
	{leaf: 0x1, ecx: 1 << 5, why: "VMX: guests of guests are a part of KVM that nobody asked for"},
	{leaf: 0x80000001, ecx: 1 << 2, why: "SVM: the same"},
	{leaf: 0x80000001, ecx: 1<<23 | 1<<24 | 1<<28, why: "performance counters"},
	{leaf: 0x6, eax: ^uint32(1 << 2), ebx: all, ecx: all, edx: all, why: "power management but for an APIC timer that never stops"},
	{leaf: 0x7, ebx: 1 << 2, why: "SGX: its memory comes from a device of its own"},
	{leaf: 0x7, edx: 1<<22 | 1<<24 | 1<<25, why: "AMX: its state is only there for a monitor that asks"},
	{leaf: 0x7, index: 1, eax: 1 << 21, edx: 1 << 8, why: "more of AMX"},
	{leaf: 0xd, eax: 1<<17 | 1<<18, why: "the state of AMX"},
}

const all = ^uint32(0)

// dropped are leaves that a guest does not get at all, and why.
var dropped = map[uint32]string{
	0xa:        "performance counters",
	0xb:        "topology, made anew",
	0x12:       "SGX",
	0x14:       "processor trace",
	0x1d:       "AMX",
	0x1e:       "AMX",
	0x1f:       "topology; a guest that finds none looks at 0xb",
	0x8000000a: "SVM",
	0x80000022: "performance counters",
	0x80000026: "topology; a guest that finds none looks at 0xb",
}

// quirks are what else is taken out on a host that has one. Bits of
// 0x40000001 are those of the kernel's Documentation/virt/kvm/x86/cpuid.rst.
var quirks = map[Quirk][]mask{
	KVMPVM: {
		{leaf: 0x1, ecx: 1 << 13, why: "cmpxchg16b is announced and not interpreted"},
		{leaf: 0x7, ebx: 1 << 24, why: "clwb: the same"},
		{leaf: 0x40000001, eax: 1<<7 | 1<<11 | 1<<13, why: "PV_UNHALT, SEND_IPI, SCHED_YIELD are hypercalls, and those hang"},
		{leaf: 0x40000001, eax: 1<<4 | 1<<5 | 1<<6 | 1<<10 | 1<<14, why: "asynchronous faults, stolen time and lazy ends of interrupts gain nothing here"},
	},
}

// Filter is what CPUID answers on cpu, from what is supported.
func Filter(supported []CPUIDEntry, cpu CPU) []CPUIDEntry {
	var kept []CPUIDEntry
	for _, e := range supported {
		if dropped[e.Leaf] != "" || e.Leaf == 0xd && (e.Index == 17 || e.Index == 18) {
			continue
		}
		for _, list := range [][]mask{hidden, quirks[cpu.Quirk]} {
			for _, m := range list {
				m.hide(&e)
			}
		}
		cpu.identify(&e)
		if e.EAX|e.EBX|e.ECX|e.EDX != 0 { // what is missing reads as zero too
			kept = append(kept, e)
		}
	}
	return append(kept, cpu.topology()...)
}

func (m mask) hide(e *CPUIDEntry) {
	if e.Leaf == m.leaf && e.Index == m.index {
		e.EAX &^= m.eax
		e.EBX &^= m.ebx
		e.ECX &^= m.ecx
		e.EDX &^= m.edx
	}
}

// Bits of leaf 1 that a monitor sets.
const (
	tscDeadline  = 1 << 24 // ecx: the kernel's APIC has it, New made sure
	hypervisor   = 1 << 31 // ecx
	multiple     = 1 << 28 // edx: HTT, more than one CPU in the package
	clflushShift = 8       // ebx
)

// identify writes into a leaf which CPU this is, of how many.
func (c CPU) identify(e *CPUIDEntry) {
	id, count, others := uint32(c.ID), uint32(c.Count), uint32(c.Count-1)
	switch e.Leaf {
	case 0x1:
		e.EBX = id<<24 | min(count, 255)<<16 | e.EBX&(0xff<<clflushShift) | e.EBX&0xff
		e.ECX |= tscDeadline | hypervisor
		e.EDX &^= multiple
		if count > 1 {
			e.EDX |= multiple
		}
	case 0x4: // caches: shared by how many threads; cores of the package
		e.EAX &^= 0xfff<<14 | 0x3f<<26
		if e.EAX&0x1f != 0 {
			e.EAX |= min(others, 63) << 26
			e.EAX |= c.sharing(e.EAX) << 14
		}
	case 0x8000001d: // the same, of AMD
		e.EAX &^= 0xfff << 14
		if e.EAX&0x1f != 0 {
			e.EAX |= c.sharing(e.EAX) << 14
		}
	case 0x80000008:
		e.ECX = e.ECX&^0xf0ff | c.idBits()<<12 | min(others, 255)
	case 0x8000001e:
		e.EAX, e.EBX, e.ECX = id, id&0xff, 0
	}
}

// sharing is how many others use a cache: those of levels 1 and 2 are a
// core's own. eax has its level in bits 5 to 7.
func (c CPU) sharing(eax uint32) uint32 {
	if eax>>5&7 < 3 {
		return 0
	}
	return uint32(c.Count - 1)
}

// idBits is how many bits of an APIC id tell the CPUs of the package apart.
func (c CPU) idBits() uint32 { return uint32(bits.Len(uint(c.Count - 1))) }

// topology is leaf 0xb: threads of a core, cores of the package, an end.
func (c CPU) topology() []CPUIDEntry {
	id := uint32(c.ID)
	level := func(index, shift, count, kind uint32) CPUIDEntry {
		return CPUIDEntry{Leaf: 0xb, Index: index, Flags: significantIndex,
			EAX: shift, EBX: count, ECX: kind<<8 | index, EDX: id}
	}
	return []CPUIDEntry{
		level(0, 0, 1, 1),
		level(1, c.idBits(), uint32(c.Count), 2),
		level(2, 0, 0, 0),
	}
}

// BootMSRs are what a monitor sets on each VCPU before its first instruction:
// everything that a kernel expects to find at rest, and string instructions
// that are fast (MISC_ENABLE, Intel SDM vol. 4).
func BootMSRs() []MSR {
	var msrs []MSR
	for _, zero := range []uint32{
		0x174, 0x175, 0x176, // SYSENTER_CS, _ESP, _EIP
		0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, // STAR, LSTAR, CSTAR, SYSCALL_MASK
		0xc0000102, // KERNEL_GS_BASE
		0x10,       // TSC
	} {
		msrs = append(msrs, MSR{Index: zero})
	}
	return append(msrs, MSR{Index: 0x1a0, Value: 1})
}
