package lease

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"

	"vmfs/ctl"
)

// DHCPv6 (RFC 8415) is read here and not by the library: that looks at every
// option at once, and follows the compressed names in those that nobody here
// asks for, which a guest can make as expensive as it likes.

const (
	serverPort6 = 547
	clientPort6 = 546
)

// allServers is where clients send to, whatever they know.
var allServers = netip.MustParseAddr("ff02::1:2")

// kind6 is the type of a message.
type kind6 byte

const (
	solicit     kind6 = 1
	advertise   kind6 = 2
	request     kind6 = 3
	confirm     kind6 = 4
	renew       kind6 = 5
	rebind      kind6 = 6
	reply       kind6 = 7
	release     kind6 = 8
	decline     kind6 = 9
	information kind6 = 11
)

// Options, and what the statuses among them are.
const (
	optClientID    = 1
	optServerID    = 2
	optIANA        = 3
	optIAAddr      = 5
	optStatus      = 13
	optRapidCommit = 14
	optDNS         = 23

	statusSuccess       = 0
	statusNoAddrsAvail  = 2
	statusNotOnLink     = 4
	maxID               = 130 // bytes of a DUID
	maxIAs, maxIAAddrs  = 4, 4
	header6             = 4  // type and transaction
	headerIANA          = 12 // IAID and two times
	headerIAAddr        = 24 // address and two times
	infiniteSeconds     = 0xffffffff
	duidLinkLayer       = 3 // kind of DUID
	hardwareEthernet    = 1
	optionHeader        = 4
	transactionIDLength = 3
)

// message6 is what counts in a DHCPv6 message.
type message6 struct {
	kind        kind6
	transaction [transactionIDLength]byte
	client      []byte // DUID, nil for none
	server      []byte // DUID, nil for none
	ias         []ia
	rapid       bool
}

// ia is a set of addresses that a client wants to have or has.
type ia struct {
	id    [4]byte
	addrs []netip.Addr
}

