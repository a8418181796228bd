package serial

import "sync"

// KeyboardData and KeyboardCommand are the offsets of a Keyboard's two
// registers, from port 0x60. What is between them is not its.
const (
	KeyboardData    = 0
	KeyboardCommand = 4 // status when read
)

// The controller (IBM PS/2 technical reference, "Keyboard/Auxiliary Device
// Controller"): bits of the status, of the command byte, commands, answers.
const (
	kbdOBF      = 1 << 0
	kbdSys      = 1 << 2
	kbdCommand  = 1 << 3
	kbdUnlocked = 1 << 4

	ctrInterrupt = 1 << 0
	ctrSys       = 1 << 2
	ctrDisabled  = 1 << 4
	ctrNoAux     = 1 << 5
	ctrTranslate = 1 << 6

	cmdReadCTR    = 0x20
	cmdWriteCTR   = 0x60
	cmdAuxOff     = 0xa7
	cmdAuxOn      = 0xa8
	cmdAuxTest    = 0xa9
	cmdSelfTest   = 0xaa
	cmdKbdTest    = 0xab
	cmdKbdOff     = 0xad
	cmdKbdOn      = 0xae
	cmdReadOut    = 0xd0
	cmdWriteOut   = 0xd1
	cmdLoopKbd    = 0xd2
	cmdLoopAux    = 0xd3
	cmdWriteAux   = 0xd4
	cmdPulseFirst = 0xf0 // up to 0xff: a zero in bit 0 resets

	outRunning = 1 << 0
	outA20     = 1 << 1

	auxStuck   = 0x01 // answer to cmdAuxTest: there is no mouse
	selfTestOK = 0x55
)

// The keyboard behind it (the same, "Keyboard"): commands and answers.
const (
	keyLEDs      = 0xed
	keyEcho      = 0xee
	keyScanSet   = 0xf0
	keyIdentify  = 0xf2
	keyRepeat    = 0xf3
	keyEnable    = 0xf4
	keyDisable   = 0xf5
	keyDefaults  = 0xf6
	keyResend    = 0xfe
	keyReset     = 0xff
	keyACK       = 0xfa
	keyTestOK    = 0xaa
	keyID        = 0xab
	keyID2       = 0x83
	keyID2Transl = 0x41 // as set 2 is translated to set 1
)

// Ctrl-Alt-Del pressed and released, as the guest sees it with translation
// (scan set 1) and without (set 2).
var (
	ctrlAltDel1 = []byte{0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d}
	ctrlAltDel2 = []byte{0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14}
)

// keyQueue bounds what the keyboard holds for the guest.
const keyQueue = 32

// Keyboard is an i8042 with a keyboard that has three keys, and no mouse.
type Keyboard struct {
	mu    sync.Mutex
	irq   func(level bool)
	reset func()

	queue   []byte // from the controller and the keyboard, for the guest
	last    byte   // that the keyboard sent
	ctr     byte   // the command byte
	out     byte   // the output port
	command byte   // of the controller, that waits for its parameter, or 0
	param   byte   // command of the keyboard, the same
	isCmd   bool   // the last write was to the command register
	scans   bool   // the guest asked for keys; a keyboard of metal sends them unasked
	level   bool
}

// NewKeyboard makes one. irq is told when the interrupt line changes; between
// two bytes it falls and rises. reset is called when the guest asks the
// controller to reset the machine.
func NewKeyboard(irq func(level bool), reset func()) *Keyboard {
	return &Keyboard{
		irq: irq, reset: reset,
		ctr: ctrInterrupt | ctrSys | ctrNoAux | ctrTranslate,
		out: outRunning | outA20,
	}
}

// Read reads registers from offset on.
func (k *Keyboard) Read(offset uint64, p []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	readAll(k, offset, p)
}

// Write writes registers from offset on.
func (k *Keyboard) Write(offset uint64, p []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	writeAll(k, offset, p)
}

// CtrlAltDel presses the keys. It is false if the guest does not listen to
// its keyboard, or has not taken what was typed before.
func (k *Keyboard) CtrlAltDel() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	keys := ctrlAltDel2
	if k.ctr&ctrTranslate != 0 {
		keys = ctrlAltDel1
	}
	if !k.scans || k.ctr&ctrDisabled != 0 || k.ctr&ctrInterrupt == 0 || len(k.queue)+len(keys) > keyQueue {
		return false
	}
	k.push(keys...)
	return true
}

