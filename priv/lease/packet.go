package lease

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// Headers, in bytes, without options.
const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
)

// Protocols above IP, and what we put into its headers.
const (
	protoUDP    = 17
	protoICMPv6 = 58
	ttl         = 64
	maxHops     = 255 // that a router did not pass on: neighbours only
)

var errPacket = errors.New("not a packet for us")

// packet is what is in an IP packet.
type packet struct {
	src, dst netip.Addr
	proto    byte
	hops     byte // left of its time to live
	payload  []byte
}

// datagram is what is in a UDP datagram.
type datagram struct {
	src, dst netip.AddrPort
	payload  []byte
}

// parseIPv4 takes an IPv4 packet apart. It refuses fragments, and what has
// options: no client of ours has a use for either. What is behind the packet
// is the padding of a short frame.
func parseIPv4(b []byte) (packet, error) {
	if len(b) < ipv4Header || b[0] != 4<<4|ipv4Header/4 || sum(b[:ipv4Header], 0) != 0xffff {
		return packet{}, errPacket
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	const moreOrOffset = 0x3fff
	if length < ipv4Header || length > len(b) || binary.BigEndian.Uint16(b[6:])&moreOrOffset != 0 {
		return packet{}, errPacket
	}
	return packet{
		src:     netip.AddrFrom4([4]byte(b[12:16])),
		dst:     netip.AddrFrom4([4]byte(b[16:20])),
		proto:   b[9],
		hops:    b[8],
		payload: b[ipv4Header:length],
	}, nil
}

// parseIPv6 takes an IPv6 packet apart. One with extension headers is of a
// protocol that nobody here knows.
func parseIPv6(b []byte) (packet, error) {
	if len(b) < ipv6Header || b[0]>>4 != 6 {
		return packet{}, errPacket
	}
	length := int(binary.BigEndian.Uint16(b[4:]))
	if length > len(b)-ipv6Header {
		return packet{}, errPacket
	}
	return packet{
		src:     netip.AddrFrom16([16]byte(b[8:24])),
		dst:     netip.AddrFrom16([16]byte(b[24:40])),
		proto:   b[6],
		hops:    b[7],
		payload: b[ipv6Header : ipv6Header+length],
	}, nil
}

// udp takes the datagram out of a packet. Where its sender left the checksum
// to the card, which a guest's virtual one does not compute, unsummed is set
// and it is not looked at. IPv6 knows none without.
func (p packet) udp(unsummed bool) (datagram, error) {
	b := p.payload
	if p.proto != protoUDP || len(b) < udpHeader || int(binary.BigEndian.Uint16(b[4:])) != len(b) {
		return datagram{}, errPacket
	}
	switch given := binary.BigEndian.Uint16(b[6:]); {
	case unsummed, given == 0 && p.src.Is4():
	case given == 0, sum(b, pseudo(p.src, p.dst, protoUDP, len(b))) != 0xffff:
		return datagram{}, errPacket
	}
	return datagram{
		src:     netip.AddrPortFrom(p.src, binary.BigEndian.Uint16(b[0:])),
		dst:     netip.AddrPortFrom(p.dst, binary.BigEndian.Uint16(b[2:])),
		payload: b[udpHeader:],
	}, nil
}

// bytes makes a packet of d, whose addresses are of one family.
func (d datagram) bytes() []byte {
	src, dst := d.src.Addr(), d.dst.Addr()
	n := udpHeader + len(d.payload)
	b := ipHeader(src, dst, protoUDP, ttl, n)
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, d.src.Port())
	b = binary.BigEndian.AppendUint16(b, d.dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(n))
	b = append(b, 0, 0)
	b = append(b, d.payload...)
	check := ^sum(b[at:], pseudo(src, dst, protoUDP, n))
	if check == 0 {
		check = 0xffff // 0 would be none
	}
	binary.BigEndian.PutUint16(b[at+6:], check)
	return b
}

// icmpv6 makes a packet of a message to neighbours, whose checksum, its third
// and fourth byte, is 0 so far.
func icmpv6(src, dst netip.Addr, message []byte) []byte {
	b := ipHeader(src, dst, protoICMPv6, maxHops, len(message))
	at := len(b)
	b = append(b, message...)
	binary.BigEndian.PutUint16(b[at+2:], ^sum(message, pseudo(src, dst, protoICMPv6, len(message))))
	return b
}

// ipHeader begins a packet of n bytes behind its header, with room for them.
func ipHeader(src, dst netip.Addr, proto, hops byte, n int) []byte {
	if src.Is4() {
		b := make([]byte, ipv4Header, ipv4Header+n)
		b[0], b[8], b[9] = 4<<4|ipv4Header/4, hops, proto
		binary.BigEndian.PutUint16(b[2:], uint16(ipv4Header+n))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], ^sum(b, 0))
		return b
	}
	b := make([]byte, ipv6Header, ipv6Header+n)
	b[0], b[6], b[7] = 6<<4, proto, hops
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return b
}

// sum adds up the 16-bit words of b in one's complement, from a sum so far.
// Over something with its checksum in it, it is 0xffff.
func sum(b []byte, so uint32) uint16 {
	for len(b) >= 2 {
		so += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		so += uint32(b[0]) << 8
	}
	for so > 0xffff {
		so = so>>16 + so&0xffff
	}
	return uint16(so)
}

// pseudo is the sum of what a checksum covers beside the n bytes themselves.
func pseudo(src, dst netip.Addr, proto byte, n int) uint32 {
	return uint32(sum(src.AsSlice(), uint32(sum(dst.AsSlice(), 0)))) + uint32(proto) + uint32(n)
}
