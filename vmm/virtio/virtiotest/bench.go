package virtiotest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
)

// Batch is how many requests a measured batch has.
const Batch = 32

// imageSize is the size of the image that is measured, all of it in the page
// cache.
const imageSize = 64 << 20

// A Bench does the same work two ways: by the device in batches, and bare, by
// one system call for each request.
type Bench struct {
	// Device and Bare do Requests requests.
	Device, Bare func() error
	Requests     int
	// Prepare, if it is not nil, comes before each, and is not measured.
	Prepare func() error

	closers []func() error
}

// Close frees what the Bench has.
func (b *Bench) Close() error {
	var errs []error
	for _, c := range b.closers {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// places are scattered over an image; each request goes to another.
type places struct{ size, next int64 }

func (p *places) offset() int64 {
	p.next = (p.next + 4099*p.size) % (imageSize / p.size * p.size)
	return p.next
}

// NewBlkBench makes a Bench of a block device, with an image in the directory
// dir and requests of size bytes.
func NewBlkBench(dir string, size int, write bool) (*Bench, error) {
	f, err := os.CreateTemp(dir, "image")
	if err != nil {
		return nil, err
	}
	b := &Bench{Requests: Batch, closers: []func() error{f.Close}}
	if err := b.blk(f, size, write); err != nil {
		b.Close()
		return nil, fmt.Errorf("virtiotest: %w", err)
	}
	return b, nil
}

func (b *Bench) blk(f *os.File, size int, write bool) error {
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	chunk := make([]byte, 1<<20)
	for off := int64(0); off < imageSize; off += int64(len(chunk)) {
		if _, err := f.WriteAt(chunk, off); err != nil {
			return err
		}
	}
	fd := int(f.Fd())
	dev, err := virtio.NewBlk(virtio.BlkConfig{FD: fd})
	if err != nil {
		return err
	}
	d, err := New(dev, 16<<20)
	if err != nil {
		return err
	}
	b.closers = append([]func() error{d.Close}, b.closers...)
	qs, err := d.Init(d.Offered(), 256)
	if err != nil {
		return err
	}
	bufs := b.blkDevice(d, qs[0], size, write)
	b.blkBare(fd, bufs, write)
	return nil
}

// blkDevice makes the half that goes through the device, and is where the data
// lies. As a driver with enough to do, it makes the next batch available before
// it waits for the last one.
func (b *Bench) blkDevice(d *Driver, q *Queue, size int, write bool) [][]byte {
	var batches [2][Batch]blkRequest
	var bufs [][]byte
	for i := range 2 * Batch {
		r, p := newBlkRequest(d, size, write)
		batches[i/Batch][i%Batch] = r
		bufs = append(bufs, p)
	}
	at := &places{size: int64(size)}
	add := func(batch *[Batch]blkRequest) {
		for i := range batch {
			batch[i].add(q, at.offset())
		}
		q.Kick()
	}
	now, ahead := 0, false
	used := 1
	if !write {
		used += size
	}
	b.Device = func() error {
		if !ahead {
			add(&batches[now])
			ahead = true
		}
		add(&batches[1-now])
		if err := q.takeBatch(used); err != nil {
			return err
		}
		for i := range batches[now] {
			if s := batches[now][i].head[16]; s != 0 {
				return fmt.Errorf("status %d", s)
			}
		}
		now = 1 - now
		return nil
	}
	return bufs
}

// blkRequest is a request that is made again and again.
type blkRequest struct {
	head  []byte
	chain []Buf
}

func newBlkRequest(d *Driver, size int, write bool) (r blkRequest, data []byte) {
	addr, head := d.Alloc(32)
	at, data := d.Alloc(size)
	if write {
		head[0] = 1
	}
	return blkRequest{head, []Buf{{addr, 16, false}, {at, size, !write}, {addr + 16, 1, true}}}, data
}

func (r *blkRequest) add(q *Queue, off int64) {
	binary.LittleEndian.PutUint64(r.head[8:], uint64(off/512))
	r.head[16] = 0xff
	q.Add(r.chain...)
}

// blkBare makes the half without, with the same memory.
func (b *Bench) blkBare(fd int, bufs [][]byte, write bool) {
	size := len(bufs[0])
	call := unix.Pread
	if write {
		call = unix.Pwrite
	}
	at := &places{size: int64(size)}
	now := 0
	b.Bare = func() error {
		for range Batch {
			now = (now + 1) % len(bufs)
			if n, err := call(fd, bufs[now], at.offset()); n < size {
				return fmt.Errorf("%d of %d bytes: %w", n, size, err)
			}
		}
		return nil
	}
}
