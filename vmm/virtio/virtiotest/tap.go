package virtiotest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
)

// Tap is a tap in a network namespace of its own, and a packet socket on the
// host's side of it. Both see a virtio_net_hdr before each frame, the tap one
// of 12 bytes once a device has it, the socket one of 10.
type Tap struct {
	FD   int // non-blocking, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
	Host int
}

// NewTap makes a tap with the given MTU. It needs root's rights.
func NewTap(mtu int) (*Tap, error) {
	type result struct {
		t   *Tap
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, in its namespace
		t, err := newTap(mtu)
		made <- result{t, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, fmt.Errorf("virtiotest: tap: %w", r.err)
	}
	return r.t, nil
}

func newTap(mtu int) (*Tap, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	// A new link would announce itself. Where there is no IPv6 there is no file.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	t := &Tap{FD: -1, Host: -1}
	var err error
	if t.FD, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	if err := t.setUp(mtu); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Tap) setUp(mtu int) error {
	ifr, err := unix.NewIfreq("tap0")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(t.FD, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	if t.Host, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	ifr.SetUint32(uint32(mtu))
	if err := unix.IoctlIfreq(t.Host, unix.SIOCSIFMTU, ifr); err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(t.Host, unix.SIOCSIFFLAGS, ifr); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(t.Host, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return err
	}
	iface, err := net.InterfaceByName("tap0")
	if err != nil {
		return err
	}
	// Protocol 0: it sends, and receives nothing until a test binds it again.
	return unix.Bind(t.Host, &unix.SockaddrLinklayer{Ifindex: iface.Index})
}

// Close removes the tap.
func (t *Tap) Close() error {
	var errs []error
	for _, fd := range []int{t.FD, t.Host} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// Frame is a virtio_net_hdr of hdr bytes and a frame of n bytes: TCP over IPv4,
// to be segmented if it is longer than mtu allows.
func Frame(hdr, n, mtu int) []byte {
	p := make([]byte, hdr+n)
	f := p[hdr:]
	copy(f, "\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02\x08\x00\x45\x00")
	binary.BigEndian.PutUint16(f[16:], uint16(n-14))
	copy(f[22:], "\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02") // TTL, TCP, 10.0.0.1 to 10.0.0.2
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum+sum>>16))
	f[46] = 5 << 4 // the TCP header's length
	f[47] = 0x10   // ACK
	if n > mtu+14 {
		p[0], p[1] = 1, 1 // NEEDS_CSUM, GSO_TCPV4
		le := binary.LittleEndian
		le.PutUint16(p[2:], 54)
		le.PutUint16(p[4:], uint16(mtu-40))
		le.PutUint16(p[6:], 34)
		le.PutUint16(p[8:], 16)
	}
	return p
}

// benchMTU lets a frame of 4 KiB be one packet; a larger one is segmented by
// the kernel, if it must.
const benchMTU = 9000

// NewNetBench makes a Bench of a network device on a tap, with frames of size
// bytes; of 64 KiB, one less, since the kernel segments what is not less.
// Receiving, Prepare makes
// the frames wait in the tap before a batch of either kind. It needs root's
// rights.
func NewNetBench(size int, receive bool) (*Bench, error) {
	tap, err := NewTap(benchMTU)
	if err != nil {
		return nil, err
	}
	b := &Bench{Requests: Batch, closers: []func() error{tap.Close}}
	if err := b.net(tap, min(size, 65535), receive); err != nil {
		b.Close()
		return nil, fmt.Errorf("virtiotest: %w", err)
	}
	return b, nil
}

func (b *Bench) net(tap *Tap, size int, receive bool) error {
	dev, err := virtio.NewNet(virtio.NetConfig{FD: tap.FD})
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
	var bufs []Buf
	var data [][]byte
	for range 2 * Batch {
		addr, p := d.Alloc(12 + size)
		copy(p, Frame(12, size, benchMTU))
		bufs = append(bufs, Buf{addr, len(p), receive})
		data = append(data, p)
	}
	if receive {
		b.receiving(tap, qs[0], bufs, data)
	} else {
		b.sending(tap, qs[1], bufs, data)
	}
	return nil
}

// ahead makes the first batch available, and then each time another one. As
// a driver with enough to do, it is a batch ahead of what it waits for.
func (q *Queue) ahead(bufs []Buf) func() {
	now, begun := 0, false
	add := func() {
		for _, buf := range bufs[now : now+Batch] {
			q.Add(buf)
		}
		now = (now + Batch) % len(bufs)
		q.Kick()
	}
	return func() {
		if !begun {
			add()
			begun = true
		}
		add()
	}
}

func (b *Bench) sending(tap *Tap, q *Queue, bufs []Buf, data [][]byte) {
	add := q.ahead(bufs)
	b.Device = func() error {
		add()
		return q.takeBatch(0)
	}
	now := 0
	b.Bare = func() error {
		for range Batch {
			now = (now + 1) % len(data)
			if n, err := unix.Write(tap.FD, data[now]); n < len(data[now]) {
				return fmt.Errorf("tap write: %d, %w", n, err)
			}
		}
		return nil
	}
}

// tapBatches are so many batches as wait in a tap at once, whose queue has
// room for 500 frames at least.
const tapBatches = 8

// receiving, the driver gives exactly as many buffers as there are frames, so
// that the device has none while they are prepared.
func (b *Bench) receiving(tap *Tap, q *Queue, bufs []Buf, data [][]byte) {
	b.Requests = tapBatches * Batch
	frame := Frame(10, len(data[0])-12, benchMTU)
	b.Prepare = func() error {
		for range b.Requests {
			if _, err := unix.Write(tap.Host, frame); err != nil {
				return fmt.Errorf("packet socket: %w", err)
			}
		}
		return nil
	}
	b.Device = func() error {
		add := q.ahead(bufs)
		for range tapBatches - 1 {
			add()
			if err := q.takeBatch(len(data[0])); err != nil {
				return err
			}
		}
		return q.takeBatch(len(data[0]))
	}
	now := 0
	b.Bare = func() error {
		for range b.Requests {
			now = (now + 1) % len(data)
			if n, err := unix.Read(tap.FD, data[now]); n < len(data[now]) {
				return fmt.Errorf("tap read: %d of %d, %w", n, len(data[now]), err)
			}
		}
		return nil
	}
}

// takeBatch waits for a batch and takes it off the ring: of each chain, n bytes
// were written.
func (q *Queue) takeBatch(n int) error {
	if err := q.WaitN(Batch); err != nil {
		return err
	}
	for range Batch {
		if u, _ := q.Poll(); int(u.Len) != n {
			return fmt.Errorf("%d bytes used, want %d", u.Len, n)
		}
	}
	return nil
}
