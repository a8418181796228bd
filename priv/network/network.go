package network

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"vmfs/ctl"
)

// Options say what may be done.
type Options struct {
	Records    string         // the directory of records, root's alone
	Interfaces []string       // that were not made here and may be used
	Networks   []netip.Prefix // that addresses are from
	Tables     string         // the name of the nftables tables
	Most       Most           // that is made
}

// Network makes changes to the host's links, one at a time. Its methods are
// those of ctl.Network, and may be called from several goroutines. An error
// is a *ctl.Error that begins with the operation and the link.
type Network struct {
	options Options
	records records
	kernel  *kernel

	mu     sync.Mutex // held for as long as a change takes
	links  map[ctl.Link]*record
	vrfs   map[uint32]*record
	ledger ledger
}

// Open reads the records and brings them in line with what the kernel has:
// what was about to be made when its maker ended is found or forgotten, and
// what is gone is forgotten with its rules and its places in groups.
// Interfaces that are there stay, for the caller to Release.
func Open(o Options) (*Network, error) {
	n := &Network{options: o, records: records{o.Records}}
	var err error
	if n.links, n.vrfs, err = n.records.load(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if n.ledger, err = n.records.loadLedger(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if n.kernel, err = dial(); err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	if err := n.reconcile(); err != nil {
		n.Close()
		return nil, fmt.Errorf("network: %w", err)
	}
	return n, nil
}

// Close ends the conversation with the kernel. All that was made stays.
func (n *Network) Close() { n.kernel.Close() }

// reconcile is what Open does with the records.
func (n *Network) reconcile() error {
	for _, l := range sorted(n.links) {
		r := n.links[l]
		i, err := n.resume(linkPrefix+l.String(), r, "bridge")
		if err == nil && i == nil {
			err = n.forget(l)
		}
		if err != nil {
			return fmt.Errorf("%v: %w", l, err)
		}
	}
	for table, r := range n.vrfs {
		if _, err := n.resume(vrfName(table), r, "vrf"); err != nil {
			return fmt.Errorf("vrf %d: %w", table, err)
		}
		if err := n.dropVRF(table); err != nil {
			return fmt.Errorf("vrf %d: %w", table, err)
		}
	}
	return n.sweepTables()
}

// resume finds the interface of a record, nil if there is none. Where the
// record was written and its writer ended, the interface is known by having
// the MAC it was to have.
func (n *Network) resume(name string, r *record, kind string) (*iface, error) {
	if r.index != 0 {
		return n.live(r)
	}
	i, err := n.kernel.byName(r.ifname)
	if err != nil || i == nil || i.kind != kind || r.mac == nil || !slices.Equal(i.HardwareAddr, r.mac) {
		return nil, err
	}
	if err := n.kernel.harden(i); err != nil {
		return nil, err
	}
	r.index = i.Index
	return i, n.records.write(name, r.text())
}

// live is the interface of a record, nil if it is gone: one with the same
// number and another name is somebody else's.
func (n *Network) live(r *record) (*iface, error) {
	if r.index == 0 {
		return nil, nil
	}
	i, err := n.kernel.byIndex(r.index)
	if err != nil || i == nil || i.Name != r.ifname {
		return nil, err
	}
	return i, nil
}

// at finds the record of a link and its interface. ENOENT if there is none.
func (n *Network) at(l ctl.Link) (*record, *iface, error) {
	r := n.links[l]
	if r == nil {
		return nil, nil, ctl.Errorf(syscall.ENOENT, "%v has no interface", l)
	}
	i, err := n.live(r)
	if err == nil && i == nil {
		err = ctl.Errorf(syscall.ENOENT, "%s of %v is gone", r.ifname, l)
	}
	return r, i, err
}

// save writes the record of a link. What it says is about to be done.
func (n *Network) save(l ctl.Link, r *record) error {
	if err := n.records.write(linkPrefix+l.String(), r.text()); err != nil {
		return err
	}
	n.links[l] = r
	return nil
}

// drop removes the record of a link, last.
func (n *Network) drop(l ctl.Link) error {
	if err := n.records.remove(linkPrefix + l.String()); err != nil {
		return err
	}
	delete(n.links, l)
	return nil
}

// vacant makes room for a new record of a link: one whose interface is gone
// is forgotten, one whose interface is there is EBUSY.
func (n *Network) vacant(l ctl.Link) error {
	r := n.links[l]
	if r == nil {
		return nil
	}
	i, err := n.live(r)
	if err != nil {
		return err
	}
	if i != nil {
		return ctl.Errorf(syscall.EBUSY, "%s is still there", r.ifname)
	}
	return n.forget(l)
}

// holder is the link that has an interface, if one has.
func (n *Network) holder(index int) (ctl.Link, bool) {
	for l, r := range n.links {
		if r.index == index || r.uplink.ifname != "" && r.uplink.index == index {
			return l, true
		}
	}
	return ctl.Link{}, false
}

// lent finds an interface that root listed. EPERM, ENODEV.
func (n *Network) lent(ifname string) (*iface, error) {
	if !n.listed(ifname) {
		return nil, notListed(ifname)
	}
	i, err := n.kernel.byName(ifname)
	if err == nil && i == nil {
		err = ctl.Errorf(syscall.ENODEV, "%s: there is no such interface", ifname)
	}
	return i, err
}

func (n *Network) listed(ifname string) bool {
	return slices.Contains(n.options.Interfaces, ifname)
}

// notListed is the refusal of an interface that root did not list.
func notListed(ifname string) error {
	return ctl.Errorf(syscall.EPERM, "%s was not made by vmfs, and is not listed with -interface", ifname)
}

// do works on a link alone, and says in its error what it worked on.
func (n *Network) do(op string, l ctl.Link, work func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return opError(op, l, work())
}

// opError makes an error that users can be shown.
func opError(op string, l ctl.Link, err error) error {
	if err == nil {
		return nil
	}
	return ctl.Errorf(known(err), "%s %v: %v", op, l, err)
}

// known is the number of an error if the contract has it, else EIO.
func known(err error) syscall.Errno {
	errno := ctl.Errno(err)
	switch errno {
	case syscall.EINVAL, syscall.ENOENT, syscall.EACCES, syscall.EPERM, syscall.EBUSY, syscall.EEXIST,
		syscall.EAGAIN, syscall.ENODEV, syscall.EOPNOTSUPP, syscall.ENOSPC, syscall.ETIMEDOUT:
		return errno
	case syscall.EAFNOSUPPORT, syscall.EPROTONOSUPPORT:
		return syscall.EOPNOTSUPP
	case syscall.ENXIO:
		return syscall.ENODEV
	}
	return syscall.EIO
}

// undo does what err makes necessary; that it failed too is said beside err.
func undo(err error, steps ...func() error) error {
	for _, step := range steps {
		if also := step(); also != nil {
			err = fmt.Errorf("%w (and then %v)", err, also)
		}
	}
	return err
}
