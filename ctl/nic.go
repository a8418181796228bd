package ctl

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"
)

// NICSteps are what a start does for each NIC, in the order of vmd, after the
// step record. A test ends the processes at each.
var NICSteps = []string{"tap", "alias", "switch", "rdomain", "group", "address", "up", "lease"}

// netTime bounds a change of the host's links that nobody can interrupt.
const netTime = 5 * time.Second

// nic is a NIC of a launch. It is changed with VM.edit held, or by the start
// before the machine runs, and always with VM.mu held.
type nic struct {
	n      int
	link   Link
	mac    net.HardwareAddr
	groups []string    // its own, as it was launched
	ifname string      // empty if its tap is gone
	sw     *Switch     // that it is a port of; nil for none
	local  *LocalAddrs // nil for a NIC that is not local
}

// alone is what can be said against a NIC of a definition without looking
// at the host.
func (d *definition) alone(n int) error {
	get := func(file string) string { return d.get(nicAttr(n, file)) }
	sw := get("switch")
	switch {
	case d.isUser(n) && !rootless():
		return Errorf(syscall.EOPNOTSUPP, "nic/%d/user: the engine's own network is for a daemon without root", n)
	case d.isUser(n):
		return d.userAlone(n)
	case rootless():
		return Errorf(syscall.EPERM, "nic/%d: a daemon without root has no taps; nic/%d/user yes gives it the engine's own network", n, n)
	case sw != "" && get("local") == "yes":
		return Errorf(syscall.EINVAL, "nic/%d/local: it is of the switch %s", n, sw)
	case sw != "" && get("rdomain") != "0":
		return Errorf(syscall.EINVAL, "nic/%d/rdomain: it is of the switch %s, whose rdomain holds", n, sw)
	}
	return nil
}

// isUser reports whether a NIC is on the engine's own network. The host has no
// link for it.
func (d *definition) isUser(n int) bool { return d.get(nicAttr(n, "user")) == "yes" }

// userAlone is what can be said against a NIC on the engine's own network: it
// has nothing that a link has, and is plugged in for good.
func (d *definition) userAlone(n int) error {
	for _, a := range nicAttrs {
		file := strings.TrimPrefix(a.Name, "nic/N/")
		if file != "mac" && file != "user" && d.get(nicAttr(n, file)) != a.Default {
			return Errorf(syscall.EINVAL, "nic/%d/%s: on the engine's own network, which nic/%d/user yes is, it means nothing", n, file, n)
		}
	}
	if d.get("engine") == "native" {
		return Errorf(syscall.EINVAL, "nic/%d/user: only QEMU has a network of its own; engine auto or qemu", n)
	}
	return nil
}

// connect does the NICSteps for each NIC that has a link. What it made is in
// the launch, to be released.
func (vm *VM) connect(ctx context.Context, l *launch, d *definition, spec *Launch) error {
	for _, n := range d.numbers("nic") {
		mac, err := net.ParseMAC(d.get(nicAttr(n, "mac")))
		if err != nil {
			return Errorf(syscall.EINVAL, "nic/%d/mac: %v", n, err)
		}
		if d.isUser(n) {
			spec.NICs = append(spec.NICs, LaunchNIC{N: n, MAC: mac})
			continue
		}
		c := &nic{n: n, link: NICLink(vm.id, n), mac: mac, groups: strings.Fields(d.get(nicAttr(n, "group")))}
		vm.mu.Lock()
		l.nics = append(l.nics, c)
		vm.mu.Unlock()
		if err := vm.connectNIC(ctx, c, d, spec); err != nil {
			return err
		}
	}
	return nil
}

func (vm *VM) connectNIC(ctx context.Context, c *nic, d *definition, spec *Launch) error {
	host := vm.m.Host
	do := map[string]func() error{
		"tap":     func() error { return vm.openTap(ctx, c, d, spec) },
		"alias":   func() error { return host.Alias(ctx, c.link, vm.Name()) },
		"switch":  func() error { return vm.plug(ctx, c, d) },
		"rdomain": func() error { return vm.routed(ctx, c, d) },
		"group":   func() error { return vm.group(ctx, c) },
		"address": func() error { return vm.addressed(ctx, c, d) },
		"up":      func() error { return host.SetUp(ctx, c.link, d.nicUp(c.n)) },
		"lease":   func() error { return vm.serveLocal(ctx, c) },
	}
	for _, step := range NICSteps {
		atStep(vm.m.State, step)
		if err := do[step](); err != nil {
			return Errorf(Errno(err), "nic/%d/%s: %v", c.n, step, err)
		}
	}
	return nil
}

