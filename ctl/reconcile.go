package ctl

import (
	"context"
	"net"
	"net/netip"
	"strings"
)

// reconcile compares what priv has on record with the definitions and the
// guests that run: what belongs to nothing goes, what is missing of a switch
// that is up or of a guest that runs comes back. What cannot be put right,
// check tells. Nothing of it keeps the daemon from serving.
func (m *Manager) reconcile(ctx context.Context) {
	list, err := m.Host.Links(ctx)
	if err != nil {
		m.failed("network: %v", err)
		return
	}
	have := map[Link]LinkState{}
	for _, s := range list {
		if m.isWanted(s.Link) {
			have[s.Link] = s
		} else {
			m.releaseStray(ctx, s)
		}
	}
	for _, sw := range m.switches.all() {
		if s, ok := have[sw.link()]; ok {
			sw.takeUp(ctx, s)
		}
	}
	for _, vm := range m.VMs() {
		vm.mu.Lock()
		l := vm.launch
		vm.mu.Unlock()
		if l != nil {
			vm.takeUpNICs(ctx, l, have)
		}
	}
	for _, sw := range m.switches.all() {
		sw.edit.Lock()
		sw.tidy(func(lease) bool { return true })
		if sw.isUp() {
			if err := sw.serve(ctx, sw.def.Load()); err != nil {
				sw.failed(err)
			}
		}
		sw.edit.Unlock()
	}
}

// isWanted reports whether there is something that a link is of.
func (m *Manager) isWanted(l Link) bool {
	if l.Switch {
		_, ok := m.switches.numbered(l.ID)
		return ok
	}
	if m.vms.foreign[l.ID] {
		return true
	}
	vm, ok := m.vms.numbered(l.ID)
	if !ok {
		return false
	}
	_, ok = vm.nic(l.NIC)
	return ok
}

func (m *Manager) releaseStray(ctx context.Context, s LinkState) {
	if err := m.Host.Release(ctx, s.Link); err != nil {
		m.failed("network: %v", err)
		return
	}
	m.log.append(0, "-", "released", "-", strings.TrimSpace(s.Link.String()+" "+s.Ifname))
}

// takeUp finds a switch up, and brings back what is missing of it.
func (sw *Switch) takeUp(ctx context.Context, s LinkState) {
	sw.edit.Lock()
	defer sw.edit.Unlock()
	if s.Ifname == "" {
		if err := sw.takeDown(ctx, "-"); err != nil {
			sw.failed(err)
		}
		return
	}
	sw.turn(Up, s.Ifname, "")
	if _, err := sw.raise(ctx, sw.def.Load()); err != nil {
		sw.failed(err)
	}
}

// launchedNICs are the NICs of a launch that was found, as it was recorded.
func (vm *VM) launchedNICs(d *definition) []*nic {
	var list []*nic
	for n := range MaxNICs {
		if mac, err := net.ParseMAC(d.launched[nicAttr(n, "mac")]); err == nil && d.launched[nicAttr(n, "user")] != "yes" {
			list = append(list, &nic{n: n, link: NICLink(vm.id, n), mac: mac,
				groups: strings.Fields(d.launched[nicAttr(n, "group")])})
		}
	}
	return list
}

// takeUpNICs brings back what is missing of the NICs of a guest that runs.
func (vm *VM) takeUpNICs(ctx context.Context, l *launch, have map[Link]LinkState) {
	vm.edit.Lock()
	defer vm.edit.Unlock()
	for _, c := range vm.nicsOf(l) {
		s := have[c.link]
		if s.Ifname == "" {
			vm.m.surprised("vm %s: the tap of nic/%d is gone until the next start", vm.Name(), c.n)
			continue
		}
		vm.mu.Lock()
		c.ifname = s.Ifname
		vm.mu.Unlock()
		if err := vm.takeUpNIC(ctx, c, s); err != nil {
			vm.failed(Errorf(Errno(err), "nic/%d: %v", c.n, err))
		}
	}
}

func (vm *VM) takeUpNIC(ctx context.Context, c *nic, s LinkState) error {
	d := vm.def.Load()
	if d.launched[nicAttr(c.n, "local")] == "yes" {
		if err := vm.takeUpLocal(ctx, c, s); err != nil {
			return err
		}
	} else if err := vm.takeUpPort(ctx, c, s, d); err != nil {
		return err
	}
	if !d.parts[Part{"nic", c.n}] {
		return nil // it goes with the launch
	}
	if err := vm.m.Host.Groups(ctx, c.link, c.allGroups()); err != nil {
		return err
	}
	return vm.m.Host.SetUp(ctx, c.link, d.nicUp(c.n))
}

// takeUpPort plugs a NIC in again if it is not in its switch, and takes it out
// of another: a change that was not saved may have come so far. For the same
// reason a port with other flags is made one anew; and one that is down, which
// loses nothing, since it may have been on the way to being made.
func (vm *VM) takeUpPort(ctx context.Context, c *nic, s LinkState, d *definition) error {
	if !d.parts[Part{"nic", c.n}] {
		vm.keepPort(c, s)
		return nil
	}
	name := d.get(nicAttr(c.n, "switch"))
	sw, ok := vm.m.switches.named(name)
	if !ok || s.Master == "" || s.Master != sw.bridge() {
		if s.Master != "" && d.launched[nicAttr(c.n, "rdomain")] == "0" {
			if err := vm.m.Host.Detach(ctx, c.link); err != nil {
				return err
			}
		}
		return vm.plug(ctx, c, d)
	}
	p := vm.port(c, d)
	flags := p.flags(sw.def.Load())
	if err := sw.change(ctx, p, !s.Up || s.Locked != flags.Locked || s.Isolated != flags.Isolated); err != nil {
		return err
	}
	vm.setSwitch(c, sw)
	return nil
}

// keepPort leaves a NIC that the definition has no more where the launch has
// it, and as it is there.
func (vm *VM) keepPort(c *nic, s LinkState) {
	for _, sw := range vm.m.switches.all() {
		if s.Master == "" || sw.bridge() != s.Master {
			continue
		}
		sw.book(port{vm: vm, n: c.n, link: c.link, ifname: c.ifname, mac: c.mac, locked: s.Locked, up: s.Up, groups: c.groups})
		vm.setSwitch(c, sw)
	}
}

// takeUpLocal finds the address of a local NIC, which may be of another
// network than the next start would take, or gives it one again.
func (vm *VM) takeUpLocal(ctx context.Context, c *nic, s LinkState) error {
	if a, ok := localOf(s.Addrs); ok {
		vm.mu.Lock()
		c.local = &a
		vm.mu.Unlock()
	} else if err := vm.giveLocal(ctx, c); err != nil {
		return err
	}
	return vm.serveLocal(ctx, c)
}

// localOf is what Local gave for the host's ends that an interface has.
func localOf(addrs []netip.Prefix) (a LocalAddrs, ok bool) {
	for _, p := range addrs {
		switch {
		case p.Addr().Is4() && p.Bits() == 31:
			a.Host, a.Guest = p, netip.PrefixFrom(p.Addr().Next(), 31)
		case p.Addr().Is6() && p.Bits() == 96:
			a.Host6, a.Guest6 = p, netip.PrefixFrom(p.Addr().Next(), 96)
		}
	}
	return a, a.Host.IsValid()
}
