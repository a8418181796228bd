package ctl

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Network is what the privileged half does to the links of the host, each
// method one step of bringing a NIC or a switch up. A Link is named by what it
// is for: which interface that is, priv knows from records of its own, and a
// name of an interface that a method takes is checked against what priv made
// and what root listed. Every method is answered: with nil once the kernel has
// it, or with an errno and a sentence that says what the kernel said.
type Network interface {
	// Tap opens the tap of a NIC: the next free one if name is "tap", or
	// tapN. The file is the caller's, to be given to the guest; the tap goes
	// when its last copy is closed, or by Release. It is down, of no switch,
	// and has vnet_hdr. EBUSY for a tapN that is there and not listed.
	Tap(ctx context.Context, nic Link, name string) (f *os.File, ifname string, err error)
	// Bridge makes the bridge of a switch, or takes an existing one if
	// ifname is not empty, and says what it is called. Asked again, it
	// answers the same. EPERM for one that is not listed.
	Bridge(ctx context.Context, sw Link, ifname string) (string, error)
	// Release takes away what was made for a link and puts back what was
	// found; nil if there is nothing.
	Release(ctx context.Context, l Link) error

	// Alias says what the interface is for, to people: "LINK-name".
	Alias(ctx context.Context, l Link, name string) error
	// Attach makes a NIC a port of a switch; the NIC is down then. EBUSY if
	// it is a port of a bridge that is not this switch's.
	Attach(ctx context.Context, nic, sw Link, p Port) error
	// Detach takes a NIC out of its switch, and leaves it down.
	Detach(ctx context.Context, nic Link) error
	// Uplink makes an interface that root listed a port of a switch, the
	// way out; empty takes it away. EBUSY if it is a port of another bridge.
	Uplink(ctx context.Context, sw Link, ifname string) error
	// Rdomain puts a link into the VRF of a routing table, which is made
	// where it is missing; 0 takes it out. EOPNOTSUPP without VRF.
	Rdomain(ctx context.Context, l Link, table uint32) error
	// Groups says which groups a link is in, the first also by number.
	Groups(ctx context.Context, l Link, groups []string) error
	// Addresses says which addresses a link has, and no others of ours.
	// A NIC has none but those of Local. With an IPv6 address a link has the
	// link-local one of its MAC (EUI-64) too; without, a link that was made
	// has IPv6 off. EPERM outside the networks that root listed, EEXIST
	// where another interface has the network.
	Addresses(ctx context.Context, l Link, addrs []netip.Prefix) error
	// Masquerade says from which networks behind a switch packets leave
	// with the host's address.
	Masquerade(ctx context.Context, sw Link, from []netip.Prefix) error
	// SetUp sets a link up or down.
	SetUp(ctx context.Context, l Link, up bool) error

	// Links lists what priv's records have, in order.
	Links(ctx context.Context) ([]LinkState, error)
	// Observe says what the kernel has of one link.
	Observe(ctx context.Context, l Link) (LinkState, error)
	// Ways says what of the host is in the way of a network that forwards
	// from the given networks, a sentence each: no forwarding, a firewall
	// that drops, a route that is there; and, behind AgainstDHCP, of a link
	// on which DHCP is answered.
	Ways(ctx context.Context, l Link, forward []netip.Prefix) ([]string, error)

	// Lease starts the process that answers DHCP; nil error with the same
	// one if it runs. Links are served by Serve.
	Lease(ctx context.Context) (Lease, error)
	// Listen opens the socket of a link on which Lease is served.
	Listen(ctx context.Context, l Link) (*os.File, error)
}

// AgainstDHCP begins those of Ways that matter only where DHCP is answered.
const AgainstDHCP = "dhcp: "

// Lease is the conversation with the process that answers DHCP and sends
// router advertisements. It keeps nothing: what it answers, it was told.
type Lease interface {
	// Serve says what is answered on the socket of a link, in the place of
	// what was said before. socket is nil if the link has one already; it
	// stays the caller's.
	Serve(ctx context.Context, l Link, socket *os.File, s LeaseService) error
	// Stop closes the socket of a link.
	Stop(ctx context.Context, l Link) error
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	Close() error
}

// LeaseService is what is answered on one link.
type LeaseService struct {
	Server   netip.Prefix // the host's IPv4 address on the link, with the network
	Server6  netip.Prefix // its IPv6 address; not valid for none
	DNS      []netip.Addr // resolvers, the host's
	Router   bool         // the host forwards: it is the way out
	Bindings []LeaseBinding
}

