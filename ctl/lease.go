package ctl

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A lease is an address of a switch that a NIC keeps as long as it is of that
// switch. A stopped machine finds its own again.
type lease struct {
	addr  netip.Addr
	mac   string
	vm    uint64 // serial of the machine
	n     int
	since time.Time
}

func (l lease) text() string {
	return fmt.Sprintf("%v %s %d %d %s", l.addr, l.mac, l.vm, l.n, stamp(l.since))
}

func parseLease(d *definition, s string) error {
	f := strings.Fields(s)
	if len(f) != 5 {
		return syscall.EINVAL
	}
	var l lease
	var err error
	if l.addr, err = netip.ParseAddr(f[0]); err != nil {
		return err
	}
	if l.mac, err = canonMAC(f[1]); err != nil {
		return err
	}
	if err := number(&l.vm, f[2]); err != nil {
		return err
	}
	var ok bool
	if l.n, ok = PartNumber(f[3]); !ok {
		return syscall.EINVAL
	}
	if err := instant(&l.since, f[4]); err != nil {
		return err
	}
	d.leases = append(d.leases, l)
	return nil
}

// pool is the network that a switch leases from: its first of IPv4.
func (d *definition) pool() (netip.Prefix, bool) {
	for _, p := range prefixes(d.get("address")) {
		if p.Addr().Is4() {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// leasing is the pool of a switch that answers DHCP from it.
func (d *definition) leasing() (netip.Prefix, bool) {
	pool, ok := d.pool()
	return pool, ok && d.get("dhcp") == "yes"
}

// leaseOf finds the lease of a NIC.
func (d *definition) leaseOf(vm uint64, n int) int {
	return slices.IndexFunc(d.leases, func(l lease) bool { return l.vm == vm && l.n == n })
}

// allot gives a NIC the lowest free address, if it has none. ENOSPC.
func (d *definition) allot(p port, now time.Time) (changed bool, err error) {
	pool, ok := d.leasing()
	if !ok {
		return false, nil
	}
	if i := d.leaseOf(p.vm.serial, p.n); i >= 0 {
		if d.leases[i].mac == p.mac.String() {
			return false, nil
		}
		d.leases[i].mac = p.mac.String()
		return true, nil
	}
	taken := map[netip.Addr]bool{}
	for _, a := range prefixes(d.get("address")) {
		taken[a.Addr()] = true
	}
	for _, l := range d.leases {
		taken[l.addr] = true
	}
	a, last := pool.Masked().Addr(), broadcast(pool)
	if pool.Bits() < 31 { // else both ends are hosts
		taken[a], taken[last] = true, true
	}
	for ; pool.Contains(a); a = a.Next() {
		if !taken[a] {
			d.leases = append(d.leases, lease{a, p.mac.String(), p.vm.serial, p.n, now})
			return true, nil
		}
	}
	return false, Errorf(syscall.ENOSPC, "%v has no address left to lease", pool.Masked())
}

// dropOutside forgets leases that are not of the pool any more.
func (d *definition) dropOutside() {
	pool, ok := d.pool()
	if !ok {
		return // it may come back
	}
	d.leases = slices.DeleteFunc(d.leases, func(l lease) bool {
		return !pool.Contains(l.addr) || slices.ContainsFunc(prefixes(d.get("address")), func(p netip.Prefix) bool { return p.Addr() == l.addr })
	})
}

// bindings are what the NICs of a switch get.
func (d *definition) bindings(ports []port) []LeaseBinding {
	var list []LeaseBinding
	for _, p := range ports {
		if i := d.leaseOf(p.vm.serial, p.n); i >= 0 {
			mac, _ := net.ParseMAC(d.leases[i].mac)
			list = append(list, LeaseBinding{MAC: mac, Addr: d.leases[i].addr, Hostname: p.vm.Name()})
		}
	}
	return list
}

// allot gives a NIC a lease, if the switch leases.
func (sw *Switch) allot(p port) error {
	_, err := sw.rewrite(func(d *definition) (bool, error) { return d.allot(p, time.Now()) })
	return err
}

// settle sees to the leases.
func (sw *Switch) settle(d *definition, _ Cred, now time.Time) error {
	d.dropOutside()
	for _, p := range sw.attached() {
		if _, err := d.allot(p, now); err != nil {
			return err
		}
	}
	return nil
}

// forget drops the leases that a machine's NICs no longer have.
func (sw *Switch) forget(vm *VM) {
	of := func(l lease) bool { return l.vm == vm.serial }
	if !slices.ContainsFunc(sw.def.Load().leases, of) {
		return
	}
	sw.edit.Lock()
	defer sw.edit.Unlock()
	if !sw.Removed() {
		sw.tidy(of)
	}
}

// tidy forgets those of some leases whose NICs are not of the switch any more,
// and not attached. Called with edit held.
func (sw *Switch) tidy(some func(l lease) bool) {
	var stale []lease
	for _, l := range sw.def.Load().leases {
		if some(l) && !sw.keeps(l) {
			stale = append(stale, l)
		}
	}
	if stale == nil {
		return
	}
	_, err := sw.rewrite(func(d *definition) (bool, error) {
		d.leases = slices.DeleteFunc(d.leases, func(l lease) bool { return slices.Contains(stale, l) })
		return true, nil
	})
	if err != nil {
		sw.failed(err)
	}
}

// keeps reports whether the NIC of a lease is of the switch, or attached to
// it.
func (sw *Switch) keeps(l lease) bool {
	vm, ok := sw.m.vms.serially(l.vm)
	if !ok {
		return false
	}
	sw.mu.Lock()
	_, attached := sw.ports[NICLink(vm.id, l.n)]
	sw.mu.Unlock()
	return attached || vm.HasPart(Part{"nic", l.n}) && vm.Get(nicAttr(l.n, "switch")) == sw.Name()
}

// leased is the address that a NIC is leased, with the bits of its network.
func (sw *Switch) leased(vm *VM, n int) string {
	d := sw.def.Load()
	pool, ok := d.leasing()
	i := d.leaseOf(vm.serial, n)
	if !ok || i < 0 {
		return ""
	}
	return netip.PrefixFrom(d.leases[i].addr, pool.Bits()).String()
}

// LeasesText is the text of leases: `ADDR MAC VM/N since`, by address.
func (sw *Switch) LeasesText() string {
	var b strings.Builder
	leases := slices.SortedFunc(slices.Values(sw.def.Load().leases), func(a, b lease) int { return a.addr.Compare(b.addr) })
	for _, l := range leases {
		if vm, ok := sw.m.vms.serially(l.vm); ok {
			fmt.Fprintf(&b, "%v %s %s/%d %s\n", l.addr, l.mac, vm.Name(), l.n, stamp(l.since))
		}
	}
	return b.String()
}
