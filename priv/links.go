package priv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmfs/ctl"
	"vmfs/priv/network"
)

// linkVerbs are what core may ask for about links. It names a link by what
// that is for, vmID-ifN or switchN, and priv's records say which interface it
// is. Three verbs take the name of an interface; one that vmfs did not make
// must be listed by root.
var linkVerbs = []verb{
	{"tap", "NIC tap|tapN", "only root opens one; the guest gets the open file. One that is there must be listed", onLink(nics, parseTap)},
	{"bridge", "SWITCH IFNAME|-", "makes the switch's own, or takes one that is listed", onLink(switches, parseBridge)},
	{"release", "LINK", "takes away what was made for it, and puts back what was found", orNothing(onLink(anyLink, parseRelease))},
	{"alias", "LINK NAME", "tells people what an interface is for", onLink(anyLink, parseAlias)},
	{"attach", "NIC SWITCH MAC yes|no yes|no", "a port of its switch, locked, isolated; never another's port", onLink(nics, parseAttach)},
	{"detach", "NIC", "out of its switch", onLink(nics, plainLink((*network.Network).Detach))},
	{"uplink", "SWITCH IFNAME|-", "the way out: one that is listed and nobody's port", onLink(switches, parseUplink)},
	{"rdomain", "LINK TABLE", "into the VRF of a table, not of the host's own", onLink(anyLink, parseRdomain)},
	{"groups", "LINK NAME...", "elements of sets in tables of our own", onLink(anyLink, parseLinkGroups)},
	{"addresses", "LINK CIDR...", "from -network; of a NIC, its own place there", onLink(anyLink, parseAddresses)},
	{"masquerade", "SWITCH CIDR...", "rules in a chain of our own, from -network", onLink(switches, parseMasquerade)},
	{"up", "LINK yes|no", "an interface of a record, and no flag but that", onLink(anyLink, parseUp)},
	{"links", "AFTER|-", "the records are root's, so that core cannot invent a link", orNothing(parseLinks)},
	{"observe", "LINK", "counters and addresses of an interface of a record", onLink(anyLink, parseObserve)},
	{"ways", "LINK CIDR...", "the host's forwarding and firewalls, which only root may list", onLink(anyLink, parseWays)},
	{"listen", "LINK", "a packet socket needs root; this one gets requests for addresses alone", onLink(anyLink, parseListen)},
	{"lease", "", "the process that answers DHCP has another uid than core; one at a time", none(startLease)},
}

// mostLinks is what can be made for a core that asks for ever, and more than a
// host can need. A bridge or a tap has some 50 KiB of the kernel's memory.
var mostLinks = network.Most{
	Bridges: 4096,      // an uplink has as many VLANs
	Taps:    maxGuests, // one for each; or 1024 machines have all their NICs
	VRFs:    4096,      // one for each bridge
	Groups:  4096,      // one for each bridge
}

// noName stands for no interface's name, and for before the first link.
const noName = "-"

// linkAct does what a request asks for with one link.
type linkAct func(ctx context.Context, n *network.Network, l ctl.Link) (reply, error)

// onLink is the parse of a verb whose first argument is a link.
func onLink(of func(ctl.Link) error, parse func(args []string) (linkAct, error)) func([]string) (act, error) {
	return func(args []string) (act, error) {
		if len(args) == 0 {
			return nil, fmt.Errorf("no link")
		}
		l, err := ctl.ParseLink(args[0])
		if err == nil {
			err = of(l)
		}
		if err != nil {
			return nil, err
		}
		do, err := parse(args[1:])
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, s *server) (reply, error) {
			if s.network == nil {
				return reply{}, noNetwork()
			}
			r, err := do(ctx, s.network, l)
			if errors.Is(err, syscall.EPERM) {
				s.refused(err)
			}
			return r, err
		}, nil
	}
}

// orNothing is the parse of a verb that finds nothing where there is no network,
// which is no error.
func orNothing(parse func([]string) (act, error)) func([]string) (act, error) {
	return func(args []string) (act, error) {
		do, err := parse(args)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, s *server) (reply, error) {
			if s.network == nil {
				return reply{}, nil
			}
			return do(ctx, s)
		}, nil
	}
}

