package native

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// asm is a program of a test's guest, in 32-bit protected mode without
// paging, where boot puts it: every address is the one that it looks like. It
// uses general registers only, so that it runs on a KVM that interprets.
type asm struct {
	code   []byte
	labels map[string]uint32
	fixes  map[int]string // places of relative addresses
}

// codeStart is where programs are.
const codeStart = 0x100000

func newAsm() *asm {
	return &asm{labels: make(map[string]uint32), fixes: make(map[int]string)}
}

func (a *asm) bytes(p ...byte) *asm {
	a.code = append(a.code, p...)
	return a
}

func (a *asm) u32(v uint32) *asm {
	a.code = binary.LittleEndian.AppendUint32(a.code, v)
	return a
}

func (a *asm) here() uint32 { return codeStart + uint32(len(a.code)) }

func (a *asm) label(name string) *asm {
	a.labels[name] = a.here()
	return a
}

// to ends an instruction with the distance to a label.
func (a *asm) to(name string) *asm {
	a.fixes[len(a.code)] = name
	return a.u32(0)
}

// The instructions, in Intel's order of operands.
func (a *asm) jmp(l string) *asm             { return a.bytes(0xe9).to(l) }
func (a *asm) jz(l string) *asm              { return a.bytes(0x0f, 0x84).to(l) }
func (a *asm) jnz(l string) *asm             { return a.bytes(0x0f, 0x85).to(l) }
func (a *asm) movEAX(v uint32) *asm          { return a.bytes(0xb8).u32(v) }
func (a *asm) load(addr uint32) *asm         { return a.bytes(0xa1).u32(addr) }                  // mov eax, [addr]
func (a *asm) loadByte(addr uint32) *asm     { return a.bytes(0xa0).u32(addr) }                  // mov al, [addr]
func (a *asm) save(addr uint32) *asm         { return a.bytes(0xa3).u32(addr) }                  // mov [addr], eax
func (a *asm) store(addr, v uint32) *asm     { return a.bytes(0xc7, 0x05).u32(addr).u32(v) }     // mov dword [addr], v
func (a *asm) inc(addr uint32) *asm          { return a.bytes(0xff, 0x05).u32(addr) }            // inc dword [addr]
func (a *asm) cmpEAX(v uint32) *asm          { return a.bytes(0x3d).u32(v) }                     //
func (a *asm) testAL(v byte) *asm            { return a.bytes(0xa8, v) }                         //
func (a *asm) port(p uint16) *asm            { return a.bytes(0x66, 0xba, byte(p), byte(p>>8)) } // mov dx, p
func (a *asm) out() *asm                     { return a.bytes(0xee) }                            // out dx, al
func (a *asm) in() *asm                      { return a.bytes(0xec) }                            // in al, dx
func (a *asm) outByte(p uint16, v byte) *asm { return a.bytes(0xb0, v).port(p).out() }
func (a *asm) inByte(p uint16) *asm          { return a.port(p).in() }
func (a *asm) hlt() *asm                     { return a.bytes(0xf4) }
func (a *asm) sti() *asm                     { return a.bytes(0xfb) }
func (a *asm) iret() *asm                    { return a.bytes(0xcf) }
func (a *asm) lidt(addr uint32) *asm         { return a.bytes(0x0f, 0x01, 0x1d).u32(addr) }

// print sends text to the serial port.
func (a *asm) print(text string) *asm {
	for i := range len(text) {
		a.outByte(serialPort, text[i])
	}
	return a
}

// powerOff writes S5 with SLP_EN.
func (a *asm) powerOff() *asm { return a.outByte(powerPort, 5<<2|1<<5) }

// idle ends a program: interrupts do what happens from here on.
func (a *asm) idle() *asm {
	at := a.here()
	return a.sti().hlt().bytes(0xeb, byte(int(at)-int(a.here())-2))
}

// The parts of a PC's interrupt controllers that programs use.
const (
	lapicBase = 0xfee00000
	ioapic    = 0xfec00000
	idtAddr   = 0x3000 // the guest's, 256 entries of 8 bytes
	stack     = 0x90000
)

// interrupts makes GSI n the vector 0x40+n, for each of gsis, and its handler
// the label irqN; the program goes on with the interrupts off.
func (a *asm) interrupts(gsis map[byte]string) *asm {
	a.bytes(0xbc).u32(stack)       // mov esp, stack
	a.store(lapicBase+0xf0, 0x1ff) // the APIC is on, 0xff is spurious
	a.store(idtAddr-8, 256*8-1)    // a limit; of the base that follows
	a.bytes(0xb8).u32(idtAddr).save(idtAddr - 6)
	a.lidt(idtAddr - 8)
	for gsi, handler := range gsis {
		vector := 0x40 + uint32(gsi)
		a.bytes(0xbb).abs(handler)                                              // mov ebx, handler
		a.bytes(0x89, 0xd8).bytes(0x25).u32(0xffff).bytes(0x0d).u32(0x10 << 16) // mov eax, ebx; and; or selector
		a.save(idtAddr + 8*vector)
		a.bytes(0x89, 0xd8).bytes(0x25).u32(0xffff0000).bytes(0x0d).u32(0x8e00)
		a.save(idtAddr + 8*vector + 4)
		a.store(ioapic, 0x10+2*uint32(gsi)).store(ioapic+0x10, vector) // edge, high, CPU 0
		a.store(ioapic, 0x11+2*uint32(gsi)).store(ioapic+0x10, 0)
	}
	return a
}

// abs ends an instruction with the address of a label: only of one that is
// there already.
func (a *asm) abs(name string) *asm { return a.u32(a.labels[name]) }

// eoi ends an interrupt's handler.
func (a *asm) eoi() *asm { return a.store(lapicBase+0xb0, 0).iret() }

// kernel is the program as an ELF file with a PVH note.
func (a *asm) kernel(t testing.TB) *os.File {
	t.Helper()
	for at, name := range a.fixes {
		target, ok := a.labels[name]
		if !ok {
			t.Fatalf("no label %s", name)
		}
		binary.LittleEndian.PutUint32(a.code[at:], target-(codeStart+uint32(at)+4))
	}
	const header, phdr, note = 64, 56, 64 + 2*56
	const start = 4096
	image := make([]byte, start, start+len(a.code))
	le := binary.LittleEndian
	copy(image, "\x7fELF\x02\x01\x01")
	le.PutUint16(image[16:], 2)  // executable
	le.PutUint16(image[18:], 62) // x86-64
	le.PutUint32(image[20:], 1)
	le.PutUint64(image[24:], codeStart)
	le.PutUint64(image[32:], header)
	le.PutUint16(image[52:], header)
	le.PutUint16(image[54:], phdr)
	le.PutUint16(image[56:], 2)
	segment := func(i int, kind uint32, off, addr, size uint64) {
		p := image[header+i*phdr:]
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], addr)
		le.PutUint64(p[24:], addr)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
		le.PutUint64(p[48:], 4)
	}
	segment(0, 1, start, codeStart, uint64(len(a.code)))
	segment(1, 4, note, 0, 20)
	le.PutUint32(image[note:], 4)   // of the name
	le.PutUint32(image[note+4:], 4) // of the address
	le.PutUint32(image[note+8:], 18)
	copy(image[note+12:], "Xen\x00")
	le.PutUint32(image[note+16:], codeStart)
	return memfile(t, append(image, a.code...))
}

// memfile is a file with p in it.
func memfile(t testing.TB, p []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(p); err != nil {
		t.Fatal(err)
	}
	return f
}
