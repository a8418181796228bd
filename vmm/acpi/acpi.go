// Package acpi makes the tables by which a guest finds its CPUs, its devices
// and the registers that turn it off: RSDP, XSDT, FADT, MADT and a DSDT, by
// ACPI 6.3. Numbers of sections below are that document's.
//
// The machine is a reduced-hardware one (4.1): no fixed registers, no timer,
// no SCI. Everything a guest is to use is in the DSDT, the serial port and the
// keyboard controller too.
//
// It reads nothing but its Config, which is the machine's own, and refuses one
// that two devices could not share. It cannot make a guest look at its tables.
package acpi

import (
	"encoding/binary"
	"fmt"

	"vmfs/vmm/serial"
)

// The controllers' addresses are those that the kernel's KVM gives them.
const (
	LocalAPIC = 0xfee00000
	IOAPIC    = 0xfec00000
	IOAPICs   = 24 // its pins: global system interrupts 0 to 23
)

// MaxCPUs bounds the table of them.
const MaxCPUs = 4096

// Config is what the tables tell of.
type Config struct {
	CPUs   int // with APIC ids from 0 on
	Virtio []Window

	Serial   Port // a 16550A
	Keyboard Line // an i8042, at ports 0x60 and 0x64
	Events   Port // a serial.Events
	Power    uint16
}

// Window is a virtio device's registers in memory, and its interrupt.
type Window struct {
	Addr, Size uint32 // bytes
	GSI        Line
}

// Port is a device at an I/O port, and its interrupt.
type Port struct {
	Port uint16
	GSI  Line
}

// Line is a pin of the IOAPIC, edge-triggered, active high, and of one device.
type Line uint32

// Build makes the tables for the guest-physical address addr, a multiple of
// 16 below 4 GiB; the RSDP is the first. An error says what of c is wrong.
func Build(addr uint64, c Config) ([]byte, error) {
	if addr%16 != 0 || addr >= 1<<32 {
		return nil, fmt.Errorf("acpi: tables at %#x", addr)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("acpi: %w", err)
	}
	b := builder{base: addr, out: make([]byte, align(rsdpSize))}
	dsdt := b.add(c.dsdt())
	fadt := b.add(c.fadt(dsdt))
	madt := b.add(c.madt())
	xsdt := b.add(newXSDT(fadt, madt))
	copy(b.out, rsdp(xsdt))
	return b.out, nil
}

// check refuses what is out of range, and two devices with the same line.
func (c *Config) check() error {
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return fmt.Errorf("%d CPUs, want 1 to %d", c.CPUs, MaxCPUs)
	}
	lines := []Line{c.Serial.GSI, c.Keyboard, c.Events.GSI}
	for i, w := range c.Virtio {
		if w.Size == 0 || uint64(w.Addr)+uint64(w.Size) > 1<<32 {
			return fmt.Errorf("virtio device %d: %d bytes at %#x", i, w.Size, w.Addr)
		}
		lines = append(lines, w.GSI)
	}
	var used [IOAPICs]bool
	for _, l := range lines {
		if l >= IOAPICs {
			return fmt.Errorf("interrupt %d of %d", l, IOAPICs)
		}
		if used[l] {
			return fmt.Errorf("interrupt %d: two devices have it", l)
		}
		used[l] = true
	}
	return nil
}

var le = binary.LittleEndian

// builder puts tables one behind the other, 16-byte aligned.
type builder struct {
	base uint64
	out  []byte
}

func align(n int) int { return (n + 15) &^ 15 }

// add appends a table and returns its guest-physical address.
func (b *builder) add(table []byte) uint64 {
	addr := b.base + uint64(len(b.out))
	b.out = append(b.out, table...)
	b.out = append(b.out, make([]byte, align(len(table))-len(table))...)
	return addr
}

// table is a structure written by offset.
type table []byte