// refusalEvery is how often a refusal is logged at most.
const refusalEvery = time.Second

// refused logs that core asked for what it may not have. It may be a user's
// mistake that core passed on.
func (s *server) refused(err error) {
	last, now := s.lastRefusal.Load(), time.Now().UnixNano()
	if now-last > int64(refusalEvery) && s.lastRefusal.CompareAndSwap(last, now) {
		fmt.Fprintf(os.Stderr, "vmfs: refused: %s\n", oneLine(err.Error()))
	}
}

func anyLink(ctl.Link) error { return nil }

func nics(l ctl.Link) error {
	if l.Switch {
		return fmt.Errorf("%v is no NIC", l)
	}
	return nil
}

func switches(l ctl.Link) error {
	if !l.Switch {
		return fmt.Errorf("%v is no switch", l)
	}
	return nil
}

// plainLink is the parse of a verb without further arguments.
func plainLink(do func(*network.Network, ctl.Link) error) func([]string) (linkAct, error) {
	return func(args []string) (linkAct, error) {
		return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
			return reply{}, do(n, l)
		}, count(args, 0)
	}
}

// one is the parse of a verb with one further argument.
func one[T any](args []string, parse func(string) (T, error), do func(*network.Network, ctl.Link, T) error) (linkAct, error) {
	if err := count(args, 1); err != nil {
		return nil, err
	}
	value, err := parse(args[0])
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		return reply{}, do(n, l, value)
	}, nil
}

// several is the parse of a verb with any number of arguments.
func several[T any](args []string, parse func(string) (T, error), do func(*network.Network, ctl.Link, []T) error) (linkAct, error) {
	values, err := parseAll(args, parse)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		return reply{}, do(n, l, values)
	}, nil
}

func parseAll[T any](args []string, parse func(string) (T, error)) ([]T, error) {
	var values []T
	for _, a := range args {
		v, err := parse(a)
		if err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, nil
}

func parseTap(args []string) (linkAct, error) {
	if err := count(args, 1); err != nil {
		return nil, err
	}
	name := args[0]
	if name != network.AnyTap {
		number, ok := strings.CutPrefix(name, network.AnyTap)
		if n, err := strconv.ParseUint(number, 10, 32); !ok || err != nil || strconv.FormatUint(n, 10) != number || !network.ValidName(name) {
			return nil, fmt.Errorf("%.40q is no tap's name", name)
		}
	}
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		f, ifname, err := n.Tap(l, name)
		if err != nil {
			return reply{}, err
		}
		return reply{files: []*os.File{f}, fields: []string{ifname}}, nil
	}, nil
}

// parseIfname reads the name of an interface; "" for noName.
func parseIfname(s string) (string, error) {
	if s == noName {
		return "", nil
	}
	if !network.ValidName(s) {
		return "", fmt.Errorf("%.40q is no interface's name", s)
	}
	return s, nil
}

// ifnameArg is the inverse of parseIfname.
func ifnameArg(ifname string) string {
	if ifname == "" {
		return noName
	}
	return ifname
}

func parseBridge(args []string) (linkAct, error) {
	if err := count(args, 1); err != nil {
		return nil, err
	}
	ifname, err := parseIfname(args[0])
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		name, err := n.Bridge(l, ifname)
		return reply{fields: []string{name}}, err
	}, nil
}

func parseRelease(args []string) (linkAct, error) {
	return plainLink((*network.Network).Release)(args)
}

func parseAlias(args []string) (linkAct, error) {
	return one(args, parseObjectName, (*network.Network).Alias)
}

// maxName is the longest name of a machine or a switch, in bytes.
const maxName = 63

// parseObjectName reads the name of a machine or a switch.
func parseObjectName(s string) (string, error) {
	if s == "" || len(s) > maxName || strings.IndexFunc(s, notOfName) >= 0 {
		return "", fmt.Errorf("%.80q is no machine's or switch's name", s)
	}
	return s, nil
}

