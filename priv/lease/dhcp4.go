package lease

import (
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	serverPort = 67
	clientPort = 68
)

var (
	everyone4 = netip.AddrFrom4([4]byte{255, 255, 255, 255})
	infinite  = []byte{0xff, 0xff, 0xff, 0xff} // seconds
)

// answer4 answers the DHCP message of a client whose frames come from a MAC;
// nil is no answer.
func (v *service) answer4(from mac, c *client, d datagram) []byte {
	if !c.addr.IsValid() || d.src.Port() != clientPort || d.dst.Port() != serverPort {
		return nil
	}
	if src := d.src.Addr(); !src.IsUnspecified() && src != c.addr {
		return nil
	}
	if dst := d.dst.Addr(); dst != everyone4 && dst != v.server.Addr() {
		return nil
	}
	m, err := dhcpv4.FromBytes(d.payload)
	if err != nil || !sane(m, from) {
		return nil
	}
	kind := v.verdict(m, c)
	if kind == dhcpv4.MessageTypeNone {
		return nil
	}
	reply := v.reply(kind, m, c)
	return datagram{
		src:     netip.AddrPortFrom(v.server.Addr(), serverPort),
		dst:     netip.AddrPortFrom(destination(kind, m, c), clientPort),
		payload: reply.ToBytes(),
	}.bytes()
}

// sane refuses what is no request of this client's own: one of another card,
// one that was passed on, one that is half an answer, and one whose options
// go on in the fields for names.
func sane(m *dhcpv4.DHCPv4, from mac) bool {
	return m.OpCode == dhcpv4.OpcodeBootRequest &&
		m.HWType == iana.HWTypeEthernet && slices.Equal(m.ClientHWAddr, from[:]) &&
		m.HopCount == 0 && m.GatewayIPAddr.IsUnspecified() &&
		m.YourIPAddr.IsUnspecified() && m.ServerIPAddr.IsUnspecified() &&
		m.BootFileName == "" && m.ServerHostName == "" && !m.Options.Has(dhcpv4.OptionOptionOverload) &&
		len(m.GetOneOption(dhcpv4.OptionClientIdentifier)) <= 255
}

// verdict says what a message is answered with; none for no answer.
func (v *service) verdict(m *dhcpv4.DHCPv4, c *client) dhcpv4.MessageType {
	has := addrOf(m.ClientIPAddr)
	switch m.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		if has.IsUnspecified() {
			return dhcpv4.MessageTypeOffer
		}
	case dhcpv4.MessageTypeRequest:
		if id := m.GetOneOption(dhcpv4.OptionServerIdentifier); id != nil && addrOf(id) != v.server.Addr() {
			break // he took what another server offered
		}
		wants := has
		if has.IsUnspecified() {
			wants = addrOf(m.GetOneOption(dhcpv4.OptionRequestedIPAddress))
		}
		switch {
		case !wants.IsValid():
		case wants == c.addr:
			return dhcpv4.MessageTypeAck
		default:
			return dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		if has == c.addr {
			return dhcpv4.MessageTypeAck
		}
	}
	return dhcpv4.MessageTypeNone
}

// reply is the answer of a kind to m.
func (v *service) reply(kind dhcpv4.MessageType, m *dhcpv4.DHCPv4, c *client) *dhcpv4.DHCPv4 {
	r := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        m.HWType,
		TransactionID: m.TransactionID,
		Flags:         m.Flags,
		ClientHWAddr:  m.ClientHWAddr,
		Options:       make(dhcpv4.Options),
	}
	set := func(code dhcpv4.OptionCode, value []byte) {
		if len(value) > 0 {
			r.Options[code.Code()] = value
		}
	}
	set(dhcpv4.OptionDHCPMessageType, []byte{byte(kind)})
	set(dhcpv4.OptionServerIdentifier, v.server.Addr().AsSlice())
	set(dhcpv4.OptionClientIdentifier, m.GetOneOption(dhcpv4.OptionClientIdentifier)) // RFC 6842
	if kind == dhcpv4.MessageTypeNak {
		return r
	}
	if kind == dhcpv4.MessageTypeAck {
		r.ClientIPAddr = m.ClientIPAddr
	}
	if m.MessageType() != dhcpv4.MessageTypeInform {
		r.YourIPAddr = c.addr.AsSlice()
		set(dhcpv4.OptionIPAddressLeaseTime, infinite)
	}
	set(dhcpv4.OptionSubnetMask, net.CIDRMask(v.server.Bits(), 32))
	if v.router || v.local() {
		set(dhcpv4.OptionRouter, v.server.Addr().AsSlice())
	}
	set(dhcpv4.OptionDomainNameServer, addresses(v.dns))
	set(dhcpv4.OptionHostName, []byte(c.name))
	return r
}

// destination is where an answer goes: to the address that the client has or
// gets, or to everyone, if he asks for that or has to hear that he has none.
// The frame is the client's own in any case.
func destination(kind dhcpv4.MessageType, m *dhcpv4.DHCPv4, c *client) netip.Addr {
	switch {
	case kind == dhcpv4.MessageTypeNak, m.IsBroadcast() && m.ClientIPAddr.IsUnspecified():
		return everyone4
	default:
		return c.addr
	}
}

// addrOf is the IPv4 address of four bytes, and not valid for others.
func addrOf(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	if !a.Is4() {
		return netip.Addr{}
	}
	return a
}

// addresses joins the bytes of addresses.
func addresses(list []netip.Addr) []byte {
	var b []byte
	for _, a := range list {
		b = append(b, a.AsSlice()...)
	}
	return b
}
