package network

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"

	"vmfs/ctl"
)

func TestGroups(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	c := &nftables.Conn{}
	theirs := c.AddTable(&nftables.Table{Name: "vmfs-test", Family: nftables.TableFamilyBridge}) // an admin's, empty
	ok(t, c.Flush())
	before := snapshot(t)
	n := open(t, dir)
	f, ifname, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer f.Close()
	ok(t, n.Groups(nic0, []string{"web", "dmz"}))
	got := rules(t)
	for _, want := range []string{"set web ifname " + ifname, "set dmz ifname " + ifname} {
		if strings.Count(got, want) != 2 {
			t.Errorf("want twice %q:\n%s", want, got)
		}
	}
	ok(t, n.Groups(nic0, []string{"dmz"}))
	if got := rules(t); strings.Contains(got, "web") {
		t.Errorf("set web is left:\n%s", got)
	}
	refused(t, n.Groups(nic0, []string{"9a"}), syscall.EINVAL, "9a")

	// A rule of an admin's that uses a set keeps the set and the table.
	chain := c.AddChain(&nftables.Chain{Name: "mine", Table: theirs})
	ok(t, c.Flush())
	ok(t, n.Groups(nic0, nil))
	if got := rules(t); strings.Contains(got, "dmz") || !strings.Contains(got, "chain vmfs-test mine") || strings.Contains(got, "table 1 ") {
		t.Errorf("without groups:\n%s", got)
	}
	c.DelChain(chain)
	other := &nftables.Set{Table: theirs, Name: "dmz", KeyType: nftables.TypeInetService}
	ok(t, c.AddSet(other, nil))
	ok(t, c.Flush())
	refused(t, n.Groups(nic0, []string{"dmz"}), syscall.EEXIST, "dmz", "ifname")
	c.DelSet(other)
	ok(t, c.Flush())
	ok(t, n.Release(nic0))
	same(t, before, dir)
}

// Who loads his ruleset anew flushes ours: being told again puts it back, and
// what was flushed is nothing to stumble over.
func TestFlushed(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	f, _, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer f.Close()
	_, err = n.Bridge(one, "")
	ok(t, err)
	tell := func() {
		ok(t, n.Groups(nic0, []string{"web", "dmz"}))
		ok(t, n.Masquerade(one, prefixes("10.1.0.0/24")))
	}
	tell()
	told := rules(t)
	flush := func() {
		c := &nftables.Conn{}
		c.FlushRuleset()
		ok(t, c.Flush())
	}
	flush()
	tell()
	if got := rules(t); got != told {
		t.Errorf("told again:\n%s\nwant\n%s", got, told)
	}
	flush()
	n = open(t, dir)
	tell()
	if got := rules(t); got != told {
		t.Errorf("told again by another:\n%s\nwant\n%s", got, told)
	}
	flush()
	ok(t, n.Release(nic0))
	ok(t, n.Release(one))
	same(t, before, dir)
}

func TestGroupNumber(t *testing.T) {
	text := []byte("# numbers\n0\tdefault\n7 web # the front\n0x10 dmz\nx y\n5 web\n")
	for name, want := range map[string]uint32{"web": 7, "dmz": 16, "default": 0} {
		if got, found := findGroup(text, name); got != want || !found {
			t.Errorf("%s: %d, %v", name, got, found)
		}
	}
	if _, found := findGroup(text, "front"); found {
		t.Error("a comment is no group")
	}
}

func TestMasquerade(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	for _, sw := range []ctl.Link{one, two} {
		_, err := n.Bridge(sw, "")
		ok(t, err)
	}
	refused(t, n.Masquerade(one, prefixes("192.0.2.0/24")), syscall.EPERM)
	ok(t, n.Masquerade(one, prefixes("10.1.0.0/24", "fd00:1::/64")))
	ok(t, n.Masquerade(two, prefixes("10.2.0.0/20")))
	ok(t, n.Masquerade(two, prefixes("10.3.0.0/20")))
	if got := rules(t); !strings.Contains(got, "masquerade [switch1] [switch1] [switch2]\n") {
		t.Errorf("rules:\n%s", got)
	}
	ok(t, n.Masquerade(one, nil))
	if got := rules(t); !strings.Contains(got, "masquerade [switch2]\n") {
		t.Errorf("rules:\n%s", got)
	}

	// A rule of an admin's in the chain keeps it.
	c := &nftables.Conn{}
	table := n.table(nftables.TableFamilyINet)
	rule := c.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: natChain, Table: table}})
	ok(t, c.Flush())
	ok(t, n.Release(two))
	if got := rules(t); !strings.Contains(got, "masquerade []\n") {
		t.Errorf("rules:\n%s", got)
	}
	all, _, err := n.rules(c)
	ok(t, err)
	rule.Handle = all[0].Handle
	ok(t, c.DelRule(rule))
	ok(t, c.Flush())
	ok(t, n.Release(one))
	open(t, dir) // the chain is nobody's by now
	same(t, before, dir)
}

