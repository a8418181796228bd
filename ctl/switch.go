package ctl

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// States of a switch; it can be Failed too.
const (
	Up   State = "up"
	Down State = "down"
)

// Switch is what the NICs of machines are plugged into: a bridge of the host,
// from when it is brought up until it is taken down. What the kernel has of
// it is changed with edit held.
type Switch struct {
	object

	mu     sync.Mutex
	state  State
	reason string
	since  time.Time
	ifname string // of the bridge; empty if there is none
	ports  map[Link]port
}

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

var switches = newKind("switch", "switch", SwitchAttrs)

func (m *Manager) newSwitch(in shelved, name string, d *definition) *Switch {
	sw := &Switch{state: Down, since: d.changed, ports: map[Link]port{}}
	sw.init(m, in, sw, name, d)
	return sw
}

func (sw *Switch) link() Link { return SwitchLink(sw.id) }

// Status is the text of status.
func (sw *Switch) Status() string {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.state == Failed {
		return string(Failed) + " " + sw.reason + "\n"
	}
	return string(sw.state) + "\n"
}

// bridge is what the host calls the bridge; empty if there is none.
func (sw *Switch) bridge() string {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return sw.ifname
}

func (sw *Switch) isUp() bool {
	sw.mu.Lock()
	defer sw.mu.Unlock()
	return sw.state == Up
}

// turn notes a state.
func (sw *Switch) turn(s State, ifname, reason string) {
	sw.mu.Lock()
	sw.state, sw.ifname, sw.reason, sw.since = s, ifname, oneLine(reason), time.Now()
	sw.mu.Unlock()
	sw.notify(Contents)
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

// SwitchVerbs are the verbs of a switch.
var SwitchVerbs = []Verb{
	{Name: "up", Help: "makes the bridge, or puts right what is missing of it"},
	{Name: "down", Help: "takes the bridge away; what is attached to it comes back with up"},
}

// Do does a verb.
func (sw *Switch) Do(ctx context.Context, by Cred, verb, arg string) error {
	if arg != "" {
		return Errorf(syscall.EINVAL, "%.40q: it takes no argument", verb)
	}
	sw.edit.Lock()
	defer sw.edit.Unlock()
	switch {
	case sw.Removed():
		return sw.gone()
	case verb == "up":
		return sw.bringUp(ctx, by.String())
	case verb == "down":
		return sw.takeDown(ctx, by.String())
	}
	return Errorf(syscall.EINVAL, "%.40q: no such verb: up down", verb)
}

// bringUp makes the bridge and all that belongs to it; of one that is up, what
// is missing. What fails of a switch that was down is undone. Called with edit
// held.
func (sw *Switch) bringUp(ctx context.Context, who string) error {
	was := sw.isUp()
	ifname, err := sw.raise(ctx, sw.def.Load())
	switch {
	case err == nil && !was:
		sw.turn(Up, ifname, "")
		sw.event("up", who, ifname)
	case err == nil:
		sw.turn(Up, ifname, "")
	case !was && ctx.Err() != nil:
		err = Errorf(syscall.EINTR, "up %s: interrupted", sw.Name())
		sw.abandon()
		sw.turn(Down, "", "")
	case !was:
		err = Errorf(Errno(err), "up %s: %v", sw.Name(), err)
		sw.abandon()
		sw.turn(Failed, "", err.Error())
		sw.event("failed", who, err.Error())
	}
	return err
}

// abandon undoes what there is of a switch that could not be brought up.
func (sw *Switch) abandon() {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	sw.m.leases.stop(ctx, sw.link())
	if err := sw.m.Host.Release(ctx, sw.link()); err != nil {
		sw.failed(err)
	}
}

// raise does the steps of bringing a switch up. Each can be done again.
func (sw *Switch) raise(ctx context.Context, d *definition) (ifname string, err error) {
	if err := d.understood(); err != nil {
		return "", err
	}
	host, l := sw.m.Host, sw.link()
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"ifname", func() error { ifname, err = host.Bridge(ctx, l, d.get("ifname")); return err }},
		{"alias", func() error { return host.Alias(ctx, l, sw.Name()) }},
		{"rdomain", func() error { return sw.routed(ctx, d) }},
		{"address", func() error { return sw.addressed(ctx, d) }},
		{"nat", func() error { return sw.masquerade(ctx, d) }},
		{"uplink", func() error { return sw.uplinked(ctx, d) }},
		{"ports", func() error { return sw.portsBack(ctx, d, ifname) }},
		{"group", func() error { return sw.groupsBack(ctx, d) }},
		{"up", func() error { return host.SetUp(ctx, l, true) }},
		{"dhcp", func() error { return sw.serve(ctx, d) }},
	} {
		if err := step.do(); err != nil {
			return "", Errorf(Errno(err), "%s: %v", step.name, err)
		}
	}
	return ifname, nil
}

