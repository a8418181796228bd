package ctl

import (
	"context"
	"fmt"
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

// serve answers DHCP as d says.
func (sw *Switch) serve(ctx context.Context, d *definition) error {
	pool, ok := d.leasing()
	if !ok {
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
	_, leasing := d.leasing()
	if leasing && !sw.m.leases.running(sw.link()) {
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
		if leasing || !strings.HasPrefix(w, AgainstDHCP) {
			say("%s", w)
		}
	}
}