// options6 calls f for each option of b.
func options6(b []byte, f func(code uint16, value []byte) error) error {
	for len(b) > 0 {
		if len(b) < optionHeader {
			return errPacket
		}
		code, n := binary.BigEndian.Uint16(b), int(binary.BigEndian.Uint16(b[2:]))
		if b = b[optionHeader:]; n > len(b) {
			return errPacket
		}
		if err := f(code, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func parse6(b []byte) (m message6, err error) {
	if len(b) < header6 {
		return m, errPacket
	}
	m.kind, m.transaction = kind6(b[0]), [transactionIDLength]byte(b[1:])
	err = options6(b[header6:], func(code uint16, value []byte) error {
		switch code {
		case optClientID:
			return id6(&m.client, value)
		case optServerID:
			return id6(&m.server, value)
		case optRapidCommit:
			m.rapid = true
		case optIANA:
			a, err := parseIA(value)
			if err != nil || len(m.ias) == maxIAs {
				return errPacket
			}
			m.ias = append(m.ias, a)
		}
		return nil
	})
	return m, err
}

// id6 takes a DUID, which there is one of.
func id6(to *[]byte, value []byte) error {
	if *to != nil || len(value) < 3 || len(value) > maxID {
		return errPacket
	}
	*to = value
	return nil
}

func parseIA(b []byte) (a ia, err error) {
	if len(b) < headerIANA {
		return a, errPacket
	}
	a.id = [4]byte(b)
	err = options6(b[headerIANA:], func(code uint16, value []byte) error {
		if code != optIAAddr {
			return nil
		}
		if len(value) < headerIAAddr || len(a.addrs) == maxIAAddrs {
			return errPacket
		}
		a.addrs = append(a.addrs, netip.AddrFrom16([16]byte(value)))
		return nil
	})
	return a, err
}

// answer6 answers the DHCPv6 message of a client; nil is no answer. self is
// the MAC of the host's end, which names the server.
func (v *service) answer6(self mac, c *client, d datagram) []byte {
	if !c.addr6.IsValid() || d.src.Port() != clientPort6 || d.dst.Port() != serverPort6 ||
		!d.src.Addr().IsLinkLocalUnicast() || d.dst.Addr() != allServers {
		return nil
	}
	m, err := parse6(d.payload)
	if err != nil || !m.forUs(duid(self)) {
		return nil
	}
	options := v.options(m, c)
	if options == nil {
		return nil
	}
	kind := reply
	if m.kind == solicit && !m.rapid {
		kind = advertise
	}
	b := append([]byte{byte(kind)}, m.transaction[:]...)
	b = option6(b, optServerID, duid(self))
	if m.client != nil {
		b = option6(b, optClientID, m.client)
	}
	return datagram{
		src:     netip.AddrPortFrom(ctl.LinkLocal(self[:]), serverPort6),
		dst:     d.src,
		payload: append(b, options...),
	}.bytes()
}

// forUs says whether a message names its client and, where it has to, us and
// nobody else (RFC 8415, 16).
func (m message6) forUs(us []byte) bool {
	switch m.kind {
	case solicit, confirm, rebind:
		return m.client != nil && m.server == nil
	case request, renew, release, decline:
		return m.client != nil && bytes.Equal(m.server, us)
	case information:
		return len(m.ias) == 0 && (m.server == nil || bytes.Equal(m.server, us))
	}
	return false
}

// options are what an answer says; nil is no answer.
func (v *service) options(m message6, c *client) []byte {
	var b []byte
	switch m.kind {
	case solicit, request, renew, rebind:
		for i, a := range m.ias {
			b = option6(b, optIANA, c.ia(a, i == 0))
		}
		if m.kind == solicit && m.rapid {
			b = option6(b, optRapidCommit, nil)
		}
		if len(m.ias) == 0 {
			return nil
		}
	case confirm:
		status := c.confirms(m.ias)
		if status < 0 {
			return nil
		}
		b = option6(b, optStatus, binary.BigEndian.AppendUint16(nil, uint16(status)))
	case release, decline: // they stay bound
		b = option6(b, optStatus, binary.BigEndian.AppendUint16(nil, statusSuccess))
	}
	if len(v.dns6) > 0 {
		b = option6(b, optDNS, addresses(v.dns6))
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// ia answers one set: the first gets the client's address for ever, others
// get none; what else the client had it has no more.
func (c *client) ia(a ia, first bool) []byte {
	b := append(a.id[:], infinite...)
	b = append(b, infinite...)
	if first {
		b = option6(b, optIAAddr, iaAddr(c.addr6, infiniteSeconds))
	}
	for _, old := range a.addrs {
		if !first || old != c.addr6 {
			b = option6(b, optIAAddr, iaAddr(old, 0))
		}
	}
	if !first {
		b = option6(b, optStatus, binary.BigEndian.AppendUint16(nil, statusNoAddrsAvail))
	}
	return b
}

func iaAddr(a netip.Addr, seconds uint32) []byte {
	b := binary.BigEndian.AppendUint32(a.AsSlice(), seconds)
	return binary.BigEndian.AppendUint32(b, seconds)
}

// confirms says whether the addresses that a client believes to have are its
// own: a status, or -1 if it names none.
func (c *client) confirms(ias []ia) int {
	status := -1
	for _, a := range ias {
		for _, addr := range a.addrs {
			if addr != c.addr6 {
				return statusNotOnLink
			}
			status = statusSuccess
		}
	}
	return status
}

func option6(b []byte, code uint16, value []byte) []byte {
	b = binary.BigEndian.AppendUint16(b, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return append(b, value...)
}

// duid names this server: by the MAC of the link, as nothing else stays.
func duid(self mac) []byte {
	return slices.Concat([]byte{0, duidLinkLayer, 0, hardwareEthernet}, self[:])
}
