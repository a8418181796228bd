package ctl_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

func create(t *testing.T, m *ctl.Manager, name, config string) *ctl.Switch {
	t.Helper()
	sw, err := m.CreateSwitch(root, name, 0o755, 0)
	ok(t, err)
	if config != "" {
		ok(t, sw.Edit(root, config))
	}
	return sw
}

// plugged makes a daemon with a machine that has a NIC of a switch.
func plugged(t *testing.T, config string) (*ctl.Manager, *ctl.VM, *ctl.Switch, *ctltest.Host) {
	t.Helper()
	m, vm, host := machine(t)
	sw := create(t, m, "lan", config)
	ok(t, vm.Set(root, "nic/0/switch", "lan"))
	ok(t, vm.Set(root, "nic/0/mac", "02:00:00:00:00:01"))
	return m, vm, sw, host
}

var nic0, lan = ctl.NICLink(1, 0), ctl.SwitchLink(1)

// A start does the steps in vmd's order: the switch's, then for each NIC; up
// is last.
func TestStartConnects(t *testing.T) {
	m, vm, sw, host := plugged(t, "address 10.0.0.1/24 fd00::1/64\nnat yes\nuplink eth1\ngroup wan\nisolated yes\n")
	ok(t, vm.Edit(root, "nic/0/locked yes\nnic/0/group ops wan\nnic/2/local yes\nnic/2/mac 02:00:00:00:00:02\nnic/2/tap tap7\nnic/2/rdomain 9\n"))
	ok(t, vm.Do(ctx, alice, "start", ""))
	want := `tap vm1-if0 tap
alias vm1-if0 web
bridge switch1
alias switch1 lan
address switch1 [10.0.0.1/24 fd00::1/64]
nat switch1 [10.0.0.0/24 fd00::/64]
uplink switch1 eth1
up switch1 true
attach vm1-if0 switch1 02:00:00:00:00:01 true true
group vm1-if0 ops wan
up vm1-if0 true
tap vm1-if2 tap7
alias vm1-if2 web
rdomain vm1-if2 9
address vm1-if2 [100.64.1.6/31]
up vm1-if2 true
listen vm1-if2`
	if got := host.Ops(); got != want {
		t.Errorf("the start did\n%s\nwant\n%s", got, want)
	}
	for file, want := range map[string]string{"ifname": "tap0", "address": ""} {
		if got := map[string]string{"ifname": vm.NICIfname(0), "address": vm.NICAddress(0)}[file]; got != want {
			t.Errorf("nic/0/%s: got %q, want %q", file, got, want)
		}
	}
	if got := vm.NICAddress(2); got != "100.64.1.7/31" {
		t.Errorf("nic/2/address: got %q", got)
	}
	if got := sw.PortsText(); got != "web/0 tap0 02:00:00:00:00:01 up\n" {
		t.Errorf("ports: %q", got)
	}
	if got := sw.Status(); got != "up\n" {
		t.Errorf("status: %q", got)
	}
	if got := vm.NICStats(ctx, 0); !strings.HasPrefix(got, "rx_bytes 0\nrx_packets 0\n") {
		t.Errorf("stats: %q", got)
	}
	s, served, _ := host.Served(ctl.NICLink(1, 2))
	if !served || s.Bindings[0].Addr.String() != "100.64.1.7" || s.Bindings[0].Hostname != "web" || !s.Router {
		t.Errorf("the local NIC is served %v %+v", served, s)
	}
	refused(t, m.Remove(root, sw), syscall.EBUSY, "nic/0 of machine web")
	refused(t, m.Rename(root, sw, "wan"), syscall.EBUSY, "nic/0 of machine web")
	ok(t, vm.Do(ctx, alice, "kill", ""))
	if got := host.Ops(); got != "release vm1-if0\nrelease vm1-if2" {
		t.Errorf("the end did\n%s", got)
	}
	if sw.PortsText() != "" || vm.NICIfname(0) != "" || vm.NICStats(ctx, 0) != "" {
		t.Errorf("left over: %q %q", sw.PortsText(), vm.NICIfname(0))
	}
	ok(t, m.Remove(root, sw))
	if _, there := host.Link(lan); there {
		t.Error("the bridge outlives its switch")
	}
}

// Whatever step fails, the start fails with its name, what it made is gone,
// and the next start succeeds.
func TestStepsFail(t *testing.T) {
	for _, op := range []string{"tap", "alias", "bridge", "address", "nat", "uplink", "attach", "rdomain", "group", "up", "listen", "serve", "lease"} {
		for _, l := range []ctl.Link{nic0, lan, ctl.NICLink(1, 1), {}} {
			t.Run(fmt.Sprint(op, " ", l), func(t *testing.T) { failAt(t, op, l) })
		}
	}
}

func failAt(t *testing.T, op string, l ctl.Link) {
	_, vm, sw, host := plugged(t, "address 10.0.0.1/24\ndhcp yes\nnat yes\nuplink eth1\ngroup wan\nrdomain 7\n")
	ok(t, vm.Edit(root, "nic/1/local yes\nnic/1/rdomain 9\nnic/1/group x\n"))
	refusals := 0
	host.RefuseNet(func(o string, on ctl.Link) error {
		if o == op && on == l {
			refusals++
			return ctl.Errorf(syscall.EPERM, "%s: this is a test", o)
		}
		return nil
	})
	config := vm.Config()
	err := vm.Do(ctx, root, "start", "")
	host.RefuseNet(nil)
	if refusals == 0 {
		ok(t, err)
		return // no start does that
	}
	refused(t, err, syscall.EPERM, "this is a test")
	if !strings.HasPrefix(err.Error(), "start web: nic/") {
		t.Errorf("it does not say which NIC: %v", err)
	}
	if got := vm.Status(); got != "failed "+err.Error()+"\n" {
		t.Errorf("status: %q", got)
	}
	for _, l := range []ctl.Link{nic0, ctl.NICLink(1, 1)} {
		if k, there := host.Link(l); there {
			t.Errorf("left over: %+v", k)
		}
		if _, served, _ := host.Served(l); served {
			t.Errorf("%v is still served", l)
		}
	}
	if _, there := host.Link(lan); there && sw.Status() != "up\n" {
		t.Errorf("the switch is %q and has a bridge", sw.Status())
	}
	if host.Guest(1) != nil || sw.PortsText() != "" || strings.Replace(vm.Config(), "disk/0/format raw\n", "", 1) != config {
		t.Errorf("left over: guest %v, ports %q", host.Guest(1), sw.PortsText())
	}
	ok(t, vm.Do(ctx, root, "start", ""))
	if got := sw.PortsText(); !strings.HasSuffix(got, " up\n") {
		t.Errorf("ports: %q", got)
	}
}

