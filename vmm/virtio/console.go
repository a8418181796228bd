package virtio

import (
	"errors"
	"io"
	"sync"
)

// The queues of the only port (5.3.2).
const (
	consoleRx = 0
	consoleTx = 1
)

// Bounds in bytes.
const (
	consoleInput  = 4 << 10 // that wait for the guest
	consoleOutput = 1 << 20 // of one buffer of the guest's; what is more is lost
)

// ErrClosed is what writing to a Console gives that was closed.
var ErrClosed = errors.New("virtio: the console is closed")

// Console is a console device (5.3) with one port and no control queues.
//
// What the guest prints is written to Output as it comes, from a copy. While
// Output waits, nothing else of the guest does but its next output and a
// reset. What is typed is kept, at most 4 KiB of it, until the guest has made
// room for it, over resets too.
type Console struct {
	output io.Writer
	host   Host
	buf    [4096]byte // of what is printed

	mu      sync.Mutex
	space   sync.Cond // input was taken, or closed set
	input   []byte
	closed  bool
	scratch [consoleInput]byte // the memory of input
}

// NewConsole makes a console that prints on output. An error of output is
// ignored: the guest has no use for it.
func NewConsole(output io.Writer) *Console {
	c := &Console{output: output}
	c.input = c.scratch[:0]
	c.space.L = &c.mu
	return c
}

func (c *Console) ID() uint32                 { return idConsole }
func (c *Console) Features() uint64           { return 0 }
func (c *Console) QueueSizes() []uint16       { return []uint16{64, 64} }
func (c *Console) ReadConfig(_ int, _ []byte) {}
func (c *Console) Attach(host Host)           { c.host = host }
func (c *Console) Start(uint64) error         { return nil }

// Write types p. It waits until all of it is kept for the guest, or the
// console is closed, and is how much was kept.
func (c *Console) Write(p []byte) (int, error) {
	total := 0
	for total < len(p) {
		n, err := c.keep(p[total:])
		total += n
		if err != nil {
			return total, err
		}
		c.host.Kick(consoleRx) // without the lock, which Serve takes
	}
	return total, nil
}

// keep waits for room and keeps what fits.
func (c *Console) keep(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && len(c.input) == consoleInput {
		c.space.Wait()
	}
	if c.closed {
		return 0, ErrClosed
	}
	n := min(len(p), consoleInput-len(c.input))
	c.input = append(c.input, p[:n]...)
	return n, nil
}

// Close ends Write; what it kept can still be read by the guest.
func (c *Console) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.space.Broadcast()
	return nil
}

func (c *Console) Serve(n int, q *Queue) {
	if n == consoleTx {
		c.print(q)
		return
	}
	for q.running() {
		if c.typed() {
			q.Wait()
		} else {
			q.Poll(-1, -1)
		}
		c.give(q)
	}
}

// typed is whether something waits for the guest.
func (c *Console) typed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.input) > 0
}

// print hands the guest's output on.
func (c *Console) print(q *Queue) {
	for q.Wait() {
		for chain := q.Next(); chain != nil; chain = q.Next() {
			for left := consoleOutput; left > 0; {
				n := chain.take(c.buf[:min(left, len(c.buf))])
				if n == 0 {
					break
				}
				c.output.Write(c.buf[:n])
				left -= n
			}
			q.Done(chain, 0)
		}
	}
}

// give fills the guest's buffers with what was typed.
func (c *Console) give(q *Queue) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.input) > 0 {
		chain := q.Next()
		if chain == nil {
			return
		}
		if chain.writeLen == 0 {
			q.Fail(errors.New("console: a receive buffer that cannot be written"))
			return
		}
		n := scatter(chain.toWrite(), 0, c.input)
		c.input = c.input[:copy(c.input, c.input[n:])]
		c.space.Broadcast()
		q.Done(chain, uint32(n))
	}
}
