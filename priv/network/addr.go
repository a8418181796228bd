package network

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"syscall"

	"vmfs/ctl"
)

// Addresses says which addresses a link has: see ctl.Network.
func (n *Network) Addresses(l ctl.Link, addrs []netip.Prefix) error {
	return n.do("address", l, func() error {
		r, i, err := n.at(l)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := n.allowed(a); err != nil {
				return err
			}
		}
		if !l.Switch {
			if err := localEnds(l, addrs); err != nil {
				return err
			}
		}
		if slices.ContainsFunc(addrs, is6) && len(i.HardwareAddr) == 6 {
			addrs = append(slices.Clone(addrs), netip.PrefixFrom(ctl.LinkLocal(i.HardwareAddr), 64))
		}
		return n.address(l, r, i, addrs)
	})
}

func is6(p netip.Prefix) bool { return p.Addr().Is6() }

// address gives an interface the addresses, and takes those away that it was
// given before.
func (n *Network) address(l ctl.Link, r *record, i *iface, addrs []netip.Prefix) error {
	all, err := n.kernel.addrs(0)
	if err != nil {
		return err
	}
	if err := n.disjoint(i, addrs, all); err != nil {
		return err
	}
	old := r.addrs
	var add []netip.Prefix
	for _, a := range addrs {
		there := slices.ContainsFunc(all, func(b addr) bool { return b.index == i.Index && b.Prefix == a })
		if !there && !slices.Contains(add, a) {
			add = append(add, a)
		}
	}
	for _, a := range add {
		if !slices.Contains(old, a) {
			r.addrs = append(r.addrs, a)
		}
	}
	if err := n.save(l, r); err != nil {
		return err
	}
	if err := n.give(r, i, add); err != nil {
		return undo(err, func() error { return n.take(l, r, i, old) })
	}
	return n.take(l, r, i, addrs)
}

// give adds addresses to an interface.
func (n *Network) give(r *record, i *iface, addrs []netip.Prefix) error {
	if r.made && slices.ContainsFunc(addrs, is6) {
		if err := setIPv6(i.Name, true); err != nil {
			return err
		}
	}
	for _, a := range addrs {
		if err := n.kernel.addAddr(i.Index, a); err != nil {
			return fmt.Errorf("%v on %s: %w", a, i.Name, err)
		}
	}
	return nil
}

// take removes the addresses that were given and are not among keep.
func (n *Network) take(l ctl.Link, r *record, i *iface, keep []netip.Prefix) error {
	var left []netip.Prefix
	for _, a := range r.addrs {
		if slices.Contains(keep, a) {
			left = append(left, a)
		} else if err := n.kernel.removeAddr(i.Index, a); err != nil {
			return fmt.Errorf("%v off %s: %w", a, i.Name, err)
		}
	}
	if r.made && slices.ContainsFunc(r.addrs, is6) && !slices.ContainsFunc(left, is6) {
		if err := setIPv6(i.Name, false); err != nil {
			return err
		}
	}
	r.addrs = left
	return n.save(l, r)
}

// restoreAddrs gives an interface again what it was given, if anything of it
// may have gone.
func (n *Network) restoreAddrs(r *record, i *iface) error {
	if !slices.ContainsFunc(r.addrs, is6) {
		return nil
	}
	return n.give(r, i, r.addrs)
}

// allowed refuses an address that is not, with its whole network, in one that
// root listed.
func (n *Network) allowed(p netip.Prefix) error {
	if n.within(p) {
		return nil
	}
	return ctl.Errorf(syscall.EPERM, "%v lies in none of the networks that are listed with -network", p)
}

func (n *Network) within(p netip.Prefix) bool {
	return slices.ContainsFunc(n.options.Networks, func(w netip.Prefix) bool {
		return w.Bits() <= p.Bits() && w.Contains(p.Addr())
	})
}

// localEnds refuses other addresses of a NIC than the host's of ctl.Local.
// The network that they are counted from is what is left without the place
// that the machine and the NIC have in it.
func localEnds(l ctl.Link, addrs []netip.Prefix) error {
	if len(addrs) == 0 {
		return nil
	}
	refused := ctl.Errorf(syscall.EPERM, "%v is not the place of machine %d, NIC %d", addrs, l.ID, l.NIC)
	if len(addrs) > 2 || !addrs[0].Addr().Is4() || addrs[0].Bits() != 31 {
		return refused
	}
	four := addrs[0].Addr().As4()
	host := uint64(binary.BigEndian.Uint32(four[:]))
	at := uint64(l.ID)<<8 + uint64(l.NIC+1)*2
	if host < at {
		return refused
	}
	base := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(host-at))))
	prefix := netip.PrefixFrom(base, 32-bits.Len64(at+1))
	var prefix6 netip.Prefix
	if len(addrs) == 2 {
		if !is6(addrs[1]) {
			return refused
		}
		prefix6 = netip.PrefixFrom(addrs[1].Addr(), 64).Masked()
	}
	if prefix.Bits() < 0 {
		return refused
	}
	want, err := ctl.Local(prefix, prefix6, l.ID, l.NIC)
	if err != nil || want.Host != addrs[0] || len(addrs) == 2 && want.Host6 != addrs[1] {
		return refused
	}
	return nil
}

// disjoint refuses a network that another interface of the same routing
// tables has: packets for it would go there.
func (n *Network) disjoint(i *iface, addrs []netip.Prefix, all []addr) error {
	for _, a := range addrs {
		for _, b := range all {
			if b.index == i.Index || !a.Overlaps(b.Prefix) || b.Addr().IsLinkLocalUnicast() {
				continue
			}
			other, err := n.kernel.byIndex(b.index)
			if err != nil {
				return err
			}
			if other != nil && n.domain(other) == n.domain(i) {
				return ctl.Errorf(syscall.EEXIST, "%v: %s has %v", a, other.Name, b.Prefix)
			}
		}
	}
	return nil
}

// domain is the VRF that an interface is in, 0 for none.
func (n *Network) domain(i *iface) int {
	if i.MasterIndex == 0 {
		return 0
	}
	if m, err := n.kernel.byIndex(i.MasterIndex); err == nil && m != nil && m.kind == "vrf" {
		return m.Index
	}
	return 0
}
