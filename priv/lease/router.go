package lease

import (
	"encoding/binary"
	"net/netip"
	"time"

	"vmfs/ctl"
)

// Router advertisements (RFC 4861, with the resolvers of RFC 8106) say where
// the way out is and that addresses come by DHCPv6: a network of one address
// a machine is too small for what machines make up themselves.

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

const (
	typeSolicitation  = 133
	typeAdvertisement = 134

	flagManaged = 0x80 // addresses by DHCPv6
	flagOther   = 0x40 // and the rest as well
	flagOnLink  = 0x80

	optSourceLink = 1
	optPrefix     = 3
	optResolvers  = 25
)

// Times of RFC 4861, 6.2.1 and 10, and of RFC 8106, 5.1.
const (
	maxAdvertInterval = 600 * time.Second
	minAdvertInterval = 200 * time.Second
	firstAdverts      = 3
	firstInterval     = 16 * time.Second
	advertDelay       = 500 * time.Millisecond // the most, to a solicitation
	betweenAdverts    = 3 * time.Second
	advertLifetime    = 3 * maxAdvertInterval
)

// solicits says whether a packet is a router solicitation (RFC 4861, 6.1.1),
// whose checksum is looked at unless its sender left it to the card.
func (p packet) solicits(unsummed bool) bool {
	b := p.payload
	if p.proto != protoICMPv6 || p.hops != maxHops || len(b) < 8 || b[0] != typeSolicitation || b[1] != 0 {
		return false
	}
	if !unsummed && sum(b, pseudo(p.src, p.dst, protoICMPv6, len(b))) != 0xffff {
		return false
	}
	if p.dst != allRouters || !p.src.IsUnspecified() && !p.src.IsLinkLocalUnicast() {
		return false
	}
	return wholeOptions(b[8:], p.src.IsUnspecified())
}

// wholeOptions looks at the options of a solicitation: each has a length, and
// one that has no sender does not say what his card is.
func wholeOptions(b []byte, nobody bool) bool {
	for len(b) > 0 {
		if len(b) < 2 || b[1] == 0 || int(b[1])*8 > len(b) || nobody && b[0] == optSourceLink {
			return false
		}
		b = b[int(b[1])*8:]
	}
	return true
}

// advertisement is the one of the link whose host's end has the MAC self, to
// all nodes. lifetime is for how long the host is a router, if it is one.
func (v *service) advertisement(self mac, lifetime time.Duration) []byte {
	seconds := uint16(lifetime / time.Second)
	b := make([]byte, 16)
	b[0], b[4], b[5] = typeAdvertisement, ttl, flagManaged|flagOther
	if v.router {
		binary.BigEndian.PutUint16(b[6:], seconds)
	}
	b = append(b, optSourceLink, 1)
	b = append(b, self[:]...)

	b = append(b, optPrefix, 4, byte(v.server6.Bits()), flagOnLink)
	b = append(b, infinite...)
	b = append(b, infinite...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, v.server6.Masked().Addr().AsSlice()...)

	if n := len(v.dns6); n > 0 {
		b = append(b, optResolvers, byte(1+2*n), 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(seconds))
		b = append(b, addresses(v.dns6)...)
	}
	return icmpv6(ctl.LinkLocal(self[:]), allNodes, b)
}

// adverts plans when the next advertisement is sent. It belongs to one
// goroutine.
type adverts struct {
	next time.Time
	last time.Time
	sent int
}

// random is a time from 0 to most, from a number of 0 to 1.
func random(most time.Duration, number float64) time.Duration {
	return time.Duration(number * float64(most))
}

// begin plans the first one for now; there are a few more soon after.
func (a *adverts) begin(now time.Time) {
	a.sent = 0
	a.plan(now)
}

// solicited plans one soon, whatever was planned for later.
func (a *adverts) solicited(now time.Time, number float64) {
	a.plan(earlier(a.next, now.Add(random(advertDelay, number))))
}

// done plans the next, after one that was sent.
func (a *adverts) done(now time.Time, number float64) {
	a.last, a.sent = now, a.sent+1
	wait := minAdvertInterval + random(maxAdvertInterval-minAdvertInterval, number)
	if a.sent < firstAdverts {
		wait = min(wait, firstInterval)
	}
	a.next = now.Add(wait)
}

// plan keeps the distance to the last.
func (a *adverts) plan(at time.Time) {
	a.next = at
	if least := a.last.Add(betweenAdverts); !a.last.IsZero() && at.Before(least) {
		a.next = least
	}
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