// What a NIC of a definition cannot have refuses the start.
func TestNICsThatCannotBe(t *testing.T) {
	_, vm, _, host := plugged(t, "")
	for config, want := range map[string]struct {
		errno syscall.Errno
		words string
	}{
		"nic/0/user yes\n":                             {syscall.EOPNOTSUPP, "without root"},
		"nic/0/local yes\n":                            {syscall.EINVAL, "of the switch lan"},
		"nic/0/rdomain 3\n":                            {syscall.EINVAL, "of the switch lan"},
		"nic/0/switch wan\n":                           {syscall.ENOENT, "nic/0/switch: there is no switch wan"},
		"-nic/0/switch\nnic/0/user yes\nnic/0/up no\n": {syscall.EOPNOTSUPP, "nic/0/user"},
	} {
		before := vm.Config()
		ok(t, vm.Edit(root, config))
		refused(t, vm.Do(ctx, root, "start", ""), want.errno, want.words)
		if !strings.Contains(vm.Check(ctx), strings.TrimPrefix(want.words, "nic/0/switch: ")) {
			t.Errorf("check: %s", vm.Check(ctx))
		}
		ok(t, vm.Replace(root, before))
	}
	ok(t, vm.Edit(root, "-nic/0/switch\nnic/0/local yes\n"))
	if _, there := host.Link(nic0); there {
		t.Error("a tap is left over")
	}
}

// A NIC is attached with the rights of who named the switch, as they are then.
func TestRightToAttach(t *testing.T) {
	_, vm, sw, host := plugged(t, "")
	ok(t, vm.Set(alice, "nic/0/switch", ""))
	ok(t, vm.Set(alice, "nic/0/switch", "lan"))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EACCES, "nic/0/switch: 52001, who set it, may not write switch/lan/ports")
	if !strings.Contains(vm.Check(ctx), "may not write switch/lan/ports") {
		t.Errorf("check: %s", vm.Check(ctx))
	}
	all, closed := uint32(0o666), uint32(0o700)

	// With the groups that he is in at that moment.
	ok(t, sw.SetAccess(root, "ports", ctl.AccessChange{GID: &ops.GID}))
	host.Member = map[uint32][]uint32{alice.UID: {7, ops.GID}}
	ok(t, vm.Do(ctx, root, "start", ""))
	ok(t, vm.Do(ctx, root, "kill", ""))
	host.Member = nil
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EACCES, "nic/0/switch: "+alice.String()+", who set it, may not write switch/lan/ports")

	ok(t, sw.SetAccess(root, "ports", ctl.AccessChange{Mode: &all}))
	ok(t, vm.Do(ctx, root, "start", ""))
	ok(t, vm.Do(ctx, root, "kill", ""))
	host.Gone = map[uint32]bool{alice.UID: true}
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EACCES, "nic/0/switch: user "+alice.String()+": no such user")
	host.Gone = nil
	ok(t, sw.SetAccess(root, "", ctl.AccessChange{Mode: &closed}))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EACCES, "may not write")
	ok(t, sw.SetAccess(root, "", ctl.AccessChange{UID: &alice.UID}))
	ok(t, vm.Do(ctx, root, "start", ""))
}

// What is root's of a machine is not its owner's to change, by whatever way.
// A live replug asks for the right too, before anything is unplugged. Who
// loses the right keeps what is attached, until he would attach again.
func TestRightToReplug(t *testing.T) {
	m, vm, lan, host := plugged(t, "")
	wan := create(t, m, "wan", "")
	all, closed := uint32(0o666), uint32(0o664)
	ok(t, vm.Set(alice, "nic/0/switch", ""))
	ok(t, vm.Set(alice, "nic/0/switch", "lan"))
	ok(t, lan.SetAccess(root, "ports", ctl.AccessChange{Mode: &all}))
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Ops()
	before, _ := host.Link(nic0)
	config := vm.Config()
	kept := func() {
		t.Helper()
		if got := host.Ops(); got != "" || vm.Config() != config || lan.PortsText() == "" || wan.PortsText() != "" {
			t.Errorf("refused, it did\n%s\nports %q and %q, config\n%s", got, lan.PortsText(), wan.PortsText(), vm.Config())
		}
	}
	refused(t, vm.Set(alice, "nic/0/switch", "wan"), syscall.EACCES, "nic/0: 52001, who set it, may not write switch/wan/ports")
	kept()
	ok(t, lan.SetAccess(root, "ports", ctl.AccessChange{Mode: &closed}))
	refused(t, vm.Set(alice, "nic/0/switch", "wan"), syscall.EACCES, "switch/wan/ports")
	refused(t, vm.Set(alice, "nic/0/switch", "none"), syscall.ENOENT, "no switch none")
	kept()
	refused(t, vm.Set(root, "nic/0/switch", "none"), syscall.ENOENT, "no switch none")
	kept()

	// What the kernel refuses is undone, though he could not attach anew.
	ok(t, wan.SetAccess(root, "ports", ctl.AccessChange{Mode: &all}))
	once := false
	host.RefuseNet(func(op string, l ctl.Link) error {
		if op != "attach" || once {
			return nil
		}
		once = true
		return ctl.Errorf(syscall.EPERM, "this is a test")
	})
	refused(t, vm.Set(alice, "nic/0/switch", "wan"), syscall.EPERM, "nic/0: this is a test")
	host.RefuseNet(nil)
	if k, _ := host.Link(nic0); lan.PortsText() == "" || k.Master != before.Master || !k.Up {
		t.Errorf("after that: ports %q, port of %q, up %v", lan.PortsText(), k.Master, k.Up)
	}

	ok(t, vm.Set(alice, "nic/0/switch", "wan"))
	refused(t, vm.Set(alice, "nic/0/switch", "lan"), syscall.EACCES, "switch/lan/ports")
	ok(t, vm.Set(alice, "nic/0/up", "no")) // it is not plugged by that
	ok(t, vm.Do(ctx, root, "kill", ""))
	ok(t, wan.SetAccess(root, "ports", ctl.AccessChange{Mode: &closed}))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EACCES, "switch/wan/ports")
}

