// Package nativetest assembles guests for tests: programs of a few
// instructions in 32-bit protected mode, as kernels that the native engine
// boots. They use general registers only, so that they also run on a KVM that
// interprets its guests' code.
package nativetest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Program is one, at Start. There is no paging: every address is what it looks
// like.
type Program struct {
	code   []byte
	labels map[string]uint32
	fixes  map[int]string // places of relative addresses
}

// Start is where programs are.
const Start = 0x100000

// The devices' ports and interrupt lines, as the engine has them.
const (
	SerialPort = 0x3f8
	PowerPort  = 0x600
	EventsPort = 0x601
	EventsLine = 9
	VirtioBase = 0xc0000000 // the first device, a page for each
	VirtioLine = 5          // of the first
)

// New is an empty program.
func New() *Program {
	return &Program{labels: make(map[string]uint32), fixes: make(map[int]string)}
}

// Bytes appends machine code.
func (a *Program) Bytes(p ...byte) *Program {
	a.code = append(a.code, p...)
	return a
}

// U32 appends a word of it.
func (a *Program) U32(v uint32) *Program {
	a.code = binary.LittleEndian.AppendUint32(a.code, v)
	return a
}

// Here is the address of what comes next.
func (a *Program) Here() uint32 { return Start + uint32(len(a.code)) }

// Label gives it a name.
func (a *Program) Label(name string) *Program {
	a.labels[name] = a.Here()
	return a
}

// to ends an instruction with the distance to a label.
func (a *Program) to(name string) *Program {
	a.fixes[len(a.code)] = name
	return a.U32(0)
}

// The instructions, in Intel's order of operands.
func (a *Program) Jmp(l string) *Program             { return a.Bytes(0xe9).to(l) }
func (a *Program) Jz(l string) *Program              { return a.Bytes(0x0f, 0x84).to(l) }
func (a *Program) Jnz(l string) *Program             { return a.Bytes(0x0f, 0x85).to(l) }
func (a *Program) Load(addr uint32) *Program         { return a.Bytes(0xa1).U32(addr) }                  // mov eax, [addr]
func (a *Program) LoadByte(addr uint32) *Program     { return a.Bytes(0xa0).U32(addr) }                  // mov al, [addr]
func (a *Program) Save(addr uint32) *Program         { return a.Bytes(0xa3).U32(addr) }                  // mov [addr], eax
func (a *Program) Store(addr, v uint32) *Program     { return a.Bytes(0xc7, 0x05).U32(addr).U32(v) }     // mov dword [addr], v
func (a *Program) Inc(addr uint32) *Program          { return a.Bytes(0xff, 0x05).U32(addr) }            // inc dword [addr]
func (a *Program) TestAL(v byte) *Program            { return a.Bytes(0xa8, v) }                         //
func (a *Program) Port(p uint16) *Program            { return a.Bytes(0x66, 0xba, byte(p), byte(p>>8)) } // mov dx, p
func (a *Program) Out() *Program                     { return a.Bytes(0xee) }                            // out dx, al
func (a *Program) In() *Program                      { return a.Bytes(0xec) }                            // in al, dx
func (a *Program) OutByte(p uint16, v byte) *Program { return a.Bytes(0xb0, v).Port(p).Out() }
func (a *Program) InByte(p uint16) *Program          { return a.Port(p).In() }
func (a *Program) Hlt() *Program                     { return a.Bytes(0xf4) }
func (a *Program) Sti() *Program                     { return a.Bytes(0xfb) }
func (a *Program) lidt(addr uint32) *Program         { return a.Bytes(0x0f, 0x01, 0x1d).U32(addr) }

// Print sends text to the serial port.
func (a *Program) Print(text string) *Program {
	for i := range len(text) {
		a.OutByte(SerialPort, text[i])
	}
	return a
}

// PowerOff writes S5 with SLP_EN.
func (a *Program) PowerOff() *Program { return a.OutByte(PowerPort, 5<<2|1<<5) }

