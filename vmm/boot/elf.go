package boot

import (
	"cmp"
	"io"
	"slices"

	"vmfs/vmm/ram"
)

// The parts of an ELF file that are looked at (System V ABI, chapters 4, 5).
const (
	elfMagic      = "\x7fELF"
	elfHeaderSize = 64
	progSize      = 56
	maxProgs      = 64       // a kernel has five
	maxNotes      = 64 << 10 // bytes

	elfClass64 = 2
	elfLittle  = 1
	elfExec    = 2
	elfX86_64  = 62
	ptLoad     = 1
	ptNote     = 4

	// The note of the address where a 32-bit CPU enters (xen/include/public/
	// elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY).
	notePhys32 = 18
	noteName   = "Xen\x00"
)

// elfCmdline is COMMAND_LINE_SIZE of Linux on x86, without the NUL; an ELF
// file does not say it.
const elfCmdline = 2047

// kernelELF is an ELF file, checked.
type kernelELF struct {
	entry  uint64
	pvh    uint64 // 0: no note
	loads  []prog // not empty, ascending, none overlaps another
	phoff  uint64
	phnum  int
	source *io.SectionReader
}

// prog is a program header: filesz bytes of the file from off, at paddr, and
// zeros behind them up to memsz.
type prog struct {
	kind                      uint32
	off, paddr, filesz, memsz uint64
	align                     uint64
}

func (p prog) span() span { return span{p.paddr, p.paddr + p.memsz} }

// parseELF reads the headers and the notes.
func parseELF(r *io.SectionReader) (*kernelELF, error) {
	k := &kernelELF{source: r}
	if err := k.header(); err != nil {
		return nil, err
	}
	progs := make([]byte, k.phnum*progSize)
	if err := k.read(progs, k.phoff, "program headers"); err != nil {
		return nil, err
	}
	for i := range k.phnum {
		if err := k.prog(parseProg(progs[i*progSize:])); err != nil {
			return nil, err
		}
	}
	return k, k.check()
}

func (k *kernelELF) header() error {
	h := make([]byte, elfHeaderSize)
	if err := k.read(h, 0, "ELF header"); err != nil {
		return err
	}
	switch {
	case string(h[:4]) != elfMagic:
		return bad("kernel: not an ELF file")
	case h[4] != elfClass64 || h[5] != elfLittle || le.Uint16(h[18:]) != elfX86_64:
		return bad("kernel: an ELF file, but not of x86-64")
	case le.Uint16(h[16:]) != elfExec:
		return bad("kernel: an ELF file of type %d, not an executable at a fixed address", le.Uint16(h[16:]))
	case le.Uint16(h[54:]) != progSize:
		return bad("kernel: ELF program headers of %d bytes, want %d", le.Uint16(h[54:]), progSize)
	}
	k.entry = le.Uint64(h[24:])
	k.phoff = le.Uint64(h[32:])
	k.phnum = int(le.Uint16(h[56:]))
	if k.phnum == 0 || k.phnum > maxProgs {
		return bad("kernel: %d ELF program headers, want 1 to %d", k.phnum, maxProgs)
	}
	return nil
}

func parseProg(p []byte) prog {
	return prog{
		kind:   le.Uint32(p),
		off:    le.Uint64(p[8:]),
		paddr:  le.Uint64(p[24:]),
		filesz: le.Uint64(p[32:]),
		memsz:  le.Uint64(p[40:]),
		align:  le.Uint64(p[48:]),
	}
}

// prog takes one program header.
func (k *kernelELF) prog(p prog) error {
	switch p.kind {
	case ptLoad:
		if p.memsz == 0 {
			return nil
		}
		size := uint64(k.source.Size())
		switch {
		case p.filesz > p.memsz:
			return bad("kernel: an ELF segment with %d bytes in the file and %d in memory", p.filesz, p.memsz)
		case p.off > size || p.filesz > size-p.off:
			return bad("kernel: an ELF segment of %d bytes at %d of a file of %d", p.filesz, p.off, size)
		case p.paddr < highStart || p.paddr+p.memsz < p.paddr:
			return bad("kernel: an ELF segment of %d bytes at %#x, below 1 MiB or past the end", p.memsz, p.paddr)
		}
		k.loads = append(k.loads, p)
	case ptNote:
		return k.notes(p)
	}
	return nil
}