func TestRootsAttributes(t *testing.T) {
	_, vm, _, _ := plugged(t, "")
	ok(t, vm.Edit(root, "nic/0/locked yes\nnic/0/group ops\n"))
	config := vm.Config()
	without := strings.Replace(config, "nic/0/locked yes\n", "", 1)
	for what, err := range map[string]error{
		"a file":         vm.Set(alice, "nic/0/locked", "no"),
		"config":         vm.Edit(alice, "cpus 2\nnic/0/tap tap3\n"),
		"unset":          vm.Edit(alice, "-nic/0/group\n"),
		"a replacement":  vm.Replace(alice, without),
		"another value":  vm.Replace(alice, strings.Replace(config, "group ops", "group wheel", 1)),
		"rmdir":          vm.RemovePart(alice, ctl.Part{Dir: "nic"}),
		"-nic/0":         vm.Edit(alice, "-nic/0\n"),
		"none":           vm.Replace(alice, "begin\nend\n"),
		"a new NIC":      vm.Edit(alice, "nic/1/rdomain 4\n"),
		"a whole new":    vm.Replace(alice, strings.Replace(config, "end\n", "nic/1/tap tap9\nend\n", 1)),
		"no more locked": vm.Edit(alice, "nic/0/locked 0"),
	} {
		refused(t, err, syscall.EACCES, "52001 may not write it")
		if vm.Config() != config {
			t.Fatalf("%s changed the definition:\n%s", what, vm.Config())
		}
	}
	ok(t, vm.Replace(alice, strings.Replace(config, "begin\n", "begin\ncpus 4\n", 1)))
	ok(t, vm.AddPart(alice, ctl.Part{Dir: "nic", N: 1}))
	ok(t, vm.RemovePart(alice, ctl.Part{Dir: "nic", N: 1}))
	def := ctl.Default{Mode: 0o644, Root: true}
	if got, want := vm.Access("nic/0/locked", def), (ctl.Access{Mode: 0o644}); got != want {
		t.Errorf("nic/0/locked is %v, want root's", got)
	}
	ok(t, vm.SetAccess(root, "nic/0/locked", ctl.AccessChange{UID: &alice.UID}))
	ok(t, vm.Edit(alice, "-nic/0/locked\n"))
}

// A MAC is drawn when a NIC is made, as vmd does, kept, and nobody else's.
func TestMACs(t *testing.T) {
	m, vm, host := machine(t)
	seen := map[string]bool{}
	for n := range ctl.MaxNICs {
		ok(t, vm.AddPart(alice, ctl.Part{Dir: "nic", N: n}))
		mac := vm.Get(fmt.Sprintf("nic/%d/mac", n))
		if want := fmt.Sprintf("fe:e1:bb:d%x:", (n+1)%16); !strings.HasPrefix(mac, want) || seen[mac] {
			t.Errorf("nic/%d has %s, want %s and what no other has", n, mac, want)
		}
		seen[mac] = true
	}
	config := vm.Config()
	unsaid := strings.Replace(config, "nic/3/mac "+vm.Get("nic/3/mac")+"\n", "nic/3/up no\n", 1)
	mac := vm.Get("nic/3/mac")
	ok(t, vm.Replace(alice, unsaid))
	if vm.Get("nic/3/mac") != mac {
		t.Errorf("a replacement that does not name it made %s of %s", vm.Get("nic/3/mac"), mac)
	}
	ok(t, vm.Set(alice, "nic/3/mac", ""))
	if now := vm.Get("nic/3/mac"); now == "" || now == mac {
		t.Errorf("unset, it is %q", now)
	}
	other, err := m.Create(alice, "other", 0o755, 0)
	ok(t, err)
	refused(t, other.Set(alice, "nic/0/mac", vm.Get("nic/5/mac")), syscall.EEXIST, "nic/5 of machine web has")
	refused(t, other.Replace(alice, vm.Config()), syscall.EEXIST, "of machine web")
	refused(t, vm.Set(alice, "nic/1/mac", vm.Get("nic/2/mac")), syscall.EEXIST, "nic/")
	one, two := vm.Get("nic/1/mac"), vm.Get("nic/2/mac")
	ok(t, vm.Edit(alice, "nic/1/mac "+two+"\nnic/2/mac "+one+"\n")) // an exchange
	if other.HasPart(ctl.Part{Dir: "nic"}) {
		t.Error("a refused write made a NIC")
	}
	taken := vm.Get("nic/9/mac")
	ok(t, vm.RemovePart(alice, ctl.Part{Dir: "nic", N: 9}))
	ok(t, other.Set(alice, "nic/0/mac", strings.ToUpper(taken)))
	if got := other.Get("nic/0/mac"); got != taken {
		t.Errorf("got %s, want %s", got, taken)
	}
	ok(t, m.Remove(root, vm))
	ok(t, other.Set(alice, "nic/1/mac", one))
	m = open(t, m.State, host)
	third, err := m.Create(alice, "third", 0o755, 0)
	ok(t, err)
	refused(t, third.Set(alice, "nic/0/mac", one), syscall.EEXIST, "nic/1 of machine other")
	for _, bad := range []string{"01:00:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "02:00:00:00:00", "02-00-00-00-00-0x", "02:00:00:00:00:00:00:01"} {
		refused(t, third.Set(alice, "nic/0/mac", bad), syscall.EINVAL, "nic/0/mac")
	}
}