// Idle ends a program: interrupts do what happens from here on.
func (a *Program) Idle() *Program {
	return a.Label("idle").Sti().Hlt().Jmp("idle")
}

// The parts of a PC's interrupt controllers that programs use.
const (
	LAPIC   = 0xfee00000
	IOAPIC  = 0xfec00000
	idtAddr = 0x3000 // the guest's, 256 entries of 8 bytes
	stack   = 0x90000
)

// Interrupts gives interrupt lines their handlers, which are labels that are
// there already. The program goes on with the interrupts off.
func (a *Program) Interrupts(lines map[byte]string) *Program {
	a.Bytes(0xbc).U32(stack)    // mov esp, stack
	a.Store(LAPIC+0xf0, 0x1ff)  // the APIC is on, 0xff is spurious
	a.Store(idtAddr-8, 256*8-1) // a limit; of the base that follows
	a.Bytes(0xb8).U32(idtAddr).Save(idtAddr - 6)
	a.lidt(idtAddr - 8)
	for line, handler := range lines {
		vector := 0x40 + uint32(line)
		a.Bytes(0xbb).abs(handler)                                              // mov ebx, handler
		a.Bytes(0x89, 0xd8).Bytes(0x25).U32(0xffff).Bytes(0x0d).U32(0x10 << 16) // mov eax, ebx; and; or selector
		a.Save(idtAddr + 8*vector)
		a.Bytes(0x89, 0xd8).Bytes(0x25).U32(0xffff0000).Bytes(0x0d).U32(0x8e00)
		a.Save(idtAddr + 8*vector + 4)
		a.Store(IOAPIC, 0x10+2*uint32(line)).Store(IOAPIC+0x10, vector) // edge, high, CPU 0
		a.Store(IOAPIC, 0x11+2*uint32(line)).Store(IOAPIC+0x10, 0)
	}
	return a
}

// abs ends an instruction with the address of a label: only of one that is
// there already.
func (a *Program) abs(name string) *Program { return a.U32(a.labels[name]) }

// EOI ends an interrupt's handler. It goes on in Idle: an emulated CPU has no
// IRET in protected mode.
func (a *Program) EOI() *Program {
	a.Store(LAPIC+0xb0, 0)
	return a.Bytes(0xbc).U32(stack).Jmp("idle") // mov esp, stack
}

// Kernel is the program as an ELF file with a PVH note.
func (a *Program) Kernel(t testing.TB) *os.File {
	t.Helper()
	image, err := a.Image()
	if err != nil {
		t.Fatal(err)
	}
	return File(t, image)
}

// Image is what is in that file.
func (a *Program) Image() ([]byte, error) {
	for at, name := range a.fixes {
		target, ok := a.labels[name]
		if !ok {
			return nil, fmt.Errorf("no label %s", name)
		}
		binary.LittleEndian.PutUint32(a.code[at:], target-(Start+uint32(at)+4))
	}
	const header, phdr, note = 64, 56, 64 + 2*56
	const start = 4096
	image := make([]byte, start, start+len(a.code))
	le := binary.LittleEndian
	copy(image, "\x7fELF\x02\x01\x01")
	le.PutUint16(image[16:], 2)  // executable
	le.PutUint16(image[18:], 62) // x86-64
	le.PutUint32(image[20:], 1)
	le.PutUint64(image[24:], Start)
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
	segment(0, 1, start, Start, uint64(len(a.code)))
	segment(1, 4, note, 0, 20)
	le.PutUint32(image[note:], 4)   // of the name
	le.PutUint32(image[note+4:], 4) // of the address
	le.PutUint32(image[note+8:], 18)
	copy(image[note+12:], "Xen\x00")
	le.PutUint32(image[note+16:], Start)
	return append(image, a.code...), nil
}

// ReadOnly is Kernel as a file that is open for reading only.
func (a *Program) ReadOnly(t testing.TB) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	image, err := a.Image()
	if err == nil {
		err = os.WriteFile(path, image, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// File is a file with p in it.
func File(t testing.TB, p []byte) *os.File {
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
