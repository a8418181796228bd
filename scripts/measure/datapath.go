package main

import (
	"fmt"
	"runtime"
	"time"

	"vmfs/vmm/virtio/virtiotest"
)

// The lines of a device that is driven from host memory, a batch ahead, against
// the system calls that move as much between the same memory and the same file:
// rates, and by the size of a request the least that is aimed at.
var rateAims = map[int]float64{4 << 10: 0.6, 64 << 10: 0.9}

func (b *bench) blkRead4K() (line, error)   { return b.blk("read", "pread", 4<<10) }
func (b *bench) blkRead64K() (line, error)  { return b.blk("read", "pread", 64<<10) }
func (b *bench) blkWrite4K() (line, error)  { return b.blk("write", "pwrite", 4<<10) }
func (b *bench) blkWrite64K() (line, error) { return b.blk("write", "pwrite", 64<<10) }

func (b *bench) netSend4K() (line, error)     { return b.net("send", "write", 4<<10) }
func (b *bench) netSend64K() (line, error)    { return b.net("send", "write", 64<<10) }
func (b *bench) netReceive4K() (line, error)  { return b.net("receive", "read", 4<<10) }
func (b *bench) netReceive64K() (line, error) { return b.net("receive", "read", 64<<10) }

func (b *bench) blk(what, call string, size int) (line, error) {
	d, err := virtiotest.NewBlkBench(b.diskDir, size, what == "write")
	if err != nil {
		return line{}, err
	}
	l, err := b.datapath(d, size)
	l.what = fmt.Sprintf("blk %s of %d KiB, to %s", what, size>>10, call)
	return l, err
}

func (b *bench) net(what, call string, size int) (line, error) {
	d, err := virtiotest.NewNetBench(size, what == "receive")
	if err != nil {
		return line{}, err
	}
	l, err := b.datapath(d, size)
	l.what = fmt.Sprintf("net %s of %d KiB, to %s of a tap", what, size>>10, call)
	return l, err
}

// datapath holds the two halves of d against each other, and closes it.
func (b *bench) datapath(d *virtiotest.Bench, size int) (line, error) {
	defer d.Close()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(measuredProcs))
	l, err := compare(b.pairs, requests(d, d.Device), requests(d, d.Bare))
	if err != nil {
		return l, err
	}
	return l.asRate(size, rateAims[size]), nil
}

// measuredProcs is enough that neither the device nor its driver waits for the
// other's (package virtio).
const measuredProcs = 4

// sample is how long one half is measured at a time: several slices of the
// host's scheduler.
const sample = 30 * time.Millisecond

// requests gives the time of one request, of batches.
func requests(d *virtiotest.Bench, batch func() error) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		runtime.LockOSThread() // as a CPU's is
		defer runtime.UnlockOSThread()
		var took time.Duration
		n := 0
		for ; took < sample; n += d.Requests {
			if d.Prepare != nil {
				if err := d.Prepare(); err != nil {
					return 0, err
				}
			}
			begin := time.Now()
			if err := batch(); err != nil {
				return 0, err
			}
			took += time.Since(begin)
		}
		return took / time.Duration(n), nil
	}
}