func (d *definition) nicUp(n int) bool { return d.get(nicAttr(n, "up")) == "yes" }

func (vm *VM) openTap(ctx context.Context, c *nic, d *definition, spec *Launch) error {
	f, ifname, err := vm.m.Host.Tap(ctx, c.link, d.get(nicAttr(c.n, "tap")))
	if err != nil {
		return err
	}
	spec.NICs = append(spec.NICs, LaunchNIC{N: c.n, MAC: c.mac, Tap: f})
	vm.mu.Lock()
	c.ifname = ifname
	vm.mu.Unlock()
	return nil
}

// plug makes a NIC a port of the switch that its definition names, if it does,
// with the rights of who set that.
func (vm *VM) plug(ctx context.Context, c *nic, d *definition) error {
	sw, err := vm.reach(ctx, d, c.n)
	if err != nil {
		return err
	}
	return vm.join(ctx, c, d, sw)
}

// join makes a NIC a port of a switch, or of none.
func (vm *VM) join(ctx context.Context, c *nic, d *definition, sw *Switch) error {
	if sw == nil {
		return nil
	}
	if err := sw.attach(ctx, vm.port(c, d)); err != nil {
		return err
	}
	vm.setSwitch(c, sw)
	return nil
}

// unplug takes a NIC out of its switch. With gone, its interface is.
func (vm *VM) unplug(ctx context.Context, c *nic, gone bool) error {
	if c.sw == nil {
		return nil
	}
	if err := c.sw.detach(ctx, c.link, gone); err != nil {
		return err
	}
	vm.setSwitch(c, nil)
	return nil
}

func (vm *VM) setSwitch(c *nic, sw *Switch) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c.sw = sw
}

// port is what a switch knows of a NIC.
func (vm *VM) port(c *nic, d *definition) port {
	return port{vm: vm, n: c.n, link: c.link, ifname: c.ifname, mac: c.mac,
		locked: d.get(nicAttr(c.n, "locked")) == "yes", up: d.nicUp(c.n), groups: c.groups}
}

func (vm *VM) routed(ctx context.Context, c *nic, d *definition) error {
	table := atoi(d.get(nicAttr(c.n, "rdomain")))
	if table == 0 {
		return nil
	}
	return vm.m.Host.Rdomain(ctx, c.link, uint32(table))
}

// group puts a NIC into its groups, and into those of its switch.
func (vm *VM) group(ctx context.Context, c *nic) error {
	groups := c.allGroups()
	if len(groups) == 0 {
		return nil
	}
	return vm.m.Host.Groups(ctx, c.link, groups)
}

func (c *nic) allGroups() []string {
	if c.sw == nil {
		return c.groups
	}
	return union(slices.Clone(c.groups), strings.Fields(c.sw.Get("group")))
}

func union(a, b []string) []string {
	for _, w := range b {
		if !slices.Contains(a, w) {
			a = append(a, w)
		}
	}
	return a
}

// addressed gives the link of a local NIC its end on the host.
func (vm *VM) addressed(ctx context.Context, c *nic, d *definition) error {
	if d.get(nicAttr(c.n, "local")) != "yes" {
		return nil
	}
	return vm.giveLocal(ctx, c)
}

func (vm *VM) giveLocal(ctx context.Context, c *nic) error {
	a, err := vm.m.localAddrs(vm.id, c.n)
	if err != nil {
		return err
	}
	if err := vm.m.Host.Addresses(ctx, c.link, a.hosts()); err != nil {
		return err
	}
	vm.mu.Lock()
	c.local = &a
	vm.mu.Unlock()
	return nil
}

func (a *LocalAddrs) hosts() []netip.Prefix {
	list := []netip.Prefix{a.Host}
	if a.Host6.IsValid() {
		list = append(list, a.Host6)
	}
	return list
}

// serveLocal answers the guest of a local NIC.
func (vm *VM) serveLocal(ctx context.Context, c *nic) error {
	if c.local == nil {
		return nil
	}
	a := c.local
	return vm.m.leases.serve(ctx, c.link, LeaseService{Server: a.Host, Server6: a.Host6, DNS: resolvers(), Router: true,
		Bindings: []LeaseBinding{{MAC: c.mac, Addr: a.Guest.Addr(), Addr6: a.Guest6.Addr(), Hostname: vm.Name()}}})
}