// LeaseBinding is what one NIC gets. A MAC without one gets no answer.
type LeaseBinding struct {
	MAC      net.HardwareAddr
	Addr     netip.Addr
	Addr6    netip.Addr // not valid for none
	Hostname string     // the machine's name
}

// Link names an interface by what it is for.
type Link struct {
	Switch bool
	ID     uint32 // of the machine or the switch
	NIC    int    // of the machine, 0..15
}

// NICLink is the link of a NIC of a machine.
func NICLink(id uint32, n int) Link { return Link{ID: id, NIC: n} }

// SwitchLink is the link of a switch.
func SwitchLink(id uint32) Link { return Link{Switch: true, ID: id} }

// String is "vmID-ifN" or "switchN", with which its alias begins, as vmd's.
func (l Link) String() string {
	id := strconv.FormatUint(uint64(l.ID), 10)
	if l.Switch {
		return "switch" + id
	}
	return "vm" + id + "-if" + strconv.Itoa(l.NIC)
}

// MaxID bounds the ids of machines and switches that have links.
const MaxID = 100_000_000

// ParseLink reads what String makes and nothing else.
func ParseLink(s string) (Link, error) {
	id, ok := strings.CutPrefix(s, "switch")
	l := Link{Switch: ok}
	if !l.Switch {
		var nic string
		id, nic, _ = strings.Cut(strings.TrimPrefix(s, "vm"), "-if")
		l.NIC, ok = PartNumber(nic)
	}
	n, err := strconv.ParseUint(id, 10, 32)
	if l.ID = uint32(n); !ok || err != nil || n < 1 || n > MaxID || l.String() != s {
		return Link{}, fmt.Errorf("%.40q is no link", s)
	}
	return l, nil
}

// Port is how a NIC is a port of its switch.
type Port struct {
	MAC      net.HardwareAddr
	Locked   bool // frames with another source are dropped
	Isolated bool // reaches the uplink and the host, no other port
}

// LinkState is what the kernel has of a link.
type LinkState struct {
	Link
	Ifname           string // empty if it is gone
	Ifindex          int
	Made             bool   // by us; else it was found
	Master           string // the bridge or VRF that it is a port of; empty for none
	Up               bool
	Running          bool // it is up, and somebody holds the other end
	Locked, Isolated bool // as a port of a bridge: see Port
	MAC              net.HardwareAddr
	Addrs            []netip.Prefix
	RxBytes, RxPackets, RxDropped,
	TxBytes, TxPackets, TxDropped uint64 // as the host counts: rx is what came from the guest
}

// MaxNICs is how many NICs a machine can have.
const MaxNICs = 16

// LocalAddrs are the ends of a local NIC's link.
type LocalAddrs struct {
	Host, Guest   netip.Prefix // the two of a /31
	Host6, Guest6 netip.Prefix // two of a /96; not valid without an IPv6 network
}

// LinkLocal is the IPv6 address that a MAC of six bytes makes for its link
// (RFC 4291, appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// Local says which addresses a local NIC has. The host's is id*256+(nic+1)*2
// above the network, the guest's the next (vm_priv_addr of vmd, which ors and
// so gives two machines the same). With prefix6, a /64, the guest's IPv4
// address makes it a /96, in which the host is 1 and the guest 2
// (vm_priv_addr6). ENOSPC where the network has no such address.
func Local(prefix, prefix6 netip.Prefix, id uint32, nic int) (LocalAddrs, error) {
	at := uint64(id)<<8 + uint64(nic+1)*2
	if at+1 >= 1<<(32-prefix.Bits()) {
		return LocalAddrs{}, Errorf(syscall.ENOSPC, "%v has no address for machine %d", prefix, id)
	}
	base := prefix.Masked().Addr().As4()
	host := uint64(binary.BigEndian.Uint32(base[:])) + at
	ipv4 := func(n uint64) netip.Addr {
		return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(n))))
	}
	a := LocalAddrs{Host: netip.PrefixFrom(ipv4(host), 31), Guest: netip.PrefixFrom(ipv4(host+1), 31)}
	if prefix6.IsValid() {
		b := prefix6.Masked().Addr().As16()
		copy(b[8:12], a.Guest.Addr().AsSlice())
		b[15] = 1
		a.Host6 = netip.PrefixFrom(netip.AddrFrom16(b), 96)
		b[15] = 2
		a.Guest6 = netip.PrefixFrom(netip.AddrFrom16(b), 96)
	}
	return a, nil
}
