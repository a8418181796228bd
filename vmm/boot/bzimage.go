package boot

import (
	"io"

	"vmfs/vmm/ram"
)

// Offsets in a bzImage, and in struct boot_params ("zero page"), which has
// the setup header at the same place.
const (
	hdrStart         = 0x1f1
	hdrSetupSects    = 0x1f1
	hdrSyssize       = 0x1f4
	hdrBootFlag      = 0x1fe
	hdrJumpOffset    = 0x201 // the header ends 0x202 + this
	hdrMagic         = 0x202
	hdrVersion       = 0x206
	hdrTypeOfLoader  = 0x210
	hdrLoadflags     = 0x211
	hdrRamdiskImage  = 0x218
	hdrRamdiskSize   = 0x21c
	hdrCmdLinePtr    = 0x228
	hdrInitrdAddrMax = 0x22c
	hdrAlignment     = 0x230
	hdrXloadflags    = 0x236
	hdrCmdlineSize   = 0x238
	hdrPayloadOffset = 0x248
	hdrPayloadLength = 0x24c
	hdrPrefAddress   = 0x258
	hdrInitSize      = 0x260
	hdrLeastEnd      = 0x264 // a header that has init_size
	hdrMostEnd       = 0x290 // where boot_params goes on with something else

	zpRSDP            = 0x070
	zpExtRamdiskImage = 0x0c0
	zpExtRamdiskSize  = 0x0c4
	zpE820Entries     = 0x1e8
	zpE820            = 0x2d0
	e820Size          = 20

	sector       = 512
	bootFlag     = 0xaa55
	headerMagic  = "HdrS"
	leastVersion = 0x20c // has xloadflags; Linux 3.8
	loadedHigh   = 1
	xlfKernel64  = 1
	xlfAbove4G   = 2
	otherLoader  = 0xff
	entry64      = 0x200 // from where the kernel is loaded
)

// Header is what the setup header of a bzImage says, checked against the file
// and against itself.
type Header struct {
	Version     uint16 // of the boot protocol, 0x20c at least
	Kernel64    bool   // has the 64-bit entry
	Above4G     bool   // takes an initrd there
	CmdlineSize uint32 // bytes, without the NUL
	InitrdMax   uint32 // the highest address of an initrd's last byte
	Start       int64  // in the file, of what is loaded
	Size        int64  // of that, in bytes
	PrefAddress uint64 // where it is loaded
	InitSize    uint32 // bytes that it needs there until it runs
	Payload     int64  // in the file, of the compressed kernel
	PayloadSize int64  // bytes; 0 if the header does not say

	raw []byte // from hdrStart on
}

// ParseHeader reads the setup header of a bzImage (boot.rst, "The Real-Mode
// Kernel Header"). Errors are as Load's.
func ParseHeader(r *io.SectionReader) (*Header, error) {
	b := make(table, hdrMostEnd)
	if r.Size() < int64(len(b)) {
		return nil, bad("kernel: %d bytes, neither an ELF file nor a bzImage", r.Size())
	}
	if err := readAt(r, b, 0, "kernel"); err != nil {
		return nil, err
	}
	if le.Uint16(b[hdrBootFlag:]) != bootFlag || string(b[hdrMagic:hdrMagic+4]) != headerMagic {
		return nil, bad("kernel: neither an ELF file nor a bzImage")
	}
	h := &Header{Version: le.Uint16(b[hdrVersion:])}
	if h.Version < leastVersion {
		return nil, bad("kernel: boot protocol %d.%02d, want 2.12 (Linux 3.8) at least", h.Version>>8, h.Version&0xff)
	}
	end := hdrMagic + int(b[hdrJumpOffset])
	if end < hdrLeastEnd || end > hdrMostEnd {
		return nil, bad("kernel: a setup header that ends at %#x", end)
	}
	h.raw = b[hdrStart:end]
	h.fields(b)
	if err := h.file(b, r.Size()); err != nil {
		return nil, err
	}
	return h, h.place(le.Uint32(b[hdrAlignment:]))
}

func (h *Header) fields(b table) {
	xload := le.Uint16(b[hdrXloadflags:])
	h.Kernel64 = xload&xlfKernel64 != 0
	h.Above4G = xload&xlfAbove4G != 0
	h.CmdlineSize = le.Uint32(b[hdrCmdlineSize:])
	h.InitrdMax = le.Uint32(b[hdrInitrdAddrMax:])
	h.PrefAddress = le.Uint64(b[hdrPrefAddress:])
	h.InitSize = le.Uint32(b[hdrInitSize:])
}

