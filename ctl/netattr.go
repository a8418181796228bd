package ctl

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// nicAttrs are the attributes of the NICs of a machine.
var nicAttrs = []Attr{
	{Name: "nic/N/switch", Values: "name of a switch; attached with the rights of who set it", Live: true, canon: canonName},
	{Name: "nic/N/mac", Values: "address of one station; drawn when the NIC is made", canon: canonMAC},
	{Name: "nic/N/local", Default: "no", Values: "yes no; a link to the host alone, with an address by DHCP", canon: canonBool},
	{Name: "nic/N/up", Default: "yes", Values: "yes no", Live: true, canon: canonBool},
	{Name: "nic/N/user", Default: "no", Values: "yes no; the engine's own network, for a daemon without root", canon: canonBool},
	{Name: "nic/N/tap", Default: "tap", Values: "tap or tapN; tap is the next free one", Root: true, canon: canonTap},
	{Name: "nic/N/group", Values: "names of groups, of at most 15 bytes, not ending in a digit", Root: true, canon: canonGroups},
	{Name: "nic/N/rdomain", Default: "0", Values: "number of a VRF's routing table; 0 none", Root: true, canon: canonTable},
	{Name: "nic/N/locked", Default: "no", Values: "yes no; sends from its mac only", Live: true, Root: true, canon: canonBool},
}

// SwitchAttrs are the attributes of a switch, in the order of help.
var SwitchAttrs = []Attr{
	{Name: "isolated", Default: "no", Values: "yes no; ports reach the uplink and the host, not each other", Live: true, canon: canonBool},
	{Name: "dhcp", Default: "no", Values: "yes no; serves leases from the first IPv4 network of address", Live: true, canon: canonBool},
	{Name: "note", Values: "free text", Live: true, canon: canonNote},
	{Name: "ifname", Values: "a bridge that is there; none makes one", Root: true, canon: canonInterface},
	{Name: "uplink", Values: "an interface that is there, the way out", Live: true, Root: true, canon: canonInterface},
	{Name: "rdomain", Default: "0", Values: "number of a VRF's routing table; 0 none", Root: true, canon: canonTable},
	{Name: "group", Values: "names of groups that each port is in too", Live: true, Root: true, canon: canonGroups},
	{Name: "address", Values: "ADDRESS/BITS of the host, blanks between", Live: true, Root: true, canon: canonAddresses},
	{Name: "nat", Default: "no", Values: "yes no; what leaves has the host's address", Live: true, Root: true, canon: canonBool},
	{Name: "locked", Default: "no", Values: "yes no; all ports are locked", Live: true, Root: true, canon: canonBool},
}

// NetAttrs are the files of net/, which is about local NICs.
var NetAttrs = []Attr{
	{Name: "prefix", Default: "100.64.0.0/10", Values: "IPv4 network of the addresses of local NICs", canon: canonPrefix},
	{Name: "inet6", Default: "no", Values: "yes no; local NICs have IPv6 addresses too", canon: canonBool},
	{Name: "prefix6", Values: "IPv6 network of 64 bits; drawn once", canon: canonPrefix6},
}

func canonName(s string) (string, error) {
	if !nameForm.MatchString(s) {
		return "", fmt.Errorf("no name that a switch can have")
	}
	return s, nil
}

func canonMAC(s string) (string, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("not six bytes in hexadecimal, colons between")
	}
	if mac[0]&1 != 0 || slices.Max(mac) == 0 {
		return "", fmt.Errorf("not the address of one station")
	}
	return mac.String(), nil
}

// canonTap takes the names that tuntap gives.
func canonTap(s string) (string, error) {
	if s == "tap" {
		return s, nil
	}
	digits, ok := strings.CutPrefix(s, "tap")
	n, err := strconv.ParseUint(digits, 10, 31)
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return "", fmt.Errorf("neither tap nor tap and a number")
	}
	return s, nil
}

// maxIfname is IFNAMSIZ less the NUL.
const maxIfname = 15

// canonInterface takes what the kernel takes.
func canonInterface(s string) (string, error) {
	if len(s) > maxIfname || s == "." || s == ".." || strings.ContainsAny(s, "/: ") {
		return "", fmt.Errorf("no name that an interface can have")
	}
	return s, nil
}

func canonTable(s string) (string, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return "", fmt.Errorf("not the number of a routing table")
	}
	return strconv.FormatUint(n, 10), nil
}

// groupForm is the name of an interface group, as in OpenBSD: a digit at its
// end would make it an interface's.
var groupForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,14}[A-Za-z_.-]$`)

// maxGroups bounds the groups of one attribute.
const maxGroups = 16

func canonGroups(s string) (string, error) {
	words := strings.Fields(s)
	for i, w := range words {
		if !groupForm.MatchString(w) {
			return "", fmt.Errorf("%.20q: a group is 1 to %d of A-Z a-z 0-9 _ . -, the last no digit", w, maxIfname)
		}
		if slices.Contains(words[:i], w) {
			return "", fmt.Errorf("%s is there twice", w)
		}
	}
	if len(words) > maxGroups {
		return "", fmt.Errorf("more than %d groups", maxGroups)
	}
	return strings.Join(words, " "), nil
}

// maxAddresses bounds the addresses of a switch.
const maxAddresses = 16

func canonAddresses(s string) (string, error) {
	var list []netip.Prefix
	for _, w := range strings.Fields(s) {
		p, err := hostPrefix(w)
		if err != nil {
			return "", fmt.Errorf("%.50s: %v", w, err)
		}
		for _, other := range list {
			if p.Overlaps(other) {
				return "", fmt.Errorf("%v and %v overlap", other, p)
			}
		}
		list = append(list, p)
	}
	if len(list) > maxAddresses {
		return "", fmt.Errorf("more than %d addresses", maxAddresses)
	}
	return joinPrefixes(list), nil
}

// hostPrefix parses an address of a host with the length of its network.
func hostPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	a := p.Addr()
	switch {
	case err != nil || a.Is4In6():
		return p, fmt.Errorf("not an address and the bits of its network")
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
		return p, fmt.Errorf("no address that a network can have")
	case p.Bits() < 8:
		return p, fmt.Errorf("a network of less than 8 bits")
	case p.Bits() < a.BitLen()-1 && a == p.Masked().Addr():
		return p, fmt.Errorf("the network's own address, not a host's")
	case a.Is4() && p.Bits() < 31 && a == broadcast(p):
		return p, fmt.Errorf("the network's broadcast address, not a host's")
	}
	return p, nil
}

// broadcast is the last address of an IPv4 network.
func broadcast(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}

func canonPrefix(s string) (string, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() || p != p.Masked() || p.Bits() < 8 || p.Bits() > 22 {
		return "", fmt.Errorf("not an IPv4 network of 8 to 22 bits")
	}
	return p.String(), nil
}

func canonPrefix6(s string) (string, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p != p.Masked() || p.Bits() != 64 {
		return "", fmt.Errorf("not an IPv6 network of 64 bits")
	}
	return p.String(), nil
}

func joinPrefixes(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}

// prefixes parses a canonical list.
func prefixes(s string) []netip.Prefix {
	var list []netip.Prefix
	for _, w := range strings.Fields(s) {
		if p, err := netip.ParsePrefix(w); err == nil {
			list = append(list, p)
		}
	}
	return list
}