func (t table) u16(off int, v uint16) { le.PutUint16(t[off:], v) }
func (t table) u32(off int, v uint32) { le.PutUint32(t[off:], v) }
func (t table) u64(off int, v uint64) { le.PutUint64(t[off:], v) }

// sum makes the bytes of p add up to 0, by the one at off.
func sum(p []byte, off int) {
	var total byte
	for _, v := range p {
		total += v
	}
	p[off] -= total
}

const headerSize = 36

// finish writes the header of a table (5.2.6) over its first bytes.
func finish(t table, signature string, revision byte) table {
	copy(t, signature)
	t.u32(4, uint32(len(t)))
	t[8] = revision
	copy(t[10:], "VMFS  ")
	copy(t[16:], "VMFSNATV")
	t.u32(24, 1)
	copy(t[28:], "VMFS")
	t.u32(32, 1)
	sum(t, 9)
	return t
}

const rsdpSize = 36

// rsdp is the root pointer (5.2.5.3); revision 2 has 36 bytes and no RSDT.
func rsdp(xsdt uint64) []byte {
	t := make(table, rsdpSize)
	copy(t, "RSD PTR ")
	copy(t[9:], "VMFS  ")
	t[15] = 2
	t.u32(20, rsdpSize)
	t.u64(24, xsdt)
	sum(t[:20], 8)
	sum(t, 32)
	return t
}

// newXSDT names the tables (5.2.8).
func newXSDT(tables ...uint64) []byte {
	t := make(table, headerSize+8*len(tables))
	for i, addr := range tables {
		t.u64(headerSize+8*i, addr)
	}
	return finish(t, "XSDT", 1)
}

// fadt is the fixed description (5.2.9), with registers for sleep and reset.
func (c *Config) fadt(dsdt uint64) []byte {
	const (
		size = 276

		arch8042  = 1 << 1
		archNoVGA = 1 << 2
		archNoRTC = 1 << 5

		flagWBINVD      = 1 << 0
		flagPowerButton = 1 << 4 // not a fixed one
		flagSleepButton = 1 << 5 // the same
		flagReset       = 1 << 10
		flagReduced     = 1 << 20
	)
	t := make(table, size)
	t.u32(40, uint32(dsdt))
	t.u16(109, arch8042|archNoVGA|archNoRTC)
	t.u32(112, flagWBINVD|flagPowerButton|flagSleepButton|flagReset|flagReduced)
	for _, off := range []int{116, 244, 256} { // RESET_REG, SLEEP_CONTROL_REG, SLEEP_STATUS_REG
		t.port(off, c.Power)
	}
	t[128] = serial.PowerReset
	t[131] = 3 // of 6.3
	t.u64(140, dsdt)
	copy(t[268:], "VMFS")
	return finish(t, "FACP", 6)
}

// port writes a generic address structure (5.2.3.2) of a byte.
func (t table) port(off int, port uint16) {
	const systemIO, byteAccess = 1, 1
	t[off], t[off+1], t[off+3] = systemIO, 8, byteAccess
	t.u64(off+4, uint64(port))
}

// madt is the CPUs and the interrupt controllers (5.2.12). There is no 8259
// that a guest should look for.
func (c *Config) madt() []byte {
	const enabled = 1
	t := make(table, headerSize+8)
	t.u32(headerSize, LocalAPIC)
	ioapic := make(table, 12)
	ioapic[0], ioapic[1] = 1, 12
	ioapic.u32(4, IOAPIC)
	t = append(t, ioapic...)
	for id := range c.CPUs {
		if id < 0xff {
			t = append(t, 0, 8, byte(id), byte(id), enabled, 0, 0, 0)
			continue
		}
		x2 := make(table, 16)
		x2[0], x2[1] = 9, 16
		x2.u32(4, uint32(id))
		x2.u32(8, enabled)
		x2.u32(12, uint32(id))
		t = append(t, x2...)
	}
	return finish(t, "APIC", 5)
}