// file finds the parts of the file, and checks that it has them.
func (h *Header) file(b table, size int64) error {
	sects := int64(b[hdrSetupSects])
	if sects == 0 {
		sects = 4
	}
	h.Start = (sects + 1) * sector
	h.Size = int64(le.Uint32(b[hdrSyssize:])) * 16
	rest := size - h.Start
	// syssize is rounded up to 16 bytes; a signature may follow.
	if rest <= 0 || h.Size == 0 || h.Size-15 > rest {
		return bad("kernel: a bzImage of %d bytes that should have %d behind the first %d", size, h.Size, h.Start)
	}
	h.Size = min(h.Size, rest)
	if h.Size > int64(h.InitSize) {
		return bad("kernel: %d bytes, which say that they need %d", h.Size, h.InitSize)
	}
	off, n := int64(le.Uint32(b[hdrPayloadOffset:])), int64(le.Uint32(b[hdrPayloadLength:]))
	if off > h.Size || n > h.Size-off {
		return bad("kernel: a payload of %d bytes at %d of %d", n, off, h.Size)
	}
	h.Payload, h.PayloadSize = h.Start+off, n
	return nil
}

// place checks where the kernel wants to be.
func (h *Header) place(align uint32) error {
	if align == 0 || align&(align-1) != 0 || h.PrefAddress%uint64(align) != 0 {
		return bad("kernel: wants to be at %#x, with an alignment of %#x", h.PrefAddress, align)
	}
	if end := h.PrefAddress + uint64(h.InitSize); h.PrefAddress < highStart || h.PrefAddress > mapped || end > mapped {
		return bad("kernel: wants %d bytes at %#x, outside 1 MiB to 1 GiB", h.InitSize, h.PrefAddress)
	}
	return nil
}

func loadBzImage(m *ram.RAM, s Spec) (State, error) {
	h, err := ParseHeader(s.Kernel)
	if err != nil {
		return State{}, err
	}
	if !h.Kernel64 {
		return State{}, bad("kernel: a bzImage without a 64-bit entry")
	}
	at := span{h.PrefAddress, h.PrefAddress + uint64(h.InitSize)}
	if at.end > lowTop(m) {
		return State{}, bad("kernel: needs memory up to %#x, the machine has %d MiB", at.end, m.Size()>>20)
	}
	if err := load(m, at.start, s.Kernel, h.Start, uint64(h.Size), "kernel"); err != nil {
		return State{}, err
	}
	if err := putCmdline(m, s.Cmdline, uint64(h.CmdlineSize)); err != nil {
		return State{}, err
	}
	addr, size, err := putInitrd(m, s.Initrd, uint64(h.InitrdMax)+1, h.Above4G, []span{at})
	if err != nil {
		return State{}, err
	}
	b := &booted{s.RSDP, addr, size}
	if err := putZeroPage(m, h.raw, b); err != nil {
		return State{}, err
	}
	state, err := long(m, at.start+entry64)
	state.KernelEnd, state.InitrdEnd = at.end, addr+size
	return state, err
}

// plainHeader is the setup header of a kernel that has none, an ELF file.
func plainHeader() []byte {
	z := make(table, hdrLeastEnd)
	z.u16(hdrBootFlag, bootFlag)
	copy(z[hdrMagic:], headerMagic)
	z.u16(hdrVersion, leastVersion)
	return z[hdrStart:]
}

// putZeroPage writes struct boot_params: the header as the file has it, with
// what a loader fills in (boot.rst, "64-bit Boot Protocol").
func putZeroPage(m *ram.RAM, header []byte, b *booted) error {
	z := make(table, ram.PageSize)
	copy(z[hdrStart:], header)
	z[hdrTypeOfLoader] = otherLoader
	z[hdrLoadflags] |= loadedHigh
	z.u32(hdrCmdLinePtr, cmdlineAddr)
	z.u32(hdrRamdiskImage, uint32(b.initrd))
	z.u32(hdrRamdiskSize, uint32(b.initrdSize))
	z.u32(zpExtRamdiskImage, uint32(b.initrd>>32))
	z.u32(zpExtRamdiskSize, uint32(b.initrdSize>>32))
	z.u64(zpRSDP, b.rsdp)
	ranges := memoryMap(m)
	z[zpE820Entries] = byte(len(ranges))
	for i, r := range ranges {
		z.u64(zpE820+e820Size*i, r.addr)
		z.u64(zpE820+e820Size*i+8, r.size)
		z.u32(zpE820+e820Size*i+16, uint32(r.kind))
	}
	return put(m, zeroPageAddr, z)
}
