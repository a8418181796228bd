package network

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// Ways says what of the host is in the way of a network that forwards from
// the given networks: see ctl.Network. It looks and changes nothing.
func (n *Network) Ways(l ctl.Link, forward []netip.Prefix) (ways []string, err error) {
	err = n.do("check", l, func() error {
		r, i, err := n.at(l)
		if err != nil {
			return err
		}
		addrs, err := n.kernel.addrs(0)
		if err != nil {
			return err
		}
		four := slices.ContainsFunc(forward, func(p netip.Prefix) bool { return !is6(p) })
		six := slices.ContainsFunc(forward, is6)
		walls, err := forwardWalls()
		if err != nil {
			return err
		}
		routes, err := n.routesInTheWay(r, i, forward)
		ways = slices.Concat(notForwarding(i.Name, four, six), bridgeFilters(i, walls), uplinkAddrs(r, addrs),
			portTaken(i, addrs), concerning(walls, four, six, l.Switch), routes)
		return err
	})
	return ways, err
}

// notForwarding names the switches of the kernel that are off.
func notForwarding(ifname string, four, six bool) []string {
	var ways []string
	off := func(path string) bool {
		value, ok := sysctl(path)
		return ok && value == "0"
	}
	say := func(path, family string) {
		ways = append(ways, fmt.Sprintf("%s is 0: the host forwards no %s packets", strings.ReplaceAll(path, "/", "."), family))
	}
	if all, one := "net/ipv4/ip_forward", "net/ipv4/conf/"+ifname+"/forwarding"; four && off(all) {
		say(all, "IPv4")
	} else if four && off(one) {
		say(one, "IPv4")
	}
	if all, one := "net/ipv6/conf/all/forwarding", "net/ipv6/conf/"+ifname+"/forwarding"; six && off(all) {
		say(all, "IPv6")
	} else if six && off(one) {
		say(one, "IPv6")
	}
	return ways
}

// bridgeFilters says whether frames between ports meet rules for packets, of
// those that drop what they do not accept.
func bridgeFilters(i *iface, walls []wall) []string {
	if i.kind != "bridge" {
		return nil
	}
	var ways []string
	for _, s := range []struct {
		name      string
		four, six bool
	}{{"bridge-nf-call-iptables", true, false}, {"bridge-nf-call-ip6tables", false, true}} {
		value, ok := sysctl("net/bridge/" + s.name)
		if ok && value != "0" && len(concerning(walls, s.four, s.six, false)) > 0 {
			ways = append(ways, fmt.Sprintf("net.bridge.%s is %s: what the host's firewall forwards nowhere, ports do not send each other either", s.name, value))
		}
	}
	return ways
}

// A wall is a chain of forwarded packets that drops what nothing in it
// accepts.
type wall struct {
	family nftables.TableFamily
	says   string
}

// concerning are the walls that packets of these kinds come to: IPv4 and IPv6
// that the host forwards, and frames between ports.
func concerning(walls []wall, four, six, frames bool) []string {
	concerns := map[nftables.TableFamily]bool{
		nftables.TableFamilyIPv4: four, nftables.TableFamilyIPv6: six,
		nftables.TableFamilyINet: four || six, nftables.TableFamilyBridge: frames,
	}
	var ways []string
	for _, w := range walls {
		if concerns[w.family] {
			ways = append(ways, w.says)
		}
	}
	return ways
}

// uplinkAddrs names addresses that nobody answers for any more.
func uplinkAddrs(r *record, addrs []addr) []string {
	var ways []string
	for _, a := range addrs {
		if r.uplink.ifname != "" && a.index == r.uplink.index && !a.Addr().IsLinkLocalUnicast() {
			ways = append(ways, fmt.Sprintf("uplink %s has the address %v itself, for which a port does not answer: it belongs on %s", r.uplink.ifname, a.Prefix, r.ifname))
		}
	}
	return ways
}

