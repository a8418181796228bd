package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// Features of 5.1.3.
const (
	fGuestCsum = 1 << 1
	fMTU       = 1 << 3
	fGuestTSO  = 1<<7 | 1<<8
	fGuestECN  = 1 << 9
	fMrgRxbuf  = 1 << 15
)

// nic is a network device with a socket in the place of a tap, whose other
// end is wire.
type nic struct {
	*virtiotest.Driver
	t      testing.TB
	dev    *virtio.Net
	wire   int
	rx, tx *virtiotest.Queue
}

func newNIC(t testing.TB, cfg virtio.NetConfig) *nic {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		t.Cleanup(func() { unix.Close(fd) })
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	cfg.FD = fds[0]
	n := &nic{t: t, wire: fds[1]}
	if n.dev, err = virtio.NewNet(cfg); err != nil {
		t.Fatal(err)
	}
	n.Driver = newDriver(t, n.dev, 4<<20)
	return n
}

func (n *nic) init(features uint64) {
	n.t.Helper()
	qs := initQueues(n.t, n.Driver, features, 256)
	n.rx, n.tx = qs[0], qs[1]
}

// packet is a header and n bytes that differ from packet to packet.
func packet(seed uint64, n int) []byte {
	p := make([]byte, 12+n)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range p[12:] {
		p[12+i] = byte(rnd.Uint32())
	}
	return p
}

func (n *nic) send(p []byte) {
	n.t.Helper()
	if _, err := unix.Write(n.wire, p); err != nil {
		n.t.Fatal(err)
	}
}

// wireRead reads what the guest sent. A read that has a limit is not begun
// again when a signal ends it, and the runtime sends signals of its own.
func (n *nic) wireRead(p []byte) (k int, err error) {
	for err = unix.EINTR; err == unix.EINTR; {
		k, err = unix.Read(n.wire, p)
	}
	return k, err
}

func TestNetTransmit(t *testing.T) {
	n := newNIC(t, virtio.NetConfig{})
	n.init(n.Offered())
	addr, p := n.Alloc(70000)
	got := make([]byte, 80000)
	for i, size := range []int{0, 1, 60, 1514, 9000, 65589} {
		want := packet(uint64(i), size)
		copy(p, want)
		n.tx.Add(virtiotest.Buf{Addr: addr, Len: 7}, virtiotest.Buf{Addr: addr + 7, Len: len(want) - 7})
		n.tx.Kick()
		if u := next(t, n.tx); u.Len != 0 {
			t.Errorf("%d bytes: %d used, want 0", size, u.Len)
		}
		k, err := n.wireRead(got)
		if err != nil || !bytes.Equal(got[:k], want) {
			t.Errorf("%d bytes: got %d, %v", size, k-12, err)
		}
	}
	// too large is dropped, and what follows is sent
	n.tx.Add(virtiotest.Buf{Addr: addr, Len: 65589 + 13})
	n.tx.Add(virtiotest.Buf{Addr: addr, Len: 100})
	n.tx.Kick()
	if k, err := n.wireRead(got); k != 100 || err != nil {
		t.Errorf("behind a packet that is too large: %d bytes, %v", k, err)
	}
}

// rxBuffers makes buffers available, each in two pieces, and is their memory.
func (n *nic) rxBuffers(count, size int) map[uint16][]byte {
	bufs := map[uint16][]byte{}
	for range count {
		addr, p := n.Alloc(size)
		head := n.rx.Add(virtiotest.Buf{Addr: addr, Len: 10, Write: true}, virtiotest.Buf{Addr: addr + 10, Len: size - 10, Write: true})
		bufs[head] = p
	}
	n.rx.Kick()
	return bufs
}

// receive takes a packet from the ring, over as many buffers as its header
// says, and puts the buffers back in other memory.
func (n *nic) receive(bufs map[uint16][]byte) (p []byte, buffers int, err error) {
	for left := 1; left > 0; left-- {
		u, err := n.rx.Next()
		if err != nil {
			return nil, 0, err
		}
		b := bufs[u.Head]
		if p == nil {
			left = int(binary.LittleEndian.Uint16(b[10:]))
			buffers = left
		}
		if left > 1 && int(u.Len) != len(b) {
			return nil, 0, fmt.Errorf("a buffer that is not the last has %d of %d bytes", u.Len, len(b))
		}
		p = append(p, b[:u.Len]...)
		delete(bufs, u.Head)
	}
	clear(p[10:12])
	return p, buffers, nil
}

func TestNetReceive(t *testing.T) {
	for _, c := range []struct {
		name     string
		drop     uint64
		buffer   int
		sizes    []int
		wantBufs func(size int) int
	}{
		{"mergeable", 0, 1536, []int{60, 1514, 1524, 1525, 9000, 65535, 14}, func(n int) int { return (n + 12 + 1535) / 1536 }},
		{"mergeable, small", 0, 64, []int{14, 52, 53, 400, 1514}, func(n int) int { return (n + 12 + 63) / 64 }},
		{"large", fMrgRxbuf, 65601, []int{60, 1514, 65589}, func(int) int { return 1 }},
		{"plain", fMrgRxbuf | fGuestTSO | fGuestECN, 1530, []int{60, 1514, 14}, func(int) int { return 1 }},
		{"shortest", fMrgRxbuf | fGuestTSO | fGuestECN | virtiotest.EventIdx, 1526, []int{60, 1514, 14}, func(int) int { return 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNIC(t, virtio.NetConfig{})
			n.init(n.Offered() &^ c.drop)
			bufs := map[uint16][]byte{}
			for i, size := range c.sizes {
				for h, b := range n.rxBuffers(c.wantBufs(size), c.buffer) {
					bufs[h] = b
				}
				want := packet(uint64(i), size)
				n.send(want)
				got, count, err := n.receive(bufs)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) || count != c.wantBufs(size) {
					t.Errorf("%d bytes: got %d in %d buffers, want %d", size, len(got)-12, count, c.wantBufs(size))
				}
			}
		})
	}
}

