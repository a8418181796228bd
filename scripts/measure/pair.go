package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// A peerGuest is a guest with a disk and a network card that runs the program
// inside, behind a tap of this host.
type peerGuest struct {
	n    byte // its network is 10.9.n.0/24, and it is .2
	conn *net.UDPConn
	end  func()
}

// workAtOnce is how many round trips, or reads, a guest does before it is the
// other's turn.
const workAtOnce = 50

// insideTime bounds what a guest does when it is asked.
const insideTime = 2 * time.Minute

// The lines of a disk and a network card, against QEMU's.

func (b *bench) blkGuest() (line, error) {
	l, err := b.besides(func(g *peerGuest) (time.Duration, error) { return g.read(workAtOnce) })
	l.what = "blk random reads of 4 KiB, to microvm"
	return l, err
}

func (b *bench) netGuest() (line, error) {
	l, err := b.besides(func(g *peerGuest) (time.Duration, error) { return g.ping(workAtOnce) })
	l.what = "net ping-pong of 64 bytes, to microvm"
	return l, err
}

// besides runs a guest of each kind at the same time and has them work in
// turn.
func (b *bench) besides(work func(*peerGuest) (time.Duration, error)) (line, error) {
	initrd, err := b.insideInitrd()
	if err != nil {
		return line{}, err
	}
	var guests [2]*peerGuest
	for i, start := range []func(*os.File, *os.File, string, string) (func(), error){b.nativeInside, b.microvmInside} {
		g, err := b.inside(byte(i+1), initrd, start)
		if err != nil {
			return line{}, err
		}
		defer g.end()
		guests[i] = g
	}
	l, err := compare(b.pairs,
		func() (time.Duration, error) { return work(guests[0]) },
		func() (time.Duration, error) { return work(guests[1]) })
	rate := func(d time.Duration) string { return fmt.Sprintf("%.0f /s", 1/d.Seconds()) }
	l.ours, l.peer, l.ratio = rate(l.took[0]), rate(l.took[1]), 1/l.ratio
	l.aim, l.least = 1, true
	return l, err
}

// inside makes the host's side of a guest, starts it and waits until it
// answers.
func (b *bench) inside(n byte, initrd string, start func(tap, disk *os.File, initrd, cmdline string) (func(), error)) (*peerGuest, error) {
	tap, err := openTap(fmt.Sprintf("bench%d", n), fmt.Sprintf("10.9.%d.1/24", n))
	if err != nil {
		return nil, err
	}
	defer tap.Close()
	disk, err := b.image(fmt.Sprintf("image%d", n))
	if err != nil {
		return nil, err
	}
	defer disk.Close()
	end, err := start(tap, disk, initrd, fmt.Sprintf("%s rdinit=/inside ADDR=10.9.%d.2/24", linuxCmdline, n))
	if err != nil {
		return nil, err
	}
	g := &peerGuest{n: n, end: end}
	if g.conn, err = net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(10, 9, n, 2), Port: 7}); err == nil {
		err = g.ready()
	}
	if err != nil {
		end()
		return nil, err
	}
	return g, nil
}

// image is a disk, all of it in the page cache.
func (b *bench) image(name string) (*os.File, error) {
	f, err := os.Create(filepath.Join(b.diskDir, name))
	if err != nil {
		return nil, err
	}
	chunk := make([]byte, 1<<20)
	for range 32 {
		if _, err := f.Write(chunk); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// openTap makes a tap that goes when its last descriptor is closed.
func openTap(name, addr string) (*os.File, error) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, ifr)
	}
	if err == nil {
		err = batch("ip", fmt.Sprintf("addr add %s dev %s\nlink set %[2]s up\n", addr, name))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("tap %s: %w", name, err)
	}
	return f, nil
}

// guestMAC is the network card's.
func guestMAC(n byte) net.HardwareAddr { return net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd1, 9, n} }

func (b *bench) nativeInside(tap, disk *os.File, initrd, cmdline string) (func(), error) {
	t, err := b.newTiny()
	if err != nil {
		return nil, err
	}
	err = t.launchLinux(b.dir+"/vmlinuz", initrd, &ctl.Launch{
		Cmdline: cmdline,
		Disks:   []ctl.LaunchDisk{{Images: ctl.Opened{{File: disk, Format: "raw"}}}},
		NICs:    []ctl.LaunchNIC{{MAC: guestMAC(1), Tap: tap}},
	})
	if err != nil {
		t.end()
		return nil, err
	}
	return t.end, nil
}

func (b *bench) microvmInside(tap, disk *os.File, initrd, cmdline string) (func(), error) {
	args := append(microvmLinux[:len(microvmLinux):len(microvmLinux)],
		"-kernel", b.dir+"/vmlinuz", "-initrd", initrd, "-append", cmdline,
		"-blockdev", "driver=file,node-name=f,filename="+disk.Name(), "-blockdev", "driver=raw,node-name=d,file=f",
		"-device", "virtio-blk-device,drive=d",
		"-netdev", "tap,id=n,fd=3", "-device", "virtio-net-device,netdev=n,mac="+guestMAC(2).String())
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.ExtraFiles = []*os.File{tap}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() { cmd.Process.Kill(); cmd.Wait() }, nil
}

// ready waits until the guest answers.
func (g *peerGuest) ready() error {
	p := make([]byte, 64)
	for end := time.Now().Add(bootTimeout); time.Now().Before(end); {
		g.conn.Write([]byte("e"))
		g.conn.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := g.conn.Read(p); err == nil && n == 1 {
			g.drain()
			return nil
		}
		time.Sleep(100 * time.Millisecond) // a refusal comes at once
	}
	return fmt.Errorf("guest %d does not answer", g.n)
}

// drain takes what comes late of ready's many questions.
func (g *peerGuest) drain() {
	g.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	for p := make([]byte, 64); ; {
		if _, err := g.conn.Read(p); err != nil {
			return
		}
	}
}

// ping is how long one round trip of n takes.
func (g *peerGuest) ping(n int) (time.Duration, error) {
	g.conn.SetReadDeadline(time.Now().Add(insideTime))
	out, in := []byte("e"+strings.Repeat("x", 63)), make([]byte, 128)
	begin := time.Now()
	for range n {
		if _, err := g.conn.Write(out); err != nil {
			return 0, err
		}
		if _, err := g.conn.Read(in); err != nil {
			return 0, err
		}
	}
	return time.Since(begin) / time.Duration(n), nil
}

// read is how long one read of n takes, by the guest's clock.
func (g *peerGuest) read(n int) (time.Duration, error) {
	g.conn.SetReadDeadline(time.Now().Add(insideTime))
	if _, err := g.conn.Write(binary.LittleEndian.AppendUint32([]byte("r"), uint32(n))); err != nil {
		return 0, err
	}
	p := make([]byte, 64)
	if k, err := g.conn.Read(p); err != nil || k != 9 {
		return 0, fmt.Errorf("guest %d: an answer of %d bytes, %v", g.n, k, err)
	}
	return time.Duration(binary.LittleEndian.Uint64(p[1:])) / time.Duration(n), nil
}
