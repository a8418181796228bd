package serial

import (
	"bytes"
	"strings"
	"sync"
	"testing"
)

// port is a UART as its driver sees it, with what the host sees.
type port struct {
	t       *testing.T
	u       *UART
	out     bytes.Buffer
	level   bool
	edges   int
	drained int
}

func newPort(t *testing.T) *port {
	p := &port{t: t}
	p.u = NewUART(&p.out, func(level bool) {
		if level == p.level {
			t.Errorf("the line was told to be %v twice", level)
		}
		p.level = level
		if level {
			p.edges++
		}
	}, func() { p.drained++ })
	return p
}

func (p *port) in(offset uint64) byte {
	var b [1]byte
	p.u.Read(offset, b[:])
	return b[0]
}

func (p *port) put(offset uint64, v byte) { p.u.Write(offset, []byte{v}) }

func (p *port) want(offset uint64, want byte, what string) {
	p.t.Helper()
	if got := p.in(offset); got != want {
		p.t.Errorf("%s: got %#x, want %#x", what, got, want)
	}
}

// What serial8250's autoconfig() and autoconfig_16550a() do to tell a 16550A
// from its relatives.
func TestAutoconfig(t *testing.T) {
	p := newPort(t)
	p.put(uartIER, 0)
	p.want(uartIER, 0, "IER cleared")
	p.put(uartIER, 0x0f)
	p.want(uartIER, 0x0f, "IER set")
	p.put(uartIER, 0)

	p.put(uartMCR, mcrLoop|mcrOut2|mcrRTS)
	p.want(uartMSR, msrDCD|msrCTS|1<<1, "MSR in loopback, DSR gone")
	if got := p.in(uartMSR) & 0xf0; got != 0x90 {
		t.Errorf("loopback test: MSR %#x, want 0x90", got)
	}
	p.put(uartMCR, 0)

	p.put(uartLCR, 0xbf)
	p.put(uartFCR, 0)
	p.put(uartLCR, 0)
	p.put(uartFCR, fcrEnable)
	if got := p.in(uartIIR) >> 6; got != 3 {
		t.Errorf("FIFO bits %d, want 3: a 16550A", got)
	}
	p.put(uartLCR, 0xbf)
	if p.in(uartIIR) == 0 {
		t.Error("EFR reads 0: a 16650")
	}
	p.put(uartLCR, 0)
	p.put(uartIER, 0x40)
	p.want(uartIER, 0, "IER's bit UUE, of an XScale")
	p.put(uartSCR, 0xa5)
	p.want(uartSCR, 0xa5, "SCR")
}

// size_fifo() counts what a loopback holds.
func TestSizeFIFO(t *testing.T) {
	p := newPort(t)
	p.put(uartFCR, fcrEnable|fcrClear|4)
	p.put(uartMCR, mcrLoop)
	p.put(uartLCR, lcrDLAB|3)
	p.put(0, 1)
	p.put(1, 0)
	p.want(0, 1, "divisor's low byte")
	p.want(1, 0, "divisor's high byte")
	p.put(uartLCR, 3)
	for i := range 256 {
		p.put(uartData, byte(i))
	}
	if p.in(uartLSR)&lsrOverrun == 0 || p.in(uartLSR)&lsrOverrun != 0 {
		t.Error("no overrun, or one that stays")
	}
	n := 0
	for ; p.in(uartLSR)&lsrReady != 0 && n < 256; n++ {
		p.want(uartData, byte(n), "loopback")
	}
	if n != 16 {
		t.Errorf("a FIFO of %d bytes, want 16", n)
	}
	if p.out.Len() != 0 {
		t.Error("a loopback's bytes went out")
	}
}

// What serial8250_do_startup() asks of the transmitter's interrupt.
func TestTransmit(t *testing.T) {
	p := newPort(t)
	p.put(uartFCR, fcrEnable)
	p.put(uartIER, ierEmpty)
	if !p.level {
		t.Fatal("no interrupt for an empty transmitter")
	}
	p.want(uartIIR, iirEmpty|iirFIFO, "IIR")
	if p.level {
		t.Error("reading the IIR did not acknowledge")
	}
	p.want(uartIIR, iirNone|iirFIFO, "IIR again")
	p.put(uartIER, 0)
	p.put(uartIER, ierEmpty)
	p.want(uartIIR, iirEmpty|iirFIFO, "IIR after IER was set again")
	for _, c := range []byte("hello") {
		if p.in(uartLSR)&lsrEmpty != lsrEmpty {
			t.Fatal("the transmitter is not empty")
		}
		p.put(uartData, c)
	}
	if p.out.String() != "hello" || !p.level {
		t.Errorf("sent %q, interrupt %v", p.out.String(), p.level)
	}
	p.put(uartIER, 0)
	if p.level {
		t.Error("an interrupt that nobody asked for")
	}
}

