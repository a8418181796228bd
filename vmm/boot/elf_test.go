package boot

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"

	"vmfs/vmm/ram"
)

func reader(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

func newRAM(t testing.TB, mib uint64) *ram.RAM {
	t.Helper()
	m, err := ram.New(mib << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// elfFile makes an ELF file: its segments' bytes, then its notes.
type elfFile struct {
	entry uint64
	loads []prog // off and filesz are set from text
	text  []string
	notes []byte
}

func (f elfFile) bytes() []byte {
	n := len(f.loads)
	if f.notes != nil {
		n++
	}
	h := make(table, elfHeaderSize+n*progSize)
	copy(h, elfMagic)
	h[4], h[5], h[6] = elfClass64, elfLittle, 1
	h.u16(16, elfExec)
	h.u16(18, elfX86_64)
	h.u32(20, 1)
	h.u64(24, f.entry)
	h.u64(32, elfHeaderSize)
	h.u16(52, elfHeaderSize)
	h.u16(54, progSize)
	h.u16(56, uint16(n))
	out := []byte(h)
	put := func(i int, p prog, data []byte) {
		t := table(out[elfHeaderSize+i*progSize:])
		t.u32(0, p.kind)
		t.u64(8, uint64(len(out)))
		t.u64(24, p.paddr)
		t.u64(32, uint64(len(data)))
		t.u64(40, p.memsz)
		t.u64(48, p.align)
		out = append(out, data...)
	}
	for i, p := range f.loads {
		p.kind = ptLoad
		put(i, p, []byte(f.text[i]))
	}
	if f.notes != nil {
		put(n-1, prog{kind: ptNote, memsz: uint64(len(f.notes)), align: 4}, f.notes)
	}
	return out
}

// note makes an ELF note.
func note(name string, kind uint32, desc []byte) []byte {
	h := make(table, 12)
	h.u32(0, uint32(len(name)))
	h.u32(4, uint32(len(desc)))
	h.u32(8, kind)
	out := append([]byte(h), name...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	out = append(out, desc...)
	for len(out)%4 != 0 {
		out = append(out, 0)
	}
	return out
}

func word(v uint64, size int) []byte {
	b := make(table, 8)
	b.u64(0, v)
	return b[:size]
}

// small is a kernel of two segments with a PVH note.
func small() elfFile {
	return elfFile{
		entry: 0x1000010,
		loads: []prog{{paddr: 0x1000000, memsz: 0x3000}, {paddr: 0x2000000, memsz: 0x1000}},
		text:  []string{"the text", "the data"},
		notes: append(note("GNU\x00", 3, []byte("build id")), note(noteName, notePhys32, word(0x1000020, 8))...),
	}
}

func TestLoadPVH(t *testing.T) {
	m := newRAM(t, 64)
	dirty, _ := m.Slice(0x1000000, 0x4000)
	for i := range dirty {
		dirty[i] = 0xcc
	}
	initrd := strings.Repeat("initrd ", 1000)
	s, err := Load(m, Spec{Kernel: reader(small().bytes()), Initrd: reader([]byte(initrd)), Cmdline: "console=ttyS0", RSDP: ACPIStart})
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != PVH32 || s.RIP != 0x1000020 || s.RBX != startInfoAddr || s.CR0 != 0x11 || s.CR4 != 0 || s.EFER != 0 {
		t.Errorf("registers %+v", s)
	}
	if s.CS.Access != 0xc09b || s.DS.Access != 0xc093 || s.TR.Access != 0x8b || s.TR.Limit != 0x67 || s.TR.Base != 0 {
		t.Errorf("segments %+v %+v %+v", s.CS, s.DS, s.TR)
	}
	text := peek(t, m, 0x1000000, 0x3001)
	if string(text[:8]) != "the text" || !allZero(text[8:0x3000]) || text[0x3000] != 0xcc {
		t.Errorf("the segment is not its bytes, zeros up to its end, and nothing behind")
	}
	if got := string(peek(t, m, 0x2000000, 8)); got != "the data" {
		t.Errorf("second segment %q", got)
	}
	info := peek(t, m, s.RBX, startSize)
	if le.Uint32(info) != 0x336ec578 || le.Uint32(info[4:]) != 1 || le.Uint32(info[12:]) != 1 || le.Uint64(info[32:]) != ACPIStart {
		t.Errorf("start info % x", info)
	}
	if got := string(peek(t, m, le.Uint64(info[24:]), 14)); got != "console=ttyS0\x00" {
		t.Errorf("cmdline %q", got)
	}
	mod := peek(t, m, le.Uint64(info[16:]), moduleSize)
	addr, size := le.Uint64(mod), le.Uint64(mod[8:])
	if addr%ram.PageSize != 0 || addr+size > 64<<20 || 64<<20-addr-size >= ram.PageSize {
		t.Errorf("initrd at %#x, %d bytes: not at the top of memory", addr, size)
	}
	if string(peek(t, m, addr, size)) != initrd {
		t.Errorf("the initrd is not there")
	}
	wantMap := []mapRange{{0, 0x9fc00, usable}, {0x9fc00, 0x60400, reserved}, {1 << 20, 63 << 20, usable}}
	if got := memmapOf(t, m, info); !equal(got, wantMap) {
		t.Errorf("memory map %x, want %x", got, wantMap)
	}
	if s.KernelEnd != 0x2001000 || s.InitrdEnd != addr+size {
		t.Errorf("ends %#x %#x", s.KernelEnd, s.InitrdEnd)
	}
}

// Over 3 GiB the memory is in two parts, and the initrd is below the hole.
func TestLoadPVHAboveHole(t *testing.T) {
	m := newRAM(t, 5<<10)
	s, err := Load(m, Spec{Kernel: reader(small().bytes()), Initrd: reader([]byte("initrd"))})
	if err != nil {
		t.Fatal(err)
	}
	want := []mapRange{{0, 0x9fc00, usable}, {0x9fc00, 0x60400, reserved}, {1 << 20, 3<<30 - 1<<20, usable}, {4 << 30, 2 << 30, usable}}
	if got := memmapOf(t, m, peek(t, m, s.RBX, startSize)); !equal(got, want) {
		t.Errorf("memory map %x, want %x", got, want)
	}
	if s.InitrdEnd != 3<<30-ram.PageSize+6 {
		t.Errorf("initrd ends at %#x, want below 3 GiB", s.InitrdEnd)
	}
}

// An ELF file without a note is entered in 64-bit mode.
func TestLoadELF64(t *testing.T) {
	m := newRAM(t, 64)
	f := small()
	f.notes = nil
	s, err := Load(m, Spec{Kernel: reader(f.bytes()), Cmdline: "a", RSDP: ACPIStart})
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != Long64 || s.RIP != f.entry || s.RSI != zeroPageAddr || s.RSP == 0 {
		t.Errorf("registers %+v", s)
	}
	checkLong(t, m, s)
	z := peek(t, m, s.RSI, 4096)
	if string(z[0x202:0x206]) != "HdrS" || le.Uint16(z[0x1fe:]) != 0xaa55 || z[0x210] != 0xff || z[0x211]&1 != 1 {
		t.Errorf("zero page's header % x", z[0x1f1:0x264])
	}
}

// checkLong looks at what 64-bit mode stands on.
func checkLong(t *testing.T, m *ram.RAM, s State) {
	t.Helper()
	if s.CR0 != 0x80000011 || s.CR4 != 0x20 || s.EFER != 0x500 {
		t.Errorf("control registers %#x %#x %#x", s.CR0, s.CR4, s.EFER)
	}
	if s.CS.Selector != 0x10 || s.DS.Selector != 0x18 || s.CS.Access != 0xa09b {
		t.Errorf("segments %+v %+v", s.CS, s.DS)
	}
	if got, want := le.Uint64(peek(t, m, s.GDTBase+0x10, 8)), uint64(0x00af9b000000ffff); got != want {
		t.Errorf("code descriptor %#x, want %#x", got, want)
	}
	if got, want := le.Uint64(peek(t, m, s.GDTBase+0x18, 8)), uint64(0x00cf93000000ffff); got != want {
		t.Errorf("data descriptor %#x, want %#x", got, want)
	}
	for _, addr := range []uint64{0, 0x7000, 0x20000, 0x1000000, 1<<30 - 1} {
		if got := walk(t, m, s.CR3, addr); got != addr {
			t.Errorf("%#x is mapped to %#x", addr, got)
		}
	}
}

// walk translates an address as a CPU does.
func walk(t *testing.T, m *ram.RAM, cr3, addr uint64) uint64 {
	t.Helper()
	table := cr3
	for _, shift := range []int{39, 30, 21} {
		e := le.Uint64(peek(t, m, table+(addr>>shift&511)*8, 8))
		if e&1 == 0 {
			t.Fatalf("%#x is not mapped at level %d", addr, shift)
		}
		if e&0x80 != 0 {
			return e&^(1<<shift-1)&^(1<<63) | addr&(1<<shift-1)
		}
		table = e &^ 0xfff
	}
	t.Fatalf("%#x has no large page", addr)
	return 0
}

func TestELFRefuses(t *testing.T) {
	edit := func(do func(*elfFile)) []byte { f := small(); do(&f); return f.bytes() }
	poke := func(off int, p ...byte) []byte { b := small().bytes(); copy(b[off:], p); return b }
	ph := elfHeaderSize
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":            {nil, "ends after 0 bytes"},
		"only the magic":   {[]byte(elfMagic), "ELF header"},
		"32 bits":          {poke(4, 1), "not of x86-64"},
		"big-endian":       {poke(5, 2), "not of x86-64"},
		"other CPU":        {poke(18, 183), "not of x86-64"},
		"relocatable":      {poke(16, 3), "fixed address"},
		"odd headers":      {poke(54, 32), "program headers of 32"},
		"no headers":       {poke(56, 0, 0), "0 ELF program headers"},
		"65535 headers":    {poke(56, 0xff, 0xff), "65535 ELF program headers"},
		"headers past end": {poke(32, 0xff, 0xff), "program headers of"},
		"headers wrap":     {poke(32, word(^uint64(0)-8, 8)...), "program headers of"},
		"nothing to load":  {edit(func(f *elfFile) { f.loads[0].memsz, f.loads[1].memsz = 0, 0; f.text = []string{"", ""} }), "nothing to load"},
		"file over memory": {edit(func(f *elfFile) { f.loads[0].memsz = 3 }), "8 bytes in the file and 3"},
		"off past end":     {poke(ph+8, word(1<<40, 8)...), "of a file of"},
		"size past end":    {poke(ph+32, word(0x2fff, 8)...), "of a file of"},
		"below 1 MiB":      {edit(func(f *elfFile) { f.loads[0].paddr = 0xff000 }), "below 1 MiB"},
		"over the tables":  {edit(func(f *elfFile) { f.loads[0].paddr = 0x7000 }), "below 1 MiB"},
		"wraps":            {edit(func(f *elfFile) { f.loads[0].paddr = ^uint64(0) - 0xfff }), "past the end"},
		"past memory":      {edit(func(f *elfFile) { f.loads[1].memsz = 64 << 20 }), "needs memory up to 0x6000000"},
		"in the hole":      {edit(func(f *elfFile) { f.loads[1].paddr = 3<<30 - 0x800 }), "needs memory"},
		"overlap":          {edit(func(f *elfFile) { f.loads[1].paddr = 0x1002fff }), "overlap at 0x1002fff"},
		"the same place":   {edit(func(f *elfFile) { f.loads[1].paddr = f.loads[0].paddr }), "overlap"},
		"entry nowhere":    {edit(func(f *elfFile) { f.notes = nil; f.entry = 0x3000000 }), "enters at 0x3000000"},
		"PVH nowhere":      {edit(func(f *elfFile) { f.notes = note(noteName, 18, word(0x3000, 4)) }), "enters at 0x3000"},
		"PVH at 0":         {edit(func(f *elfFile) { f.notes = note(noteName, 18, word(0, 4)) }), "enters at 0x0"},
		"PVH above 4 GiB":  {edit(func(f *elfFile) { f.notes = note(noteName, 18, word(1<<32, 8)) }), "enters at 0x100000000"},
		"PVH of 2 bytes":   {edit(func(f *elfFile) { f.notes = note(noteName, 18, word(1, 2)) }), "note of 2 bytes"},
		"note too long":    {edit(func(f *elfFile) { f.notes = []byte("\xff\xff\xff\xff\xff\xff\xff\xff\x12\x00\x00\x00Xen\x00") }), "longer than the notes"},
		"notes too many":   {edit(func(f *elfFile) { f.notes = make([]byte, maxNotes+1) }), "at most 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, newRAM(t, 64), Spec{Kernel: reader(c.file)}, c.want)
		})
	}
}

func refused(t *testing.T, m *ram.RAM, s Spec, want string) {
	t.Helper()
	_, err := Load(m, s)
	if !errors.Is(err, syscall.EINVAL) {
		t.Fatalf("got %v, want EINVAL", err)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("got %q, want something with %q", err, want)
	}
}

func TestSpecRefuses(t *testing.T) {
	kernel := small().bytes()
	refused(t, newRAM(t, 64), Spec{}, "none given")
	refused(t, newRAM(t, 64), Spec{Kernel: reader(kernel), Cmdline: strings.Repeat("x", 2048)}, "2048 bytes, the kernel takes 2047")
	refused(t, newRAM(t, 64), Spec{Kernel: reader(kernel), Cmdline: "a\x00b"}, "NUL")
	refused(t, newRAM(t, 64), Spec{Kernel: reader(kernel), Initrd: reader(make([]byte, 32<<20))}, "do not fit beside the kernel in 64 MiB")
	refused(t, newRAM(t, 1), Spec{Kernel: reader(kernel)}, "the machine has 1 MiB")
	if _, err := Load(newRAM(t, 64), Spec{Kernel: reader(kernel), Cmdline: strings.Repeat("x", 2047)}); err != nil {
		t.Errorf("2047 bytes: %v", err)
	}
	// Between the segments there is room.
	if _, err := Load(newRAM(t, 34), Spec{Kernel: reader(kernel), Initrd: reader(make([]byte, 12<<20))}); err != nil {
		t.Errorf("an initrd between two segments: %v", err)
	}
}

type failing struct{}

func (failing) ReadAt(p []byte, off int64) (int, error) {
	if off == 0 && len(p) == 4 {
		return copy(p, elfMagic), nil
	}
	return 0, syscall.EIO
}

func TestReadError(t *testing.T) {
	_, err := Load(newRAM(t, 64), Spec{Kernel: io.NewSectionReader(failing{}, 0, 1<<20)})
	if !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}

func peek(t testing.TB, m *ram.RAM, addr, n uint64) []byte {
	t.Helper()
	p, err := m.Slice(addr, n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func allZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func memmapOf(t *testing.T, m *ram.RAM, info []byte) (all []mapRange) {
	t.Helper()
	n := uint64(le.Uint32(info[48:]))
	b := peek(t, m, le.Uint64(info[40:]), n*rangeSize)
	for ; len(b) > 0; b = b[rangeSize:] {
		all = append(all, mapRange{le.Uint64(b), le.Uint64(b[8:]), memoryType(le.Uint32(b[16:]))})
	}
	return all
}

func equal(a, b []mapRange) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
