package ctl

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// infoTime bounds what info waits for a guest process.
const infoTime = 500 * time.Millisecond

// Info is the text of info: a key and a value a line; what is not known is
// not there.
func (vm *VM) Info(ctx context.Context) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s %v\n", key, value) }
	d := vm.def.Load()
	line("id", vm.id)

	vm.mu.Lock()
	l := vm.launch
	allowed := vm.startAllowed()
	generation := d.generation
	var g Guest
	var st GuestState
	var pid int
	var bounds string
	if l != nil {
		g, st, pid, bounds = l.guest, l.state, l.pid, l.bounds
		generation = max(generation, l.generation)
	}
	vm.mu.Unlock()

	line("generation", generation)
	if st.Engine != "" {
		line("engine", oneLine(st.Engine))
		line("engine_reason", oneLine(st.Reason))
	}
	if pid != 0 {
		line("pid", pid)
	}
	if bounds != "" {
		line("cgroup", bounds)
	}
	if !st.Started.IsZero() {
		line("started", stamp(st.Started))
		line("restarts", st.Reboots)
	}
	if d.exit != nil {
		line("exit", fmt.Sprintf("%s %s %s", oneWord(d.exit.Who), stamp(d.exit.At), d.exit.How))
	}
	if g != nil && st.Engine != "" {
		ctx, cancel := context.WithTimeout(ctx, infoTime)
		defer cancel()
		if u, err := g.Usage(ctx); err == nil {
			line("cpu_usec", u.CPU.Microseconds())
			line("overhead_bytes", u.Overhead)
			if e := u.Exits; e != nil {
				line("exits_pio", e.PIO)
				line("exits_mmio", e.MMIO)
				line("exits_interrupted", e.Interrupted)
				line("exits_stray", e.Stray)
			}
		}
	}
	line("start_allowed_in_ms", max(0, allowed.Milliseconds()))
	return b.String()
}

// Pending is the text of pending: `path now next` for each value that waits
// for the next start; `-` stands for nothing, and a value with blanks is
// quoted.
func (vm *VM) Pending() string {
	d := vm.def.Load()
	if d.launched == nil || !vm.Active() {
		return ""
	}
	next := d.values()
	paths := make(map[string]bool)
	for p := range next {
		paths[p] = true
	}
	for p := range d.launched {
		paths[p] = true
	}
	var b strings.Builder
	for _, p := range sortedKeys(paths) {
		if d.launched[p] != next[p] {
			fmt.Fprintf(&b, "%s %s %s\n", p, column(d.launched[p]), column(next[p]))
		}
	}
	return b.String()
}

func column(s string) string {
	if s == "" {
		return "-"
	}
	if strings.ContainsAny(s, ` "`) {
		return strconv.Quote(s)
	}
	return s
}

// Check is the text of check: what a start would say now, a line a finding,
// or ok. It opens what a start would open, and closes it again.
func (vm *VM) Check(ctx context.Context) string {
	d := vm.def.Load()
	var found []string
	say := func(err error) {
		if err != nil {
			found = append(found, oneLine(err.Error()))
		}
	}
	vm.mu.Lock()
	if vm.startAllowed() > 0 {
		say(Errorf(syscall.EAGAIN, "start: too fast; allowed again in %v", vm.startAllowed().Round(time.Millisecond)))
	}
	vm.mu.Unlock()
	if !vm.Active() {
		say(vm.m.allows(vm.owner(), d.charge()))
	}
	engines, err := vm.chooser(ctx, d)
	if err == nil {
		_, err = engines.choose(nil)
	}
	say(err)
	say(d.complete())
	spec := &Launch{}
	for _, w := range d.wants(spec) {
		say(vm.checkFile(ctx, w))
	}
	if err == nil { // else it was said
		say(engines.settle(spec))
	}
	for _, n := range d.numbers("nic") {
		found = append(found, vm.checkNIC(ctx, d, n)...)
	}
	if len(found) == 0 {
		return "ok\n"
	}
	return strings.Join(found, "\n") + "\n"
}

// checkFile opens one file of a launch, with those behind it, and looks who
// holds a disk. What the launch takes of them are the formats: they are closed.
func (vm *VM) checkFile(ctx context.Context, w want) error {
	opened, err := vm.m.Host.Open(ctx, w.uid, []Want{w.Want})
	if err != nil {
		return Errorf(Errno(err), "%s: %v", w.attr, err)
	}
	defer opened[0].Close()
	w.take(opened[0])
	if !strings.HasPrefix(w.attr, "disk/") || vm.Active() {
		return nil
	}
	for i, image := range opened[0] {
		if h := vm.m.holder(image.File, w.Write && i == 0); h != somebody {
			return Errorf(syscall.EBUSY, "%s %s: locked by %s", imageName(w.attr, i), w.Path, h)
		}
	}
	return nil
}

