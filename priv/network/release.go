package network

import (
	"errors"
	"fmt"

	"vmfs/ctl"
)

// Release takes away what was made for a link and puts back what was found:
// see ctl.Network. Its record goes last, so that a Release that was cut short
// can be done again.
func (n *Network) Release(l ctl.Link) error {
	return n.do("release", l, func() error { return n.release(l) })
}

func (n *Network) release(l ctl.Link) error {
	r := n.links[l]
	if r == nil {
		return nil
	}
	i, err := n.live(r)
	if err != nil {
		return err
	}
	if i == nil {
		return n.forget(l)
	}
	if err := n.dropUplink(l, r); err != nil {
		return err
	}
	if r.made {
		if err := n.kernel.delete(r.index); err != nil {
			return fmt.Errorf("remove %s: %w", r.ifname, err)
		}
	} else if err := n.putBack(l, r, i); err != nil {
		return err
	}
	return n.forget(l)
}

// putBack makes an interface that was found what it was.
func (n *Network) putBack(l ctl.Link, r *record, i *iface) error {
	var errs []error
	for _, a := range r.addrs {
		errs = append(errs, n.kernel.removeAddr(i.Index, a))
	}
	if r.table != 0 {
		errs = append(errs, n.leaveVRF(r, i))
	}
	if !l.Switch {
		errs = append(errs, n.detach(l, r, i))
		restoreTap(r)
	}
	if i.Alias != r.alias {
		errs = append(errs, n.kernel.setAlias(i.Index, r.alias))
	}
	if i.Group != r.number {
		errs = append(errs, n.kernel.setGroup(i.Index, r.number))
	}
	errs = append(errs, n.kernel.setUp(i.Index, r.up))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("put %s back as it was: %w", r.ifname, err)
	}
	return nil
}

// forget removes what is left of a link whose interface is gone or put back:
// its rules, its places in groups, its VRF if nobody else is in it, and its
// record.
func (n *Network) forget(l ctl.Link) error {
	r := n.links[l]
	if err := n.dropUplink(l, r); err != nil {
		return err
	}
	if err := n.leaveGroups(l, r, r.groups); err != nil {
		return err
	}
	if err := n.unmasquerade(l); err != nil {
		return err
	}
	if err := n.drop(l); err != nil {
		return err
	}
	if r.table != 0 {
		return n.dropVRF(r.table)
	}
	return nil
}

// Alias says what a link is for, to people: see ctl.Network.
func (n *Network) Alias(l ctl.Link, name string) error {
	return n.do("alias", l, func() error {
		_, i, err := n.at(l)
		if err != nil {
			return err
		}
		return n.kernel.setAlias(i.Index, l.String()+"-"+name)
	})
}

// SetUp sets a link up or down: see ctl.Network.
func (n *Network) SetUp(l ctl.Link, up bool) error {
	op := "down"
	if up {
		op = "up"
	}
	return n.do(op, l, func() error {
		r, i, err := n.at(l)
		if err != nil {
			return err
		}
		if err := n.kernel.setUp(i.Index, up); err != nil || !up {
			return err
		}
		return n.restoreAddrs(r, i) // going down took the IPv6 ones
	})
}
