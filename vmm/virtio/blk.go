package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Feature bits of a block device (5.2.3).
const (
	blkSizeMax     = 1 << 1
	blkSegMax      = 1 << 2
	blkRO          = 1 << 5
	blkBlkSize     = 1 << 6
	blkFlush       = 1 << 9
	blkTopology    = 1 << 10
	blkMQ          = 1 << 12
	blkDiscard     = 1 << 13
	blkWriteZeroes = 1 << 14
)

// Types of requests (5.2.6).
const (
	blkIn            = 0
	blkOut           = 1
	blkDoFlush       = 4
	blkGetID         = 8
	blkDoDiscard     = 11
	blkDoWriteZeroes = 13
)

// What becomes of a request.
const (
	blkOK          = 0
	blkIOErr       = 1
	blkUnsupported = 2
)

// Sizes in bytes.
const (
	sector        = 512
	blkHeader     = 16
	blkSegment    = 16 // of a discard or write zeroes request
	blkIDSize     = 20
	blkConfigSize = 60
)

// blkUnmap is the flag of a segment.
const blkUnmap = 1

// Limits that the configuration tells the driver.
const (
	blkQueueSize      = MaxQueueSize
	blkSegmentBytes   = 1 << 20
	blkSegments       = blkQueueSize - 2 // beside the header and the status
	blkDiscardSectors = 1 << 30 / sector // of one segment
	blkDiscardSegs    = 16
	blkZeroSectors    = 128 << 20 / sector // of the one segment of a request
)

// blkRequestBytes is more than a driver moves that keeps to the limits.
const blkRequestBytes = blkSegmentBytes * blkSegments

const maxBlkQueues = 16

// slowRequest is how long writing may take until the driver hears of what is
// done at once, and not with the batch.
const slowRequest = 50 * time.Microsecond

// BlkConfig is a disk.
type BlkConfig struct {
	// FD is the image, a regular file or a block device, open for reading
	// and, if not ReadOnly, writing, without O_APPEND. It is the caller's, to
	// be closed after the MMIO.
	FD       int
	ReadOnly bool
	// ID is the disk's serial number: up to 20 bytes.
	ID string
	// Queues is how many requests are served at the same time, 1 to 16; 0 is
	// one.
	Queues int
}

// Blk is a block device (5.2) with a raw image. Reads and writes go between
// the image and the guest's memory without a copy of ours. An error of the
// host is VIRTIO_BLK_S_IOERR, and so is what reaches over the end of the
// disk, which no guest makes longer.
//
// A driver that does not accept VIRTIO_BLK_F_FLUSH gets each write on stable
// storage before it is completed, as 5.2.6.2 has it.
type Blk struct {
	cfg        BlkConfig
	host       Host
	capacity   atomic.Uint64 // in sectors
	writeFlags int64         // of pwritev2
	noNowait   atomic.Bool   // the image's file system cannot say that a read would wait
}

// NewBlk makes a block device. It looks at the image, and changes nothing.
func NewBlk(cfg BlkConfig) (*Blk, error) {
	cfg.Queues = max(cfg.Queues, 1)
	if cfg.Queues > maxBlkQueues {
		return nil, fmt.Errorf("blk: %d queues, at most %d", cfg.Queues, maxBlkQueues)
	}
	if len(cfg.ID) > blkIDSize {
		return nil, fmt.Errorf("blk: serial number of %d bytes, at most %d", len(cfg.ID), blkIDSize)
	}
	flags, err := unix.FcntlInt(uintptr(cfg.FD), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("blk: image: %w", err)
	}
	if flags&unix.O_APPEND != 0 {
		return nil, errors.New("blk: image: open with O_APPEND, which writes elsewhere than it is told")
	}
	b := &Blk{cfg: cfg}
	size, err := b.size()
	if err != nil {
		return nil, err
	}
	b.capacity.Store(size)
	return b, nil
}

// size is the image's size now, in whole sectors.
func (b *Blk) size() (uint64, error) {
	n, err := unix.Seek(b.cfg.FD, 0, unix.SEEK_END)
	if err != nil {
		return 0, fmt.Errorf("blk: size of the image: %w", err)
	}
	return uint64(n) / sector, nil
}

// Resize looks how large the image is now, and tells the guest if that is
// news.
func (b *Blk) Resize() error {
	size, err := b.size()
	if err != nil {
		return err
	}
	if b.capacity.Swap(size) != size && b.host != nil {
		b.host.ConfigChanged()
	}
	return nil
}

func (b *Blk) ID() uint32       { return idBlk }
func (b *Blk) Attach(host Host) { b.host = host }

func (b *Blk) Features() uint64 {
	f := uint64(blkSizeMax | blkSegMax | blkBlkSize | blkTopology | blkFlush)
	if b.cfg.ReadOnly {
		f |= blkRO
	} else {
		f |= blkDiscard | blkWriteZeroes
	}
	if b.cfg.Queues > 1 {
		f |= blkMQ
	}
	return f
}

