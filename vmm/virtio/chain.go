package virtio

import "golang.org/x/sys/unix"

// MaxQueueSize bounds the size of a queue here; 2.7 allows 32768. A chain has
// at most that many descriptors.
const MaxQueueSize = 256

// A Chain is a descriptor chain (2.7.5) that was read and checked: slices of
// the guest's memory, first what the device reads, then what it writes.
type Chain struct {
	head     uint16
	store    []unix.Iovec // the memory of iov
	iov      []unix.Iovec // none is empty
	writable int          // the index in iov of the first to write to

	readLen, writeLen uint64 // bytes; both fit 32 bits together
}

// makeChain makes a chain for up to n descriptors, to be used again and again.
func makeChain(n int) Chain { return Chain{store: make([]unix.Iovec, 0, n)} }

func (c *Chain) reset(head uint16) {
	c.head = head
	c.iov = c.store
	c.writable, c.readLen, c.writeLen = 0, 0, 0
}

// toRead is what the device reads and has not taken.
func (c *Chain) toRead() []unix.Iovec { return c.iov[:c.writable] }

// toWrite is what the device writes.
func (c *Chain) toWrite() []unix.Iovec { return c.iov[c.writable:] }

// take copies the next bytes of what the device reads to p, and is how many
// there were.
func (c *Chain) take(p []byte) int {
	total := 0
	for total < len(p) && c.writable > 0 {
		n := copy(p[total:], iovBytes(c.iov[0]))
		total += n
		left := skip(c.iov, uint64(n))
		c.writable -= len(c.iov) - len(left)
		c.iov = left
	}
	c.readLen -= uint64(total)
	return total
}

// takeLast cuts off the last byte of what the device writes, and is that
// byte. There must be one.
func (c *Chain) takeLast() []byte {
	last := &c.iov[len(c.iov)-1]
	p := iovBytes(*last)
	last.Len--
	if last.Len == 0 {
		c.iov = c.iov[:len(c.iov)-1]
	}
	c.writeLen--
	return p[len(p)-1:]
}

// skip is iov without its first n bytes. The element that they end in is
// changed in place. n is at most what iov has.
func skip(iov []unix.Iovec, n uint64) []unix.Iovec {
	for n > 0 && n >= iov[0].Len {
		n -= iov[0].Len
		iov = iov[1:]
	}
	if n > 0 {
		iov[0] = iovSkip(iov[0], n)
	}
	return iov
}

// scatter copies p to iov from the offset off on, as far as iov goes, and is
// how many bytes that were.
func scatter(iov []unix.Iovec, off uint64, p []byte) int {
	total := 0
	for _, v := range iov {
		if off >= v.Len {
			off -= v.Len
			continue
		}
		total += copy(iovBytes(v)[off:], p[total:])
		off = 0
		if total == len(p) {
			break
		}
	}
	return total
}
