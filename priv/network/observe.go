package network

import (
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// maxAddrs bounds how many addresses of a link are told.
const maxAddrs = 32

// Links lists what the records have, in order, after one link (the zero Link
// for the first), at most max.
func (n *Network) Links(after ctl.Link, max int) ([]ctl.LinkState, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addrs, err := n.kernel.addrs(0)
	if err != nil {
		return nil, ctl.Errorf(known(err), "links: %v", err)
	}
	var all []ctl.LinkState
	for _, l := range sorted(n.links) {
		if after != (ctl.Link{}) && compareLinks(l, after) <= 0 {
			continue
		}
		if len(all) == max {
			break
		}
		state, err := n.state(l, addrs)
		if err != nil {
			return nil, opError("observe", l, err)
		}
		all = append(all, state)
	}
	return all, nil
}

// Observe says what the kernel has of a link: see ctl.Network.
func (n *Network) Observe(l ctl.Link) (state ctl.LinkState, err error) {
	err = n.do("observe", l, func() error {
		r := n.links[l]
		if r == nil {
			return ctl.Errorf(syscall.ENOENT, "it has no interface")
		}
		addrs, err := n.kernel.addrs(r.index)
		if err == nil {
			state, err = n.state(l, addrs)
		}
		return err
	})
	return state, err
}

func (n *Network) state(l ctl.Link, addrs []addr) (ctl.LinkState, error) {
	r := n.links[l]
	s := ctl.LinkState{Link: l, Made: r.made}
	i, err := n.live(r)
	if err != nil || i == nil {
		return s, err
	}
	s.Ifname, s.Ifindex, s.Up, s.MAC = i.Name, i.Index, i.up(), i.HardwareAddr
	s.Running = i.RawFlags&unix.IFF_RUNNING != 0
	if i.MasterIndex != 0 {
		s.Master = n.kernel.nameOf(i.MasterIndex)
		if s.Locked, s.Isolated, err = n.kernel.portFlags(i.Index); err != nil {
			return s, err
		}
	}
	for _, a := range addrs {
		if a.index == i.Index && len(s.Addrs) < maxAddrs && a.IsValid() {
			s.Addrs = append(s.Addrs, a.Prefix)
		}
	}
	slices.SortFunc(s.Addrs, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	if c := i.Statistics; c != nil {
		s.RxBytes, s.RxPackets, s.RxDropped = c.RxBytes, c.RxPackets, c.RxDropped
		s.TxBytes, s.TxPackets, s.TxDropped = c.TxBytes, c.TxPackets, c.TxDropped
	}
	return s, nil
}
