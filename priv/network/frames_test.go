package network

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// station is the guest's end of a tap.
type station struct {
	t   *testing.T
	tap *os.File
	mac net.HardwareAddr
}

const (
	vnetHeader = 10 // bytes before each frame
	testType   = 0x88b5
)

// stations makes NICs on a switch, up.
func stations(t *testing.T, n *Network, sw ctl.Link, ports ...ctl.Port) []station {
	t.Helper()
	_, err := n.Bridge(sw, "")
	ok(t, err)
	ok(t, n.SetUp(sw, true))
	var all []station
	for i, p := range ports {
		nic := ctl.NICLink(uint32(i+1), 0)
		f, _, err := n.Tap(nic, "tap")
		ok(t, err)
		t.Cleanup(func() { f.Close() })
		p.MAC = net.HardwareAddr{2, 0, 0, 0, 0, byte(i + 1)}
		ok(t, n.Attach(nic, sw, p))
		ok(t, n.SetUp(nic, true))
		all = append(all, station{t, f, p.MAC})
	}
	return all
}

func frame(to, from net.HardwareAddr, kind uint16, payload ...byte) []byte {
	b := append(make([]byte, vnetHeader), to...)
	b = append(b, from...)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, payload...)
	return append(b, make([]byte, max(0, 60+vnetHeader-len(b)))...)
}

func (s station) send(to, from net.HardwareAddr, payload ...byte) {
	s.t.Helper()
	if _, err := s.tap.Write(frame(to, from, testType, payload...)); err != nil {
		s.t.Fatal(err)
	}
}

// hears waits for a frame with a payload.
func (s station) hears(payload ...byte) bool { return s.hearsWithin(30*time.Second, payload) }

// heard reports whether one comes that was sent: there is no wire on which it
// could be for long.
func (s station) heard(payload ...byte) bool { return s.hearsWithin(200*time.Millisecond, payload) }

// hearsWithin passes other frames over.
func (s station) hearsWithin(limit time.Duration, payload []byte) bool {
	s.t.Helper()
	end := time.Now().Add(limit)
	b := make([]byte, 2048)
	for {
		left := time.Until(end).Milliseconds()
		if left <= 0 {
			return false
		}
		switch n, err := unix.Poll([]unix.PollFd{{Fd: int32(s.tap.Fd()), Events: unix.POLLIN}}, int(left)); {
		case err == unix.EINTR: // the runtime sends signals of its own
			continue
		case err != nil:
			s.t.Fatal(err)
		case n == 0:
			return false
		}
		n, err := s.tap.Read(b)
		if err != nil {
			s.t.Fatal(err)
		}
		if f := b[vnetHeader:n]; len(f) >= 14+len(payload) && binary.BigEndian.Uint16(f[12:]) == testType && bytes.Equal(f[14:14+len(payload)], payload) {
			return true
		}
	}
}

func TestLockedAndIsolated(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	s := stations(t, n, one, ctl.Port{Locked: true}, ctl.Port{}, ctl.Port{Isolated: true}, ctl.Port{Isolated: true})
	locked, free, a, b := s[0], s[1], s[2], s[3]
	other := net.HardwareAddr{2, 0, 0, 0, 9, 9}

	locked.send(free.mac, locked.mac, 1)
	if !free.hears(1) {
		t.Error("a locked port cannot send from its own address")
	}
	locked.send(free.mac, other, 2)
	if free.heard(2) {
		t.Error("a locked port sent from another address")
	}
	// An address that the bridge knows from before.
	free.send(locked.mac, other, 3)
	if !locked.hears(3) {
		t.Error("a free port cannot send")
	}
	locked.send(free.mac, other, 4)
	locked.send(free.mac, free.mac, 5)
	if free.heard(4) || free.heard(5) {
		t.Error("a locked port sent from an address that the bridge had learned")
	}
	// Another that says it is the locked one does not cut it off.
	free.send(b.mac, locked.mac, 6)
	free.send(locked.mac, free.mac, 7)
	if !locked.hears(7) {
		t.Error("what is for the locked port went elsewhere")
	}
	locked.send(free.mac, locked.mac, 8)
	if !free.hears(8) {
		t.Error("the locked port was cut off by who used its address")
	}
	a.send(b.mac, a.mac, 9)
	if b.heard(9) {
		t.Error("isolated ports reach each other")
	}
	a.send(free.mac, a.mac, 10)
	if !free.hears(10) {
		t.Error("an isolated port does not reach one that is not")
	}
	for i := range s {
		ok(t, n.Release(ctl.NICLink(uint32(i+1), 0)))
	}
	ok(t, n.Release(one))
	same(t, before, dir)
}

// packet is what listen sees, from the network header on.
func ipv4(proto byte, fragment uint16, port uint16) []byte {
	b := make([]byte, 32)
	b[0], b[8], b[9] = 0x46, 64, proto // with an option, so that the header's length counts
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[6:], fragment)
	binary.BigEndian.PutUint16(b[24+2:], port)
	return b
}