func (k *Keyboard) read(offset uint64) byte {
	switch offset {
	case KeyboardData:
		return k.pop()
	case KeyboardCommand:
		v := k.ctr&kbdSys | kbdUnlocked
		if len(k.queue) > 0 {
			v |= kbdOBF
		}
		if k.isCmd {
			v |= kbdCommand
		}
		return v
	}
	return 0xff
}

func (k *Keyboard) write(offset uint64, v byte) {
	switch offset {
	case KeyboardData:
		k.isCmd = false
		if c := k.command; c != 0 {
			k.command = 0
			k.parameter(c, v)
			return
		}
		k.ctr &^= ctrDisabled // as the controller does, to pass it on
		k.key(v)
	case KeyboardCommand:
		k.isCmd = true
		k.command = 0
		k.control(v)
	}
}

// control is a command to the controller.
func (k *Keyboard) control(v byte) {
	switch v {
	case cmdReadCTR:
		k.answer(k.ctr)
	case cmdWriteCTR, cmdWriteOut, cmdLoopKbd, cmdLoopAux, cmdWriteAux:
		k.command = v
	case cmdAuxOff:
		k.ctr |= ctrNoAux
	case cmdAuxOn:
		k.ctr &^= ctrNoAux
	case cmdAuxTest:
		k.answer(auxStuck)
	case cmdSelfTest:
		k.ctr |= ctrSys
		k.answer(selfTestOK)
	case cmdKbdTest:
		k.answer(0)
	case cmdKbdOff:
		k.setCTR(k.ctr | ctrDisabled)
	case cmdKbdOn:
		k.setCTR(k.ctr &^ ctrDisabled)
	case cmdReadOut:
		k.answer(k.out)
	default:
		if v >= cmdPulseFirst && v&outRunning == 0 {
			k.reset()
		}
	}
}

// parameter completes a command to the controller.
func (k *Keyboard) parameter(command, v byte) {
	switch command {
	case cmdWriteCTR:
		k.setCTR(v)
	case cmdWriteOut:
		if v&outRunning == 0 {
			k.reset()
			return
		}
		k.out = v
	case cmdLoopKbd, cmdLoopAux:
		// Without a mouse the second comes back as the first does, which
		// tells a driver so.
		k.answer(v)
	}
}

// key is a byte to the keyboard.
func (k *Keyboard) key(v byte) {
	if k.param != 0 {
		k.param = 0
		k.push(keyACK)
		return
	}
	switch v {
	case keyLEDs, keyScanSet, keyRepeat:
		k.param = v
		k.push(keyACK)
	case keyEcho:
		k.push(keyEcho)
	case keyIdentify:
		id := byte(keyID2)
		if k.ctr&ctrTranslate != 0 {
			id = keyID2Transl
		}
		k.push(keyACK, keyID, id)
	case keyEnable, keyDefaults:
		k.scans = true
		k.push(keyACK)
	case keyDisable:
		k.scans = false
		k.push(keyACK)
	case keyResend:
		k.push(k.last)
	case keyReset:
		k.scans = true
		k.push(keyACK, keyTestOK)
	default:
		k.push(keyACK)
	}
}

// answer is a byte of the controller's own, ahead of the keyboard's.
func (k *Keyboard) answer(v byte) {
	rest := k.queue[:min(len(k.queue), keyQueue-1)]
	k.queue = append([]byte{v}, rest...)
	k.update()
}

// push is bytes of the keyboard's. What the guest does not read is lost.
func (k *Keyboard) push(p ...byte) {
	k.last = p[len(p)-1]
	k.queue = append(k.queue, p[:min(len(p), keyQueue-len(k.queue))]...)
	k.update()
}

// pop is the guest's reading of a byte.
func (k *Keyboard) pop() byte {
	if len(k.queue) == 0 {
		return 0
	}
	v := k.queue[0]
	k.queue = append(k.queue[:0], k.queue[1:]...)
	k.setLevel(false)
	k.update()
	return v
}

func (k *Keyboard) setCTR(v byte) {
	k.ctr = v
	k.update()
}

func (k *Keyboard) update() { k.setLevel(len(k.queue) > 0 && k.ctr&ctrInterrupt != 0) }

func (k *Keyboard) setLevel(level bool) {
	if level != k.level {
		k.level = level
		k.irq(level)
	}
}
