package virtio_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// rounds is how often something is tried.
func rounds(n int) int {
	if testing.Short() {
		return n / 20
	}
	return n
}

// fill makes as many reads available as there is room for.
func fill(k *disk, addr uint64) {
	for range 16 {
		k.q.Add(virtiotest.Buf{Addr: k.head, Len: 16},
			virtiotest.Buf{Addr: addr, Len: 32 << 10, Write: true},
			virtiotest.Buf{Addr: k.head + 32, Len: 1, Write: true})
	}
	k.q.Kick()
}

// TestReset resets at any moment of requests under way. When the store is
// over, the device writes nothing any more, and starts from nothing.
func TestReset(t *testing.T) {
	k := newDisk(t, 1<<20, virtio.BlkConfig{})
	k.image.WriteAt(bytes.Repeat([]byte{0xaa}, 1<<20), 0)
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range rounds(1000) {
		k.init(k.Offered())
		addr, data := k.Alloc(32 << 10)
		fill(k, addr)
		for range rnd.IntN(2000) {
			k.Load(virtiotest.InterruptStatus)
		}
		ready := rnd.IntN(4) == 0
		if ready {
			k.Store(virtiotest.QueueSel, 0)
			k.Store(virtiotest.QueueReady, 0)
		} else {
			k.Store(virtiotest.Status, 0)
		}
		memory, err := k.RAM.Slice(0, k.RAM.Size())
		if err != nil {
			t.Fatal(err)
		}
		clear(memory)
		interrupts := k.Interrupts.Load()
		time.Sleep(time.Duration(rnd.IntN(100)) * time.Microsecond)
		if data[0] != 0 || !bytes.Equal(memory, make([]byte, len(memory))) {
			t.Fatalf("round %d: memory was written after a reset", i)
		}
		if got := k.Interrupts.Load(); got != interrupts {
			t.Fatalf("round %d: an interrupt after a reset", i)
		}
		if got := k.Load(virtiotest.Status) | k.Load(virtiotest.InterruptStatus); !ready && got != 0 {
			t.Fatalf("round %d: status or interrupts %#x after a reset", i, got)
		}
	}
	k.init(k.Offered())
	addr, data := k.Alloc(512)
	if status, _ := k.do(tIn, 0, virtiotest.Buf{Addr: addr, Len: 512, Write: true}); status != sOK || data[0] != 0xaa {
		t.Errorf("after all resets: status %d, data %#x", status, data[0])
	}
}

// TestPause pauses at any moment of requests under way. No request is half
// done then; all are done after Resume, each once.
func TestPause(t *testing.T) {
	k := newDisk(t, 1<<20, virtio.BlkConfig{})
	k.image.WriteAt(bytes.Repeat([]byte{0xaa}, 1<<20), 0)
	rnd := rand.New(rand.NewPCG(5, 6))
	k.init(k.Offered())
	addr, _ := k.Alloc(32 << 10)
	for i := range rounds(1000) {
		fill(k, addr)
		for range rnd.IntN(2000) {
			k.Load(virtiotest.InterruptStatus)
		}
		k.Dev.Pause()
		memory, err := k.RAM.Slice(0, k.RAM.Size())
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(memory)
		k.Store(virtiotest.QueueNotify, 0)
		time.Sleep(time.Duration(rnd.IntN(100)) * time.Microsecond)
		if !bytes.Equal(memory, before) {
			t.Fatalf("round %d: memory was written in a pause", i)
		}
		k.Dev.Resume()
		for range 16 {
			if u := next(t, k.q); u.Len != 32<<10+1 {
				t.Fatalf("round %d: %d bytes used", i, u.Len)
			}
		}
		if u, ok := k.q.Poll(); ok {
			t.Fatalf("round %d: chain %d is used twice", i, u.Head)
		}
	}
	k.Dev.Pause()
	k.Dev.Pause()
	k.Reset() // the guest cannot, but a host may
	k.Dev.Resume()
	k.init(k.Offered())
	if status, _ := k.do(tFlush, 0); status != sOK {
		t.Errorf("after a reset in a pause: status %d", status)
	}
}

// TestNetPause pauses a device that holds receive buffers: they are taken
// again, and no packet is lost.
func TestNetPause(t *testing.T) {
	n := newNIC(t, virtio.NetConfig{})
	n.init(n.Offered())
	bufs := map[uint16][]byte{}
	for i := range rounds(500) {
		if i%100 == 0 {
			n.init(n.Offered())
			clear(bufs)
		}
		for h, b := range n.rxBuffers(3, 1536) {
			bufs[h] = b
		}
		want := packet(uint64(i), 2000)
		n.send(want)
		n.Dev.Pause()
		n.Dev.Resume()
		got, _, err := n.receive(bufs)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("round %d: %d bytes, %v", i, len(got), err)
		}
	}
}

// TestClose closes with requests under way, and leaves no descriptor and no
// goroutine that writes.
func TestClose(t *testing.T) {
	for range rounds(100) {
		k := newDisk(t, 1<<20, virtio.BlkConfig{Queues: 4})
		fds := []int{k.Dev.NotifyFD(0), k.Dev.NotifyFD(3)}
		addr, _ := k.Alloc(32 << 10)
		fill(k, addr)
		if err := k.Driver.Close(); err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				t.Errorf("descriptor %d is open", fd)
			}
		}
		k.Dev.Close()
		k.Dev.Kick(0)
		k.image.Close()
	}
}

// TestBlkQueues has each of several queues served.
func TestBlkQueues(t *testing.T) {
	k := newDisk(t, 1<<20, virtio.BlkConfig{Queues: 4})
	for i, q := range initQueues(t, k.Driver, k.Offered(), 16) {
		head, p := k.Alloc(64)
		binary.LittleEndian.PutUint32(p, tFlush)
		p[16] = 0xee
		q.Add(virtiotest.Buf{Addr: head, Len: 16}, virtiotest.Buf{Addr: head + 16, Len: 1, Write: true})
		q.Kick()
		if u := next(t, q); u.Len != 1 || p[16] != sOK {
			t.Errorf("queue %d: status %d", i, p[16])
		}
	}
}

// TestRNGRate asks for more than may be given at once.
func TestRNGRate(t *testing.T) {
	d := newDriver(t, virtio.NewRNG(), 1<<20)
	q := initQueues(t, d, ringFeatures, 64)[0]
	addr, _ := d.Alloc(256 << 10)
	begin := time.Now()
	total := 0
	for total < 1<<20+200<<10 {
		q.Add(virtiotest.Buf{Addr: addr, Len: 256 << 10, Write: true})
		q.Kick()
		u := next(t, q)
		if u.Len == 0 || u.Len > 64<<10 {
			t.Fatalf("a request got %d bytes", u.Len)
		}
		total += int(u.Len)
	}
	// 136 KiB after the burst; what is asked for at last may be ahead of time
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("%d bytes in %v", total, took)
	}
}