func TestNetValues(t *testing.T) {
	m, vm, sw, _ := plugged(t, "")
	for attr, values := range map[string][][2]string{
		"nic/0/group": {{" a  b-1_. c", "a b-1_. c"}, {"abcdefghijklmno", "abcdefghijklmno"}},
		"nic/0/tap":   {{"tap12", "tap12"}, {"tap", "tap"}},
		"nic/0/mac":   {{"FE:E1:BB:00:00:01", "fe:e1:bb:00:00:01"}, {"fe-e1-bb-00-00-02", "fe:e1:bb:00:00:02"}},
	} {
		for _, v := range values {
			ok(t, vm.Set(root, attr, v[0]))
			if got := vm.Get(attr); got != v[1] {
				t.Errorf("%s %q reads %q, want %q", attr, v[0], got, v[1])
			}
		}
	}
	ok(t, sw.Set(root, "address", "10.0.0.1/24  FD00::1/64"))
	if got := sw.Get("address"); got != "10.0.0.1/24 fd00::1/64" {
		t.Errorf("address reads %q", got)
	}
	bad := func(o ctl.Object, attr string, values ...string) {
		for _, v := range values {
			refused(t, o.Set(root, attr, v), syscall.EINVAL, attr)
		}
	}
	bad(vm, "nic/0/group", "a1", "abcdefghijklmnop", "a/b", "a b a", "é", "a,b")
	bad(vm, "nic/0/tap", "eth0", "tap01", "tapx", "tap-1", "tap99999999999", "../tap1")
	bad(vm, "nic/0/switch", ".x", "a b", "a/b")
	bad(vm, "nic/0/rdomain", "-1", "x", "4294967296")
	refused(t, vm.Set(root, "nic/16/up", "no"), syscall.EINVAL, "nic/16: a NIC is numbered 0 to 15")
	bad(sw, "address", "10.0.0.1", "10.0.0.0/24", "10.0.0.255/24", "127.0.0.1/8", "::1/64", "fd00::/64", "10.0.0.1/24 10.0.0.2/24", "224.0.0.1/8", "10.0.0.1/7", "::ffff:10.0.0.1/96", "fe80::1/64", "0.0.0.1/0")
	bad(sw, "ifname", "a/b", "0123456789abcdef", "..", "a:b", "a b")
	bad(sw, "uplink", "a/b")
	bad(sw, "nic/0/switch", "x")
	for name, bad := range map[string][]string{"prefix": {"10.0.0.1/8", "10.0.0.0/24", "fd00::/64", "x"}, "prefix6": {"fd00::1/64", "fd00::/96"}, "inet6": {"maybe"}} {
		for _, v := range bad {
			refused(t, m.NetSet(root, name, v), syscall.EINVAL, "net/"+name)
		}
	}
}