func (sw *Switch) routed(ctx context.Context, d *definition) error {
	table := atoi(d.get("rdomain"))
	if table == 0 {
		return nil
	}
	return sw.m.Host.Rdomain(ctx, sw.link(), uint32(table))
}

func (sw *Switch) addressed(ctx context.Context, d *definition) error {
	list := prefixes(d.get("address"))
	if len(list) == 0 && !sw.isUp() {
		return nil
	}
	return sw.m.Host.Addresses(ctx, sw.link(), list)
}

// natted are the networks behind a switch whose packets leave with the host's
// address.
func (d *definition) natted() []netip.Prefix {
	if d.get("nat") != "yes" {
		return nil
	}
	var list []netip.Prefix
	for _, p := range prefixes(d.get("address")) {
		list = append(list, p.Masked())
	}
	return list
}

func (sw *Switch) masquerade(ctx context.Context, d *definition) error {
	list := d.natted()
	if len(list) == 0 && !sw.isUp() {
		return nil
	}
	return sw.m.Host.Masquerade(ctx, sw.link(), list)
}

func (sw *Switch) uplinked(ctx context.Context, d *definition) error {
	uplink := d.get("uplink")
	if uplink == "" && !sw.isUp() {
		return nil
	}
	return sw.m.Host.Uplink(ctx, sw.link(), uplink)
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

// allGroups are those of a port's NIC and of its switch.
func (p port) allGroups(d *definition) []string {
	return union(slices.Clone(p.groups), strings.Fields(d.get("group")))
}

// join makes a NIC a port of the bridge, with its flags. It is down then.
func (sw *Switch) join(ctx context.Context, d *definition, p port) error {
	return sw.m.Host.Attach(ctx, p.link, sw.link(), p.flags(d))
}

// flags are those of a port of a switch with the definition d.
func (p port) flags(d *definition) Port {
	return Port{MAC: p.mac, Locked: p.locked || d.get("locked") == "yes", Isolated: d.get("isolated") == "yes"}
}

// serve answers DHCP as d says.
func (sw *Switch) serve(ctx context.Context, d *definition) error {
	pool, ok := d.pool()
	if d.get("dhcp") != "yes" || !ok {
		sw.m.leases.stop(ctx, sw.link())
		return nil
	}
	return sw.m.leases.serve(ctx, sw.link(), LeaseService{Server: pool, DNS: resolvers(),
		Router: d.get("nat") == "yes", Bindings: d.bindings(sw.attached())})
}

// takeDown takes the bridge away, or puts it back as it was found. Called with
// edit held.
func (sw *Switch) takeDown(ctx context.Context, who string) error {
	sw.m.leases.stop(ctx, sw.link())
	if sw.isUp() {
		for _, p := range sw.attached() {
			if err := sw.m.Host.Detach(ctx, p.link); err != nil {
				sw.failed(err) // it may be gone; the bridge is to go
			}
		}
	}
	if err := sw.m.Host.Release(ctx, sw.link()); err != nil {
		return Errorf(Errno(err), "down %s: %v", sw.Name(), err)
	}
	was := sw.isUp()
	sw.turn(Down, "", "")
	if was {
		sw.event("down", who, "")
	}
	return nil
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

// allot gives a NIC a lease, if the switch leases.
func (sw *Switch) allot(p port) error {
	_, err := sw.rewrite(func(d *definition) (bool, error) { return d.allot(p, time.Now()) })
	return err
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

// apply makes a switch that is up what its changed definition says.
func (sw *Switch) apply(was, now *definition) (undo func(), err error) {
	if !sw.isUp() {
		return nil, nil
	}
	undo = func() {
		ctx, cancel := context.WithTimeout(context.Background(), netTime)
		defer cancel()
		if err := sw.realize(ctx, now, was); err != nil {
			sw.failed(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), netTime)
	defer cancel()
	if err := sw.realize(ctx, was, now); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// realize does what differs between two definitions.
func (sw *Switch) realize(ctx context.Context, was, now *definition) error {
	for _, step := range []struct {
		name  string // as in raise
		attrs string // of which one differs
		do    func(ctx context.Context, d *definition) error
	}{
		{"ports", "isolated locked", sw.rejoinAll},
		{"group", "group", sw.regroup},
		{"uplink", "uplink", sw.uplinked},
		{"address", "address", sw.addressed},
		{"nat", "address nat", sw.masquerade},
		{"dhcp", "address nat dhcp", sw.serve},
	} {
		if !slices.ContainsFunc(strings.Fields(step.attrs), func(a string) bool { return was.get(a) != now.get(a) }) {
			continue
		}
		if err := step.do(ctx, now); err != nil {
			return Errorf(Errno(err), "%s: %v", step.name, err)
		}
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

// regroup puts each port into the groups of its NIC and of the switch.
func (sw *Switch) regroup(ctx context.Context, d *definition) error {
	for _, p := range sw.attached() {
		if err := sw.m.Host.Groups(ctx, p.link, p.allGroups(d)); err != nil {
			return Errorf(Errno(err), "%s: %v", p.name(), err)
		}
	}
	return nil
}

func (sw *Switch) applied() {}

// idle keeps NICs from being attached until release is called. EBUSY if one
// is.
func (sw *Switch) idle(what string) (release func(), err error) {
	sw.edit.Lock()
	if sw.Removed() {
		sw.edit.Unlock()
		return nil, sw.gone()
	}
	if ports := sw.attached(); len(ports) > 0 {
		sw.edit.Unlock()
		return nil, Errorf(syscall.EBUSY, "%s %s: nic/%d of machine %s is attached", what, sw.Name(), ports[0].n, ports[0].vm.Name())
	}
	return sw.edit.Unlock, nil
}

func (sw *Switch) dissolve() error {
	ctx, cancel := context.WithTimeout(context.Background(), netTime)
	defer cancel()
	return sw.takeDown(ctx, "-")
}

func (sw *Switch) renamed() {
	if !sw.isUp() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), netTime)
	defer cancel()
	if err := sw.m.Host.Alias(ctx, sw.link(), sw.Name()); err != nil {
		sw.failed(err)
	}
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

// Mtime is when a file of the switch changed last, by its path below the
// switch.
func (sw *Switch) Mtime(file string) time.Time {
	if file == "status" {
		sw.mu.Lock()
		defer sw.mu.Unlock()
		return sw.since
	}
	return sw.mtime(file)
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

// leased is the address that a NIC is leased, with the bits of its network.
func (sw *Switch) leased(vm *VM, n int) string {
	d := sw.def.Load()
	pool, ok := d.pool()
	i := d.leaseOf(vm.serial, n)
	if !ok || i < 0 || d.get("dhcp") != "yes" {
		return ""
	}
	return netip.PrefixFrom(d.leases[i].addr, pool.Bits()).String()
}

// Check is the text of check: what up would say, where the kernel has
// something else than is configured, and what of the host is in the way; ok
// if nothing.
func (sw *Switch) Check(ctx context.Context) string {
	d := sw.def.Load()
	var found []string
	say := func(format string, args ...any) { found = append(found, oneLine(fmt.Sprintf(format, args...))) }
	for _, line := range d.unknown {
		say("the definition has %q of a newer vmfs", line)
	}
	if _, ok := d.pool(); !ok && d.get("dhcp") == "yes" {
		say("dhcp: address has no IPv4 network to lease from")
	}
	if d.get("nat") == "yes" && d.get("address") == "" {
		say("nat: there is no address, and so no network behind the switch")
	}
	if strings.HasPrefix(sw.Status(), string(Failed)) {
		say("%s", strings.TrimSuffix(sw.Status(), "\n"))
	}
	if sw.isUp() {
		sw.observe(ctx, d, say)
	}
	if len(found) == 0 {
		return "ok\n"
	}
	return strings.Join(found, "\n") + "\n"
}

// observe compares a switch that is up with what the kernel has of it.
func (sw *Switch) observe(ctx context.Context, d *definition, say func(format string, args ...any)) {
	s, err := sw.m.Host.Observe(ctx, sw.link())
	switch {
	case err != nil:
		say("ifname: %v", err)
		return
	case s.Ifname == "":
		say("ifname: %s is gone; up makes it again", sw.bridge())
		return
	case !s.Up:
		say("status: %s is down", s.Ifname)
	}
	if want := d.get("ifname"); want != "" && want != s.Ifname || want == "" && !s.Made {
		say("ifname: it is %s until the next up after a down", s.Ifname)
	}
	if table := d.get("rdomain"); (table != "0") != (s.Master != "") {
		say("rdomain: it is not %s until the next up after a down", table)
	}
	for _, a := range prefixes(d.get("address")) {
		if !slices.Contains(s.Addrs, a) {
			say("address: %s does not have %v", s.Ifname, a)
		}
	}
	if _, ok := d.pool(); ok && d.get("dhcp") == "yes" && !sw.m.leases.running(sw.link()) {
		say("dhcp: nobody answers; up starts that again")
	}
	for _, p := range sw.attached() {
		if ps, err := sw.m.Host.Observe(ctx, p.link); err != nil || ps.Master != s.Ifname {
			say("ports: %s %s is not a port of %s", p.name(), p.ifname, s.Ifname)
		}
	}
	ways, err := sw.m.Host.Ways(ctx, sw.link(), d.natted())
	if err != nil {
		say("%v", err)
	}
	for _, w := range ways {
		say("%s", w)
	}
}
