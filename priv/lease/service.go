package lease

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"vmfs/ctl"
)

// Bounds of what core may ask for.
const (
	maxBindings = 8192 // of a link
	maxDNS      = 8
	maxName     = 63
)

// mac is an Ethernet address.
type mac [6]byte

// service is what is answered on one link: a ctl.LeaseService that was looked
// at. It does not change, but for how often each client was answered.
type service struct {
	server, server6 netip.Prefix // not valid for none
	dns, dns6       []netip.Addr
	router          bool
	clients         map[mac]*client
}

// client is a NIC that gets answers.
type client struct {
	addr, addr6 netip.Addr // not valid for none
	name        string     // empty for none
	answers     bucket
}

// newService looks at s. The error says what makes no sense.
func newService(s ctl.LeaseService) (*service, error) {
	v := &service{server: s.Server, server6: s.Server6, router: s.Router, clients: make(map[mac]*client, len(s.Bindings))}
	switch {
	case !s.Server.IsValid() && !s.Server6.IsValid():
		return nil, fmt.Errorf("no address of the server")
	case s.Server.IsValid() && !s.Server.Addr().Is4():
		return nil, fmt.Errorf("%v: not IPv4", s.Server)
	case s.Server6.IsValid() && (!s.Server6.Addr().Is6() || s.Server6.Addr().Is4In6()):
		return nil, fmt.Errorf("%v: not IPv6", s.Server6)
	case len(s.DNS) > maxDNS || len(s.Bindings) > maxBindings:
		return nil, fmt.Errorf("%d resolvers and %d bindings: too many", len(s.DNS), len(s.Bindings))
	}
	for _, a := range s.DNS {
		switch {
		case !a.IsValid() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast():
			return nil, fmt.Errorf("%v: no resolver for a guest", a)
		case a.Is4():
			v.dns = append(v.dns, a)
		default:
			v.dns6 = append(v.dns6, a)
		}
	}
	taken := map[netip.Addr]bool{s.Server.Addr(): true, s.Server6.Addr(): true}
	for _, b := range s.Bindings {
		if err := v.bind(b, taken); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (v *service) bind(b ctl.LeaseBinding, taken map[netip.Addr]bool) error {
	if len(b.MAC) != 6 || b.MAC[0]&1 != 0 {
		return fmt.Errorf("%v: not the address of a card", b.MAC)
	}
	m := mac(b.MAC)
	if v.clients[m] != nil {
		return fmt.Errorf("%v: bound twice", b.MAC)
	}
	for _, end := range []struct {
		addr netip.Addr
		net  netip.Prefix
	}{{b.Addr, v.server}, {b.Addr6, v.server6}} {
		if !end.addr.IsValid() {
			continue
		}
		if taken[end.addr] || !end.net.Contains(end.addr) || end.addr.Zone() != "" {
			return fmt.Errorf("%v: %v is taken or not in the network %v", b.MAC, end.addr, end.net)
		}
		taken[end.addr] = true
	}
	if !hostname(b.Hostname) {
		return fmt.Errorf("%v: %.80q is no name of a host", b.MAC, b.Hostname)
	}
	v.clients[m] = &client{addr: b.Addr, addr6: b.Addr6, name: b.Hostname, answers: newBucket(answerEvery, answerBurst)}
	return nil
}

// hostname says whether a client can be told that name; it can be told none.
func hostname(s string) bool {
	return len(s) <= maxName && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

// local says whether the link is that of one NIC with the host, at whose two
// ends the addresses are: then the host is the way to everywhere.
func (v *service) local() bool { return v.server.IsValid() && v.server.Bits() == 31 }

// How often a client is answered: as often as one that tries all it can in a
// moment, and then now and again.
const (
	answerEvery = 250 * time.Millisecond
	answerBurst = 16
)

// bucket counts what may be done: one thing every so often, and so many at
// once. It belongs to one goroutine.
type bucket struct {
	every time.Duration
	burst time.Duration
	full  time.Time // when nothing more is used up
}

func newBucket(every time.Duration, burst int) bucket {
	return bucket{every: every, burst: every * time.Duration(burst)}
}

// take says whether it may be done now, and counts it if so.
func (b *bucket) take(now time.Time) bool {
	if b.full.Before(now) {
		b.full = now
	}
	if b.full.Add(b.every).Sub(now) > b.burst {
		return false
	}
	b.full = b.full.Add(b.every)
	return true
}