// A NIC of a machine that runs is moved, locked, and set up and down at once;
// what cannot be done changes nothing.
func TestReplug(t *testing.T) {
	m, vm, sw, host := plugged(t, "group wan\n")
	wan := create(t, m, "wan", "isolated yes\n")
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Ops()
	step := func(attr, value, want string) {
		t.Helper()
		ok(t, vm.Set(root, attr, value))
		if got := host.Ops(); got != want {
			t.Errorf("%s %s did\n%s\nwant\n%s", attr, value, got, want)
		}
	}
	step("nic/0/up", "no", "up vm1-if0 false")
	step("nic/0/up", "yes", "up vm1-if0 true")
	step("nic/0/locked", "yes", "attach vm1-if0 switch1 02:00:00:00:00:01 true false\nup vm1-if0 true")
	step("nic/0/switch", "wan", "detach vm1-if0\nbridge switch2\nalias switch2 wan\nup switch2 true\nattach vm1-if0 switch2 02:00:00:00:00:01 true true\ngroup vm1-if0\nup vm1-if0 true")
	if sw.PortsText() != "" || wan.PortsText() == "" {
		t.Errorf("ports: %q and %q", sw.PortsText(), wan.PortsText())
	}
	step("nic/0/switch", "", "detach vm1-if0\nup vm1-if0 true")
	step("nic/0/switch", "lan", "attach vm1-if0 switch1 02:00:00:00:00:01 true false\ngroup vm1-if0 wan\nup vm1-if0 true")

	before, _ := host.Link(nic0)
	config := vm.Config()
	refused(t, vm.Set(root, "nic/0/switch", "none"), syscall.ENOENT, "no switch none")
	refused(t, vm.Set(alice, "nic/0/switch", "wan"), syscall.EACCES, "may not write switch/wan/ports")
	for _, op := range []string{"attach", "up", "detach"} {
		failed := false
		host.RefuseNet(func(o string, l ctl.Link) error {
			if o != op || l != nic0 || failed {
				return nil
			}
			failed = true
			return ctl.Errorf(syscall.EPERM, "this is a test")
		})
		refused(t, vm.Edit(root, "nic/0/switch wan\nnic/0/locked no\n"), syscall.EPERM, "nic/0: this is a test")
		host.RefuseNet(nil)
		if after, _ := host.Link(nic0); after.Master != before.Master || after.Port.Locked != before.Port.Locked || !after.Up {
			t.Errorf("refused at %s, it is %+v, want %+v", op, after, before)
		}
		if vm.Config() != config || wan.PortsText() != "" || sw.PortsText() == "" {
			t.Errorf("refused at %s: ports %q and %q, config\n%s", op, wan.PortsText(), sw.PortsText(), vm.Config())
		}
	}
	// What goes or comes by the definition alone waits for the next start.
	host.Ops()
	ok(t, vm.Edit(root, "-nic/0\nnic/3/switch lan\n"))
	if got := host.Ops(); got != "" {
		t.Errorf("it did\n%s", got)
	}
	if !strings.Contains(vm.Pending(), "nic/0/mac 02:00:00:00:00:01 -\n") {
		t.Errorf("pending: %s", vm.Pending())
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	if sw.PortsText() != "" {
		t.Errorf("ports: %s", sw.PortsText())
	}
}

// A switch that is up follows its definition at once.
func TestSwitchFollows(t *testing.T) {
	_, vm, sw, host := plugged(t, "address 10.0.0.1/24\n")
	ok(t, vm.Set(root, "nic/0/group", "ops"))
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Ops()
	for _, c := range [][2]string{
		{"isolated yes", "attach vm1-if0 switch1 02:00:00:00:00:01 false true\nup vm1-if0 true"},
		{"locked yes", "attach vm1-if0 switch1 02:00:00:00:00:01 true true\nup vm1-if0 true"},
		{"group wan ops", "group vm1-if0 ops wan"},
		{"uplink eth1", "uplink switch1 eth1"},
		{"nat yes", "nat switch1 [10.0.0.0/24]"},
		{"address 10.1.0.1/16 10.2.0.1/16", "address switch1 [10.1.0.1/16 10.2.0.1/16]\nnat switch1 [10.1.0.0/16 10.2.0.0/16]"},
		{"dhcp yes", "listen switch1"},
		{"nat no", "nat switch1 []"},
		{"note x", ""}, {"ifname br0", ""}, {"rdomain 3", ""},
	} {
		ok(t, sw.Edit(root, c[0]))
		if got := host.Ops(); got != c[1] {
			t.Errorf("%s did\n%s\nwant\n%s", c[0], got, c[1])
		}
	}
	if got := sw.Check(ctx); !strings.Contains(got, "ifname: it is switch1 until") || !strings.Contains(got, "rdomain: it is not 3 until") {
		t.Errorf("check: %s", got)
	}
	config := sw.Config()
	before, _ := host.Link(lan)
	for op, step := range map[string]string{"attach": "ports: web/0", "uplink": "uplink", "address": "address", "nat": "nat", "serve": "dhcp"} {
		failed := false
		host.RefuseNet(func(o string, l ctl.Link) error {
			if o != op || failed {
				return nil
			}
			failed = true
			return ctl.Errorf(syscall.EEXIST, "this is a test")
		})
		refused(t, sw.Edit(root, "address 10.3.0.1/16\nnat yes\nuplink eth2\nisolated no\n"), syscall.EEXIST, step+": this is a test")
		host.RefuseNet(nil)
		after, _ := host.Link(lan)
		if sw.Config() != config || !slices.Equal(after.Addrs, before.Addrs) || after.Uplink != "eth1" || len(after.NAT) != 0 {
			t.Errorf("refused at %s: %+v", op, after)
		}
	}
	ok(t, sw.Do(ctx, root, "down", ""))
	if got := sw.PortsText(); got != "web/0 tap0 02:00:00:00:00:01 detached\n" || sw.Status() != "down\n" {
		t.Errorf("down: %q, %q", sw.Status(), got)
	}
	if _, served, _ := host.Served(lan); served {
		t.Error("a switch that is down is served")
	}
	ok(t, sw.Edit(root, "-ifname\n-rdomain\n"))
	ok(t, sw.Do(ctx, root, "up", ""))
	if k, _ := host.Link(nic0); k.Master != "switch1" || !k.Up || !k.Port.Locked {
		t.Errorf("after down and up: %+v", k)
	}
	if got := sw.Check(ctx); got != "ok\n" {
		t.Errorf("check: %s", got)
	}
	host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Master = ""; return k })
	host.Change(lan, func(k *ctltest.Link) *ctltest.Link { k.Addrs = nil; return k })
	host.SetWays("net.ipv4.ip_forward is 0")
	for _, want := range []string{"ports: web/0 tap0 is not a port of switch1", "address: switch1 does not have 10.1.0.1/16", "ip_forward is 0"} {
		if !strings.Contains(sw.Check(ctx), want) {
			t.Errorf("check does not say %q:\n%s", want, sw.Check(ctx))
		}
	}
	if got := vm.Check(ctx); !strings.Contains(got, "nic/0/switch: tap0 is not a port of lan") {
		t.Errorf("the machine's check: %s", got)
	}
	ok(t, sw.Do(ctx, root, "up", "")) // puts it right
	host.SetWays()
	if got := sw.Check(ctx) + vm.Check(ctx); got != "ok\nok\n" {
		t.Errorf("check: %s", got)
	}
}

