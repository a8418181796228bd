package lease

import (
	"net/netip"
	"os"
	"reflect"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/wire"
)

// Whatever a guest sends, what goes back is a packet of ours to that guest,
// in one frame.
func FuzzFrame(f *testing.F) {
	me := dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC[:]})
	for _, seed := range []frame{
		ask4("0.0.0.0", "255.255.255.255", message4(dhcpv4.MessageTypeDiscover)),
		ask4("0.0.0.0", "255.255.255.255", message4(dhcpv4.MessageTypeRequest, dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, make([]byte, 255)))),
		ask6(message6To(dhcpv6.MessageTypeSolicit, me, &dhcpv6.OptIANA{IaId: [4]byte{1}})),
		ask6(message6To(dhcpv6.MessageTypeInformationRequest)),
		solicitation(nil),
		{proto: unix.ETH_P_IP, body: []byte{0x45}},
		{proto: unix.ETH_P_IPV6, body: make([]byte, 40)},
		{proto: unix.ETH_P_ARP, body: make([]byte, 28)},
	} {
		f.Add(seed.proto, seed.body, true)
		f.Add(seed.proto, seed.body, false)
	}
	v := mustService(f, local())
	f.Fuzz(func(t *testing.T, proto uint16, body []byte, unsummed bool) {
		if len(body) > maxFrame {
			return
		}
		b, _ := v.answer(hostMAC, v.clients[guestMAC], frame{guestMAC, proto, unsummed, body})
		if b == nil {
			return
		}
		parse := parseIPv4
		if proto == unix.ETH_P_IPV6 {
			parse = parseIPv6
		}
		p, err := parse(b)
		if err != nil || len(b) > maxFrame {
			t.Fatalf("answered with %d bytes: %v", len(b), err)
		}
		if d, err := p.udp(false); err != nil || d.src.Port() != serverPort && d.src.Port() != serverPort6 {
			t.Errorf("answered from %v: %v", d.src, err)
		}
	})
}

// DHCPv6 as it is read here agrees with the library where both understand it.
func FuzzParse6(f *testing.F) {
	me := dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC[:]})
	f.Add(message6To(dhcpv6.MessageTypeRenew, me, &dhcpv6.OptIANA{Options: dhcpv6.IdentityOptions{Options: dhcpv6.Options{&dhcpv6.OptIAAddress{IPv6Addr: make([]byte, 16)}}}}).ToBytes())
	f.Add([]byte{1, 2, 3})
	f.Add([]byte{1, 2, 3, 4, 0, 3, 0, 12})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse6(b)
		if err != nil || len(b) > 200 { // the library can be slow
			return
		}
		theirs, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			return
		}
		if byte(m.kind) != byte(theirs.MessageType) || len(m.ias) != len(theirs.Options.IANA()) || (m.client == nil) != (theirs.Options.ClientID() == nil) {
			t.Errorf("%x: %+v, but %v", b, m, theirs.Summary())
		}
		for i, a := range theirs.Options.IANA() {
			if len(a.Options.Addresses()) != len(m.ias[i].addrs) {
				t.Errorf("%x: %d addresses, want %d", b, len(m.ias[i].addrs), len(a.Options.Addresses()))
			}
		}
	})
}

// What every request may be without ending the process.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`bind vm1-if0 0 fe:e1:bb:d1:12:34 100.64.1.3 "" web`, `bind vm1-if0 1 a`, "bind vm1-if0", "bind switch1 -1", "bind switch1 0",
		`serve vm1-if0 100.64.1.2/31 "" no 9.9.9.9`, `serve vm1-if0 "" "" yes`, "serve switch4294967296 a b c", "serve vm1-if0 10.0.0.1/33 :: no",
		"stop vm1-if0", "stop", "stop eth0", "dance vm1-if0", "stop vm01-if0", "stop vm1-if0 now",
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, line []byte, withFile bool) {
		fields, err := wire.Decode(line)
		if err != nil {
			return
		}
		p, err := newProcess()
		if err != nil {
			t.Fatal(err)
		}
		r := &wire.Request{Verb: fields[0], Args: fields[1:]}
		if withFile {
			null, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			r.Files = []*os.File{null}
		}
		defer r.Close()
		if err := p.do(r); err == nil && len(p.links) > 0 {
			t.Errorf("%q made a link of %s", fields, os.DevNull)
		}
	})
}

// What core says comes back as it was meant.
func FuzzService(f *testing.F) {
	f.Add("100.64.1.2/31", "", true, "9.9.9.9")
	f.Add("", "fd00::1/64", false, "2620:fe::fe")
	f.Fuzz(func(t *testing.T, server, server6 string, router bool, dns string) {
		var s ctl.LeaseService
		s.Server, _ = netip.ParsePrefix(server)
		s.Server6, _ = netip.ParsePrefix(server6)
		s.Router = router
		if a, err := netip.ParseAddr(dns); err == nil {
			s.DNS = []netip.Addr{a}
		}
		again, err := parseService(serveFields(ctl.NICLink(1, 0), s)[1:])
		if err != nil || !reflect.DeepEqual(again, s) {
			t.Errorf("%+v comes back as %+v, %v", s, again, err)
		}
	})
}

func FuzzAuxdata(f *testing.F) {
	f.Add(make([]byte, unix.CmsgSpace(sizeofAuxdata)))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) { auxdata(b) })
}
