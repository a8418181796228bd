package vmm

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// network is a network namespace of the test's own, which ends with it.
type network struct {
	t    *testing.T
	work chan func()
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t, work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this
		made <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Skipf("skipping: no network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.work) })
	return n
}

// do does f in the namespace.
func (n *network) do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

// run runs a line of busybox in the namespace.
func (n *network) run(line string) {
	n.t.Helper()
	n.do(func() {
		if out, err := exec.Command("busybox", strings.Fields(line)...).CombinedOutput(); err != nil {
			n.t.Errorf("%s: %v\n%s", line, err, out)
		}
	})
}

// there says whether the namespace has an interface.
func (n *network) there(name string) (yes bool) {
	n.do(func() { _, err := net.InterfaceByName(name); yes = err == nil })
	return yes
}

// tap makes one, as priv does.
func (n *network) tap(name string, flags uint16) *os.File {
	n.t.Helper()
	var f *os.File
	var err error
	n.do(func() {
		if f, err = os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
			return
		}
		var ifr *unix.Ifreq
		if ifr, err = unix.NewIfreq(name); err == nil {
			ifr.SetUint16(flags)
			err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
		}
	})
	if err != nil {
		n.t.Fatalf("tap %s: %v", name, err)
	}
	n.t.Cleanup(func() { f.Close() })
	return f
}

const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

func testMAC(n int) net.HardwareAddr { return net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd1, 0, byte(n)} }

// A guest reaches the host through its tap, with its address and its MAC; the
// tap is the guest's alone and goes with it.
func TestNIC(t *testing.T) {
	needHost(t)
	n := newNetwork(t)
	tap := n.tap("tap0", tapFlags)
	n.run("ip addr add 192.0.2.1/24 dev tap0")
	n.run("ip link set tap0 up")
	_, g, s := up(t, func(l *ctl.Launch) {
		says("net=192.0.2.2/24")(l)
		l.NICs = []ctl.LaunchNIC{{N: 3, MAC: testMAC(3), Tap: tap}}
	})
	tap.Close()
	typed(t, g, "ping -c 3 -w 20 192.0.2.1; ip link show eth0; readlink -f /sys/class/net/eth0/device/..")
	s.expect(" 0% packet loss", bootTime)
	s.expect("fe:e1:bb:d1:00:03", bootTime)
	s.expect(fmt.Sprintf("0000:00:%02x.0", 15+3), bootTime)
	n.run("ping -c 1 -w 20 192.0.2.2")
	if err := g.Kill(t.Context(), "test", "kill", false); err != nil {
		t.Fatal(err)
	}
	awaitState(t, g, "ended", soon)
	for end := time.Now().Add(soon); n.there("tap0"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the tap is still there after its guest")
		}
	}
}

// A machine that boots from the network tries it first, NIC by NIC, and then
// its disks.
func TestNetBoot(t *testing.T) {
	needHost(t)
	n := newNetwork(t)
	p := spawn(t, "tcg")
	g := p.dial()
	disk := write(t, "disk", append(bootSector('D'), make([]byte, 1<<20)...))
	l := &ctl.Launch{ID: p.id, Generation: 1, Name: "pxe", Accel: "tcg", CPUs: 1, MemoryMiB: 128, Boot: "net"}
	l.Disks = []ctl.LaunchDisk{{N: 0, Images: ctl.Opened{{File: open(t, disk, os.O_RDWR), Format: "raw"}}}}
	l.NICs = []ctl.LaunchNIC{{N: 0, MAC: testMAC(0), Tap: n.tap("tap0", tapFlags)}}
	begin(t, g, l)
	s := &screen{t: t, c: g.Console()}
	s.expect("iPXE", bootTime)
	s.expect(testMAC(0).String(), bootTime)
	s.expect("DDDD", 2*bootTime)
	g.Kill(t.Context(), "test", "kill", false)
}

// What is no tap as QEMU will be told of it is refused, and what was given is
// not given twice.
func TestNICRefused(t *testing.T) {
	var l launch
	null := open(t, os.DevNull, os.O_RDWR)
	for _, words := range [][]string{
		{"-1", "fe:e1:bb:d1:00:01"}, {"16", "fe:e1:bb:d1:00:01"}, {"x", "fe:e1:bb:d1:00:01"},
		{"0", ""}, {"0", "fe:e1:bb:d1:00"}, {"0", "FE:E1:BB:D1:00:01"}, {"0", "fe-e1-bb-d1-00-01"},
		{"0", "00:00:00:00:00:00"}, {"0", "01:00:5e:00:00:01"}, {"0", "fe:e1:bb:d1:00:01:00:01"},
		{"0", "fe:e1:bb:d1:00:01,romfile=/x"}, {"0", "fe:e1:bb:d1:00:01"}, // the last for its file
	} {
		wantErrno(t, fmt.Sprintf("nic %q", words), l.nic(words, null), syscall.EINVAL)
	}
	if os.Getuid() != 0 {
		t.Skip("skipping: only root makes taps")
	}
	n := newNetwork(t)
	words := []string{"0", "fe:e1:bb:d1:00:01"}
	for name, flags := range map[string]uint16{
		"tun":       unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR,
		"no header": unix.IFF_TAP | unix.IFF_NO_PI,
		"queues":    tapFlags | unix.IFF_MULTI_QUEUE,
	} {
		wantErrno(t, name, l.nic(words, n.tap("", flags)), syscall.EINVAL)
	}
	unset := open(t, "/dev/net/tun", os.O_RDWR)
	wantErrno(t, "no interface", l.nic(words, unset), syscall.EINVAL)
	tap := n.tap("", tapFlags)
	if err := l.nic(words, tap); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "a second one", l.nic(words, tap), syscall.EEXIST)
	l.release()
	if err := tap.Close(); err == nil {
		t.Error("release left the tap open")
	}
}