// What is in the way of answering DHCP is told of a switch that does.
func TestCheckDHCP(t *testing.T) {
	_, _, sw, host := plugged(t, "address 10.0.0.1/24\ndhcp yes\n")
	ok(t, sw.Do(ctx, root, "up", ""))
	host.SetWays(ctl.AgainstDHCP+"another server", "no forwarding")
	for dhcp, want := range map[string]string{"yes": "dhcp: another server\nno forwarding\n", "no": "no forwarding\n"} {
		ok(t, sw.Edit(root, "dhcp "+dhcp+"\n"))
		if got := sw.Check(ctx); got != want {
			t.Errorf("dhcp %s: check %q, want %q", dhcp, got, want)
		}
	}
}

func TestSwitchUpFails(t *testing.T) {
	m, _, sw, host := plugged(t, "uplink eth0\n")
	host.RefuseNet(func(op string, l ctl.Link) error {
		if op == "uplink" {
			return ctl.Errorf(syscall.EPERM, "eth0 is not listed")
		}
		return nil
	})
	refused(t, sw.Do(ctx, root, "up", ""), syscall.EPERM, "up lan: uplink: eth0 is not listed")
	if got := sw.Status(); got != "failed up lan: uplink: eth0 is not listed\n" || !strings.Contains(sw.Check(ctx), "eth0 is not listed") {
		t.Errorf("status %q, check %s", got, sw.Check(ctx))
	}
	if k, there := host.Link(lan); there {
		t.Errorf("left over: %+v", k)
	}
	host.RefuseNet(nil)
	ok(t, sw.Do(ctx, root, "up", ""))
	ok(t, sw.Do(ctx, root, "up", ""))
	refused(t, sw.Do(ctx, root, "sideways", ""), syscall.EINVAL, "no such verb")
	refused(t, sw.Do(ctx, root, "up", "now"), syscall.EINVAL, "no argument")
	ok(t, m.Ctl(ctx, root, "reset switches"))
	if sw.Status() != "down\n" {
		t.Errorf("after reset switches: %q", sw.Status())
	}
	ok(t, m.Rename(root, sw, "wan"))
	if m.Switch("lan") != nil || m.Switch("wan") != sw {
		t.Error("mv")
	}
	ok(t, m.Remove(root, sw))
	refused(t, sw.Do(ctx, root, "up", ""), syscall.ENOENT, "removed")
}