func ipv6(next byte, first byte, port uint16) []byte {
	b := make([]byte, 48)
	b[0], b[6] = 0x60, next
	binary.BigEndian.PutUint16(b[42:], port)
	if next == unix.IPPROTO_ICMPV6 {
		b[40] = first
	}
	return b
}

func TestListen(t *testing.T) {
	if !alone(t) {
		return
	}
	n := open(t, t.TempDir())
	tap, _, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer tap.Close()
	ok(t, n.SetUp(nic0, true))
	f, err := n.Listen(nic0)
	ok(t, err)
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(30 * time.Second))
	all := net.HardwareAddr{255, 255, 255, 255, 255, 255}
	next := append(ipv4(unix.IPPROTO_UDP, 0, 67), "what follows"...) // what did not pass is not before it
	for i, c := range []struct {
		kind   uint16
		packet []byte
		want   bool
	}{
		{unix.ETH_P_IP, ipv4(unix.IPPROTO_UDP, 0, 67), true},
		{unix.ETH_P_IP, ipv4(unix.IPPROTO_UDP, 0x4000, 67), true},
		{unix.ETH_P_IP, ipv4(unix.IPPROTO_UDP, 0x2000, 67), false},
		{unix.ETH_P_IP, ipv4(unix.IPPROTO_UDP, 1, 67), false},
		{unix.ETH_P_IP, ipv4(unix.IPPROTO_UDP, 0, 68), false},
		{unix.ETH_P_IP, ipv4(unix.IPPROTO_TCP, 0, 67), false},
		{unix.ETH_P_IPV6, ipv4(unix.IPPROTO_UDP, 0, 67), false},
		{unix.ETH_P_ARP, ipv4(unix.IPPROTO_UDP, 0, 67), false},
		{unix.ETH_P_IPV6, ipv6(unix.IPPROTO_UDP, 0, 547), true},
		{unix.ETH_P_IPV6, ipv6(unix.IPPROTO_UDP, 0, 546), false},
		{unix.ETH_P_IPV6, ipv6(unix.IPPROTO_ICMPV6, 133, 0), true},
		{unix.ETH_P_IPV6, ipv6(unix.IPPROTO_ICMPV6, 134, 0), false},
		{unix.ETH_P_IPV6, ipv6(unix.IPPROTO_TCP, 133, 547), false},
		{unix.ETH_P_IP, ipv6(unix.IPPROTO_UDP, 0, 547), false},
		{unix.ETH_P_8021Q, append([]byte{0, 5, 8, 0}, ipv4(unix.IPPROTO_UDP, 0, 67)...), false},
		{unix.ETH_P_IP, nil, false},
	} {
		want := [][]byte{next}
		if c.want {
			want = [][]byte{c.packet, next}
		}
		for _, b := range [][]byte{frame(all, mac0, c.kind, c.packet...), frame(all, mac0, unix.ETH_P_IP, next...)} {
			if _, err := tap.Write(b); err != nil {
				t.Fatal(err)
			}
		}
		for _, w := range want {
			b := make([]byte, 2048)
			got, err := f.Read(b)
			if err != nil || !bytes.HasPrefix(b[:got], w) {
				t.Fatalf("case %d, % x: got % x, %v, want % x", i, c.packet, b[:got], err, w)
			}
		}
	}
	if err := unix.SetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != unix.EPERM {
		t.Errorf("taking the filter off: %v", err)
	}
}

// TestListenSends holds what docs/security.md says of whoever has such a
// socket: where it sends is not bound to the link.
func TestListenSends(t *testing.T) {
	if !alone(t) {
		return
	}
	n := open(t, t.TempDir())
	tap, _, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer tap.Close()
	ok(t, n.SetUp(nic0, true))
	f, err := n.Listen(nic0)
	ok(t, err)
	defer f.Close()
	other, name, err := openTap("other%d", tapFlags) // root's, not listed
	ok(t, err)
	defer other.Close()
	run(t, "ip link set up dev "+name)
	i, err := net.InterfaceByName(name)
	ok(t, err)
	const kind = testType&0xff<<8 | testType>>8 // in network order
	to := unix.SockaddrLinklayer{Protocol: kind, Ifindex: i.Index, Halen: 6, Addr: [8]byte{2, 0, 0, 0, 0, 9}}
	ok(t, unix.Sendto(int(f.Fd()), []byte("from elsewhere"), 0, &to))
	for b := make([]byte, 2048); ; {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(other.Fd()), Events: unix.POLLIN}}, 30_000)
		if err == unix.EINTR {
			continue
		}
		if ready != 1 || err != nil {
			t.Fatalf("no frame left by %s (%v): then security.md says too much", name, err)
		}
		got, err := other.Read(b)
		ok(t, err)
		if bytes.Contains(b[:got], []byte("from elsewhere")) {
			return
		}
	}
}