func TestReceive(t *testing.T) {
	p := newPort(t)
	p.put(uartFCR, fcrEnable|0x80) // 8 bytes
	p.put(uartIER, ierReceived|ierLine)
	if n := p.u.Input([]byte("0123456789abcdefghij")); n != 20 {
		t.Fatalf("took %d bytes", n)
	}
	p.want(uartIIR, iirReceived|iirFIFO, "IIR over the trigger")
	var got strings.Builder
	for p.in(uartLSR)&lsrReady != 0 {
		got.WriteByte(p.in(uartData))
	}
	if got.String() != "0123456789abcdefghij" || p.level {
		t.Errorf("read %q, interrupt %v", got.String(), p.level)
	}
	p.u.Input([]byte("x"))
	p.want(uartIIR, iirTimeout|iirFIFO, "IIR under the trigger")
	if p.edges != 2 {
		t.Errorf("%d edges, want 2", p.edges)
	}
	p.want(uartData, 'x', "data")
	p.want(uartData, 0, "no data")
}

// Input is bounded, and what does not fit may come later.
func TestInputBounded(t *testing.T) {
	p := newPort(t)
	p.put(uartFCR, fcrEnable)
	big := bytes.Repeat([]byte("a"), 1<<20)
	n := p.u.Input(big)
	if n != uartQueue || p.u.Space() != uartFIFO {
		t.Errorf("took %d bytes and has room for %d", n, p.u.Space())
	}
	n += p.u.Input(big)
	if n != uartQueue+uartFIFO || p.u.Space() != 0 || p.u.Input([]byte("b")) != 0 {
		t.Errorf("took %d bytes and has room for %d", n, p.u.Space())
	}
	p.drained = 0
	for range n {
		p.want(uartData, 'a', "data")
	}
	if p.drained == 0 || p.u.Space() != uartQueue {
		t.Errorf("told %d times, has room for %d", p.drained, p.u.Space())
	}
}

// Sources are told by priority: line, data, transmitter, modem.
func TestPriorities(t *testing.T) {
	p := newPort(t)
	p.put(uartFCR, fcrEnable|fcrClear)
	p.put(uartMCR, mcrLoop)
	for range 17 {
		p.put(uartData, 'x')
	}
	p.put(uartMCR, mcrLoop|mcrRTS)
	p.put(uartIER, 0x0f)
	p.want(uartIIR, iirLineStatus|iirFIFO, "first")
	p.in(uartLSR)
	p.want(uartIIR, iirReceived|iirFIFO, "second")
	p.put(uartFCR, fcrEnable|fcrClear)
	p.want(uartIIR, iirEmpty|iirFIFO, "third")
	p.want(uartIIR, iirModem|iirFIFO, "fourth")
	p.in(uartMSR)
	p.want(uartIIR, iirNone|iirFIFO, "last")
	if p.level {
		t.Error("the interrupt stays")
	}
}

// The ring indicator counts when it ends.
func TestModemDeltas(t *testing.T) {
	p := newPort(t)
	p.want(uartMSR, msrCTS|msrDSR|msrDCD, "a line that is there")
	p.put(uartMCR, mcrLoop|mcrOut1|mcrOut2|mcrRTS|mcrDTR)
	p.want(uartMSR, 0xf0, "ring began")
	p.put(uartMCR, mcrLoop)
	p.want(uartMSR, 0x0f, "all ended")
	p.want(uartMSR, 0, "and was told")
}

// CPUs and the host use it at the same time; the race detector looks on.
func TestTogether(t *testing.T) {
	var printed bytes.Buffer
	u := NewUART(&printed, func(bool) {}, func() {})
	u.Write(uartFCR, []byte{fcrEnable})
	const n = 2000
	var all sync.WaitGroup
	all.Go(func() {
		for sent := 0; sent < n; {
			sent += u.Input(make([]byte, min(7, n-sent)))
		}
	})
	all.Go(func() {
		for range n {
			u.Write(uartData, []byte("x"))
		}
	})
	p := make([]byte, 1)
	for got := 0; got < n; {
		if u.Read(uartLSR, p); p[0]&lsrReady != 0 {
			u.Read(uartData, p)
			got++
		}
	}
	all.Wait()
	if printed.Len() != n || u.Space() != uartQueue {
		t.Errorf("%d bytes printed, room for %d", printed.Len(), u.Space())
	}
}

func FuzzUART(f *testing.F) {
	f.Add([]byte{1, 0x0f, 2, 0xc7, 0, 'x', 0x82, 0, 0x80, 0, 0xff, 9})
	f.Add([]byte{4, 0x1f, 0, 'a', 0, 'b', 0x85, 0, 0x80, 0, 4, 0, 0xff, 200})
	f.Fuzz(func(t *testing.T, script []byte) {
		var level bool
		u := NewUART(new(bytes.Buffer), func(l bool) {
			if l == level {
				t.Fatal("no change")
			}
			level = l
		}, nil)
		for ; len(script) >= 2; script = script[2:] {
			op, v := script[0], script[1]
			switch {
			case op == 0xff:
				u.Input(make([]byte, int(v)*64))
			case op&0x80 != 0:
				u.Read(uint64(op&0x0f), make([]byte, 1+v&7))
			default:
				u.Write(uint64(op&0x0f), bytes.Repeat([]byte{v}, 1+int(op>>4)))
			}
			if len(u.fifo) > uartFIFO || len(u.queue) > uartQueue {
				t.Fatalf("%d bytes in the FIFO, %d behind it", len(u.fifo), len(u.queue))
			}
			if level != (u.pending() != iirNone) {
				t.Fatalf("the line is %v, pending is %#x", level, u.pending())
			}
		}
	})
}
