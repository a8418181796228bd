package serial

import (
	"bytes"
	"slices"
	"testing"
)

// ps2 is a Keyboard as its driver sees it.
type ps2 struct {
	t      *testing.T
	k      *Keyboard
	edges  int
	level  bool
	resets int
}

func newPS2(t *testing.T) *ps2 {
	p := &ps2{t: t}
	p.k = NewKeyboard(func(level bool) {
		p.level = level
		if level {
			p.edges++
		}
	}, func() { p.resets++ })
	return p
}

func (p *ps2) in(offset uint64) byte {
	var b [1]byte
	p.k.Read(offset, b[:])
	return b[0]
}

// command is i8042_command(): a command, parameters, and n answers.
func (p *ps2) command(c byte, n int, params ...byte) []byte {
	p.k.Write(KeyboardCommand, []byte{c})
	for _, v := range params {
		p.k.Write(KeyboardData, []byte{v})
	}
	return p.answers(n)
}

// answers reads n bytes, as fast as they are there.
func (p *ps2) answers(n int) []byte {
	p.t.Helper()
	var got []byte
	for range n {
		if p.in(KeyboardCommand)&kbdOBF == 0 {
			p.t.Fatalf("%d answers % x, want %d", len(got), got, n)
		}
		got = append(got, p.in(KeyboardData))
	}
	if p.in(KeyboardCommand)&kbdOBF != 0 {
		p.t.Fatalf("more than %d answers", n)
	}
	return got
}

// key is ps2_command(): a byte to the keyboard, and n answers.
func (p *ps2) key(v byte, n int) []byte {
	p.k.Write(KeyboardData, []byte{v})
	return p.answers(n)
}

func (p *ps2) want(got []byte, want ...byte) {
	p.t.Helper()
	if !slices.Equal(got, want) {
		p.t.Errorf("got % x, want % x", got, want)
	}
}

// What Linux's i8042_probe() and atkbd_probe() do, and then its reboot.
func TestLinuxProbe(t *testing.T) {
	p := newPS2(t)
	if p.in(KeyboardCommand)&kbdOBF != 0 {
		t.Error("bytes to flush in a new controller")
	}
	p.want(p.command(cmdSelfTest, 1), selfTestOK)
	ctr := p.command(cmdReadCTR, 1)[0]
	p.want(p.command(cmdReadCTR, 1), ctr)
	if ctr&ctrTranslate == 0 || p.in(KeyboardCommand)&kbdUnlocked == 0 {
		t.Errorf("command byte %#x, status %#x", ctr, p.in(KeyboardCommand))
	}
	off := ctr&^ctrInterrupt | ctrDisabled
	p.command(cmdWriteCTR, 0, off)
	p.want(p.command(cmdReadCTR, 1), off)

	// No mouse: the loop's answer is not marked as a mouse's, the test fails.
	p.k.Write(KeyboardCommand, []byte{cmdLoopAux})
	p.k.Write(KeyboardData, []byte{0x5a})
	if p.in(KeyboardCommand)&(1<<5) != 0 {
		t.Error("an answer from a mouse")
	}
	p.answers(1)
	p.want(p.command(cmdAuxTest, 1), auxStuck)

	on := off&^ctrDisabled | ctrInterrupt
	p.command(cmdWriteCTR, 0, on)
	p.edges = 0
	p.want(p.key(keyIdentify, 3), keyACK, keyID, keyID2Transl)
	if p.edges != 3 {
		t.Errorf("%d interrupts for 3 bytes", p.edges)
	}
	p.want(p.key(keyLEDs, 1), keyACK)
	p.want(p.key(0, 1), keyACK)
	p.want(p.key(keyRepeat, 1), keyACK)
	p.want(p.key(0x2b, 1), keyACK)
	if p.k.CtrlAltDel() {
		t.Error("keys to a guest that did not ask for them")
	}
	p.want(p.key(keyEnable, 1), keyACK)
	if !p.k.CtrlAltDel() {
		t.Fatal("no keys")
	}
	p.want(p.answers(8), 0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d)

	p.want(p.key(keyReset, 2), keyACK, keyTestOK)
	p.k.Write(KeyboardCommand, []byte{0xfe})
	if p.resets != 1 {
		t.Errorf("%d resets", p.resets)
	}
}

func TestUntranslated(t *testing.T) {
	p := newPS2(t)
	p.command(cmdWriteCTR, 0, ctrInterrupt)
	p.want(p.key(keyIdentify, 3), keyACK, keyID, keyID2)
	p.want(p.key(keyEnable, 1), keyACK)
	p.k.CtrlAltDel()
	p.want(p.answers(11), ctrlAltDel2...)
	p.want(p.key(keyEcho, 1), keyEcho)
	p.want(p.key(keyResend, 1), keyEcho)
}

// What a guest does not read is bounded, and CtrlAltDel says so.
func TestKeyboardFull(t *testing.T) {
	p := newPS2(t)
	for range 100 {
		p.k.Write(KeyboardData, []byte{keyEnable})
	}
	if p.k.CtrlAltDel() {
		t.Error("keys into a full queue")
	}
	p.k.Write(KeyboardCommand, []byte{cmdReadCTR})
	if got := p.in(KeyboardData); got&ctrTranslate == 0 {
		t.Errorf("the controller's answer was lost in the keyboard's: %#x", got)
	}
	for range keyQueue - 1 {
		p.in(KeyboardData)
	}
	if p.level || p.in(KeyboardCommand)&kbdOBF != 0 {
		t.Error("the queue was longer than its bound")
	}
}

// The ways of a reset through the controller.
func TestKeyboardReset(t *testing.T) {
	p := newPS2(t)
	for v := 0xf0; v <= 0xff; v++ {
		p.k.Write(KeyboardCommand, []byte{byte(v)})
	}
	if p.resets != 8 {
		t.Errorf("%d of the pulses reset, want the 8 even ones", p.resets)
	}
	p.command(cmdWriteOut, 0, outA20)
	if p.resets != 9 {
		t.Error("no reset by the output port")
	}
	p.command(cmdWriteOut, 0, outRunning)
	p.want(p.command(cmdReadOut, 1), outRunning)
	if p.resets != 9 {
		t.Error("a reset that was not asked for")
	}
}

func FuzzKeyboard(f *testing.F) {
	f.Add([]byte{4, cmdWriteCTR, 0, 0x41, 0, keyIdentify, 0x80, 0, 0x84, 0, 0xff, 0})
	f.Add([]byte{4, cmdLoopAux, 0, 0x5a, 4, 0xfe, 4, cmdWriteOut, 0, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		k := NewKeyboard(func(bool) {}, func() {})
		for ; len(script) >= 2; script = script[2:] {
			op, v := script[0], script[1]
			switch {
			case op == 0xff:
				k.CtrlAltDel()
			case op&0x80 != 0:
				k.Read(uint64(op&7), make([]byte, 1+v&7))
			default:
				k.Write(uint64(op&7), bytes.Repeat([]byte{v}, 1+int(op>>4&3)))
			}
			if len(k.queue) > keyQueue {
				t.Fatalf("%d bytes wait", len(k.queue))
			}
		}
	})
}