func (b *Blk) QueueSizes() []uint16 {
	sizes := make([]uint16, b.cfg.Queues)
	for i := range sizes {
		sizes[i] = blkQueueSize
	}
	return sizes
}

// ReadConfig is struct virtio_blk_config (5.2.4), with the size that the
// image has now.
func (b *Blk) ReadConfig(off int, p []byte) {
	if off < 8 {
		b.Resize() // if it fails, the size is what it was
	}
	var c [blkConfigSize]byte
	le := binary.LittleEndian
	le.PutUint64(c[0:], b.capacity.Load())
	le.PutUint32(c[8:], blkSegmentBytes)
	le.PutUint32(c[12:], blkSegments)
	le.PutUint32(c[20:], sector) // blk_size
	c[24] = 3                    // physical_block_exp: 4 KiB
	le.PutUint16(c[26:], 8)      // min_io_size, in logical blocks
	le.PutUint16(c[34:], uint16(b.cfg.Queues))
	if !b.cfg.ReadOnly {
		le.PutUint32(c[36:], blkDiscardSectors)
		le.PutUint32(c[40:], blkDiscardSegs)
		le.PutUint32(c[44:], 4096/sector) // discard_sector_alignment
		le.PutUint32(c[48:], blkZeroSectors)
		le.PutUint32(c[52:], 1) // max_write_zeroes_seg
		c[56] = 1               // write_zeroes_may_unmap
	}
	copyFrom(p, c[:], off)
}

// copyFrom copies b from offset off on to p, if there is any of it.
func copyFrom(p, b []byte, off int) {
	if off < len(b) {
		copy(p, b[off:])
	}
}

func (b *Blk) Start(features uint64) error {
	b.writeFlags = 0
	if features&blkFlush == 0 {
		b.writeFlags = unix.RWF_DSYNC
	}
	return nil
}

// Serve handles the requests of a queue, one after another. The driver hears
// of what is done before a request that waits for the host's disk.
func (b *Blk) Serve(_ int, q *Queue) {
	for q.Wait() {
		shown := time.Now()
		for c := q.Next(); c != nil; c = q.Next() {
			n, quick, err := b.request(q, c)
			if err != nil {
				q.Fail(err)
				break
			}
			q.Done(c, n)
			if quick {
				continue
			}
			if now := time.Now(); now.Sub(shown) > slowRequest {
				q.Publish()
				shown = now
			}
		}
	}
}

// request handles one request and is how many bytes from the first on were
// written to the driver's buffers, and whether that cannot have taken long.
// It is an error if there is no header or no place for the status.
func (b *Blk) request(q *Queue, c *Chain) (used uint32, quick bool, err error) {
	var h [blkHeader]byte
	if c.take(h[:]) < len(h) {
		return 0, false, errors.New("blk: a request without a header")
	}
	if c.writeLen == 0 {
		return 0, false, errors.New("blk: a request without a status byte")
	}
	status := c.takeLast()
	room := c.writeLen
	kind, at := binary.LittleEndian.Uint32(h[0:]), binary.LittleEndian.Uint64(h[8:])
	var n uint64
	if kind == blkIn {
		status[0], n, quick = b.read(q, c, at)
	} else {
		status[0], n = b.do(q, c, kind, at)
	}
	if n == room {
		n++ // the status too stands in one piece with what was written
	}
	return uint32(n), quick, nil
}

// read is a read request: first what the host has in memory, and if that is
// not all, the rest when the driver has heard of what is done.
func (b *Blk) read(q *Queue, c *Chain, at uint64) (code byte, n uint64, quick bool) {
	iov := c.toWrite()
	if !b.fits(at, c.writeLen) {
		return blkIOErr, 0, true
	}
	if len(iov) > 0 && !b.noNowait.Load() {
		call := vectoredNow
		if c.writeLen > atOnce {
			call = vectored
		}
		k, err := call(unix.SYS_PREADV2, b.cfg.FD, iov, int64(at*sector), unix.RWF_NOWAIT)
		if errors.Is(err, unix.EOPNOTSUPP) {
			b.noNowait.Store(true)
		}
		if uint64(k) == c.writeLen {
			return blkOK, uint64(k), true
		}
		n = uint64(k)
		iov = skip(iov, n)
		q.Publish()
	}
	code, moved := b.transfer(unix.SYS_PREADV2, iov, c.writeLen-n, at*sector+n, 0)
	return code, n + moved, false
}