func notOfName(c rune) bool {
	return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
}

func parseAttach(args []string) (linkAct, error) {
	if err := count(args, 4); err != nil {
		return nil, err
	}
	sw, err := ctl.ParseLink(args[0])
	if err == nil {
		err = switches(sw)
	}
	if err != nil {
		return nil, err
	}
	mac, err := parseMAC(args[1])
	if err != nil {
		return nil, err
	}
	locked, err := parseYesNo(args[2])
	if err != nil {
		return nil, err
	}
	isolated, err := parseYesNo(args[3])
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		return reply{}, n.Attach(l, sw, ctl.Port{MAC: mac, Locked: locked, Isolated: isolated})
	}, nil
}

// parseMAC reads the address of one Ethernet card, in lower case.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac.String() != s || mac[0]&1 != 0 || s == "00:00:00:00:00:00" {
		return nil, fmt.Errorf("%.40q is no card's address", s)
	}
	return mac, nil
}

func parseYesNo(s string) (bool, error) {
	if s != "yes" && s != "no" {
		return false, fmt.Errorf("%.40q is neither yes nor no", s)
	}
	return s == "yes", nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func parseUplink(args []string) (linkAct, error) {
	return one(args, parseIfname, (*network.Network).Uplink)
}

func parseRdomain(args []string) (linkAct, error) {
	return one(args, parseTable, (*network.Network).Rdomain)
}

func parseTable(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%.40q is no routing table", s)
	}
	return uint32(n), nil
}

// maxGroups is how many groups a link is in: its own and its switch's.
const maxGroups = 32

func parseLinkGroups(args []string) (linkAct, error) {
	if len(args) > maxGroups {
		return nil, fmt.Errorf("%d groups, at most %d", len(args), maxGroups)
	}
	return several(args, parseGroup, (*network.Network).Groups)
}

// parseGroup reads the name of a group: an interface's could be, but for a
// digit at its end, which priv_validgroup of vmd refuses too.
func parseGroup(s string) (string, error) {
	if !network.ValidName(s) || s[len(s)-1] >= '0' && s[len(s)-1] <= '9' {
		return "", fmt.Errorf("%.40q is no group's name", s)
	}
	return s, nil
}

// maxPrefixes is how many addresses or networks one request names.
const maxPrefixes = 64

// parsePrefix reads an address with its network, canonical.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.String() != s || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%.60q is no address with its network", s)
	}
	return p, nil
}

// parseNetwork reads a network: no bit is set behind its prefix.
func parseNetwork(s string) (netip.Prefix, error) {
	p, err := parsePrefix(s)
	if err == nil && p != p.Masked() {
		err = fmt.Errorf("%v is no network", p)
	}
	return p, err
}

func parseAddresses(args []string) (linkAct, error) {
	return prefixes(args, parsePrefix, (*network.Network).Addresses)
}

func parseMasquerade(args []string) (linkAct, error) {
	return prefixes(args, parseNetwork, (*network.Network).Masquerade)
}

func prefixes(args []string, parse func(string) (netip.Prefix, error), do func(*network.Network, ctl.Link, []netip.Prefix) error) (linkAct, error) {
	if len(args) > maxPrefixes {
		return nil, fmt.Errorf("%d networks, at most %d", len(args), maxPrefixes)
	}
	return several(args, parse, do)
}

func parseUp(args []string) (linkAct, error) {
	return one(args, parseYesNo, (*network.Network).SetUp)
}

func parseWays(args []string) (linkAct, error) {
	if len(args) > maxPrefixes {
		return nil, fmt.Errorf("%d networks, at most %d", len(args), maxPrefixes)
	}
	forward, err := parseAll(args, parseNetwork)
	if err != nil {
		return nil, err
	}
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		ways, err := n.Ways(l, forward)
		return reply{fields: waysFields(ways)}, err
	}, nil
}

// maxWays is how many an answer tells of: a router has routes without number.
const maxWays = 64