// TestNetDrops sends what the guest has no room for, and then what it has.
func TestNetDrops(t *testing.T) {
	n := newNIC(t, virtio.NetConfig{})
	n.init(n.Offered())
	bufs := n.rxBuffers(2, 1536)
	n.send(packet(1, 4000))
	want := packet(2, 2000)
	n.send(want)
	got, count, err := n.receive(bufs)
	if err != nil || count != 2 || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes in %d buffers, %v", len(got), count, err)
	}
}

// TestNetFlags sees that a guest that knows nothing of checksums gets no
// flags (5.1.6.4.1).
func TestNetFlags(t *testing.T) {
	for _, c := range []struct {
		drop uint64
		want byte
	}{{0, 2}, {fGuestCsum | fGuestTSO | fGuestECN, 0}} {
		n := newNIC(t, virtio.NetConfig{})
		n.init(n.Offered() &^ c.drop)
		bufs := n.rxBuffers(1, 2048)
		p := packet(1, 100)
		p[0] = 2 // DATA_VALID
		n.send(p)
		got, _, err := n.receive(bufs)
		if err != nil || got[0] != c.want {
			t.Errorf("without %#x: flags %v, %v; want %d", c.drop, got[:1], err, c.want)
		}
	}
}

func TestNetConfig(t *testing.T) {
	n := newNIC(t, virtio.NetConfig{MAC: [6]byte{2, 3, 4, 5, 6, 7}, MTU: 9000})
	n.init(n.Offered())
	if n.Offered()&fMTU == 0 {
		t.Error("the MTU is not offered")
	}
	var p [12]byte
	n.Dev.Read(virtiotest.Config, p[:])
	if want := [12]byte{2, 3, 4, 5, 6, 7, 1, 0, 1, 0, 9000 & 0xff, 9000 >> 8}; p != want {
		t.Errorf("configuration %x, want %x", p, want)
	}
	n.dev.SetLink(true)
	if n.Load(virtiotest.InterruptStatus) != 0 {
		t.Error("an interrupt for a link that is up still")
	}
	n.dev.SetLink(false)
	n.Dev.Read(virtiotest.Config, p[:])
	if p[6] != 0 || n.Load(virtiotest.InterruptStatus)&2 == 0 {
		t.Errorf("link down: status %d, interrupts %#x", p[6], n.Load(virtiotest.InterruptStatus))
	}
	bufs := n.rxBuffers(64, 2048)
	n.send(packet(1, 100))
	addr, _ := n.Alloc(100)
	n.tx.Add(virtiotest.Buf{Addr: addr, Len: 100})
	n.tx.Kick()
	next(t, n.tx)
	for deadline := time.Now().Add(time.Minute); pending(t, n.wire); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("without a link, packets are not taken off the wire")
		}
	}
	n.Dev.Pause() // and what was taken is dropped
	n.Dev.Resume()
	n.dev.SetLink(true)
	want := packet(2, 100)
	n.send(want)
	if got, _, err := n.receive(bufs); err != nil || !bytes.Equal(got, want) {
		t.Errorf("with the link again: %d bytes, %v", len(got), err)
	}
	unix.SetNonblock(n.wire, true)
	if k, err := n.wireRead(p[:]); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("sent without a link: %d bytes, %v", k, err)
	}
}

// pending is whether the other side has not yet taken what was sent.
func pending(t *testing.T, fd int) bool {
	t.Helper()
	n, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

func TestNetBadBuffers(t *testing.T) {
	n := newNIC(t, virtio.NetConfig{})
	for name, bad := range map[string]func(){
		"readable receive buffer": func() { n.rx.Add(virtiotest.Buf{Addr: 0x8000, Len: 2000}); n.rx.Kick() },
		"short receive buffer":    func() { n.rx.Add(virtiotest.Buf{Addr: 0x8000, Len: 11, Write: true}); n.rx.Kick() },
		"short packet":            func() { n.tx.Add(virtiotest.Buf{Addr: 0x8000, Len: 11}); n.tx.Kick() },
		"writable packet":         func() { n.tx.Add(virtiotest.Buf{Addr: 0x8000, Len: 100, Write: true}); n.tx.Kick() },
	} {
		n.init(n.Offered())
		bad()
		t.Logf("%s: %v", name, needsReset(t, n.Driver))
	}
}

func TestNewNetRefuses(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	for name, cfg := range map[string]virtio.NetConfig{
		"no socket": {FD: int(null.Fd())},
		"a stream":  {FD: fds[0]},
		"closed":    {FD: -1},
		"tiny MTU":  {FD: fds[0], MTU: 67},
	} {
		if _, err := virtio.NewNet(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
