package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

const inside = "VMFS_TEST_NETNS"

// alone runs the rest of a test in a process of its own, with a network
// namespace of its own that goes with it: it returns true in there.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to make a network namespace")
	}
	if _, err := exec.LookPath("bridge"); err != nil {
		t.Skip("SKIPPED: needs ip(8) and bridge(8), to look from outside: ", err)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP")):
		t.Skipf("%s", out)
	case testing.Verbose():
		t.Logf("%s", out)
	}
	return false
}

// run runs a command of the host's, as an admin would.
func run(t *testing.T, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

var private = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7")}

// open opens a Network with records of its own.
func open(t *testing.T, dir string, listed ...string) *Network {
	t.Helper()
	n, err := Open(Options{Records: dir, Interfaces: listed, Networks: private, Tables: "vmfs-test", Most: Most{Bridges: 100, Taps: 100, VRFs: 100, Groups: 100}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// timers run, and the kernel has another limit for a bridge that had a port
// than for one that never had.
var timers = regexp.MustCompile(`(_timer|tso_max_size) +[0-9.]+`)

// snapshot is what the namespace has, but for the multicast addresses that
// the kernel listens to on each interface by itself.
func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{"ip -d link", "ip addr", "ip route show table all", "ip -6 route show table all", "bridge -d link", "bridge fdb"} {
		for text := range strings.Lines(run(t, line)) {
			if !strings.HasSuffix(text, "self permanent\n") {
				fmt.Fprintf(&b, "%s: %s", line, timers.ReplaceAllString(text, "$1"))
			}
		}
	}
	b.WriteString(rules(t))
	return b.String()
}

// rules is what nftables has: tables, chains with the comments of their rules,
// sets and their elements.
func rules(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	c := &nftables.Conn{}
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		fmt.Fprintf(&b, "table %d %s\n", table.Family, table.Name)
		sets, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "set %s %s", s.Name, s.KeyType.Name)
			for _, e := range elements {
				fmt.Fprintf(&b, " %s", bytes.TrimRight(e.Key, "\x00"))
			}
			b.WriteByte('\n')
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "chain %s %s", ch.Table.Name, ch.Name)
		for _, r := range rules {
			fmt.Fprintf(&b, " [%s]", commentOf(r))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// same wants the namespace and the records to be as they were.
func same(t *testing.T, before, dir string) {
	t.Helper()
	after := snapshot(t)
	for line := range strings.Lines(before) {
		if !strings.Contains(after, line) {
			t.Errorf("gone: %s", line)
		}
	}
	for line := range strings.Lines(after) {
		if !strings.Contains(before, line) {
			t.Errorf("new: %s", line)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("records are left: %v, %v", left, err)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants an errno and words.
func refused(t *testing.T, err error, errno syscall.Errno, words ...string) {
	t.Helper()
	if !errors.Is(err, errno) {
		t.Errorf("got %v, want %v", err, errno)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v: does not say %q", err, w)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%q: more than a line", err)
	}
}

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

var (
	nic0 = ctl.NICLink(1, 0)
	nic1 = ctl.NICLink(2, 0)
	one  = ctl.SwitchLink(1)
	two  = ctl.SwitchLink(2)
	mac0 = net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd1, 0, 1}
)

func TestNICOnSwitch(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip link add name switch1 type veth peer name w1") // taken by somebody
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	name, err := n.Bridge(one, "")
	ok(t, err)
	if name != "switch2" {
		t.Errorf("bridge %s, want switch2", name)
	}
	again, err := n.Bridge(one, "")
	if err != nil || again != name {
		t.Errorf("again: %s, %v", again, err)
	}
	ok(t, n.Alias(one, "lan"))
	f, ifname, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer f.Close()
	ok(t, n.Alias(nic0, "web"))
	ok(t, n.Attach(nic0, one, ctl.Port{MAC: mac0, Locked: true, Isolated: true}))
	ok(t, n.SetUp(one, true))
	ok(t, n.SetUp(nic0, true))
	shown := run(t, "ip -d link show "+ifname)
	for _, want := range []string{"master switch2", "alias vm1-if0-web", "locked on", "learning off", "isolated on", "root_block on", "vnet_hdr on", "persist off", "UP"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	fdb := run(t, "bridge -d fdb show dev "+ifname)
	if !strings.Contains(fdb, mac0.String()+" sticky master switch2 static") {
		t.Errorf("fdb:\n%s", fdb)
	}
	for _, dev := range []string{ifname, name} {
		if out := run(t, "ip -6 addr show dev "+dev); out != "" {
			t.Errorf("IPv6 is on:\n%s", out)
		}
		if v, _ := sysctl("net/ipv4/conf/" + dev + "/rp_filter"); v != "1" {
			t.Errorf("rp_filter of %s is %s", dev, v)
		}
	}
	s, err := n.Observe(nic0)
	ok(t, err)
	if s.Ifname != ifname || !s.Up || !s.Running || !s.Made || s.Master != name || s.Link != nic0 || !s.Locked || !s.Isolated {
		t.Errorf("state %+v", s)
	}
	ok(t, n.Attach(nic0, one, ctl.Port{MAC: mac0}))
	if s, err = n.Observe(nic0); err != nil || s.Locked || s.Isolated || s.Up {
		t.Errorf("attached again: state %+v, %v", s, err)
	}
	if shown = run(t, "ip -d link show "+ifname); !strings.Contains(shown, "locked off") || !strings.Contains(shown, "learning on") || strings.Contains(shown, ",UP") {
		t.Errorf("attached again:\n%s", shown)
	}
	if fdb = run(t, "bridge fdb show dev "+ifname); strings.Contains(fdb, mac0.String()) {
		t.Errorf("the entry is still there:\n%s", fdb)
	}
	_, err = n.Bridge(two, "")
	ok(t, err)
	refused(t, n.Attach(nic0, two, ctl.Port{MAC: mac0}), syscall.EBUSY, "switch2", "switch3", ifname)
	ok(t, n.Detach(nic0))
	ok(t, n.Detach(nic0))
	ok(t, n.Attach(nic0, two, ctl.Port{MAC: mac0, Locked: true}))
	all, err := n.Links(ctl.Link{}, 10)
	ok(t, err)
	if len(all) != 3 || all[0].Link != one || all[1].Link != two || all[2].Link != nic0 {
		t.Errorf("links %+v", all)
	}
	ok(t, n.Release(nic0))
	ok(t, n.Release(nic0))
	ok(t, n.Release(two))
	ok(t, n.Release(one))
	same(t, before, dir)
}

func TestLocalNIC(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	f, ifname, err := n.Tap(nic0, "tap7")
	ok(t, err)
	defer f.Close()
	if ifname != "tap7" {
		t.Errorf("got %s", ifname)
	}
	ok(t, n.Addresses(nic0, prefixes("100.64.1.2/31")))
	ok(t, n.SetUp(nic0, true))
	if out := run(t, "ip -6 addr show dev tap7"); out != "" {
		t.Errorf("IPv6 is on:\n%s", out)
	}
	ok(t, n.Addresses(nic0, prefixes("100.64.1.2/31", "fd00:1:2:3:6440:103::1/96")))
	ok(t, n.SetUp(nic0, false))
	ok(t, n.SetUp(nic0, true))
	out := run(t, "ip addr show dev tap7")
	for _, want := range []string{"100.64.1.2/31", "fd00:1:2:3:6440:103:0:1/96", "fe80::"} {
		if !strings.Contains(out, want) || strings.Contains(out, "tentative") {
			t.Errorf("no %s, or tentative, in\n%s", want, out)
		}
	}
	for key, want := range map[string]string{"accept_ra": "0", "accept_redirects": "0", "autoconf": "0", "disable_ipv6": "0"} {
		if v, _ := sysctl("net/ipv6/conf/tap7/" + key); v != want {
			t.Errorf("%s is %s", key, v)
		}
	}
	for _, bad := range []string{"100.64.1.4/31", "100.64.1.2/24", "100.64.2.2/31", "100.64.1.3/31", "192.0.2.2/31", "fd00::1/96", "8.8.1.2/31"} {
		refused(t, n.Addresses(nic0, prefixes(bad)), syscall.EPERM)
	}
	refused(t, n.Addresses(nic0, prefixes("100.64.1.2/31", "fd00:1:2:3:6440:103::2/96")), syscall.EPERM, "place")
	ok(t, n.Addresses(nic0, nil))
	if out := run(t, "ip addr show dev tap7"); strings.Contains(out, "inet") {
		t.Errorf("addresses are left:\n%s", out)
	}
	ok(t, n.Release(nic0))
	same(t, before, dir)
}

// What root made and listed is used and left as it was found.
func TestFound(t *testing.T) {
	if !alone(t) {
		return
	}
	for _, line := range []string{
		"ip link add name br0 type bridge", "ip link set br0 alias printers group 7", "ip addr add 10.9.0.1/24 dev br0",
		"ip tuntap add tap3 mode tap", "ip link set tap3 alias mine",
		"ip link add up0 type veth peer name up1",
		"ip link add name br1 type bridge", "ip link add p0 type veth peer name p1", "ip link set p0 master br1",
		// Once up, so that going up and down again leaves nothing new.
		"ip link set br0 up", "ip link set up0 up", "ip link set tap3 up", "ip link set br0 down", "ip link set up0 down", "ip link set tap3 down",
	} {
		run(t, line)
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir, "br0", "tap3", "up0", "p0", "nope")
	_, err := n.Bridge(one, "br1")
	refused(t, err, syscall.EPERM, "br1", "-interface")
	_, err = n.Bridge(one, "nope")
	refused(t, err, syscall.ENODEV, "nope")
	_, err = n.Bridge(one, "up0")
	refused(t, err, syscall.EINVAL, "up0 is no bridge")
	_, err = n.Bridge(one, "br0")
	ok(t, err)
	_, err = n.Bridge(two, "br0")
	refused(t, err, syscall.EBUSY, "switch1")
	ok(t, n.Alias(one, "lan"))
	ok(t, n.SetUp(one, true))
	refused(t, n.Addresses(one, prefixes("192.0.2.1/24")), syscall.EPERM, "-network")
	ok(t, n.Addresses(one, prefixes("10.9.0.1/24", "10.8.0.1/24", "fd00:8::1/64")))
	refused(t, n.Uplink(one, "up1"), syscall.EPERM, "up1")
	refused(t, n.Uplink(one, "p0"), syscall.EBUSY, "br1", "br0", "p0")
	ok(t, n.Uplink(one, "up0"))
	ok(t, n.Uplink(one, "up0"))
	if out := run(t, "ip link show up0"); !strings.Contains(out, "master br0") || !strings.Contains(out, ",UP") {
		t.Errorf("uplink:\n%s", out)
	}
	f, ifname, err := n.Tap(nic0, "tap3")
	ok(t, err)
	if ifname != "tap3" {
		t.Errorf("got %s", ifname)
	}
	_, _, err = n.Tap(nic1, "tap3")
	refused(t, err, syscall.EBUSY, "vm1-if0")
	ok(t, n.Alias(nic0, "web"))
	ok(t, n.Attach(nic0, one, ctl.Port{MAC: mac0, Locked: true}))
	ok(t, n.SetUp(nic0, true))
	f.Close()
	run(t, "ip addr add 10.7.0.1/24 dev br0") // root's, meanwhile
	ok(t, n.Release(nic0))
	ok(t, n.Release(one))
	if out := run(t, "ip addr show br0"); !strings.Contains(out, "10.7.0.1") || !strings.Contains(out, "10.9.0.1") {
		t.Errorf("root's addresses are gone:\n%s", out)
	}
	run(t, "ip addr del 10.7.0.1/24 dev br0")
	same(t, before, dir)
	_, _, err = open(t, dir).Tap(nic0, "tap3")
	refused(t, err, syscall.EBUSY, "tap3", "-interface")
}

func TestAddressesInTheWay(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip link add v0 type veth peer name v1")
	run(t, "ip addr add 10.1.0.9/16 dev v0")
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	_, err := n.Bridge(one, "")
	ok(t, err)
	refused(t, n.Addresses(one, prefixes("10.1.2.1/24")), syscall.EEXIST, "v0", "10.1.0.9/16")
	ok(t, n.Addresses(one, prefixes("10.2.2.1/24")))
	ok(t, n.Release(one))
	same(t, before, dir)
}

// A tap that goes with its guest leaves a record, which the next one of the
// same name, or the next daemon, forgets.
func TestGone(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	f, first, err := n.Tap(nic0, "tap")
	ok(t, err)
	ok(t, n.Groups(nic0, []string{"web"}))
	f.Close()
	gone(t, first)
	s, err := n.Observe(nic0)
	if err != nil || s.Ifname != "" {
		t.Errorf("observe: %+v, %v", s, err)
	}
	refused(t, n.SetUp(nic0, true), syscall.ENOENT, first, "gone")
	f, second, err := n.Tap(nic1, "tap")
	ok(t, err)
	if second != first {
		t.Errorf("got %s, want %s again", second, first)
	}
	if strings.Contains(rules(t), first) {
		t.Errorf("the new one is in the old one's groups:\n%s", rules(t))
	}
	ok(t, n.Groups(nic1, []string{"web"}))
	f.Close()
	gone(t, first)
	n = open(t, dir)
	if all, err := n.Links(ctl.Link{}, 10); err != nil || len(all) > 0 {
		t.Errorf("links %+v, %v", all, err)
	}
	same(t, before, dir)
}

func gone(t *testing.T, ifname string) {
	t.Helper()
	if _, err := netlink.LinkByName(ifname); err == nil {
		t.Fatalf("%s is still there", ifname)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	for _, r := range []*record{
		{ifname: "tap0", index: 3, made: true, port: 9},
		{ifname: "switch1", made: true, mac: mac0, table: 10, groups: []string{"a", "b"}, addrs: prefixes("100.64.1.2/31")},
		{ifname: "br0", index: 9, alias: "two words\n", up: true, number: 7, uplink: uplink{"eth1", 4, false}},
		{ifname: "tap3", index: 9, flags: 4098},
	} {
		again, err := parseRecord(r.text())
		if err != nil || string(again.text()) != string(r.text()) {
			t.Errorf("%s: %v", r.text(), err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte("interface tap0\nindex 12\nmade yes\ngroup web\naddress 10.0.0.1/31\n"))
	f.Add([]byte("interface br0\nindex 12\nmade no\nalias \"x\"\nup yes\nnumber 0\nuplink eth1 3 no\ntable 10\n"))
	f.Add([]byte("interface ../x\nindex -1\nmade yes\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRecord(text)
		if err == nil && (!bytes.Equal(r.text(), text) || !ValidName(r.ifname)) {
			t.Errorf("parseRecord(%q) = %+v", text, r)
		}
	})
}

func TestLoadBroken(t *testing.T) {
	dir := t.TempDir()
	ok(t, os.WriteFile(filepath.Join(dir, ".network.link.vm1-if0"), []byte("interf"), 0o600))
	if _, _, err := (records{dir}).load(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("half a record is left: %v, %v", left, err)
	}
	ok(t, os.WriteFile(filepath.Join(dir, "link.vm1-if0"), []byte("interface tap0\n"), 0o600))
	if _, _, err := (records{dir}).load(); err == nil || !strings.Contains(err.Error(), "link.vm1-if0: not a record") {
		t.Errorf("got %v", err)
	}
}

// Who has a tap open may make it stay when he is gone, and give it to a user:
// the kernel asks for no right. Release takes it away all the same, and what
// somebody did to the host's end is not on record.
func TestKeptTap(t *testing.T) {
	if name := os.Getenv("VMFS_TEST_KEEP_TAP"); name != "" {
		keepTap(t, name)
		return
	}
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	f, ifname, err := n.Tap(nic0, "tap")
	ok(t, err)
	program, err := os.ReadFile(os.Args[0]) // where that uid may not go
	ok(t, err)
	copied := filepath.Join(t.TempDir(), "test")
	ok(t, os.WriteFile(copied, program, 0o755))
	for d := filepath.Dir(copied); d != os.TempDir(); d = filepath.Dir(d) {
		ok(t, os.Chmod(d, 0o755))
	}
	cmd := exec.Command(copied, "-test.run", "^TestKeptTap$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "VMFS_TEST_KEEP_TAP="+ifname)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1900000001, Gid: 1900000001}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.Close()
	if out := run(t, "ip -d link show "+ifname); !strings.Contains(out, "persist on") || !strings.Contains(out, "user 1900000001") {
		t.Errorf("it did not stay, so there is nothing to see:\n%s", out)
	}
	n = open(t, dir) // also the next daemon's
	ok(t, n.Release(nic0))
	gone(t, ifname)
	same(t, before, dir)
}

// keepTap is the guest's part.
func keepTap(t *testing.T, name string) {
	const tap = 3
	mac, err := unix.NewIfreq(name)
	ok(t, err)
	ok(t, unix.IoctlSetInt(tap, unix.TUNSETPERSIST, 1))
	ok(t, unix.IoctlSetInt(tap, unix.TUNSETOWNER, 1900000001))
	mac.SetUint16(unix.ARPHRD_ETHER)
	if err := unix.IoctlIfreq(tap, unix.SIOCSIFHWADDR, mac); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("the MAC of the host's end: %v", err) // 0 is none, or it would have been set
	}
}