func waysFields(ways []string) []string {
	if more := len(ways) - maxWays; more > 0 {
		ways = append(ways[:maxWays:maxWays], fmt.Sprintf("and %d more", more))
	}
	for i, w := range ways {
		ways[i] = clip(oneLine(w))
	}
	return ways
}

func parseListen(args []string) (linkAct, error) {
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		f, err := n.Listen(l)
		if err != nil {
			return reply{}, err
		}
		return reply{files: []*os.File{f}}, nil
	}, count(args, 0)
}

func parseObserve(args []string) (linkAct, error) {
	return func(_ context.Context, n *network.Network, l ctl.Link) (reply, error) {
		s, err := n.Observe(l)
		return reply{fields: stateFields(s)}, err
	}, count(args, 0)
}

// linksPage is how many links an answer tells of.
const linksPage = 40

func parseLinks(args []string) (act, error) {
	if err := count(args, 1); err != nil {
		return nil, err
	}
	var after ctl.Link
	if args[0] != noName {
		l, err := ctl.ParseLink(args[0])
		if err != nil {
			return nil, err
		}
		after = l
	}
	return func(_ context.Context, s *server) (reply, error) {
		states, err := s.network.Links(after, linksPage)
		var r reply
		for _, state := range states {
			r.fields = append(r.fields, strings.Join(stateFields(state), " "))
		}
		return r, err
	}, nil
}

// stateFields tells of a link: LINK IFNAME INDEX made|found MASTER up|down
// yes|no(running) yes|no(locked) yes|no(isolated) MAC, six counters, and its
// addresses. None has a blank.
func stateFields(s ctl.LinkState) []string {
	word := func(b bool, yes, no string) string {
		if b {
			return yes
		}
		return no
	}
	mac := noName
	if len(s.MAC) > 0 {
		mac = s.MAC.String()
	}
	f := []string{s.Link.String(), ifnameArg(s.Ifname), strconv.Itoa(s.Ifindex), word(s.Made, "made", "found"),
		ifnameArg(s.Master), word(s.Up, "up", "down"), yesNo(s.Running), yesNo(s.Locked), yesNo(s.Isolated), mac}
	for _, n := range []uint64{s.RxBytes, s.RxPackets, s.RxDropped, s.TxBytes, s.TxPackets, s.TxDropped} {
		f = append(f, strconv.FormatUint(n, 10))
	}
	for _, a := range s.Addrs {
		f = append(f, a.String())
	}
	return f
}

// parseState is the inverse of stateFields.
func parseState(f []string) (s ctl.LinkState, err error) {
	const fixed = 16
	if len(f) < fixed {
		return s, errAnswer("links")
	}
	var index, numbers = uint64(0), make([]uint64, 6)
	fail := func(e error) {
		if err == nil && e != nil {
			err = errAnswer("links")
		}
	}
	var e error
	s.Link, e = ctl.ParseLink(f[0])
	fail(e)
	s.Ifname, e = parseIfname(f[1])
	fail(e)
	index, e = strconv.ParseUint(f[2], 10, 31)
	s.Ifindex = int(index)
	fail(e)
	s.Made = f[3] == "made"
	s.Master, e = parseIfname(f[4])
	fail(e)
	s.Up = f[5] == "up"
	s.Running, e = parseYesNo(f[6])
	fail(e)
	s.Locked, e = parseYesNo(f[7])
	fail(e)
	s.Isolated, e = parseYesNo(f[8])
	fail(e)
	if f[9] != noName {
		s.MAC, e = net.ParseMAC(f[9])
		fail(e)
	}
	for i := range numbers {
		numbers[i], e = strconv.ParseUint(f[10+i], 10, 64)
		fail(e)
	}
	s.RxBytes, s.RxPackets, s.RxDropped = numbers[0], numbers[1], numbers[2]
	s.TxBytes, s.TxPackets, s.TxDropped = numbers[3], numbers[4], numbers[5]
	s.Addrs, e = parseAll(f[fixed:], parsePrefix)
	fail(e)
	if err == nil && !slices.Equal(stateFields(s), f) {
		err = errAnswer("links")
	}
	return s, err
}
