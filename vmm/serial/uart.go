package serial

import (
	"io"
	"sync"
)

// UARTSize is how many registers a UART has.
const UARTSize = 8

// The registers, by offset (National Semiconductor PC16550D, section 8). With
// lcrDLAB the first two are the divisor's.
const (
	uartData = 0 // RBR read, THR written
	uartIER  = 1
	uartIIR  = 2 // read
	uartFCR  = 2 // written
	uartLCR  = 3
	uartMCR  = 4
	uartLSR  = 5
	uartMSR  = 6
	uartSCR  = 7

	ierReceived = 1 << 0
	ierEmpty    = 1 << 1
	ierLine     = 1 << 2
	ierModem    = 1 << 3
	ierBits     = 0x0f

	// The sources of an interrupt; lineStatus has the highest priority.
	iirNone       = 0x01
	iirModem      = 0x00
	iirEmpty      = 0x02
	iirReceived   = 0x04
	iirTimeout    = 0x0c // fewer than the trigger level, and they do not wait
	iirLineStatus = 0x06
	iirFIFO       = 0xc0

	fcrEnable = 1 << 0
	fcrClear  = 1 << 1 // the receiver's; the transmitter's is always empty

	lcrDLAB  = 1 << 7
	lcrBreak = 1 << 6

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOut1 = 1 << 2
	mcrOut2 = 1 << 3
	mcrLoop = 1 << 4
	mcrBits = 0x1f

	lsrReady   = 1 << 0
	lsrOverrun = 1 << 1
	lsrEmpty   = 1<<5 | 1<<6 // THR and the shift register: nothing ever waits

	msrCTS = 1 << 4
	msrDSR = 1 << 5
	msrRI  = 1 << 6
	msrDCD = 1 << 7
)

// The size of the FIFO, and of what waits for it: what a host types while the
// guest looks elsewhere.
const (
	uartFIFO  = 16
	uartQueue = 4096
)

// triggers are the levels that the FCR's highest bits choose.
var triggers = [4]int{1, 4, 8, 14}

// UART is a 16550A. Its line is always connected, and as fast as the guest:
// divisor and parity are kept and mean nothing.
type UART struct {
	mu      sync.Mutex
	out     io.Writer
	irq     func(level bool)
	drained func()

	fifo    []byte // what the guest has not read, at most uartFIFO
	queue   []byte // what is behind it, at most uartQueue
	divisor [2]byte
	ier     byte
	fcr     byte
	lcr     byte
	mcr     byte
	scr     byte
	overrun bool
	delta   byte // of the modem's lines since MSR was read
	empty   bool // that the transmitter is empty was not told yet
	level   bool // of the interrupt line
	one     [1]byte
}

// NewUART makes one. What the guest sends goes to out, a byte a Write, whose
// errors count for nothing; it must not wait, since a CPU does meanwhile. irq
// is told when the interrupt line changes. drained, if it is not nil, is
// called whenever Input can take more than it could.
func NewUART(out io.Writer, irq func(level bool), drained func()) *UART {
	return &UART{out: out, irq: irq, drained: drained, mcr: mcrOut2, divisor: [2]byte{0x0c, 0}}
}

// Read reads registers from offset on.
func (u *UART) Read(offset uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	readAll(u, offset, p)
}

// Write writes registers from offset on.
func (u *UART) Write(offset uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	writeAll(u, offset, p)
}

// Input types to the guest and returns how many bytes of p it took; the rest
// may be offered again after drained.
func (u *UART) Input(p []byte) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := min(len(p), uartQueue-len(u.queue))
	u.queue = append(u.queue, p[:n]...)
	u.fill()
	u.update()
	return n
}

// Space is how many bytes Input would take now.
func (u *UART) Space() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return uartQueue - len(u.queue)
}

func (u *UART) read(offset uint64) byte {
	switch offset {
	case uartData:
		if u.lcr&lcrDLAB != 0 {
			return u.divisor[0]
		}
		return u.receive()
	case uartIER:
		if u.lcr&lcrDLAB != 0 {
			return u.divisor[1]
		}
		return u.ier
	case uartIIR:
		return u.identify()
	case uartLCR:
		return u.lcr
	case uartMCR:
		return u.mcr
	case uartLSR:
		return u.lineStatus()
	case uartMSR:
		v := u.modem() | u.delta
		u.delta = 0
		u.update()
		return v
	case uartSCR:
		return u.scr
	}
	return 0xff
}