// Leases are the lowest free addresses, kept over restarts of everything, as
// long as a NIC is of the switch.
func TestLeases(t *testing.T) {
	m, vm, sw, host := plugged(t, "address 10.0.0.2/29\ndhcp yes\nnat yes\n")
	ok(t, vm.Edit(root, "nic/1/switch lan\nnic/1/mac 02:00:00:00:00:02\n"))
	ok(t, vm.Do(ctx, root, "start", ""))
	leases := func() string {
		var b strings.Builder
		for line := range strings.Lines(sw.LeasesText()) {
			f := strings.Fields(line)
			b.WriteString(f[0] + " " + f[1] + " " + f[2] + "\n")
		}
		return b.String()
	}
	want := "10.0.0.1 02:00:00:00:00:01 web/0\n10.0.0.3 02:00:00:00:00:02 web/1\n"
	if got := leases(); got != want {
		t.Errorf("leases:\n%swant:\n%s", got, want)
	}
	if got := vm.NICAddress(1); got != "10.0.0.3/29" {
		t.Errorf("nic/1/address: %q", got)
	}
	s, served, _ := host.Served(lan)
	if !served || len(s.Bindings) != 2 || s.Server != netip.MustParsePrefix("10.0.0.2/29") || !s.Router || s.Bindings[1].Addr.String() != "10.0.0.3" {
		t.Errorf("served %v %+v", served, s)
	}

	host.EndLease()
	await(t, "another process that serves", func() bool {
		_, served, n := host.Served(lan)
		return served && n == 2
	})
	if s, served, n := host.Served(lan); !served || n != 2 || len(s.Bindings) != 2 {
		t.Fatalf("after the process ended: %v %+v, process %d", served, s, n)
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	if s, _, _ := host.Served(lan); len(s.Bindings) != 0 || leases() != want {
		t.Errorf("after a kill: %+v, leases %s", s, leases())
	}

	// Others take what is left, and then there is none.
	many, err := m.Create(root, "many", 0o755, 0)
	ok(t, err)
	for n := range 4 {
		ok(t, many.Set(root, fmt.Sprintf("nic/%d/switch", n), "lan"))
	}
	refused(t, many.Do(ctx, root, "start", ""), syscall.ENOSPC, "nic/3/switch: 10.0.0.0/29 has no address left")
	m = open(t, m.State, host)
	vm, many, sw = m.VM("web"), m.VM("many"), m.Switch("lan")
	ok(t, m.Rename(root, vm, "www"))
	if got := sw.LeasesText(); strings.Count(got, "\n") != 5 || !strings.Contains(got, "10.0.0.3 02:00:00:00:00:02 www/1 ") || !strings.Contains(got, "10.0.0.6 ") {
		t.Errorf("leases of the next daemon:\n%s", got)
	}
	ok(t, vm.Set(root, "nic/1/switch", ""))
	ok(t, vm.RemovePart(root, ctl.Part{Dir: "nic"}))
	if got := sw.LeasesText(); strings.Contains(got, "www") {
		t.Errorf("leases of NICs that are gone:\n%s", got)
	}
	ok(t, many.Do(ctx, root, "clear-failed", ""))
	ok(t, many.Do(ctx, root, "start", ""))
	if got := sw.LeasesText(); !strings.Contains(got, "10.0.0.1 ") || !strings.Contains(got, " many/3 ") {
		t.Errorf("leases: %s", got)
	}
	ok(t, sw.Set(root, "address", "10.9.0.1/24"))
	if got := many.NICAddress(3); got != "10.9.0.5/24" {
		t.Errorf("nic/3/address after the network became another: %q\n%s", got, sw.LeasesText())
	}
	ok(t, many.Do(ctx, root, "kill", ""))
	ok(t, m.Remove(root, many))
	if got := sw.LeasesText(); got != "" {
		t.Errorf("leases of a machine that was removed: %s", got)
	}
}

// A new daemon releases what belongs to nothing and brings back what is
// missing of what runs.
func TestReconcile(t *testing.T) {
	m, vm, _, host := plugged(t, "address 10.0.0.1/24\ndhcp yes\n")
	create(t, m, "other", "")
	ok(t, m.Switch("other").Do(ctx, root, "up", ""))
	ok(t, m.NetSet(root, "inet6", "yes"))
	ok(t, vm.Edit(root, "nic/1/local yes\n"))
	ok(t, vm.Do(ctx, root, "start", ""))
	config, ports, leases, address := vm.Config(), m.Switch("lan").PortsText(), m.Switch("lan").LeasesText(), vm.NICAddress(1)
	restart := func(change func()) {
		m.Close()
		host.Abandon()
		host.Ops()
		change()
		m = open(t, m.State, host)
		vm = m.VM("web")
		becomes(t, vm, "running")
	}
	whole := func(when string) {
		t.Helper()
		sw := m.Switch("lan")
		if got := sw.Check(ctx) + vm.Check(ctx) + m.Switch("other").Status(); got != "ok\nok\nup\n" {
			t.Errorf("%s: check: %s", when, got)
		}
		if vm.Config() != config || sw.PortsText() != ports || sw.LeasesText() != leases || vm.NICAddress(1) != address {
			t.Errorf("%s: ports %q, leases %q, address %q", when, sw.PortsText(), sw.LeasesText(), vm.NICAddress(1))
		}
		for _, l := range []ctl.Link{lan, ctl.NICLink(1, 1)} {
			if _, served, _ := host.Served(l); !served {
				t.Errorf("%s: %v is not served", when, l)
			}
		}
	}
	restart(func() {})
	whole("nothing happened")
	if ops := host.Ops(); strings.Contains(ops, "attach") || strings.Contains(ops, "release") || strings.Contains(ops, "false") {
		t.Errorf("nothing was missing, and it did\n%s", ops)
	}
	restart(func() {
		host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Master, k.Up = "", false; return k })
		host.Change(lan, func(k *ctltest.Link) *ctltest.Link { k.Addrs, k.Up = nil, false; return k })
		host.Change(ctl.NICLink(1, 1), func(k *ctltest.Link) *ctltest.Link { k.Addrs, k.Up = nil, false; return k })
		for _, l := range []ctl.Link{ctl.NICLink(1, 7), ctl.NICLink(8, 0), ctl.SwitchLink(9)} {
			host.Change(l, func(*ctltest.Link) *ctltest.Link {
				return &ctltest.Link{LinkState: ctl.LinkState{Link: l, Ifname: "stray" + l.String()}}
			})
		}
	})
	whole("pieces were missing")
	list, _ := host.Links(ctx)
	if len(list) != 4 || strings.Count(m.EventsText(), " released - ") != 3 || !strings.Contains(m.EventsText(), " - released - vm8-if0 strayvm8-if0\n") {
		t.Errorf("strays: %v\n%s", list, m.EventsText())
	}
	restart(func() {
		host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Master = "switch2"; return k })
	})
	whole("a move was not saved")
	restart(func() {
		host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Locked, k.Isolated = true, true; return k })
	})
	if k, _ := host.Link(nic0); k.Locked || k.Isolated {
		t.Errorf("flags that were not saved: %+v", k)
	}
	whole("flags were not saved")
	ok(t, vm.Set(root, "nic/0/locked", "yes"))
	config = vm.Config()
	restart(func() {
		host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Locked = false; return k })
	})
	if k, _ := host.Link(nic0); !k.Locked || !k.Up {
		t.Errorf("loosened, and then nothing was saved: %+v", k)
	}
	whole("loosened")
	host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Locked = false; return k })
	if got := vm.Check(ctx); !strings.Contains(got, "nic/0/locked: tap0 is not locked") {
		t.Errorf("check: %s", got)
	}
	restart(func() {
		host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Locked, k.Up = true, false; return k })
	})
	if ops := host.Ops(); !strings.Contains(ops, "attach vm1-if0") {
		t.Errorf("a port that was being made is not made anew:\n%s", ops)
	}
	whole("half made")
	restart(func() {
		host.Change(lan, func(*ctltest.Link) *ctltest.Link { return nil })
		host.Change(nic0, func(k *ctltest.Link) *ctltest.Link { k.Master = ""; return k })
	})
	whole("the bridge was gone")
	restart(func() { host.Change(nic0, func(*ctltest.Link) *ctltest.Link { return nil }) })
	if got := vm.Check(ctx); !strings.Contains(got, "nic/0/ifname: its tap is gone") {
		t.Errorf("check: %s", got)
	}
	ok(t, vm.Set(root, "nic/0/up", "no")) // there is nothing to set down
	ok(t, vm.Do(ctx, root, "kill", ""))
	restart2 := func() { m.Close(); m = open(t, m.State, host) }
	restart2()
	if list, _ := host.Links(ctx); len(list) != 2 {
		t.Errorf("links of two switches: %v", list)
	}
}