func TestWays(t *testing.T) {
	if !alone(t) {
		return
	}
	n := open(t, t.TempDir(), "u0")
	_, err := n.Bridge(one, "")
	ok(t, err)
	forward := prefixes("10.1.0.0/24", "fd00:1::/64")
	ok(t, n.Addresses(one, prefixes("10.1.0.1/24", "fd00:1::1/64")))
	ok(t, n.SetUp(one, true))
	want := func(words ...string) {
		t.Helper()
		ways, err := n.Ways(one, forward)
		ok(t, err)
		if len(ways) != len(words) {
			t.Errorf("%d ways, want %d: %q", len(ways), len(words), ways)
		}
		for _, w := range words {
			if !slices.ContainsFunc(ways, func(s string) bool { return strings.Contains(s, w) }) {
				t.Errorf("none of %q says %q", ways, w)
			}
		}
	}
	set := func(path, value string) bool {
		t.Helper()
		_, err := os.Stat("/proc/sys/" + path)
		if err == nil {
			ok(t, os.WriteFile("/proc/sys/"+path, []byte(value), 0))
		}
		return err == nil
	}
	set("net/bridge/bridge-nf-call-iptables", "0")
	set("net/bridge/bridge-nf-call-ip6tables", "0")
	want("net.ipv4.ip_forward is 0", "net.ipv6.conf.all.forwarding is 0")
	set("net/ipv4/ip_forward", "1")
	set("net/ipv6/conf/all/forwarding", "1")
	want()

	run(t, "ip link add u0 type veth peer name u1")
	run(t, "ip addr add 10.77.0.9/24 dev u0")
	run(t, "ip link set u0 up")
	run(t, "ip route add 10.1.0.128/25 dev u0")
	ok(t, n.Uplink(one, "u0"))
	want("the route to 10.1.0.128/25 leads to u0, not to switch1", "uplink u0 has the address 10.77.0.9/24")
	ok(t, n.Uplink(one, ""))
	run(t, "ip link del u0")

	l, err := net.ListenPacket("udp4", ":67")
	ok(t, err)
	want(ctl.AgainstDHCP + "UDP port 67 of 0.0.0.0 is in use")
	l.Close()

	c := &nftables.Conn{}
	table := c.AddTable(&nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4})
	drop := nftables.ChainPolicyDrop
	c.AddChain(&nftables.Chain{Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	ok(t, c.Flush())
	want("chain FORWARD of the nftables table ip filter drops")
	if set("net/bridge/bridge-nf-call-iptables", "1") {
		set("net/bridge/bridge-nf-call-ip6tables", "1") // nothing drops IPv6
		want("chain FORWARD of the nftables table ip filter drops", "net.bridge.bridge-nf-call-iptables is 1")
	}
	c.DelTable(table)
	ok(t, c.Flush())
	want()
	ok(t, n.Release(one))
}

func TestLegacy(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, tool := range []string{"iptables-legacy", "ip6tables-legacy"} {
		if _, err := os.Stat("/usr/sbin/" + tool); err != nil {
			t.Skip("SKIPPED: ", err)
		}
		run(t, tool+" -P FORWARD DROP")
		run(t, tool+" -A FORWARD -p tcp --dport 80 -j ACCEPT")
	}
	if ways := concerning(legacyWalls(), true, true, true); len(ways) != 2 || !strings.Contains(ways[0], "IPv4") || !strings.Contains(ways[1], "IPv6") {
		t.Errorf("ways %q", ways)
	}
	run(t, "iptables-legacy -P FORWARD ACCEPT")
	if ways := concerning(legacyWalls(), true, false, true); len(ways) > 0 {
		t.Errorf("ways %q", ways)
	}
}

func FuzzParseUDP(f *testing.F) {
	f.Add("  56: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0")
	f.Add("  sl  local_address rem_address   st tx_queue")
	f.Fuzz(func(t *testing.T, line string) { parseUDP(line) })
}

func FuzzVerdict(f *testing.F) {
	f.Add(make([]byte, 152), uint32(0))
	f.Add(make([]byte, 10), uint32(1<<31))
	f.Fuzz(func(t *testing.T, entries []byte, at uint32) {
		for _, family := range legacies {
			verdict(entries, at, family.targetOffset)
		}
	})
}

func TestRdomain(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	f, ifname, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer f.Close()
	refused(t, n.Rdomain(nic0, 254), syscall.EPERM, "254")
	ok(t, n.Rdomain(nic0, 0))
	err = n.Rdomain(nic0, 10)
	if strings.Contains(fmt.Sprint(err), "no VRF") {
		refused(t, err, syscall.EOPNOTSUPP)
		ok(t, n.Release(nic0))
		same(t, before, dir)
		t.Skip("SKIPPED: ", err)
	}
	ok(t, err)
	if out := run(t, "ip -d link show "+ifname); !strings.Contains(out, "master vrf10") {
		t.Errorf("link:\n%s", out)
	}
	_, err = n.Bridge(one, "")
	ok(t, err)
	refused(t, n.Attach(nic0, one, ctl.Port{MAC: mac0}), syscall.EBUSY, "vrf10")
	ok(t, n.Rdomain(one, 10))
	ok(t, n.Rdomain(nic0, 11))
	halfMade(t, dir, "vrf.11", n.vrfs[11].index)
	n = open(t, dir)
	if n.vrfs[11] == nil || n.vrfs[11].index == 0 {
		t.Errorf("the VRF that was half made: %+v", n.vrfs[11])
	}
	ok(t, n.Rdomain(nic0, 0))
	ok(t, n.Release(nic0))
	ok(t, n.Release(one))
	same(t, before, dir)
}

// TestFoundVRF: what is in a VRF of root's reaches what is there, so that one
// counts only where it is listed, and stays.
func TestFoundVRF(t *testing.T) {
	if !alone(t) {
		return
	}
	if out, err := exec.Command("ip", "link", "add", "red", "type", "vrf", "table", "30").CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no VRF: %s", out)
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	_, err := n.Bridge(one, "")
	ok(t, err)
	refused(t, n.Rdomain(one, 30), syscall.EPERM, "red was not made by vmfs", "-interface")
	n = open(t, dir, "red")
	ok(t, n.Rdomain(one, 30))
	if out := run(t, "ip link show master red"); !strings.Contains(out, "switch1") {
		t.Errorf("in red:\n%s", out)
	}
	n = open(t, dir)
	ok(t, n.Rdomain(one, 30)) // it is there already
	ok(t, n.Release(one))
	same(t, before, dir)
}