// releaseNICs takes away what there is of the NICs of a launch.
func (vm *VM) releaseNICs(ctx context.Context, l *launch) {
	vm.edit.Lock()
	defer vm.edit.Unlock()
	for _, c := range vm.nicsOf(l) {
		vm.m.leases.stop(ctx, c.link)
		if err := vm.unplug(ctx, c, true); err != nil {
			vm.failed(err)
		}
		if err := vm.m.Host.Release(ctx, c.link); err != nil {
			vm.failed(err)
		}
	}
	vm.mu.Lock()
	l.nics = nil
	vm.mu.Unlock()
}

// nicsOf are the NICs of a launch.
func (vm *VM) nicsOf(l *launch) []*nic {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return l.nics
}

// replugAll makes the NICs of a machine that runs what a changed definition
// says of them. Called with edit held.
func (vm *VM) replugAll(was, now *definition) (undo func(), err error) {
	vm.mu.Lock()
	l, starting := vm.launch, vm.state == Starting
	vm.mu.Unlock()
	if l == nil {
		return nil, nil
	}
	if n, differs := was.nicsDiffer(now); differs && starting {
		return nil, Errorf(syscall.EBUSY, "nic/%d: %s is starting, and what it starts with is fixed", n, vm.Name())
	}
	ctx, cancel := context.WithTimeout(context.Background(), netTime)
	defer cancel()
	type step struct {
		c  *nic
		sw *Switch // that it was a port of
	}
	var done []step
	undo = func() {
		ctx, cancel := context.WithTimeout(context.Background(), netTime)
		defer cancel()
		for _, s := range slices.Backward(done) { // whoever may attach to it now
			if err := vm.replug(ctx, s.c, now, was, s.sw); err != nil {
				vm.failed(err)
			}
		}
	}
	for _, c := range vm.nicsOf(l) {
		if c.ifname == "" || !was.nicDiffers(now, c.n) {
			continue
		}
		sw := c.sw
		if was.get(nicAttr(c.n, "switch")) != now.get(nicAttr(c.n, "switch")) {
			sw, err = vm.reach(ctx, now, c.n)
		}
		if err == nil {
			done = append(done, step{c, c.sw})
			err = vm.replug(ctx, c, was, now, sw)
		}
		if err != nil {
			undo()
			return nil, Errorf(Errno(err), "nic/%d: %v", c.n, err)
		}
	}
	return undo, nil
}

// nicsDiffer finds a NIC of which the definitions say different things that
// act at once.
func (d *definition) nicsDiffer(now *definition) (n int, differs bool) {
	for n := range MaxNICs {
		if d.nicDiffers(now, n) {
			return n, true
		}
	}
	return 0, false
}

func (d *definition) nicDiffers(now *definition, n int) bool {
	p := Part{"nic", n}
	return d.parts[p] && now.parts[p] &&
		slices.ContainsFunc([]string{"switch", "locked", "up"}, func(file string) bool { return d.get(p.attr(file)) != now.get(p.attr(file)) })
}

// replug changes what a NIC is plugged into, and how. It is down meanwhile.
func (vm *VM) replug(ctx context.Context, c *nic, was, now *definition, to *Switch) error {
	differs := func(file string) bool { return was.get(nicAttr(c.n, file)) != now.get(nicAttr(c.n, file)) }
	if differs("switch") {
		groups := c.allGroups()
		if err := vm.unplug(ctx, c, false); err != nil {
			return err
		}
		if err := vm.join(ctx, c, now, to); err != nil {
			return err
		}
		if now := c.allGroups(); !slices.Equal(groups, now) {
			if err := vm.m.Host.Groups(ctx, c.link, now); err != nil {
				return err
			}
		}
	} else if c.sw != nil {
		if err := c.sw.change(ctx, vm.port(c, now), differs("locked")); err != nil {
			return err
		}
	}
	return vm.m.Host.SetUp(ctx, c.link, now.nicUp(c.n))
}

// nic is a NIC of the present launch.
func (vm *VM) nic(n int) (nic, bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.launch == nil {
		return nic{}, false
	}
	for _, c := range vm.launch.nics {
		if c.n == n {
			return *c, true
		}
	}
	return nic{}, false
}
