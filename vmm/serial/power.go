package serial

import "sync/atomic"

// PowerRegister is the byte that ACPI's FADT names as SLEEP_CONTROL_REG,
// SLEEP_STATUS_REG and RESET_REG at once (ACPI 6.3, section 4.8.3.7 and
// 4.8.3.6). A guest that sleeps writes the type of S5 with SLP_EN, one that
// resets PowerReset; no other sleep state is there.
type PowerRegister struct {
	off, reset func()
}

// What is written to a PowerRegister: DSDT and FADT say so.
const (
	PowerReset = 1
	SleepType  = 5 // of _S5
	PowerSize  = 1

	sleepEnable = 1 << 5
	sleepOff    = SleepType<<2 | sleepEnable
	sleepMask   = 7<<2 | sleepEnable
)

// NewPowerRegister makes one: off is called for a power-off, reset for a
// reset.
func NewPowerRegister(off, reset func()) *PowerRegister { return &PowerRegister{off, reset} }

// Read reads the status: WAK_STS is never set, since nothing wakes.
func (r *PowerRegister) Read(offset uint64, p []byte) { clear(p) }

// Write does what the byte says.
func (r *PowerRegister) Write(offset uint64, p []byte) {
	if offset != 0 || len(p) == 0 {
		return
	}
	switch {
	case p[0] == PowerReset:
		r.reset()
	case p[0]&sleepMask == sleepOff:
		r.off()
	}
}

// ResetPort is port 0xCF9 of Intel's chipsets: a write with bit 2 set resets
// (I/O Controller Hub 9 datasheet, RST_CNT).
type ResetPort struct {
	reset func()
	value atomic.Uint32
}

// ResetPortAddr is where it is, one byte.
const ResetPortAddr = 0xcf9

const (
	resetCPU  = 1 << 2
	resetBits = 0x0e // what is kept of a write
)

// NewResetPort makes one; reset is called for a reset.
func NewResetPort(reset func()) *ResetPort { return &ResetPort{reset: reset} }

// Read reads back what was written, but for the bit that resets.
func (r *ResetPort) Read(offset uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
		if offset+uint64(i) == 0 {
			p[i] = byte(r.value.Load())
		}
	}
}

// Write resets if it says so. Only a byte does: a wider access is one of PCI's
// address port, which is the four bytes around this one.
func (r *ResetPort) Write(offset uint64, p []byte) {
	if offset != 0 || len(p) != 1 {
		return
	}
	r.value.Store(uint32(p[0] & resetBits &^ resetCPU))
	if p[0]&resetCPU != 0 {
		r.reset()
	}
}

// Events is the register of ACPI's generic event device: a byte with a bit an
// event, which is clear once it was read. The method _EVT of the DSDT reads
// it when the interrupt comes.
type Events struct {
	irq  func()
	bits atomic.Uint32
}

// EventsSize is how many bytes there are; PowerButton is a bit.
const (
	EventsSize  = 1
	PowerButton = 1 << 0
)

// NewEvents makes one. irq is called for each event; it raises an edge.
func NewEvents(irq func()) *Events { return &Events{irq: irq} }

// Raise tells the guest of events; those it has not read yet are kept.
func (e *Events) Raise(bits byte) {
	e.bits.Or(uint32(bits))
	e.irq()
}

// Pending are the events that the guest has not read.
func (e *Events) Pending() byte { return byte(e.bits.Load()) }

// Read takes the events.
func (e *Events) Read(offset uint64, p []byte) {
	clear(p)
	if offset == 0 && len(p) > 0 {
		p[0] = byte(e.bits.Swap(0))
	}
}

// Write changes nothing.
func (e *Events) Write(offset uint64, p []byte) {}
