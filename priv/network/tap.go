package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// AnyTap is the name of the next free tap.
const AnyTap = "tap"

// tapFlags are those of a tap for virtio: the header says what is left to
// compute of a checksum, and how to cut a large segment.
const tapFlags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// Tap opens the tap of a NIC: see ctl.Network.
func (n *Network) Tap(nic ctl.Link, name string) (f *os.File, ifname string, err error) {
	err = n.do("tap", nic, func() error {
		f, ifname, err = n.tap(nic, name)
		return err
	})
	return f, ifname, err
}

func (n *Network) tap(nic ctl.Link, name string) (*os.File, string, error) {
	if err := n.vacant(nic); err != nil {
		return nil, "", err
	}
	if name == AnyTap {
		return n.makeTap(nic, "tap%d")
	}
	i, err := n.kernel.byName(name)
	switch {
	case err != nil:
		return nil, "", err
	case i == nil:
		return n.makeTap(nic, name)
	case !n.listed(name):
		return nil, "", ctl.Errorf(syscall.EBUSY, "%s is there already, and is not listed with -interface", name)
	}
	return n.takeTap(nic, i)
}

// makeTap makes a tap that goes with the last copy of its file.
func (n *Network) makeTap(nic ctl.Link, pattern string) (_ *os.File, _ string, err error) {
	if err := n.room(false); err != nil {
		return nil, "", err
	}
	f, name, err := openTap(pattern, tapFlags|unix.IFF_TUN_EXCL)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	i, err := n.kernel.byName(name)
	if err == nil && i == nil {
		err = ctl.Errorf(syscall.ENODEV, "%s went away", name)
	}
	if err != nil {
		return nil, "", err
	}
	if err := n.kernel.setMAC(i.Index, highMAC()); err != nil {
		return nil, "", err
	}
	if err := n.kernel.harden(i); err != nil {
		return nil, "", err
	}
	if err := n.forgetNamesakes(name); err != nil {
		return nil, "", err
	}
	return f, name, n.save(nic, &record{ifname: name, index: i.Index, made: true})
}

// highMAC makes a MAC for the host's end of a tap. A bridge that was found may
// have the lowest address of its ports; this is never it.
func highMAC() net.HardwareAddr {
	mac := randomMAC()
	mac[0] = 0xfe
	return mac
}

// forgetNamesakes forgets links whose taps are gone and had this name, so
// that the new one is in none of their groups.
func (n *Network) forgetNamesakes(name string) error {
	for l, r := range n.links {
		if r.ifname != name {
			continue
		}
		if i, err := n.live(r); err != nil || i != nil {
			return err
		}
		if err := n.forget(l); err != nil {
			return err
		}
	}
	return nil
}

// takeTap opens a tap that root made and listed.
func (n *Network) takeTap(nic ctl.Link, i *iface) (*os.File, string, error) {
	tap, ok := i.link.(*netlink.Tuntap)
	if !ok || tap.Mode != netlink.TUNTAP_MODE_TAP {
		return nil, "", ctl.Errorf(syscall.EINVAL, "%s is no tap", i.Name)
	}
	if other, taken := n.holder(i.Index); taken {
		return nil, "", ctl.Errorf(syscall.EBUSY, "%s is the tap of %v", i.Name, other)
	}
	r := foundRecord(i)
	r.flags = uint16(tap.Flags) | unix.IFF_TAP
	if err := n.save(nic, r); err != nil {
		return nil, "", err
	}
	f, _, err := openTap(i.Name, tapFlags|r.flags&unix.IFF_MULTI_QUEUE)
	if err != nil {
		return nil, "", undo(err, func() error { return n.drop(nic) })
	}
	return f, i.Name, nil
}

// foundRecord remembers how an interface was found.
func foundRecord(i *iface) *record {
	return &record{ifname: i.Name, index: i.Index, alias: i.Alias, up: i.up(), number: i.Group}
}

// openTap opens the tap of a name, or the next free one if there is a %d in
// it.
func openTap(name string, flags uint16) (*os.File, string, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", fmt.Errorf("/dev/net/tun: %w (is the module tun loaded?)", err)
	}
	request.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("somebody else has it open: %w", err)
		}
		return nil, "", fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), "tap"), request.Name(), nil
}

// restoreTap gives a tap that was found the flags that it had, if nobody has
// it open: whoever has sets his own.
func restoreTap(r *record) {
	if r.flags == 0 || r.flags == tapFlags {
		return
	}
	if f, _, err := openTap(r.ifname, r.flags); err == nil {
		f.Close()
	}
}