// A NIC that was removed from the definition of a machine that runs is there
// until the launch ends, for the next daemon too.
func TestReconcileRemoved(t *testing.T) {
	m, vm, sw, host := plugged(t, "address 10.0.0.1/24\ndhcp yes\n")
	ok(t, vm.Set(root, "nic/0/locked", "yes"))
	ok(t, vm.Do(ctx, root, "start", ""))
	ports, leases := sw.PortsText(), sw.LeasesText()
	ok(t, vm.RemovePart(root, ctl.Part{Dir: "nic"}))
	m.Close()
	host.Abandon()
	host.Ops()
	m = open(t, m.State, host)
	vm, sw = m.VM("web"), m.Switch("lan")
	becomes(t, vm, "running")
	if sw.PortsText() != ports || sw.LeasesText() != leases || ports == "" || leases == "" {
		t.Errorf("ports %q, want %q; leases %q, want %q", sw.PortsText(), ports, sw.LeasesText(), leases)
	}
	if ops := host.Ops(); strings.Contains(ops, nic0.String()) {
		t.Errorf("nothing was missing, and it did\n%s", ops)
	}
	ok(t, sw.Set(root, "isolated", "yes"))
	if k, _ := host.Link(nic0); !k.Port.Locked || !k.Port.Isolated {
		t.Errorf("made a port anew, it is %+v", k.Port)
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	if sw.PortsText() != "" || sw.LeasesText() != "" {
		t.Errorf("left over: ports %q, leases %q", sw.PortsText(), sw.LeasesText())
	}
}

// A guest that died while no daemon was there leaves no tap.
func TestLostWhileAwayReleases(t *testing.T) {
	m, vm, _, host := plugged(t, "")
	ok(t, vm.Do(ctx, root, "start", ""))
	m.Close()
	host.Abandon()
	ok(t, host.End(ctx, 1))
	m = open(t, m.State, host)
	becomes(t, m.VM("web"), "failed the guest process died while the daemon was away")
	if _, there := host.Link(nic0); there {
		t.Error("its tap is left")
	}
	ok(t, m.VM("web").Do(ctx, root, "start", ""))
}

// net/ is the daemon's own, and IPv6 networks are drawn once.
func TestNet(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	drawn := m.NetGet("prefix6")
	if p, err := netip.ParsePrefix(drawn); err != nil || p.Bits() != 64 || !strings.HasPrefix(drawn, "fd") {
		t.Errorf("prefix6 is %q", drawn)
	}
	if m.NetGet("prefix") != "100.64.0.0/10" || m.NetGet("inet6") != "no" {
		t.Errorf("net/: %q %q", m.NetGet("prefix"), m.NetGet("inet6"))
	}
	ok(t, m.NetSet(root, "prefix", "10.128.0.0/9"))
	ok(t, m.NetSet(root, "inet6", "1"))
	events := m.EventsText()
	ok(t, m.NetSet(root, "inet6", "yes"))
	if m.EventsText() != events {
		t.Error("writing what is there made an event")
	}
	m = open(t, dir, host)
	if m.NetGet("prefix") != "10.128.0.0/9" || m.NetGet("inet6") != "yes" || m.NetGet("prefix6") != drawn {
		t.Errorf("after a restart: %q %q %q", m.NetGet("prefix"), m.NetGet("inet6"), m.NetGet("prefix6"))
	}
	ok(t, m.NetSet(root, "prefix6", ""))
	if now := m.NetGet("prefix6"); now == drawn || now == "" {
		t.Errorf("unset, prefix6 is %q", now)
	}
	ok(t, m.NetSet(root, "prefix", ""))
	if m.NetGet("prefix") != "100.64.0.0/10" {
		t.Errorf("unset, prefix is %q", m.NetGet("prefix"))
	}
	ok(t, m.NetSet(root, "prefix", "10.0.0.0/22"))
	for id := range 4 {
		vm, err := m.Create(root, fmt.Sprint("vm", id), 0o755, 0)
		ok(t, err)
		ok(t, vm.Set(root, "nic/0/local", "yes"))
		if err := vm.Do(ctx, root, "start", ""); id == 3 && !errors.Is(err, syscall.ENOSPC) || id < 3 && err != nil {
			t.Errorf("machine %d: %v", id, err)
		}
	}
}

// A resolv.conf of systemd-resolved's has the host's own stub; guests are told
// what that asks.
func TestResolversBehindTheStub(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		return filepath.Join(dir, name)
	}
	stub, real := file("stub", "nameserver 127.0.0.53\noptions edns0 trust-ad\n"), file("real", "nameserver 192.0.2.53\n")
	link := filepath.Join(dir, "link")
	ok(t, os.Symlink("stub", link))
	for _, files := range [][]string{{link, real}, {stub, real}, {dir + "/none", real}, {real, stub}} {
		ctl.SetResolvConfs(t, files...)
		m, vm, _, host := plugged(t, "address 10.0.0.1/24\ndhcp yes\n")
		ok(t, vm.Edit(root, "nic/1/local yes\n"))
		ok(t, vm.Do(ctx, root, "start", ""))
		for _, l := range []ctl.Link{lan, ctl.NICLink(1, 1)} {
			if s, _, _ := host.Served(l); fmt.Sprint(s.DNS) != "[192.0.2.53]" {
				t.Errorf("%v of %v: got resolvers %v", l, files, s.DNS)
			}
		}
		m.Close()
	}
	ctl.SetResolvConfs(t, stub)
	if got := ctl.Resolvers(); got != nil {
		t.Errorf("of the stub alone: got %v", got)
	}
}

func TestResolvers(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 127.0.0.53\nnameserver ::1\noptions edns0\n":                         "[]",
		"# x\nnameserver 192.0.2.1 # y\nnameserver  2001:db8::1\nnameserver":             "[192.0.2.1 2001:db8::1]",
		"nameserver fe80::1%eth0\nnameserver x\nnameserver 0.0.0.0\n":                    "[]",
		"nameserver 1.1.1.1\nnameserver ::ffff:1.1.1.1\nnameserver 1.1.1.2":              "[1.1.1.1 1.1.1.2]",
		"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4": "[1.1.1.1 1.1.1.2 1.1.1.3]",
	} {
		if got := fmt.Sprint(ctl.ParseResolvers(text)); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
}
