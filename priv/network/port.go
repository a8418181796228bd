package network

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// Attach makes a NIC a port of a switch: see ctl.Network.
func (n *Network) Attach(nic, sw ctl.Link, p ctl.Port) error {
	return n.do("attach", nic, func() error {
		r, i, err := n.at(nic)
		if err != nil {
			return err
		}
		_, b, err := n.at(sw)
		switch {
		case err != nil:
			return err
		case i.MasterIndex != 0 && i.MasterIndex != b.Index:
			return n.otherMaster(i, b)
		case r.table != 0:
			return ctl.Errorf(syscall.EBUSY, "%s is in the VRF of table %d; a link has one master", i.Name, r.table)
		}
		r.port = b.Index
		if err := n.save(nic, r); err != nil {
			return err
		}
		if err := n.kernel.setUp(i.Index, false); err != nil {
			return fmt.Errorf("%s down: %w", i.Name, err)
		}
		if err := n.port(i, b, p); err != nil {
			return undo(err, func() error { return n.kernel.setMaster(i.Index, 0) })
		}
		return nil
	})
}

// port makes i a port of b. It is down: what it may send is settled before
// its first frame, and the bridge knows no address of it from before.
func (n *Network) port(i, b *iface, p ctl.Port) error {
	if i.MasterIndex != 0 { // so that nothing is left of how it was a port
		if err := n.kernel.setMaster(i.Index, 0); err != nil {
			return fmt.Errorf("%s out of %s: %w", i.Name, b.Name, err)
		}
	}
	if err := n.kernel.setMaster(i.Index, b.Index); err != nil {
		return fmt.Errorf("%s into %s: %w", i.Name, b.Name, err)
	}
	if err := n.kernel.setPort(i.Index, p); err != nil {
		return fmt.Errorf("%s as a port of %s: %w", i.Name, b.Name, err)
	}
	if !p.Locked {
		return nil
	}
	// Sticky, or a frame that another port sends with this address would
	// move the entry there and cut this one off.
	err := n.kernel.NeighSet(&netlink.Neigh{
		LinkIndex: i.Index, Family: unix.AF_BRIDGE, State: unix.NUD_NOARP,
		Flags: unix.NTF_MASTER | ntfSticky, HardwareAddr: p.MAC,
	})
	if err != nil {
		return fmt.Errorf("%v behind %s: %w", p.MAC, i.Name, err)
	}
	return nil
}

// ntfSticky is NTF_STICKY of neighbour.h.
const ntfSticky = 0x40

// setPort sets the flags of a port: a locked one passes frames of addresses
// that are known to be behind it, and learns none. A guest never becomes the
// root of a spanning tree.
func (k *kernel) setPort(index int, p ctl.Port) error {
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for _, flag := range []struct {
		attr int
		on   bool
	}{
		{nl.IFLA_BRPORT_LEARNING, !p.Locked},
		{nl.IFLA_BRPORT_LOCKED, p.Locked},
		{nl.IFLA_BRPORT_ISOLATED, p.Isolated},
		{nl.IFLA_BRPORT_PROTECT, true},
	} {
		value := byte(0)
		if flag.on {
			value = 1
		}
		info.AddRtAttr(flag.attr, []byte{value})
	}
	return k.request(unix.RTM_SETLINK, 0, about(unix.AF_BRIDGE, index), info)
}

// portFlags are flags of a port of a bridge; of what is none, they are off.
func (k *kernel) portFlags(index int) (locked, isolated bool, err error) {
	answers, err := k.ask(unix.RTM_GETLINK, 0, about(unix.AF_UNSPEC, index), unix.RTM_NEWLINK)
	if errors.Is(err, unix.ENODEV) {
		return false, false, nil
	}
	if err != nil || len(answers) != 1 || len(answers[0]) < unix.SizeofIfInfomsg {
		return false, false, fmt.Errorf("flags of %s: %w", k.nameOf(index), cmp.Or(err, error(syscall.EIO)))
	}
	attrs := answers[0][unix.SizeofIfInfomsg:]
	info := attribute(attrs, unix.IFLA_LINKINFO)
	if kind := attribute(info, nl.IFLA_INFO_SLAVE_KIND); string(bytes.TrimRight(kind, "\x00")) != "bridge" {
		return false, false, nil
	}
	flags := attribute(info, nl.IFLA_INFO_SLAVE_DATA)
	on := func(flag uint16) bool { return bytes.Equal(attribute(flags, flag), []byte{1}) }
	return on(nl.IFLA_BRPORT_LOCKED), on(nl.IFLA_BRPORT_ISOLATED), nil
}

// attribute finds the first of a kind, nil if there is none.
func attribute(attrs []byte, kind uint16) []byte {
	list, _ := nl.ParseRouteAttr(attrs) // what the kernel says is in order
	for _, a := range list {
		if a.Attr.Type&nl.NLA_TYPE_MASK == kind {
			return a.Value
		}
	}
	return nil
}

// Detach takes a NIC out of its switch: see ctl.Network.
func (n *Network) Detach(nic ctl.Link) error {
	return n.do("detach", nic, func() error {
		r, i, err := n.at(nic)
		if err != nil {
			return err
		}
		return n.detach(nic, r, i)
	})
}

// detach takes an interface out of the bridge into which it was put here.
func (n *Network) detach(nic ctl.Link, r *record, i *iface) error {
	if i.MasterIndex == 0 || i.MasterIndex != r.port {
		return nil
	}
	if err := n.kernel.setUp(i.Index, false); err != nil {
		return fmt.Errorf("%s down: %w", i.Name, err)
	}
	if err := n.kernel.setMaster(i.Index, 0); err != nil {
		return fmt.Errorf("%s out of %s: %w", i.Name, n.kernel.nameOf(i.MasterIndex), err)
	}
	r.port = 0
	return n.save(nic, r)
}
