package ctl

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
)

// port is a NIC that is attached to a switch. It is replaced, not changed.
type port struct {
	vm     *VM
	n      int
	link   Link
	ifname string
	mac    net.HardwareAddr
	locked bool // by the NIC
	up     bool
	groups []string // the NIC's own
}

// name is how ports and leases call it.
func (p port) name() string { return fmt.Sprintf("%s/%d", p.vm.Name(), p.n) }

// flags are those of a port of a switch with the definition d.
func (p port) flags(d *definition) Port {
	return Port{MAC: p.mac, Locked: p.locked || d.get("locked") == "yes", Isolated: d.get("isolated") == "yes"}
}

// allGroups are those of a port's NIC and of its switch.
func (p port) allGroups(d *definition) []string {
	return union(slices.Clone(p.groups), strings.Fields(d.get("group")))
}

// attached are the ports, by name and number.
func (sw *Switch) attached() []port {
	sw.mu.Lock()
	list := make([]port, 0, len(sw.ports))
	for _, p := range sw.ports {
		list = append(list, p)
	}
	sw.mu.Unlock()
	slices.SortFunc(list, func(a, b port) int {
		return byPart(Part{a.vm.Name(), a.n}, Part{b.vm.Name(), b.n})
	})
	return list
}

// book notes a port, in the place of what it was before.
func (sw *Switch) book(p port) (is bool) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	_, was := sw.ports[p.link]
	sw.ports[p.link] = p
	return !was
}

func (sw *Switch) strike(l Link) (p port, was bool) {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	p, was = sw.ports[l]
	delete(sw.ports, l)
	return p, was
}

// attach makes a NIC a port, which is down then. A switch that is not up is
// brought up first.
func (sw *Switch) attach(ctx context.Context, p port) error {
	sw.edit.Lock()
	defer sw.edit.Unlock()
	if sw.Removed() {
		return sw.gone()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := sw.allot(p); err != nil {
		return err
	}
	if !sw.isUp() {
		if err := sw.bringUp(ctx, "-"); err != nil {
			return err
		}
	}
	d := sw.def.Load()
	if err := sw.join(ctx, d, p); err != nil {
		return err
	}
	sw.book(p)
	if err := sw.serve(ctx, d); err != nil {
		sw.part(p.link, false)
		if also := sw.m.Host.Detach(ctx, p.link); also != nil {
			sw.failed(also)
		}
		return err
	}
	sw.event("attached", "-", p.name())
	sw.notify(Contents)
	return nil
}

// detach takes a NIC out of the switch. With gone, its interface is about to
// be released.
func (sw *Switch) detach(ctx context.Context, l Link, gone bool) error {
	sw.edit.Lock()
	defer sw.edit.Unlock()
	if sw.isUp() && !gone {
		if err := sw.m.Host.Detach(ctx, l); err != nil {
			return err
		}
	}
	sw.part(l, true)
	if sw.isUp() {
		if err := sw.serve(ctx, sw.def.Load()); err != nil {
			sw.failed(err)
		}
	}
	return nil
}

// part strikes a port off, and its lease if its NIC is no more of the switch.
func (sw *Switch) part(l Link, tell bool) {
	p, was := sw.strike(l)
	if !was || sw.Removed() {
		return
	}
	sw.tidy(func(l lease) bool { return l.vm == p.vm.serial && l.n == p.n })
	if tell {
		sw.event("detached", "-", p.name())
	}
	sw.notify(Contents)
}

// change makes a port what p says. With again it is made a port anew, since
// flags are set before anything passes; it is down then.
func (sw *Switch) change(ctx context.Context, p port, again bool) error {
	sw.edit.Lock()
	defer sw.edit.Unlock()
	if again && sw.isUp() {
		if err := sw.join(ctx, sw.def.Load(), p); err != nil {
			return err
		}
	}
	sw.book(p)
	return nil
}

// join makes a NIC a port of the bridge, with its flags. It is down then.
func (sw *Switch) join(ctx context.Context, d *definition, p port) error {
	return sw.m.Host.Attach(ctx, p.link, sw.link(), p.flags(d))
}

// rejoin makes a NIC that is attached a port anew, up if it is to be.
func (sw *Switch) rejoin(ctx context.Context, d *definition, p port) error {
	err := sw.join(ctx, d, p)
	if err == nil {
		err = sw.m.Host.SetUp(ctx, p.link, p.up)
	}
	if err != nil {
		return Errorf(Errno(err), "%s: %v", p.name(), err)
	}
	return nil
}

// rejoinAll makes each port anew: flags are set before anything passes.
func (sw *Switch) rejoinAll(ctx context.Context, d *definition) error {
	for _, p := range sw.attached() {
		if err := sw.rejoin(ctx, d, p); err != nil {
			return err
		}
	}
	return nil
}

// portsBack attaches the NICs that are attached to a switch and whose
// interface is not, as after down and up.
func (sw *Switch) portsBack(ctx context.Context, d *definition, bridge string) error {
	for _, p := range sw.attached() {
		s, err := sw.m.Host.Observe(ctx, p.link)
		if err == nil && s.Master == bridge {
			continue
		}
		if err := sw.rejoin(ctx, d, p); err != nil {
			return err
		}
	}
	return nil
}

// regroup puts each port into the groups of its NIC and of the switch.
func (sw *Switch) regroup(ctx context.Context, d *definition) error {
	for _, p := range sw.attached() {
		if err := sw.m.Host.Groups(ctx, p.link, p.allGroups(d)); err != nil {
			return Errorf(Errno(err), "%s: %v", p.name(), err)
		}
	}
	return nil
}

// groupsBack puts the NICs that are attached into their groups again, from
// which a flush of the host's ruleset takes them.
func (sw *Switch) groupsBack(ctx context.Context, d *definition) error {
	for _, p := range sw.attached() {
		groups := p.allGroups(d)
		if len(groups) == 0 {
			continue
		}
		if err := sw.m.Host.Groups(ctx, p.link, groups); err != nil {
			return Errorf(Errno(err), "%s: %v", p.name(), err)
		}
	}
	return nil
}

// PortsText is the text of ports: `VM/N ifname mac state`, where state is up,
// down, or detached while the switch is not up.
func (sw *Switch) PortsText() string {
	var b strings.Builder
	up := sw.isUp()
	for _, p := range sw.attached() {
		state := "down"
		switch {
		case !up:
			state = "detached"
		case p.up:
			state = "up"
		}
		fmt.Fprintf(&b, "%s %s %v %s\n", p.name(), column(p.ifname), p.mac, state)
	}
	return b.String()
}
