package virtio_test

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// TestTap sends and receives through a real tap: a small frame and one that
// TCP would have segmented. A guest that takes no large ones gets the
// segments.
func TestTap(t *testing.T) {
	needRoot(t)
	const mtu = 1500
	tap, err := virtiotest.NewTap(mtu)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.Close() })
	dev, err := virtio.NewNet(virtio.NetConfig{FD: tap.FD})
	if err != nil {
		t.Fatal(err)
	}
	n := &nic{Driver: newDriver(t, dev, 4<<20), t: t, dev: dev}
	const large = 30054 // 20 segments and a bit, of 1460 bytes each
	for _, c := range []struct {
		name    string
		drop    uint64
		packets int
	}{
		{"offloads", 0, 1},
		{"none", fGuestCsum | fGuestTSO | fGuestECN, 21},
		{"one buffer each", fMrgRxbuf, 1},
	} {
		n.init(n.Offered() &^ c.drop)
		size := 2048
		if c.drop == fMrgRxbuf {
			size = 66000
		}
		bufs := n.rxBuffers(40, size)
		want := virtiotest.Frame(10, large, mtu)
		if _, err := unix.Write(tap.Host, want); err != nil {
			t.Fatal(err)
		}
		total := 0
		for i := range c.packets {
			p, _, err := n.receive(bufs)
			if err != nil {
				t.Fatalf("%s: packet %d: %v", c.name, i, err)
			}
			total += len(p) - 12 - 54
			if c.packets == 1 && (p[1] != 1 || !bytes.Equal(p[12+54:], want[10+54:])) {
				t.Errorf("%s: header %x, %d bytes", c.name, p[:12], len(p))
			}
			if c.packets > 1 && (p[0] != 0 || p[1] != 0) {
				t.Errorf("%s: a header %x for a guest without offloads", c.name, p[:12])
			}
		}
		if total != large-54 {
			t.Errorf("%s: %d bytes of data, want %d", c.name, total, large-54)
		}
	}
	n.init(n.Offered())
	sendTap(t, n, tap, virtiotest.Frame(12, 60, mtu))
	sendTap(t, n, tap, virtiotest.Frame(12, large, mtu))
}

// sendTap sends a frame and looks for it on the host's side.
func sendTap(t *testing.T, n *nic, tap *virtiotest.Tap, frame []byte) {
	t.Helper()
	sa, err := unix.Getsockname(tap.Host)
	if err != nil {
		t.Fatal(err)
	}
	all := sa.(*unix.SockaddrLinklayer)
	all.Protocol = 0x0300 // ETH_P_ALL, in network byte order
	if err := unix.Bind(tap.Host, all); err != nil {
		t.Fatal(err)
	}
	unix.SetsockoptTimeval(tap.Host, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	addr, p := n.Alloc(len(frame))
	copy(p, frame)
	n.tx.Add(virtiotest.Buf{Addr: addr, Len: len(frame)})
	n.tx.Kick()
	next(t, n.tx)
	got := make([]byte, 70000)
	for {
		k, err := unix.Read(tap.Host, got)
		if err == unix.EINTR { // as with any read that has a limit
			continue
		}
		if err != nil {
			t.Fatalf("a frame of %d bytes did not arrive: %v", len(frame)-12, err)
		}
		if bytes.Equal(got[10:k], frame[12:]) {
			return
		}
	}
}