func (u *UART) write(offset uint64, v byte) {
	switch offset {
	case uartData:
		if u.lcr&lcrDLAB != 0 {
			u.divisor[0] = v
			return
		}
		u.send(v)
	case uartIER:
		if u.lcr&lcrDLAB != 0 {
			u.divisor[1] = v
			return
		}
		// Drivers find out here whether the interrupt works: asking for
		// it while the transmitter is empty raises it.
		u.empty = u.empty || v&^u.ier&ierEmpty != 0
		u.ier = v & ierBits
	case uartFCR:
		u.setFIFO(v)
	case uartLCR:
		u.lcr = v
	case uartMCR:
		was := u.modem()
		u.mcr = v & mcrBits
		u.changed(was)
	case uartSCR:
		u.scr = v
	}
	u.update()
}

// send is a byte from the guest. The transmitter is empty again at once.
func (u *UART) send(v byte) {
	if u.mcr&mcrLoop != 0 {
		if len(u.fifo) >= u.depth() {
			u.overrun = true
		} else {
			u.fifo = append(u.fifo, v)
		}
	} else {
		u.one[0] = v
		u.out.Write(u.one[:])
	}
	u.empty = true
}

// receive is the guest's reading of a byte.
func (u *UART) receive() byte {
	if len(u.fifo) == 0 {
		return 0
	}
	v := u.fifo[0]
	u.fifo = append(u.fifo[:0], u.fifo[1:]...)
	u.fill()
	u.update()
	return v
}

// fill moves what waits to the FIFO. In a loopback the line is cut off.
func (u *UART) fill() {
	if u.mcr&mcrLoop != 0 {
		return
	}
	n := min(u.depth()-len(u.fifo), len(u.queue))
	if n <= 0 {
		return
	}
	u.fifo = append(u.fifo, u.queue[:n]...)
	u.queue = append(u.queue[:0], u.queue[n:]...)
	if u.drained != nil {
		u.drained()
	}
}

// depth is how much the receiver holds.
func (u *UART) depth() int {
	if u.fcr&fcrEnable != 0 {
		return uartFIFO
	}
	return 1
}

// setFIFO is a write of the FCR. Turning the FIFO on or off empties it.
func (u *UART) setFIFO(v byte) {
	if (v^u.fcr)&fcrEnable != 0 || v&fcrEnable != 0 && v&fcrClear != 0 {
		u.fifo = u.fifo[:0]
		u.overrun = false
	}
	u.fcr = v
	u.fill()
}

// lineStatus is a read of the LSR, which forgets an overrun.
func (u *UART) lineStatus() byte {
	v := byte(lsrEmpty)
	if len(u.fifo) > 0 {
		v |= lsrReady
	}
	if u.overrun {
		v |= lsrOverrun
		u.overrun = false
		u.update()
	}
	return v
}

// modem is the upper half of the MSR: a line that is always there, or in a
// loopback the guest's own outputs.
func (u *UART) modem() byte {
	if u.mcr&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var v byte
	for _, w := range [4]struct{ out, in byte }{{mcrRTS, msrCTS}, {mcrDTR, msrDSR}, {mcrOut1, msrRI}, {mcrOut2, msrDCD}} {
		if u.mcr&w.out != 0 {
			v |= w.in
		}
	}
	return v
}

// changed notes what became of the modem's lines. The ring indicator counts
// when it ends only.
func (u *UART) changed(was byte) {
	now := u.modem()
	d := (was ^ now) & (msrCTS | msrDSR | msrDCD)
	d |= was &^ now & msrRI
	u.delta |= d >> 4
	u.fill()
}

// pending is the source with the highest priority.
func (u *UART) pending() byte {
	switch {
	case u.ier&ierLine != 0 && u.overrun:
		return iirLineStatus
	case u.ier&ierReceived != 0 && len(u.fifo) > 0:
		if u.fcr&fcrEnable != 0 && len(u.fifo) < triggers[u.fcr>>6] {
			return iirTimeout
		}
		return iirReceived
	case u.ier&ierEmpty != 0 && u.empty:
		return iirEmpty
	case u.ier&ierModem != 0 && u.delta != 0:
		return iirModem
	}
	return iirNone
}

// identify is a read of the IIR, which acknowledges that the transmitter is
// empty if it says so.
func (u *UART) identify() byte {
	v := u.pending()
	if v == iirEmpty {
		u.empty = false
		u.update()
	}
	if u.fcr&fcrEnable != 0 {
		v |= iirFIFO
	}
	return v
}

// update sets the interrupt line.
func (u *UART) update() {
	level := u.pending() != iirNone
	if level != u.level {
		u.level = level
		u.irq(level)
	}
}
