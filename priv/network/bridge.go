package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// nameTries is how many names are tried for a bridge.
const nameTries = 1000

// Bridge makes the bridge of a switch or takes one: see ctl.Network.
func (n *Network) Bridge(sw ctl.Link, ifname string) (name string, err error) {
	err = n.do("bridge", sw, func() error {
		name, err = n.bridge(sw, ifname)
		return err
	})
	return name, err
}

func (n *Network) bridge(sw ctl.Link, ifname string) (string, error) {
	if r := n.links[sw]; r != nil {
		i, err := n.live(r)
		switch {
		case err != nil:
			return "", err
		case i == nil:
			if err := n.forget(sw); err != nil {
				return "", err
			}
		case ifname == "" && r.made || ifname == r.ifname && !r.made:
			return r.ifname, nil
		default:
			return "", ctl.Errorf(syscall.EBUSY, "%s is its bridge already", r.ifname)
		}
	}
	if ifname != "" {
		return n.takeBridge(sw, ifname)
	}
	return n.makeBridge(sw)
}

// takeBridge takes a bridge that root made and listed.
func (n *Network) takeBridge(sw ctl.Link, ifname string) (string, error) {
	i, err := n.lent(ifname)
	switch {
	case err != nil:
		return "", err
	case i.kind != "bridge":
		return "", ctl.Errorf(syscall.EINVAL, "%s is no bridge", ifname)
	}
	if other, taken := n.holder(i.Index); taken {
		return "", ctl.Errorf(syscall.EBUSY, "%s belongs to %v", ifname, other)
	}
	if err := n.save(sw, foundRecord(i)); err != nil {
		return "", err
	}
	// Without a port it would take the address of the first that comes, and
	// none when that goes.
	used, err := n.kernel.hasPorts(i.Index)
	if err == nil && !used {
		err = n.kernel.setMAC(i.Index, i.HardwareAddr)
	}
	if err != nil {
		return "", undo(err, func() error { return n.drop(sw) })
	}
	return i.Name, nil
}

// makeBridge makes a bridge with the first free name from switchID on. Its
// MAC is its own and no port's, so that it stays when ports come and go, and
// so that the bridge is known by it if our life ends before the next line.
func (n *Network) makeBridge(sw ctl.Link) (string, error) {
	if err := n.room(true); err != nil {
		return "", err
	}
	mac := randomMAC()
	for id := sw.ID; id < sw.ID+nameTries; id++ {
		name := ctl.SwitchLink(id).String()
		i, err := n.kernel.byName(name)
		if err != nil {
			return "", err
		}
		if i != nil || !ValidName(name) {
			continue
		}
		err = n.makeNamed(sw, &record{ifname: name, made: true, mac: mac})
		if errors.Is(err, unix.EEXIST) {
			continue // since we looked
		}
		return name, err
	}
	return "", ctl.Errorf(syscall.EEXIST, "%d names from switch%d on are taken", nameTries, sw.ID)
}

func (n *Network) makeNamed(sw ctl.Link, r *record) error {
	if err := n.save(sw, r); err != nil {
		return err
	}
	if err := n.kernel.create(r.ifname, "bridge", r.mac); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = fmt.Errorf("this kernel has no bridges: %w", err)
		}
		return undo(err, func() error { return n.drop(sw) })
	}
	i, err := n.resume(linkPrefix+sw.String(), r, "bridge")
	if err == nil && i == nil {
		err = ctl.Errorf(syscall.ENODEV, "%s went away", r.ifname)
	}
	if err != nil {
		return undo(err, func() error { return n.release(sw) })
	}
	return nil
}

// randomMAC makes a MAC of nobody's.
func randomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2 // of one host, locally administered
	return mac
}

// Uplink makes an interface a switch's way out: see ctl.Network.
func (n *Network) Uplink(sw ctl.Link, ifname string) error {
	return n.do("uplink", sw, func() error {
		r, b, err := n.at(sw)
		if err != nil {
			return err
		}
		if r.uplink.ifname != "" {
			if i, err := n.uplinkOf(r); err != nil || i != nil && i.Name == ifname && i.MasterIndex == b.Index {
				return err
			}
			if err := n.dropUplink(sw, r); err != nil {
				return err
			}
		}
		if ifname == "" {
			return nil
		}
		return n.takeUplink(sw, r, b, ifname)
	})
}

func (n *Network) takeUplink(sw ctl.Link, r *record, b *iface, ifname string) error {
	i, err := n.lent(ifname)
	switch {
	case err != nil:
		return err
	case i.MasterIndex == b.Index:
		return nil // as it was found
	case i.MasterIndex != 0:
		return n.otherMaster(i, b)
	}
	if other, taken := n.holder(i.Index); taken {
		return ctl.Errorf(syscall.EBUSY, "%s belongs to %v", ifname, other)
	}
	r.uplink = uplink{i.Name, i.Index, i.up()}
	if err := n.save(sw, r); err != nil {
		return err
	}
	err = n.kernel.setMaster(i.Index, b.Index)
	if err == nil && !r.uplink.up {
		err = n.kernel.setUp(i.Index, true)
	}
	if err != nil {
		return undo(fmt.Errorf("%s into %s: %w", ifname, b.Name, err), func() error { return n.dropUplink(sw, r) })
	}
	return nil
}

// otherMaster is the refusal to take a port that another has.
func (n *Network) otherMaster(i, want *iface) error {
	return ctl.Errorf(syscall.EBUSY, "%s is a port of %s, and would be taken from it by %s", i.Name, n.kernel.nameOf(i.MasterIndex), want.Name)
}

// uplinkOf is the interface that a switch was given, nil if it is gone.
func (n *Network) uplinkOf(r *record) (*iface, error) {
	return n.live(&record{ifname: r.uplink.ifname, index: r.uplink.index})
}

// dropUplink gives an uplink back, if there is one.
func (n *Network) dropUplink(sw ctl.Link, r *record) error {
	if r.uplink.ifname == "" {
		return nil
	}
	i, err := n.uplinkOf(r)
	if err != nil {
		return err
	}
	if i != nil && i.MasterIndex == r.index {
		if err := n.kernel.setMaster(i.Index, 0); err != nil {
			return fmt.Errorf("%s out of %s: %w", i.Name, r.ifname, err)
		}
	}
	if i != nil && !r.uplink.up && (i.MasterIndex == 0 || i.MasterIndex == r.index) {
		if err := n.kernel.setUp(i.Index, false); err != nil {
			return fmt.Errorf("%s down: %w", i.Name, err)
		}
	}
	r.uplink = uplink{}
	return n.save(sw, r)
}
