// Package console is what a machine prints, in memory that two processes
// share: a ring that the guest process writes and core reads.
//
// The Writer trusts no reader: its memory cannot be resized, and nobody else
// can map it for writing. A reader that is slow or stuck loses what was
// overwritten; it cannot hold the writer up.
//
// The Reader trusts nothing in the memory, since who writes it runs a guest's
// engine. Positions are taken once and clamped, bytes are only copied, and a
// copy that was overtaken by the writer is noticed and cut. A hostile writer
// can make it read nonsense. It cannot make it panic, wait or read elsewhere.
package console

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// The memory is a header page and the ring behind it.
const (
	headerSize = 4096
	ringSize   = 512 << 10
	mapSize    = headerSize + ringSize
)

// The ring is larger than what is kept at least, so that a reader of the
// oldest bytes has time to copy them.
const _ uint = ringSize - 2*ctl.ConsoleSize

// seals are what a Reader insists on: the memory stays as large as it is.
const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// ring is the memory, mapped. In its header are two positions, 64-bit counts
// of the bytes since the launch, in the byte order of the machine:
//
//	0 end    what is before it is there
//	8 claim  what is before claim-ringSize is no longer there, or is just
//	         being overwritten
//
// The writer moves claim, then writes the bytes, then moves end. Who copied
// bytes looks at claim afterwards.
type ring struct{ mem []byte }

func (r ring) end() *atomic.Uint64   { return (*atomic.Uint64)(unsafe.Pointer(&r.mem[0])) }
func (r ring) claim() *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&r.mem[8])) }

// put copies p to where pos is in the ring.
func (r ring) put(pos uint64, p []byte) {
	data := r.mem[headerSize:mapSize]
	n := copy(data[pos%ringSize:], p)
	copy(data, p[n:])
}

// get copies from where pos is in the ring to p, which is not larger than it.
func (r ring) get(p []byte, pos uint64) {
	data := r.mem[headerSize:mapSize]
	n := copy(p, data[pos%ringSize:])
	copy(p[n:], data)
}

func mapRing(fd, prot int) (ring, error) {
	mem, err := unix.Mmap(fd, 0, mapSize, prot, unix.MAP_SHARED)
	if err != nil {
		return ring{}, fmt.Errorf("console: mmap: %w", err)
	}
	return ring{mem}, nil
}