// portTaken says whether another DHCP server may be there.
func portTaken(i *iface, addrs []addr) []string {
	text, err := os.ReadFile("/proc/net/udp")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		at, ok := parseUDP(line)
		if !ok || at.Port() != 67 {
			continue
		}
		here := at.Addr().IsUnspecified() || slices.ContainsFunc(addrs, func(a addr) bool {
			return a.index == i.Index && a.Addr() == at.Addr()
		})
		if here {
			return []string{fmt.Sprintf(ctl.AgainstDHCP+"UDP port 67 of %v is in use: another server may answer on %s too", at.Addr(), i.Name)}
		}
	}
	return nil
}

// parseUDP reads the local address of a line of /proc/net/udp.
func parseUDP(line string) (netip.AddrPort, bool) {
	f := strings.Fields(line)
	if len(f) < 2 {
		return netip.AddrPort{}, false
	}
	host, port, _ := strings.Cut(f[1], ":")
	a, err1 := strconv.ParseUint(host, 16, 32)
	p, err2 := strconv.ParseUint(port, 16, 16)
	if err1 != nil || err2 != nil || len(host) != 8 {
		return netip.AddrPort{}, false
	}
	// The kernel prints the number as the machine, little-endian, has it.
	addr := netip.AddrFrom4([4]byte{byte(a), byte(a >> 8), byte(a >> 16), byte(a >> 24)})
	return netip.AddrPortFrom(addr, uint16(p)), true
}

// forwardWalls finds the walls of iptables and nftables.
func forwardWalls() ([]wall, error) {
	walls := legacyWalls()
	c := talkTables()
	chains, err := c.ListChains()
	if err != nil {
		return nil, tablesError(err)
	}
	for _, ch := range chains {
		if familyName(ch.Table.Family) == "" || ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward {
			continue
		}
		if ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop || endsInDrop(c, ch) {
			walls = append(walls, wall{ch.Table.Family, fmt.Sprintf("chain %s of the nftables table %s %s drops what no rule in it accepts",
				ch.Name, familyName(ch.Table.Family), ch.Table.Name)})
		}
	}
	return walls, nil
}

// familyName is empty for the families whose chains forward no packets.
func familyName(f nftables.TableFamily) string {
	return map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6",
		nftables.TableFamilyINet: "inet", nftables.TableFamilyBridge: "bridge",
	}[f]
}

// endsInDrop reports whether the last rule of a chain drops or rejects
// whatever comes to it.
func endsInDrop(c *nftables.Conn, ch *nftables.Chain) bool {
	rules, err := c.GetRules(ch.Table, ch)
	if err != nil || len(rules) == 0 {
		return false // rules that the library does not know
	}
	drops := false
	for _, e := range rules[len(rules)-1].Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Reject:
			drops = true
		case *expr.Verdict:
			drops = e.Kind == expr.VerdictDrop
		default:
			return false // a condition
		}
	}
	return drops
}

// routesInTheWay names routes by which packets for a network go elsewhere.
func (n *Network) routesInTheWay(r *record, i *iface, networks []netip.Prefix) ([]string, error) {
	table := unix.RT_TABLE_MAIN
	if r.table != 0 {
		table = int(r.table)
	}
	routes, err := again(func() ([]netlink.Route, error) {
		return n.kernel.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var ways []string
	for _, route := range routes {
		to, ok := prefixOf(route.Dst)
		if !ok || route.LinkIndex == i.Index {
			continue
		}
		for _, p := range networks {
			if p.Bits() <= to.Bits() && p.Contains(to.Addr()) {
				ways = append(ways, fmt.Sprintf("the route to %v leads to %s, not to %s", to, n.routeEnd(route), i.Name))
			}
		}
	}
	return ways, nil
}

func (n *Network) routeEnd(r netlink.Route) string {
	if r.LinkIndex == 0 {
		return "nowhere"
	}
	return n.kernel.nameOf(r.LinkIndex)
}
