package network

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// vrfName names the record of a VRF.
func vrfName(table uint32) string { return vrfPrefix + strconv.FormatUint(uint64(table), 10) }

// Rdomain puts a link into the VRF of a routing table: see ctl.Network.
func (n *Network) Rdomain(l ctl.Link, table uint32) error {
	return n.do("rdomain", l, func() error {
		r, i, err := n.at(l)
		if err != nil {
			return err
		}
		if r.table != 0 && r.table != table {
			if err := n.exitVRF(l, r, i); err != nil {
				return err
			}
		}
		if table == 0 {
			return nil
		}
		return n.enterVRF(l, r, i, table)
	})
}

func (n *Network) enterVRF(l ctl.Link, r *record, i *iface, table uint32) error {
	if table >= unix.RT_TABLE_DEFAULT && table <= unix.RT_TABLE_LOCAL {
		return ctl.Errorf(syscall.EPERM, "table %d is the host's own", table)
	}
	v, err := n.vrf(table)
	switch {
	case err != nil:
		return err
	case i.MasterIndex == v.Index && r.table == table:
		return nil
	case !n.madeVRF(table, v) && !n.listed(v.Name):
		return notListed(v.Name)
	case i.MasterIndex != 0:
		return undo(n.otherMaster(i, v), func() error { return n.dropVRF(table) })
	}
	r.table = table
	if err := n.save(l, r); err != nil {
		return err
	}
	if err := n.kernel.setMaster(i.Index, v.Index); err != nil {
		r.table = 0
		return undo(fmt.Errorf("%s into %s: %w", i.Name, v.Name, err),
			func() error { return n.save(l, r) }, func() error { return n.dropVRF(table) })
	}
	return n.restoreAddrs(r, i)
}

// exitVRF takes a link out of its VRF, and removes that if nobody else is in
// it.
func (n *Network) exitVRF(l ctl.Link, r *record, i *iface) error {
	if err := n.leaveVRF(r, i); err != nil {
		return err
	}
	table := r.table
	r.table = 0
	if err := n.save(l, r); err != nil {
		return err
	}
	return n.dropVRF(table)
}

// leaveVRF takes an interface out of the VRF that it was put into.
func (n *Network) leaveVRF(r *record, i *iface) error {
	if i.MasterIndex == 0 {
		return nil
	}
	v, err := n.kernel.byIndex(i.MasterIndex)
	if err != nil || v == nil || v.kind != "vrf" {
		return err
	}
	if err := n.kernel.setMaster(i.Index, 0); err != nil {
		return fmt.Errorf("%s out of %s: %w", i.Name, v.Name, err)
	}
	i.MasterIndex = 0
	return n.restoreAddrs(r, i)
}

// madeVRF reports whether the VRF of a table was made here.
func (n *Network) madeVRF(table uint32, v *iface) bool {
	r := n.vrfs[table]
	return r != nil && r.index == v.Index
}

// vrf finds the VRF of a table, or makes it.
func (n *Network) vrf(table uint32) (*iface, error) {
	all, err := again(n.kernel.LinkList)
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if v, ok := l.(*netlink.Vrf); ok && v.Table == table {
			return found(l, nil)
		}
	}
	if most := n.options.Most.VRFs; len(n.vrfs) >= most {
		return nil, full(most, "VRFs")
	}
	r := &record{ifname: "vrf" + strconv.FormatUint(uint64(table), 10), made: true, mac: randomMAC()}
	if err := n.records.write(vrfName(table), r.text()); err != nil {
		return nil, err
	}
	n.vrfs[table] = r
	data := nl.NewRtAttr(nl.IFLA_VRF_TABLE, nl.Uint32Attr(table))
	if err := n.kernel.create(r.ifname, "vrf", r.mac, data); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = ctl.Errorf(syscall.EOPNOTSUPP, "this kernel has no VRF")
		}
		return nil, undo(err, func() error { return n.dropVRF(table) })
	}
	v, err := n.resume(vrfName(table), r, "vrf")
	if err == nil && v == nil {
		err = ctl.Errorf(syscall.ENODEV, "%s went away", r.ifname)
	}
	if err == nil {
		err = n.kernel.setUp(v.Index, true)
	}
	if err != nil {
		return nil, undo(err, func() error { return n.dropVRF(table) })
	}
	return v, nil
}

// dropVRF removes the VRF of a table if it was made here and nobody is in it.
func (n *Network) dropVRF(table uint32) error {
	r := n.vrfs[table]
	if r == nil {
		return nil
	}
	for _, l := range n.links {
		if l.table == table {
			return nil
		}
	}
	i, err := n.live(r)
	if err != nil {
		return err
	}
	if i != nil {
		if used, err := n.kernel.hasPorts(i.Index); err != nil || used {
			return err
		}
		if err := n.kernel.delete(i.Index); err != nil {
			return fmt.Errorf("remove %s: %w", i.Name, err)
		}
	}
	if err := n.records.remove(vrfName(table)); err != nil {
		return err
	}
	delete(n.vrfs, table)
	return nil
}

// hasPorts reports whether an interface is the master of any.
func (k *kernel) hasPorts(index int) (bool, error) {
	all, err := again(k.LinkList)
	if err != nil {
		return false, err
	}
	for _, l := range all {
		if l.Attrs().MasterIndex == index {
			return true, nil
		}
	}
	return false, nil
}
