package priv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmfs/ctl"
	"vmfs/priv/network"
	"vmfs/priv/wire"
)

// possibleLinks are requests about links that core may send.
var possibleLinks = []string{
	"tap vm1-if0 tap", "tap vm1-if15 tap0", "tap vm1-if0 tap4294967295",
	"bridge switch1 -", "bridge switch1 br0", "bridge switch1 eth0", "uplink switch1 eth0", "uplink switch1 -",
	"release switch1", "release vm1-if0", "alias vm1-if0 web", "alias switch9 a.b-c_d",
	"attach vm1-if0 switch1 fe:e1:bb:d1:00:01 yes no", "detach vm1-if0", "rdomain switch1 10", "rdomain vm1-if0 0",
	"groups vm1-if0", "groups vm1-if0 web dmz-a", "addresses switch1 10.0.0.1/24 fd00::1/64", "addresses vm1-if0",
	"masquerade switch1 10.0.0.0/24", "masquerade switch1", "up vm1-if0 yes", "up switch1 no",
	"observe vm1-if0", "ways switch1 10.0.0.0/24", "listen switch1",
}

// impossibleLinks are requests that end a core.
var impossibleLinks = []string{
	"tap", "tap vm1-if0", "tap vm1-if0 eth0", "tap vm1-if0 tap01", "tap vm1-if0 tap/0", "tap vm1-if0 tapx", "tap switch1 tap", "tap eth0 tap",
	"tap vm0-if0 tap", "tap vm1-if16 tap", "tap vm01-if0 tap", "tap vm100000001-if0 tap", "tap vm1-if0 tap tap", "tap vm1-if0 tap99999999999",
	"bridge switch1 a/b", "bridge switch1 a234567890123456", "bridge switch1 ..", `bridge switch1 ""`, `bridge switch1 "a b"`, "bridge vm1-if0 br0", "bridge eth0 -",
	"bridge switch1 a:1", "bridge switch1 br%d", `bridge switch1 "a\nb"`, "uplink switch1 ../eth0", "uplink vm1-if0 eth0", "uplink switch0 eth0",
	"release eth0", "release", "alias vm1-if0 a/b", `alias vm1-if0 ""`, "alias vm1-if0 " + strings.Repeat("a", 64),
	"attach vm1-if0 br0 fe:e1:bb:d1:00:01 yes no", "attach vm1-if0 switch1 01:00:00:00:00:01 yes no", "attach vm1-if0 switch1 FE:E1:BB:D1:00:01 yes no",
	"attach vm1-if0 switch1 00:00:00:00:00:00 yes no", "attach vm1-if0 switch1 fe:e1:bb:d1:00:01 1 0", "attach vm1-if0 vm2-if0 fe:e1:bb:d1:00:01 yes no",
	"attach vm1-if0 switch1 fe:e1:bb:d1:00:01", "detach switch1", "rdomain vm1-if0 -1", "rdomain vm1-if0 4294967296", "rdomain vm1-if0 010",
	"groups vm1-if0 web0", "groups vm1-if0 a/b", `groups vm1-if0 ""`, "groups vm1-if0 abcdefghijklmnop",
	"addresses switch1 10.0.0.1", "addresses switch1 10.0.0.1/33", "addresses switch1 ::ffff:10.0.0.1/120", "addresses switch1 10.0.0.01/24", "addresses eth0 10.0.0.1/24",
	"masquerade switch1 10.0.0.1/24", "masquerade vm1-if0 10.0.0.0/24", "up vm1-if0", "up eth0 no", "up vm1-if0 maybe",
	"observe eth0", "ways vm1-if0 0.0.0.1/0", "listen eth0", "listen switch1 all",
}

func TestParseLinkRequest(t *testing.T) {
	for want, lines := range map[bool][]string{true: possibleLinks, false: impossibleLinks} {
		for _, line := range lines {
			fields, err := wire.Decode([]byte(line))
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if do, err := parseRequest(fields[0], fields[1:]); (err == nil) != want || (do == nil) == want {
				t.Errorf("%.80q: %v, want taken: %v", line, err, want)
			}
		}
	}
}

func FuzzParseLinkRequest(f *testing.F) {
	for _, s := range append(possibleLinks, impossibleLinks...) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields, err := wire.Decode([]byte(line))
		if err != nil {
			return
		}
		if do, err := parseRequest(fields[0], fields[1:]); (do == nil) == (err == nil) {
			t.Errorf("parseRequest(%q): an act %v, an error %v", fields, do != nil, err)
		}
	})
}