// notes looks through a segment of notes for the PVH entry.
func (k *kernelELF) notes(p prog) error {
	if p.filesz > maxNotes {
		return bad("kernel: %d bytes of ELF notes, at most %d are looked at", p.filesz, maxNotes)
	}
	b := make([]byte, p.filesz)
	if err := k.read(b, p.off, "ELF notes"); err != nil {
		return err
	}
	align := uint64(4)
	if p.align == 8 {
		align = 8
	}
	for len(b) >= 12 {
		namesz, descsz, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		desc := alignUp(12+namesz, align)
		next := alignUp(desc+descsz, align)
		if 12+namesz > uint64(len(b)) || desc+descsz > uint64(len(b)) {
			return bad("kernel: an ELF note longer than the notes")
		}
		if kind == notePhys32 && string(b[12:12+namesz]) == noteName {
			return k.entry32(b[desc : desc+descsz])
		}
		b = b[min(next, uint64(len(b))):]
	}
	return nil
}

// entry32 takes the value of the PVH note, an address of four or eight bytes.
func (k *kernelELF) entry32(desc []byte) error {
	switch len(desc) {
	case 4:
		k.pvh = uint64(le.Uint32(desc))
	case 8:
		k.pvh = le.Uint64(desc)
	default:
		return bad("kernel: a PVH note of %d bytes", len(desc))
	}
	if k.pvh == 0 || k.pvh >= 1<<32 {
		return bad("kernel: a PVH note that enters at %#x", k.pvh)
	}
	return nil
}

// check is what holds between the headers.
func (k *kernelELF) check() error {
	if len(k.loads) == 0 {
		return bad("kernel: an ELF file with nothing to load")
	}
	slices.SortFunc(k.loads, func(a, b prog) int { return cmp.Compare(a.paddr, b.paddr) })
	for i := 1; i < len(k.loads); i++ {
		if k.loads[i-1].span().overlaps(k.loads[i].span()) {
			return bad("kernel: ELF segments that overlap at %#x", k.loads[i].paddr)
		}
	}
	entry := k.entry
	if k.pvh != 0 {
		entry = k.pvh
	}
	for _, p := range k.loads {
		if s := p.span(); s.start <= entry && entry < s.end {
			return nil
		}
	}
	return bad("kernel: enters at %#x, where it has nothing", entry)
}

func (k *kernelELF) read(p []byte, off uint64, what string) error {
	if size := uint64(k.source.Size()); off > size || uint64(len(p)) > size-off {
		return bad("kernel: %s of %d bytes at %d of a file of %d", what, len(p), off, size)
	}
	return readAt(k.source, p, int64(off), "kernel")
}

// spans are the segments' memory; end is the first address behind them.
func (k *kernelELF) spans() (all []span, end uint64) {
	for _, p := range k.loads {
		all = append(all, p.span())
	}
	return all, all[len(all)-1].end
}

// load reads the segments into memory, and clears what they have none for.
func (k *kernelELF) load(m *ram.RAM) error {
	for _, p := range k.loads {
		if _, err := m.Slice(p.paddr, p.memsz); err != nil {
			return bad("kernel: needs memory up to %#x, the machine has %d MiB", p.paddr+p.memsz, m.Size()>>20)
		}
	}
	for _, p := range k.loads {
		if err := load(m, p.paddr, k.source, int64(p.off), p.filesz, "kernel"); err != nil {
			return err
		}
		if err := zero(m, p.paddr+p.filesz, p.memsz-p.filesz); err != nil {
			return err
		}
	}
	return nil
}

func loadELF(m *ram.RAM, s Spec) (State, error) {
	k, err := parseELF(s.Kernel)
	if err != nil {
		return State{}, err
	}
	if err := k.load(m); err != nil {
		return State{}, err
	}
	if err := putCmdline(m, s.Cmdline, elfCmdline); err != nil {
		return State{}, err
	}
	taken, end := k.spans()
	// Linux keeps the address of a PVH module in 32 bits.
	addr, size, err := putInitrd(m, s.Initrd, 1<<32, false, taken)
	if err != nil {
		return State{}, err
	}
	b := &booted{s.RSDP, addr, size}
	state, err := k.enter(m, b)
	state.KernelEnd, state.InitrdEnd = end, addr+size
	return state, err
}

// booted is what the structures for the kernel name.
type booted struct{ rsdp, initrd, initrdSize uint64 }

func (k *kernelELF) enter(m *ram.RAM, b *booted) (State, error) {
	if k.pvh != 0 {
		return enterPVH(m, k.pvh, b)
	}
	if _, end := k.spans(); end > mapped {
		return State{}, bad("kernel: a 64-bit ELF file without a PVH note may lie below 1 GiB only; this one ends at %#x", end)
	}
	if err := putZeroPage(m, plainHeader(), b); err != nil {
		return State{}, err
	}
	return long(m, k.entry)
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