// do carries out a request other than a read, and is its status and how many
// bytes of data the driver gets.
func (b *Blk) do(q *Queue, c *Chain, kind uint32, at uint64) (code byte, n uint64) {
	switch kind {
	case blkOut:
		if b.cfg.ReadOnly || !b.fits(at, c.readLen) {
			return blkIOErr, 0
		}
		if b.writeFlags != 0 {
			q.Publish()
		}
		code, _ = b.transfer(unix.SYS_PWRITEV2, c.toRead(), c.readLen, at*sector, b.writeFlags)
		return code, 0
	case blkDoFlush:
		q.Publish()
		return hostStatus(b.sync()), 0
	case blkGetID:
		var id [blkIDSize]byte
		copy(id[:], b.cfg.ID)
		return blkOK, uint64(scatter(c.toWrite(), 0, id[:]))
	case blkDoDiscard, blkDoWriteZeroes:
		if b.cfg.ReadOnly {
			return blkUnsupported, 0
		}
		q.Publish()
		return b.segments(c, kind), 0
	}
	return blkUnsupported, 0
}

func hostStatus(err error) byte {
	if err != nil {
		return blkIOErr
	}
	return blkOK
}

// inside is whether n sectors from at on are all of the disk.
func (b *Blk) inside(at, n uint64) bool {
	have := b.capacity.Load()
	return at <= have && n <= have-at
}

// fits is whether n bytes of data from the sector at on can be one request.
func (b *Blk) fits(at, n uint64) bool {
	return n%sector == 0 && n <= blkRequestBytes && b.inside(at, n/sector)
}

// transfer moves n bytes between iov and the image from off on, and is how
// many were moved.
func (b *Blk) transfer(call uintptr, iov []unix.Iovec, n, off uint64, flags int64) (code byte, moved uint64) {
	for moved < n {
		k, err := vectored(call, b.cfg.FD, iov, int64(off+moved), flags)
		if err != nil || k == 0 {
			return blkIOErr, moved
		}
		moved += uint64(k)
		iov = skip(iov, uint64(k))
	}
	return blkOK, moved
}

// segments is a discard or write zeroes request: each segment is checked when
// its turn comes, and the first that fails ends it.
func (b *Blk) segments(c *Chain, kind uint32) byte {
	most := uint64(blkDiscardSegs)
	if kind == blkDoWriteZeroes {
		most = 1
	}
	n := c.readLen / blkSegment
	if c.readLen%blkSegment != 0 || n == 0 || n > most {
		return blkIOErr
	}
	for range n {
		var s [blkSegment]byte
		c.take(s[:])
		if code := b.segment(kind, s); code != blkOK {
			return code
		}
	}
	return blkOK
}

func (b *Blk) segment(kind uint32, s [blkSegment]byte) byte {
	at := binary.LittleEndian.Uint64(s[0:])
	n := uint64(binary.LittleEndian.Uint32(s[8:]))
	flags := binary.LittleEndian.Uint32(s[12:])
	unmap := flags&blkUnmap != 0
	most := uint64(blkDiscardSectors)
	if kind == blkDoWriteZeroes {
		most = blkZeroSectors
	}
	switch {
	case flags&^blkUnmap != 0 || kind == blkDoDiscard && unmap:
		return blkUnsupported
	case n > most || !b.inside(at, n):
		return blkIOErr
	case n == 0:
		return blkOK
	case kind == blkDoDiscard:
		return hostStatus(b.discard(int64(at*sector), int64(n*sector)))
	}
	return hostStatus(b.zero(int64(at*sector), int64(n*sector), unmap))
}

// sync makes what was written last. The signals by which Go stops goroutines can
// interrupt it and fallocate, on some file systems; they are then called again.
func (b *Blk) sync() error {
	for {
		if err := unix.Fdatasync(b.cfg.FD); err != unix.EINTR {
			return err
		}
	}
}

func (b *Blk) fallocate(mode uint32, at, n int64) error {
	for {
		if err := unix.Fallocate(b.cfg.FD, mode, at, n); err != unix.EINTR {
			return err
		}
	}
}

// punch makes a hole, which reads as zeros.
const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE

// discard gives the host back what it can; where it cannot, the sectors stay
// what they are, which a discard allows.
func (b *Blk) discard(at, n int64) error {
	err := b.fallocate(punch, at, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// zero makes n bytes from at on zero, by a hole if it may be one, and by
// writing where the host's file system knows no better.
func (b *Blk) zero(at, n int64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if unmap {
		mode = punch
	}
	err := b.fallocate(mode, at, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = b.writeZeros(at, n)
	}
	if err == nil && b.writeFlags != 0 {
		err = b.sync()
	}
	return err
}

// zeros is what writeZeros writes, 16 times at once.
var zeros [64 << 10]byte

func (b *Blk) writeZeros(at, n int64) error {
	for n > 0 {
		var store [16]unix.Iovec
		iov := store[:0]
		for left := n; left > 0 && len(iov) < cap(iov); left -= int64(len(zeros)) {
			iov = append(iov, iovec(zeros[:min(left, int64(len(zeros)))]))
		}
		k, err := vectored(unix.SYS_PWRITEV2, b.cfg.FD, iov, at, 0)
		if err != nil {
			return err
		}
		if k == 0 {
			return unix.EIO
		}
		at += int64(k)
		n -= int64(k)
	}
	return nil
}
