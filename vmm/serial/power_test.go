package serial

import "testing"

func TestPowerRegister(t *testing.T) {
	var off, reset int
	r := NewPowerRegister(func() { off++ }, func() { reset++ })
	for v := range 256 {
		r.Write(0, []byte{byte(v)})
	}
	// SLP_TYP is three bits, SLP_EN one; the others are not looked at.
	if off != 16 || reset != 1 {
		t.Errorf("%d of the bytes turn off, %d reset; want 16, 1", off, reset)
	}
	off = 0
	r.Write(0, []byte{0x34})
	if off != 1 {
		t.Error("what Linux writes for S5 does not turn off")
	}
	off = 0
	r.Write(1, []byte{0x34})
	r.Write(0, nil)
	if off != 0 {
		t.Error("a write elsewhere turns off")
	}
	p := []byte{0xff}
	if r.Read(0, p); p[0] != 0 {
		t.Errorf("status %#x: awake from a sleep that was not", p[0])
	}
}

// What Linux's native_machine_emergency_restart() does for BOOT_CF9_FORCE.
func TestResetPort(t *testing.T) {
	var reset int
	r := NewResetPort(func() { reset++ })
	p := []byte{0}
	r.Read(0, p)
	cf9 := p[0] &^ 0x0e
	r.Write(0, []byte{cf9 | 2})
	if reset != 0 {
		t.Error("a reset before it was asked for")
	}
	r.Write(0, []byte{6, 0, 0x80})
	if reset != 0 {
		t.Error("a reset by a wider access")
	}
	r.Write(0, []byte{cf9 | 6})
	if r.Read(0, p); reset != 1 || p[0] != 2 {
		t.Errorf("%d resets, reads %#x", reset, p[0])
	}
}

func TestEvents(t *testing.T) {
	var irqs int
	e := NewEvents(func() { irqs++ })
	e.Raise(PowerButton)
	e.Raise(PowerButton)
	if e.Pending() != PowerButton || irqs != 2 {
		t.Errorf("pending %#x, %d interrupts", e.Pending(), irqs)
	}
	p := []byte{0xff, 0xff}
	if e.Read(0, p); p[0] != PowerButton || p[1] != 0 {
		t.Errorf("read % x", p)
	}
	if e.Read(0, p); p[0] != 0 || e.Pending() != 0 {
		t.Errorf("read % x again", p)
	}
	e.Write(0, []byte{0xff})
	if e.Pending() != 0 {
		t.Error("the guest raised an event")
	}
}
