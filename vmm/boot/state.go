package boot

import (
	"encoding/binary"

	"vmfs/vmm/ram"
)

var le = binary.LittleEndian

// Mode is how a CPU begins.
type Mode int

// The modes.
const (
	PVH32  Mode = iota // 32-bit protected mode, no paging
	Long64             // 64-bit mode, the first GiB mapped to itself
)

func (m Mode) String() string {
	if m == PVH32 {
		return "pvh32"
	}
	return "long64"
}

// State is what the first CPU starts with. Registers that it does not name
// are zero; RFLAGS is 2.
type State struct {
	Mode Mode

	RIP, RSP, RBX, RSI   uint64
	CR0, CR3, CR4, EFER  uint64
	CS, DS, TR           Segment // DS is also ES, FS, GS and SS
	GDTBase, GDTLimit    uint64  // the IDT's limit is 0
	KernelEnd, InitrdEnd uint64  // the first bytes behind them, for who reports it
}

// Segment is a segment register with its hidden part.
type Segment struct {
	Selector uint16
	Base     uint64
	Limit    uint32 // in bytes
	// Access is bits 40 to 55 of the descriptor: type in the lowest four,
	// then S, DPL, P; from bit 12 on AVL, L, D/B, G.
	Access uint16
}

// Bits of control registers and EFER (Intel SDM volume 3, section 2.5 and
// 2.2.1).
const (
	cr0PE = 1 << 0
	cr0ET = 1 << 4
	cr0PG = 1 << 31

	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10
)

// Access of our segments. Linux's 64-bit protocol asks for its code segment
// at 0x10 and its data segment at 0x18; PVH does not say where.
const (
	code32  = 0xc09b
	code64  = 0xa09b
	data32  = 0xc093
	busyTSS = 0x008b

	selCode = 0x10
	selData = 0x18
	selTSS  = 0x20
)

// flat makes the registers that both modes share, and writes the GDT.
func flat(m *ram.RAM, mode Mode, code uint16) (State, error) {
	s := State{
		Mode:     mode,
		CR0:      cr0PE | cr0ET,
		CS:       Segment{selCode, 0, 0xffffffff, code},
		DS:       Segment{selData, 0, 0xffffffff, data32},
		TR:       Segment{selTSS, 0, 0x67, busyTSS},
		GDTBase:  gdtAddr,
		GDTLimit: 6*8 - 1,
	}
	gdt := make(table, 6*8) // a TSS has two in 64-bit mode
	for _, seg := range []Segment{s.CS, s.DS, s.TR} {
		gdt.u64(int(seg.Selector), seg.descriptor())
	}
	return s, put(m, gdtAddr, gdt)
}

// descriptor is s as the GDT has it (Intel SDM volume 3, section 3.4.5).
func (s Segment) descriptor() uint64 {
	limit := uint64(s.Limit)
	if s.Access&0x8000 != 0 { // in pages
		limit >>= 12
	}
	return limit&0xffff | (limit>>16&0xf)<<48 |
		s.Base&0xffffff<<16 | s.Base>>24&0xff<<56 |
		uint64(s.Access)&0xf0ff<<40
}

// putPageTables maps the first GiB to itself, in pages of 2 MiB, and returns
// what CR3 is.
func putPageTables(m *ram.RAM) (uint64, error) {
	const present, writable, large = 1, 2, 1 << 7
	t := make(table, 3*ram.PageSize)
	t.u64(0, pageTableAddr+ram.PageSize|present|writable)
	t.u64(ram.PageSize, pageTableAddr+2*ram.PageSize|present|writable)
	for i := range 512 {
		t.u64(2*ram.PageSize+8*i, uint64(i)<<21|present|writable|large)
	}
	return pageTableAddr, put(m, pageTableAddr, t)
}

// mapped is the first address that the page tables do not map.
const mapped = 1 << 30

// long makes the registers of the 64-bit protocol, with the page tables.
func long(m *ram.RAM, entry uint64) (State, error) {
	s, err := flat(m, Long64, code64)
	if err != nil {
		return State{}, err
	}
	if s.CR3, err = putPageTables(m); err != nil {
		return State{}, err
	}
	s.CR0 |= cr0PG
	s.CR4 = cr4PAE
	s.EFER = eferLME | eferLMA
	s.RIP, s.RSP, s.RSI = entry, stackAddr, zeroPageAddr
	return s, nil
}

// memoryType is the type of a range in an e820 or PVH memory map.
type memoryType uint32

const (
	usable   memoryType = 1
	reserved memoryType = 2
)

// mapRange is a range of such a map.
type mapRange struct {
	addr, size uint64
	kind       memoryType
}

// memoryMap is what the guest is told of its memory. The hole below 4 GiB is
// not in it: it is neither memory nor reserved, so that the guest finds the
// devices in ACPI's tables only.
func memoryMap(m *ram.RAM) []mapRange {
	top := lowTop(m)
	all := []mapRange{
		{0, min(lowMemoryEnd, top), usable},
		{lowMemoryEnd, highStart - lowMemoryEnd, reserved},
	}
	if top > highStart {
		all = append(all, mapRange{highStart, top - highStart, usable})
	}
	for _, r := range m.Regions()[1:] {
		all = append(all, mapRange{r.Addr, uint64(len(r.Bytes)), usable})
	}
	return all
}