// NICIfname is what the host calls the tap of a NIC; empty if the machine is
// not active.
func (vm *VM) NICIfname(n int) string {
	c, _ := vm.nic(n)
	return c.ifname
}

// NICAddress is what the guest is given for a NIC, blanks between; empty if
// it is given nothing.
func (vm *VM) NICAddress(n int) string {
	c, ok := vm.nic(n)
	switch {
	case !ok:
		return ""
	case c.local != nil && c.local.Guest6.IsValid():
		return c.local.Guest.String() + " " + c.local.Guest6.String()
	case c.local != nil:
		return c.local.Guest.String()
	case c.sw != nil:
		return c.sw.leased(vm, n)
	}
	return ""
}

// NICStats is the text of stats: what the host's end counts.
func (vm *VM) NICStats(ctx context.Context, n int) string {
	c, ok := vm.nic(n)
	if !ok || c.ifname == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, infoTime)
	defer cancel()
	s, err := vm.m.Host.Observe(ctx, c.link)
	if err != nil || s.Ifname == "" {
		return ""
	}
	var b strings.Builder
	for _, f := range []struct {
		key string
		n   uint64
	}{
		{"rx_bytes", s.RxBytes}, {"rx_packets", s.RxPackets}, {"rx_dropped", s.RxDropped},
		{"tx_bytes", s.TxBytes}, {"tx_packets", s.TxPackets}, {"tx_dropped", s.TxDropped},
	} {
		fmt.Fprintf(&b, "%s %d\n", f.key, f.n)
	}
	return b.String()
}

// checkNIC says what is against a NIC at a start; of one that runs, where the
// kernel has something else than is configured, and what is in the way.
func (vm *VM) checkNIC(ctx context.Context, d *definition, n int) []string {
	var found []string
	say := func(file string, err error) {
		if err != nil {
			found = append(found, fmt.Sprintf("nic/%d/%s: %v", n, file, err))
		}
	}
	if mac := d.get(nicAttr(n, "mac")); vm.m.macs.holder(mac) != vm {
		say("mac", Errorf(syscall.EEXIST, "%s is another machine's", mac))
	}
	if d.get(nicAttr(n, "switch")) != "" {
		_, err := vm.reach(ctx, d, n)
		say("switch", err)
	}
	if d.get(nicAttr(n, "local")) == "yes" {
		_, err := vm.m.localAddrs(vm.id, n)
		say("local", err)
	}
	if c, ok := vm.nic(n); ok {
		found = append(found, vm.observe(ctx, d, c)...)
	}
	return found
}

// observe compares a NIC that runs with what the kernel has of it.
func (vm *VM) observe(ctx context.Context, d *definition, c nic) []string {
	var found []string
	say := func(file, format string, args ...any) {
		found = append(found, fmt.Sprintf("nic/%d/%s: ", c.n, file)+fmt.Sprintf(format, args...))
	}
	s, err := vm.m.Host.Observe(ctx, c.link)
	if err != nil {
		say("ifname", "%v", err)
		return found
	}
	if s.Ifname == "" {
		say("ifname", "its tap is gone; the next start makes one")
		return found
	}
	if c.sw != nil && s.Master != c.sw.bridge() {
		say("switch", "%s is not a port of %s", s.Ifname, c.sw.Name())
	} else if c.sw != nil {
		want := vm.port(&c, d).flags(c.sw.def.Load())
		if s.Locked != want.Locked {
			say("locked", "%s is %s", s.Ifname, map[bool]string{true: "locked", false: "not locked"}[s.Locked])
		}
		if s.Isolated != want.Isolated {
			say("switch", "%s is %s", s.Ifname, map[bool]string{true: "isolated", false: "not isolated"}[s.Isolated])
		}
	}
	if s.Up != d.nicUp(c.n) {
		say("up", "%s is %s", s.Ifname, map[bool]string{true: "up", false: "down"}[s.Up])
	}
	if c.local == nil {
		return found
	}
	for _, a := range c.local.hosts() {
		if !slices.Contains(s.Addrs, a) {
			say("local", "%s does not have %v", s.Ifname, a)
		}
	}
	ways, err := vm.m.Host.Ways(ctx, c.link, []netip.Prefix{c.local.Host.Masked()})
	if err != nil {
		say("local", "%v", err)
	}
	for _, w := range ways {
		say("local", "%s", strings.TrimPrefix(w, AgainstDHCP))
	}
	return found
}