func FuzzParseState(f *testing.F) {
	f.Add("vm1-if0 tap0 12 made switch1 up yes yes no fe:00:00:00:00:01 1 2 3 4 5 6 10.0.0.1/24")
	f.Add("switch1 - 0 found - down no no no - 0 0 0 0 0 0")
	f.Add("switch1 - -1 x - down no no no - 0 0 0 0 0 0")
	f.Fuzz(func(t *testing.T, line string) {
		fields := strings.Split(line, " ")
		s, err := parseState(fields)
		if err == nil && strings.Join(stateFields(s), " ") != line {
			t.Errorf("parseState(%q) = %+v", line, s)
		}
	})
}

// alone runs the rest of a test in a process of its own, with a network
// namespace of its own that goes with it: it returns true in there. What it
// says in its log is looked at here.
func alone(t *testing.T, says ...string) bool {
	t.Helper()
	const inside = "VMFS_TEST_NETNS"
	if os.Getenv(inside) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to make a network namespace")
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, what := range says {
		if !bytes.Contains(out, []byte(what)) {
			t.Errorf("the log does not say %q:\n%s", what, out)
		}
	}
	return false
}

// hostile is a core that the test plays.
type hostile struct {
	*core
	theirs *wire.Conn
}

// newHostile begins a conversation with priv, whose log goes to the file.
func newHostile(t *testing.T, s *server) hostile {
	t.Helper()
	ours, end, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := wire.NewConn(end)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "600") // what is killed in the place of core
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &core{server: s, cmd: cmd, conn: ours, gone: make(chan struct{})}
	go func() { cmd.Wait(); ours.Close(); close(c.gone) }()
	go c.serve(context.Background())
	t.Cleanup(func() { cmd.Process.Kill(); theirs.Close(); <-c.gone })
	return hostile{c, theirs}
}

func networkServer(t *testing.T, listed ...string) *server {
	t.Helper()
	return networkServerOf(t, mostLinks, listed...)
}

func networkServerOf(t *testing.T, most network.Most, listed ...string) *server {
	t.Helper()
	o := Options{Run: t.TempDir(), Interfaces: listed, Networks: DefaultNetworks}
	options := o.network(o.Run)
	options.Most = most
	n, err := network.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return &server{options: o, network: n}
}

