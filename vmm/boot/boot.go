// Package boot puts a kernel, its initrd and its command line into a guest's
// memory, and says with which registers its first CPU begins.
//
// A kernel is an ELF file or a bzImage. An ELF file with a PVH note starts in
// 32-bit mode, by the x86/HVM direct boot ABI; one without, and a bzImage, in
// 64-bit mode, by the 64-bit boot protocol of Linux (Documentation/arch/x86/
// boot.rst). A bzImage then decompresses itself inside the guest; package
// unpack does that outside, and what it makes is an ELF file with a note.
//
// It trusts neither file: each offset, size and address in them is checked
// against the file, the memory and the tables before it is used, and nothing
// is allocated by a size that a file says. It cannot say whether a kernel is a
// good one. A file that changes while it is read makes a guest that does not
// boot, and nothing else.
package boot

import (
	"io"
	"strings"
	"syscall"

	"vmfs/ctl"
	"vmfs/vmm/ram"
)

// Where things are in guest-physical memory, below the kernel. ACPI's tables
// are the caller's to write, at ACPIStart, with the root pointer first.
const (
	gdtAddr       = 0x500
	startInfoAddr = 0x6000 // hvm_start_info, the module list behind it
	modulesAddr   = 0x6040
	memmapAddr    = 0x7000 // hvm_memmap_table
	zeroPageAddr  = 0x7000 // or struct boot_params
	stackAddr     = 0x8ff0 // grows down, to the zero page's end
	pageTableAddr = 0x9000 // PML4, PDPT, PD
	cmdlineAddr   = 0x20000
	cmdlineMax    = 64 << 10 // bytes with the NUL
	lowMemoryEnd  = 0x9fc00

	ACPIStart = 0xe0000
	ACPIEnd   = 0x100000
	highStart = 0x100000 // kernels and initrds lie above
)

// Spec is what is to be booted. The files are read by Load and not kept.
type Spec struct {
	Kernel  *io.SectionReader
	Initrd  *io.SectionReader // nil: none
	Cmdline string
	RSDP    uint64 // where ACPI's root pointer is, 0 for none
}

// Load writes everything into m and returns what the first CPU starts with.
// What of m it does not write it expects to be zero, or does not mind. An
// error is a *ctl.Error: EINVAL for a file that is no kernel, a command line
// or an image that does not fit, EIO for one that cannot be read.
func Load(m *ram.RAM, s Spec) (State, error) {
	if s.Kernel == nil {
		return State{}, bad("kernel: none given")
	}
	if strings.IndexByte(s.Cmdline, 0) >= 0 {
		return State{}, bad("cmdline: a NUL byte in it")
	}
	var magic [4]byte
	if err := readAt(s.Kernel, magic[:], 0, "kernel"); err != nil {
		return State{}, err
	}
	if string(magic[:]) == elfMagic {
		return loadELF(m, s)
	}
	return loadBzImage(m, s)
}

// span is guest-physical memory, [start, end).
type span struct{ start, end uint64 }

func (s span) overlaps(o span) bool { return s.start < o.end && o.start < s.end }

// lowTop is the first address behind the memory below the hole.
func lowTop(m *ram.RAM) uint64 { return uint64(len(m.Regions()[0].Bytes)) }

// putCmdline writes the command line, at most limit bytes without its NUL.
func putCmdline(m *ram.RAM, text string, limit uint64) error {
	limit = min(limit, cmdlineMax-1)
	if uint64(len(text)) > limit {
		return bad("cmdline: %d bytes, the kernel takes %d", len(text), limit)
	}
	return put(m, cmdlineAddr, append([]byte(text), 0))
}

// place finds the highest page-aligned place for n bytes in [floor, top) that
// is clear of the spans, which are taken; false if there is none.
func place(n, floor, top uint64, taken []span) (uint64, bool) {
	const mask = ram.PageSize - 1
	for {
		if top < floor || top-floor < n {
			return 0, false
		}
		want := span{(top - n) &^ mask, 0}
		want.end = want.start + n
		if want.start < floor {
			return 0, false
		}
		clear := true
		for _, t := range taken {
			if want.overlaps(t) {
				top, clear = min(top, t.start), false
			}
		}
		if clear {
			return want.start, true
		}
	}
}

// putInitrd reads the initrd to the top of the memory below limit, clear of
// what is taken; or above 4 GiB, if it may be there and does not fit below.
// With no initrd all it returns is 0.
func putInitrd(m *ram.RAM, initrd *io.SectionReader, limit uint64, high bool, taken []span) (addr, size uint64, err error) {
	if initrd == nil || initrd.Size() == 0 {
		return 0, 0, nil
	}
	size = uint64(initrd.Size())
	addr, ok := place(size, highStart, min(limit, lowTop(m)), taken)
	if !ok && high && len(m.Regions()) > 1 {
		r := m.Regions()[1]
		addr, ok = place(size, r.Addr, r.Addr+uint64(len(r.Bytes)), taken)
	}
	if !ok {
		return 0, 0, bad("initrd: %d bytes do not fit beside the kernel in %d MiB of memory", size, m.Size()>>20)
	}
	return addr, size, load(m, addr, initrd, 0, size, "initrd")
}

// load reads n bytes of a file, from off, straight into the guest's memory.
func load(m *ram.RAM, addr uint64, r *io.SectionReader, off int64, n uint64, what string) error {
	dst, err := m.Slice(addr, n)
	if err != nil {
		return bad("%s: %d bytes at %#x are more than %d MiB of memory have", what, n, addr, m.Size()>>20)
	}
	return readAt(r, dst, off, what)
}

// zero clears n bytes.
func zero(m *ram.RAM, addr, n uint64) error {
	p, err := m.Slice(addr, n)
	if err != nil {
		return bad("kernel: %d bytes at %#x are more than %d MiB of memory have", n, addr, m.Size()>>20)
	}
	clear(p)
	return nil
}

// put writes one of our tables.
func put(m *ram.RAM, addr uint64, p []byte) error {
	if _, err := m.WriteAt(p, int64(addr)); err != nil {
		return bad("memory: %d bytes are too few to boot anything", m.Size())
	}
	return nil
}

// readAt fills p from off.
func readAt(r *io.SectionReader, p []byte, off int64, what string) error {
	switch n, err := r.ReadAt(p, off); {
	case n == len(p):
		return nil
	case err == io.EOF:
		return bad("%s: ends after %d bytes, within something it should have", what, off+int64(n))
	default:
		return ctl.Errorf(syscall.EIO, "%s: read at %d: %v", what, off, err)
	}
}

func bad(format string, args ...any) error { return ctl.Errorf(syscall.EINVAL, format, args...) }

// table is a little-endian structure of a fixed size, written by offset.
type table []byte

func (t table) u16(off int, v uint16) { le.PutUint16(t[off:], v) }
func (t table) u32(off int, v uint32) { le.PutUint32(t[off:], v) }
func (t table) u64(off int, v uint64) { le.PutUint64(t[off:], v) }