// TestHostileEnded plays a core that asks for what no working one would.
func TestHostileEnded(t *testing.T) {
	if !alone(t) {
		return
	}
	s := networkServer(t)
	for _, line := range impossibleLinks {
		h := newHostile(t, s)
		if _, err := h.theirs.Hello("core"); err != nil {
			t.Fatal(err)
		}
		fields, err := wire.Decode([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		if err := h.theirs.Send(nil, append([]string{"1"}, fields...)...); err != nil {
			t.Fatal(err)
		}
		if _, err := h.theirs.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: answered (%v)", line, err)
		}
		if why := h.death(); !strings.Contains(why, "impossible request: "+fields[0]) {
			t.Errorf("%s: ended by %q", line, why)
		}
	}
	h := newHostile(t, s)
	if _, err := h.theirs.Hello("core"); err != nil {
		t.Fatal(err)
	}
	if err := h.theirs.Send([]*os.File{os.Stdin}, "1", "observe", "vm1-if0"); err != nil {
		t.Fatal(err)
	}
	if why := h.death(); !strings.Contains(why, "files came with it") {
		t.Errorf("a file beside a request: ended by %q", why)
	}
}

// TestHostileRefused plays one that asks for what it may not have, and a
// user's mistake could be: it is told so, it is logged, and it goes on.
func TestHostileRefused(t *testing.T) {
	if !alone(t, "vmfs: refused: bridge switch1: eth0 was not made by vmfs") {
		return
	}
	for _, line := range []string{
		"ip link add eth0 type veth peer name eth1", "ip tuntap add tap9 mode tap", "ip link add name br0 type bridge",
		"ip link add name up0 type veth peer name up1", "ip link set up0 master br0",
	} {
		if out, err := exec.Command("sh", "-c", line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	before := links(t)
	s := networkServer(t, "up0", "nope")
	h := newHostile(t, s)
	c, err := NewClient(h.theirs, func(uint32, string) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, nic, sw := context.Background(), ctl.NICLink(1, 0), ctl.SwitchLink(1)
	refuse := func(err error, errno syscall.Errno, words string) {
		t.Helper()
		if ctl.Errno(err) != errno || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %v and %q", err, errno, words)
		}
	}
	_, err = c.Bridge(ctx, sw, "eth0")
	refuse(err, syscall.EPERM, "bridge switch1: eth0 was not made by vmfs, and is not listed")
	_, err = c.Bridge(ctx, sw, "br0")
	refuse(err, syscall.EPERM, "br0")
	_, err = c.Bridge(ctx, sw, "nope")
	refuse(err, syscall.ENODEV, "nope")
	_, _, err = c.Tap(ctx, nic, "tap9")
	refuse(err, syscall.EBUSY, "tap9")
	refuse(c.SetUp(ctx, nic, true), syscall.ENOENT, "up vm1-if0: vm1-if0 has no interface")
	refuse(c.Release(ctx, ctl.SwitchLink(7)), 0, "")
	_, err = c.Listen(ctx, nic)
	refuse(err, syscall.ENOENT, "listen vm1-if0")

	f, _, err := c.Tap(ctx, nic, "tap")
	refuse(err, 0, "")
	defer f.Close()
	_, err = c.Bridge(ctx, sw, "")
	refuse(err, 0, "")
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	refuse(c.Addresses(ctx, nic, prefix("100.64.2.2/31")), syscall.EPERM, "is not the place of machine 1, NIC 0")
	refuse(c.Addresses(ctx, nic, prefix("8.8.8.8/31")), syscall.EPERM, "8.8.8.8/31 lies in none of the networks")
	refuse(c.Addresses(ctx, sw, prefix("8.8.8.8/24")), syscall.EPERM, "-network")
	refuse(c.Masquerade(ctx, sw, prefix("0.0.0.0/0")), syscall.EPERM, "-network")
	refuse(c.Uplink(ctx, sw, "eth0"), syscall.EPERM, "eth0")
	refuse(c.Uplink(ctx, sw, "up0"), syscall.EBUSY, "br0")
	refuse(c.Rdomain(ctx, nic, 254), syscall.EPERM, "254")
	refuse(c.Attach(ctx, nic, ctl.SwitchLink(3), ctl.Port{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}}), syscall.ENOENT, "switch3")
	refuse(c.Groups(ctx, nic, []string{"web1"}), syscall.EINVAL, "web1") // by the client
	_, err = c.Bridge(ctx, sw, "a/b")
	refuse(err, syscall.EINVAL, "a/b") // by the client

	state, err := c.Observe(ctx, nic)
	all, err2 := c.Links(ctx)
	if err != nil || err2 != nil || len(all) != 2 || !reflect.DeepEqual(all[1], state) || state.Link != nic || state.Ifname == "" {
		t.Errorf("observe %+v, %v; links %+v, %v", state, err, all, err2)
	}
	refuse(c.Release(ctx, nic), 0, "")
	refuse(c.Release(ctx, sw), 0, "")
	if after := links(t); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	select {
	case <-h.gone:
		t.Error("it was ended: ", h.death())
	default:
	}
}

// TestHostileMany plays one that asks for one link after the other.
func TestHostileMany(t *testing.T) {
	if !alone(t) {
		return
	}
	s := networkServerOf(t, network.Most{Bridges: 2, Taps: 2, VRFs: 0, Groups: 2})
	h := newHostile(t, s)
	c, err := NewClient(h.theirs, func(uint32, string) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	is := func(err error, errno syscall.Errno, words string) {
		t.Helper()
		if ctl.Errno(err) != errno || err != nil && !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %v and %q", err, errno, words)
		}
	}
	bridge := func(id uint32) error { _, err := c.Bridge(ctx, ctl.SwitchLink(id), ""); return err }
	is(bridge(1), 0, "")
	is(bridge(2), 0, "")
	is(bridge(3), syscall.ENOSPC, "bridge switch3: 2 bridges are there, and no more are made")
	is(bridge(2), 0, "") // that it has
	is(c.Release(ctx, ctl.SwitchLink(1)), 0, "")
	is(bridge(3), 0, "")
	is(bridge(4), syscall.ENOSPC, "bridges")
	if out, err := exec.Command("ip", "link", "delete", "switch3").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	is(bridge(4), 0, "") // as many as are there

	for id := range uint32(9) { // each of another name, and gone at once
		name := fmt.Sprintf("tap%d", 70+id)
		f, _, err := c.Tap(ctx, ctl.NICLink(1+id, 0), name)
		is(err, 0, "")
		f.Close()
		eventually(t, name+" is gone", func() bool { // priv closes its own behind its answer
			_, err := net.InterfaceByName(name)
			return err != nil
		})
	}
	if records, err := filepath.Glob(s.options.Run + "/link.vm*"); err != nil || len(records) > 2 {
		t.Errorf("of taps that are gone it keeps %q, %v", records, err)
	}
	for id := range uint32(3) {
		f, _, err := c.Tap(ctx, ctl.NICLink(100+id, 0), network.AnyTap)
		if id == 2 {
			is(err, syscall.ENOSPC, "tap vm102-if0: 2 taps are there")
			continue
		}
		is(err, 0, "")
		defer f.Close()
	}
	nic := ctl.NICLink(100, 0)
	is(c.Rdomain(ctx, nic, 77), syscall.ENOSPC, "rdomain vm100-if0: 0 VRFs are there")
	is(c.Groups(ctx, nic, []string{"web", "ops"}), 0, "")
	is(c.Groups(ctx, nic, []string{"web", "dmz"}), syscall.ENOSPC, "2 groups are there")
	is(c.Groups(ctx, nic, []string{"dmz"}), syscall.ENOSPC, "2 groups are there")
	is(c.Groups(ctx, nic, nil), 0, "")
	is(c.Groups(ctx, nic, []string{"dmz"}), 0, "")
	for _, l := range []ctl.Link{nic, ctl.NICLink(101, 0), ctl.SwitchLink(2), ctl.SwitchLink(4)} {
		is(c.Release(ctx, l), 0, "")
	}
}

// TestManyWays: a host with a full table of routes has a check all the same.
func TestManyWays(t *testing.T) {
	var ways []string
	for i := range 1000 {
		ways = append(ways, fmt.Sprintf("the route to 10.%d.%d.0/24 leads to a-long-ifname0\n", i/256, i%256))
	}
	fields := waysFields(ways)
	if _, err := wire.Encode(append([]string{"18446744073709551615", "ok"}, fields...)...); err != nil {
		t.Error(err)
	}
	if got := fields[len(fields)-1]; got != "and 936 more" || strings.ContainsAny(fields[0], "\n") {
		t.Errorf("%q ... %q", fields[0], got)
	}
}

func links(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ip", "-o", "link").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestLease looks at the process that answers DHCP.
func TestLease(t *testing.T) {
	program(t)
	if !alone(t) {
		return
	}
	s := networkServer(t)
	h := newHostile(t, s)
	c, err := NewClient(h.theirs, func(uint32, string) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	l, err := c.Lease(ctx)
	if err != nil {
		t.Fatal(err)
	}
	pid, gone := s.lease.now()
	here, _ := os.Readlink("/proc/self/ns/net")
	if there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || there == here {
		t.Errorf("its network is %s, ours %s (%v)", there, here, err)
	}
	if again, err := c.Lease(ctx); err != nil || again != l {
		t.Errorf("asked again: %v, %v", again, err)
	}
	serveOn(t, c, l)
	l.Close()
	within(t, gone, "it did not end with its conversation")
	<-l.Done()
	another, err := c.Lease(ctx)
	if err != nil || another == l {
		t.Fatalf("after its end: %v, %v", another, err)
	}
	_, gone = s.lease.now()
	if _, err := s.lease.start(); err != nil { // as another core's
		t.Fatal(err)
	}
	within(t, gone, "two at a time")
	s.lease.end()
}

// now is the process that runs.
func (p *leaser) now() (pid int, gone <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid, p.gone
}

// serveOn has it answer on the socket of a link.
func serveOn(t *testing.T, c *Client, l ctl.Lease) {
	t.Helper()
	ctx, nic := context.Background(), ctl.NICLink(1, 0)
	addrs, err := ctl.Local(netip.MustParsePrefix("100.64.0.0/10"), netip.Prefix{}, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	tap, _, err := c.Tap(ctx, nic, "tap")
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	if err := errors.Join(c.Addresses(ctx, nic, []netip.Prefix{addrs.Host}), c.SetUp(ctx, nic, true)); err != nil {
		t.Fatal(err)
	}
	socket, err := c.Listen(ctx, nic)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	service := ctl.LeaseService{Server: addrs.Host, Bindings: []ctl.LeaseBinding{
		{MAC: net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd1, 0, 1}, Addr: addrs.Guest.Addr(), Hostname: "web"},
	}}
	if err := l.Serve(ctx, nic, socket, service); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Stop(ctx, nic), c.Release(ctx, nic)); err != nil {
		t.Fatal(err)
	}
}

func within(t *testing.T, gone <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Error(what)
	}
}
