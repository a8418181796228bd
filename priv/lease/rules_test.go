package lease

import (
	"encoding/hex"
	"flag"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	guestMAC = mac{0xfe, 0xe1, 0xbb, 0xd1, 0x12, 0x34}
	hostMAC  = mac{0x02, 0, 0, 0, 0, 1}
)

// local is the service of a local NIC, and lan that of a switch.
func local() ctl.LeaseService {
	return ctl.LeaseService{
		Server: netip.MustParsePrefix("100.64.1.2/31"), Server6: netip.MustParsePrefix("fd00:1:2:3:6440:103:0:1/96"),
		DNS: []netip.Addr{netip.MustParseAddr("9.9.9.9"), netip.MustParseAddr("2620:fe::fe")},
		Bindings: []ctl.LeaseBinding{{
			MAC: guestMAC[:], Addr: netip.MustParseAddr("100.64.1.3"),
			Addr6: netip.MustParseAddr("fd00:1:2:3:6440:103:0:2"), Hostname: "web",
		}},
	}
}

func lan(router bool) ctl.LeaseService {
	s := local()
	s.Server, s.Bindings[0].Addr = netip.MustParsePrefix("10.1.0.1/16"), netip.MustParseAddr("10.1.7.8")
	s.Server6, s.Bindings[0].Addr6 = netip.MustParsePrefix("fd00::1/64"), netip.MustParseAddr("fd00::78")
	s.Router = router
	return s
}

func mustService(t testing.TB, s ctl.LeaseService) *service {
	t.Helper()
	v, err := newService(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// ask4 puts a DHCP message into a frame of the guest's.
func ask4(src, dst string, payload []byte) frame {
	b := datagram{
		netip.AddrPortFrom(netip.MustParseAddr(src), clientPort),
		netip.AddrPortFrom(netip.MustParseAddr(dst), serverPort), payload,
	}.bytes()
	return frame{from: guestMAC, proto: unix.ETH_P_IP, body: b}
}

// message4 is a client's DHCP message with a transaction of no interest.
func message4(kind dhcpv4.MessageType, change ...dhcpv4.Modifier) []byte {
	m := &dhcpv4.DHCPv4{
		OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, TransactionID: dhcpv4.TransactionID{1, 2, 3, 4}, NumSeconds: 3,
		ClientHWAddr: guestMAC[:], Options: dhcpv4.OptionsFromList(dhcpv4.OptMessageType(kind)),
	}
	for _, c := range change {
		c(m)
	}
	return m.ToBytes()
}

// answer4To parses what a frame is answered with; nil is nothing.
func answer4To(t testing.TB, v *service, f frame) (*dhcpv4.DHCPv4, datagram) {
	t.Helper()
	b, solicited := v.answer(hostMAC, v.clients[guestMAC], f)
	if solicited {
		t.Error("taken for a solicitation")
	}
	if b == nil {
		return nil, datagram{}
	}
	p, err := parseIPv4(b)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.udp(false)
	if err != nil {
		t.Fatal(err)
	}
	m, err := dhcpv4.FromBytes(d.payload)
	if err != nil {
		t.Fatal(err)
	}
	return m, d
}

// The rules of DHCP: what is answered, and with what.
func TestRules4(t *testing.T) {
	v := mustService(t, local())
	ip := func(s string) net.IP { return net.ParseIP(s).To4() }
	requested := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(ip(s))) }
	server := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(ip(s))) }
	has := func(s string) dhcpv4.Modifier { return dhcpv4.WithClientIP(ip(s)) }
	set := func(f func(*dhcpv4.DHCPv4)) dhcpv4.Modifier { return f }
	const (
		discover = dhcpv4.MessageTypeDiscover
		request  = dhcpv4.MessageTypeRequest
		none     = dhcpv4.MessageTypeNone
		offer    = dhcpv4.MessageTypeOffer
		ack      = dhcpv4.MessageTypeAck
		nak      = dhcpv4.MessageTypeNak
		all      = "255.255.255.255"
	)
	for _, tc := range []struct {
		name     string
		src, dst string
		kind     dhcpv4.MessageType
		change   []dhcpv4.Modifier
		want     dhcpv4.MessageType
		to       string
	}{
		{"discover", "0.0.0.0", all, discover, nil, offer, "100.64.1.3"},
		{"discover, broadcast", "0.0.0.0", all, discover, []dhcpv4.Modifier{dhcpv4.WithBroadcast(true)}, offer, all},
		{"request", "0.0.0.0", all, request, []dhcpv4.Modifier{requested("100.64.1.3"), server("100.64.1.2")}, ack, "100.64.1.3"},
		{"request after a boot", "0.0.0.0", all, request, []dhcpv4.Modifier{requested("100.64.1.3")}, ack, "100.64.1.3"},
		{"request of another address", "0.0.0.0", all, request, []dhcpv4.Modifier{requested("100.64.1.5")}, nak, all},
		{"request of another server's", "0.0.0.0", all, request, []dhcpv4.Modifier{requested("100.64.1.3"), server("10.0.0.1")}, none, ""},
		{"request of nothing", "0.0.0.0", all, request, nil, none, ""},
		{"renewal", "100.64.1.3", "100.64.1.2", request, []dhcpv4.Modifier{has("100.64.1.3")}, ack, "100.64.1.3"},
		{"renewal, broadcast", "100.64.1.3", all, request, []dhcpv4.Modifier{has("100.64.1.3"), dhcpv4.WithBroadcast(true)}, ack, "100.64.1.3"},
		{"renewal of another address", "0.0.0.0", all, request, []dhcpv4.Modifier{has("100.64.1.9")}, nak, all},
		{"inform", "100.64.1.3", "100.64.1.2", dhcpv4.MessageTypeInform, []dhcpv4.Modifier{has("100.64.1.3")}, ack, "100.64.1.3"},
		{"inform of another", "0.0.0.0", all, dhcpv4.MessageTypeInform, []dhcpv4.Modifier{has("100.64.1.9")}, none, ""},
		{"release", "100.64.1.3", "100.64.1.2", dhcpv4.MessageTypeRelease, []dhcpv4.Modifier{has("100.64.1.3")}, none, ""},
		{"decline", "0.0.0.0", all, dhcpv4.MessageTypeDecline, []dhcpv4.Modifier{requested("100.64.1.3")}, none, ""},
		{"an answer", "0.0.0.0", all, offer, nil, none, ""},
		{"no kind", "0.0.0.0", all, none, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { delete(m.Options, 53) })}, none, ""},
		{"from another's address", "100.64.1.5", all, discover, nil, none, ""},
		{"to another server", "0.0.0.0", "100.64.1.4", discover, nil, none, ""},
		{"discover with an address", "0.0.0.0", all, discover, []dhcpv4.Modifier{has("100.64.1.3")}, none, ""},
		{"another's card", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = hostMAC[:] })}, none, ""},
		{"a card of eight bytes", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = append(guestMAC[:], 0, 0) })}, none, ""},
		{"not Ethernet", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.HWType = 6 })}, none, ""},
		{"a reply", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply })}, none, ""},
		{"passed on", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.HopCount = 1 })}, none, ""},
		{"by a relay", "0.0.0.0", all, discover, []dhcpv4.Modifier{dhcpv4.WithGatewayIP(ip("10.0.0.1"))}, none, ""},
		{"half an answer", "0.0.0.0", all, discover, []dhcpv4.Modifier{dhcpv4.WithYourIP(ip("10.0.0.1"))}, none, ""},
		{"a file", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.BootFileName = "x" })}, none, ""},
		{"a server's name", "0.0.0.0", all, discover, []dhcpv4.Modifier{set(func(m *dhcpv4.DHCPv4) { m.ServerHostName = "x" })}, none, ""},
		{"options elsewhere", "0.0.0.0", all, discover, []dhcpv4.Modifier{dhcpv4.WithGeneric(dhcpv4.OptionOptionOverload, []byte{1})}, none, ""},
		{"a name without end", "0.0.0.0", all, discover, []dhcpv4.Modifier{dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, make([]byte, 256))}, none, ""},
	} {
		m, d := answer4To(t, v, ask4(tc.src, tc.dst, message4(tc.kind, tc.change...)))
		switch {
		case m == nil:
			if tc.want != none {
				t.Errorf("%s: no answer, want %v", tc.name, tc.want)
			}
		case m.MessageType() != tc.want || d.dst.String() != tc.to+":68" || d.src.String() != "100.64.1.2:67":
			t.Errorf("%s: %v from %v to %v, want %v to %v", tc.name, m.MessageType(), d.src, d.dst, tc.want, tc.to)
		case tc.want == nak && (!m.YourIPAddr.IsUnspecified() || len(m.Options) != 2):
			t.Errorf("%s: says more than no: %v", tc.name, m.Summary())
		case tc.want != nak && tc.kind != dhcpv4.MessageTypeInform && (!m.YourIPAddr.Equal(ip("100.64.1.3")) || m.IPAddressLeaseTime(0) != time.Duration(1<<32-1)*time.Second):
			t.Errorf("%s: %v", tc.name, m.Summary())
		case tc.kind == dhcpv4.MessageTypeInform && (!m.YourIPAddr.IsUnspecified() || m.IPAddressLeaseTime(0) != 0):
			t.Errorf("%s: %v", tc.name, m.Summary())
		}
	}
}

// What a lease says beside the address.
func TestLeaseOptions(t *testing.T) {
	for _, tc := range []struct {
		name         string
		service      ctl.LeaseService
		mask, router string
	}{
		{"local", local(), "fffffffe", "[100.64.1.2]"},
		{"switch", lan(false), "ffff0000", "[]"},
		{"switch with a way out", lan(true), "ffff0000", "[10.1.0.1]"},
	} {
		v := mustService(t, tc.service)
		id := []byte{1, 2, 3}
		m, _ := answer4To(t, v, ask4("0.0.0.0", "255.255.255.255", message4(dhcpv4.MessageTypeDiscover, dhcpv4.WithGeneric(dhcpv4.OptionClientIdentifier, id))))
		if m == nil {
			t.Fatalf("%s: no answer", tc.name)
		}
		router := "[]"
		if len(m.Router()) > 0 {
			router = "[" + m.Router()[0].String() + "]"
		}
		if m.SubnetMask().String() != tc.mask || router != tc.router || len(m.DNS()) != 1 || m.DNS()[0].String() != "9.9.9.9" || m.HostName() != "web" {
			t.Errorf("%s: %v", tc.name, m.Summary())
		}
		if !slices.Equal(m.GetOneOption(dhcpv4.OptionClientIdentifier), id) {
			t.Errorf("%s: the client's name for itself did not come back", tc.name)
		}
	}
}

// message6To is a client's DHCPv6 message.
func message6To(kind dhcpv6.MessageType, options ...dhcpv6.Option) *dhcpv6.Message {
	m := &dhcpv6.Message{MessageType: kind, TransactionID: dhcpv6.TransactionID{1, 2, 3}}
	for _, o := range options {
		m.AddOption(o)
	}
	return m
}

func ask6(m *dhcpv6.Message) frame {
	b := datagram{netip.AddrPortFrom(ctl.LinkLocal(guestMAC[:]), clientPort6), netip.AddrPortFrom(allServers, serverPort6), m.ToBytes()}.bytes()
	return frame{from: guestMAC, proto: unix.ETH_P_IPV6, body: b}
}

func answer6To(t testing.TB, v *service, f frame) *dhcpv6.Message {
	t.Helper()
	b, _ := v.answer(hostMAC, v.clients[guestMAC], f)
	if b == nil {
		return nil
	}
	p, err := parseIPv6(b)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.udp(false)
	if err != nil || d.src.Port() != serverPort6 || d.dst != netip.AddrPortFrom(ctl.LinkLocal(guestMAC[:]), clientPort6) || d.src.Addr() != ctl.LinkLocal(hostMAC[:]) {
		t.Fatalf("%v from %v to %v", err, d.src, d.dst)
	}
	m, err := dhcpv6.MessageFromBytes(d.payload)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRules6(t *testing.T) {
	v := mustService(t, local())
	me := dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC[:]})
	you := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: hostMAC[:]})
	other := dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC[:]})
	const mine = "fd00:1:2:3:6440:103:0:2"
	want := func(addrs ...string) dhcpv6.Option {
		ia := &dhcpv6.OptIANA{IaId: [4]byte{9, 9, 9, 9}}
		for _, a := range addrs {
			ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a)})
		}
		return ia
	}
	for _, tc := range []struct {
		name    string
		kind    dhcpv6.MessageType
		options []dhcpv6.Option
		want    dhcpv6.MessageType // none for 0
		addrs   string             // and for how long, in the first set
		status  int                // -1: none
	}{
		{"solicit", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{me, want()}, dhcpv6.MessageTypeAdvertise, mine + " ever", -1},
		{"solicit, rapid", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{me, want(), &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}}, dhcpv6.MessageTypeReply, mine + " ever", -1},
		{"solicit of a prefix", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{me}, 0, "", -1},
		{"solicit by nobody", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{want()}, 0, "", -1},
		{"solicit of one server", dhcpv6.MessageTypeSolicit, []dhcpv6.Option{me, you, want()}, 0, "", -1},
		{"request", dhcpv6.MessageTypeRequest, []dhcpv6.Option{me, you, want(mine)}, dhcpv6.MessageTypeReply, mine + " ever", -1},
		{"request of another server", dhcpv6.MessageTypeRequest, []dhcpv6.Option{me, other, want(mine)}, 0, "", -1},
		{"renew", dhcpv6.MessageTypeRenew, []dhcpv6.Option{me, you, want(mine, "fd00::9")}, dhcpv6.MessageTypeReply, mine + " ever fd00::9 never", -1},
		{"rebind", dhcpv6.MessageTypeRebind, []dhcpv6.Option{me, want(mine)}, dhcpv6.MessageTypeReply, mine + " ever", -1},
		{"confirm", dhcpv6.MessageTypeConfirm, []dhcpv6.Option{me, want(mine)}, dhcpv6.MessageTypeReply, "", statusSuccess},
		{"confirm of another", dhcpv6.MessageTypeConfirm, []dhcpv6.Option{me, want(mine, "fd00::9")}, dhcpv6.MessageTypeReply, "", statusNotOnLink},
		{"confirm of nothing", dhcpv6.MessageTypeConfirm, []dhcpv6.Option{me, want()}, 0, "", -1},
		{"release", dhcpv6.MessageTypeRelease, []dhcpv6.Option{me, you, want(mine)}, dhcpv6.MessageTypeReply, "", statusSuccess},
		{"information", dhcpv6.MessageTypeInformationRequest, nil, dhcpv6.MessageTypeReply, "", -1},
		{"information and an address", dhcpv6.MessageTypeInformationRequest, []dhcpv6.Option{want()}, 0, "", -1},
		{"an answer", dhcpv6.MessageTypeReply, []dhcpv6.Option{me, you}, 0, "", -1},
	} {
		m := answer6To(t, v, ask6(message6To(tc.kind, tc.options...)))
		if m == nil {
			if tc.want != 0 {
				t.Errorf("%s: no answer, want %v", tc.name, tc.want)
			}
			continue
		}
		addrs := ""
		if ia := m.Options.OneIANA(); ia != nil {
			for _, a := range ia.Options.Addresses() {
				addrs += " " + a.IPv6Addr.String() + map[bool]string{true: " ever", false: " never"}[a.ValidLifetime > 0]
			}
		}
		status := -1
		if s := m.Options.Status(); s != nil {
			status = int(s.StatusCode)
		}
		if m.MessageType != tc.want || addrs != "" && addrs[1:] != tc.addrs || addrs == "" && tc.addrs != "" || status != tc.status ||
			m.TransactionID != (dhcpv6.TransactionID{1, 2, 3}) || len(m.Options.DNS()) != 1 || m.Options.ServerID() == nil {
			t.Errorf("%s: %v", tc.name, m.Summary())
		}
	}
	two := answer6To(t, v, ask6(message6To(dhcpv6.MessageTypeSolicit, me, want(), want())))
	if ias := two.Options.IANA(); len(ias) != 2 || ias[1].Options.Status() == nil || ias[1].Options.OneAddress() != nil {
		t.Errorf("a second set: %v", two.Summary())
	}
}

// Whole packets, to the byte: what guests of other makes see does not change
// by the way.
func TestGolden(t *testing.T) {
	v := mustService(t, local())
	out := map[string]frame{
		"offer": ask4("0.0.0.0", "255.255.255.255", message4(dhcpv4.MessageTypeDiscover)),
		"nak":   ask4("0.0.0.0", "255.255.255.255", message4(dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{10, 0, 0, 1})))),
		"advertise": ask6(message6To(dhcpv6.MessageTypeSolicit, dhcpv6.OptClientID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: guestMAC[:]}),
			&dhcpv6.OptIANA{IaId: [4]byte{1, 2, 3, 4}})),
	}
	for name, f := range out {
		b, _ := v.answer(hostMAC, v.clients[guestMAC], f)
		golden(t, name, b)
	}
	golden(t, "router", v.advertisement(hostMAC, advertLifetime))
	golden(t, "router-out", mustService(t, lan(true)).advertisement(hostMAC, advertLifetime))
}

func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	got := hex.Dump(b)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || got != string(want) {
		t.Errorf("%s: got\n%swant\n%s%v", name, got, want, err)
	}
}

// solicitation is a router solicitation of the guest's.
func solicitation(change func(ip []byte)) frame {
	b := icmpv6(ctl.LinkLocal(guestMAC[:]), allRouters, append([]byte{typeSolicitation, 0, 0, 0, 0, 0, 0, 0, optSourceLink, 1}, guestMAC[:]...))
	if change != nil {
		change(b)
	}
	return frame{from: guestMAC, proto: unix.ETH_P_IPV6, body: b}
}

func TestSolicitation(t *testing.T) {
	v := mustService(t, local())
	for name, tc := range map[string]struct {
		change func([]byte)
		want   bool
	}{
		"as it should be": {nil, true},
		"from afar":       {func(b []byte) { b[7] = 64 }, false},
		"checksum":        {func(b []byte) { b[42]++ }, false},
		"another kind":    {func(b []byte) { b[40]++; b[42]-- }, false},
		"empty option":    {func(b []byte) { b[49] = 0; b[43]++ }, false},
		"long option":     {func(b []byte) { b[49] = 2; b[43]-- }, false},
	} {
		if _, got := v.answer(hostMAC, v.clients[guestMAC], solicitation(tc.change)); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestAdverts(t *testing.T) {
	now := time.Now()
	var a adverts
	a.begin(now)
	if !a.next.Equal(now) {
		t.Errorf("the first is due in %v", a.next.Sub(now))
	}
	a.done(now, 1)
	if got := a.next.Sub(now); got != firstInterval {
		t.Errorf("the second is due in %v", got)
	}
	a.solicited(now, 0)
	a.solicited(now.Add(time.Second), 1)
	if got := a.next.Sub(now); got != betweenAdverts {
		t.Errorf("solicited at once, it is due in %v, want %v", got, betweenAdverts)
	}
	now = now.Add(time.Minute)
	a.next = now.Add(time.Hour)
	a.solicited(now, 0.5)
	if got := a.next.Sub(now); got != advertDelay/2 {
		t.Errorf("solicited, it is due in %v, want %v", got, advertDelay/2)
	}
	for range 5 {
		a.done(now, 0)
	}
	if got := a.next.Sub(now); got != minAdvertInterval {
		t.Errorf("later ones are due in %v, want %v", got, minAdvertInterval)
	}
}

func TestBucket(t *testing.T) {
	now := time.Now()
	b := newBucket(time.Second, 3)
	took := 0
	for range 10 {
		if b.take(now) {
			took++
		}
	}
	if took != 3 {
		t.Errorf("%d at once, want 3", took)
	}
	for i := range 20 {
		if b.take(now.Add(time.Duration(i) * 500 * time.Millisecond)) {
			took++
		}
	}
	if took < 11 || took > 13 {
		t.Errorf("%d in 10 s, want about 12", took)
	}
}

// What core may not ask for.
func TestServiceRefused(t *testing.T) {
	for name, change := range map[string]func(*ctl.LeaseService){
		"no server":             func(s *ctl.LeaseService) { s.Server, s.Server6 = netip.Prefix{}, netip.Prefix{} },
		"families":              func(s *ctl.LeaseService) { s.Server, s.Server6 = s.Server6, s.Server },
		"mapped":                func(s *ctl.LeaseService) { s.Server6 = netip.MustParsePrefix("::ffff:10.0.0.1/100") },
		"loopback resolver":     func(s *ctl.LeaseService) { s.DNS[0] = netip.MustParseAddr("127.0.0.53") },
		"loopback resolver 6":   func(s *ctl.LeaseService) { s.DNS[0] = netip.MustParseAddr("::1") },
		"resolver with a zone":  func(s *ctl.LeaseService) { s.DNS[0] = netip.MustParseAddr("fe80::1%eth0") },
		"many resolvers":        func(s *ctl.LeaseService) { s.DNS = slices.Repeat(s.DNS, maxDNS) },
		"outside":               func(s *ctl.LeaseService) { s.Bindings[0].Addr = netip.MustParseAddr("100.64.1.4") },
		"the server's":          func(s *ctl.LeaseService) { s.Bindings[0].Addr = s.Server.Addr() },
		"outside 6":             func(s *ctl.LeaseService) { s.Bindings[0].Addr6 = netip.MustParseAddr("fd00::1") },
		"no network":            func(s *ctl.LeaseService) { s.Server6 = netip.Prefix{} },
		"a group's MAC":         func(s *ctl.LeaseService) { s.Bindings[0].MAC = net.HardwareAddr{1, 0, 0, 0, 0, 0} },
		"no MAC":                func(s *ctl.LeaseService) { s.Bindings[0].MAC = nil },
		"bound twice":           func(s *ctl.LeaseService) { s.Bindings = slices.Repeat(s.Bindings, 2) },
		"a name of two words":   func(s *ctl.LeaseService) { s.Bindings[0].Hostname = "a b" },
		"a name of two lines":   func(s *ctl.LeaseService) { s.Bindings[0].Hostname = "a\nb" },
		"a name of other bytes": func(s *ctl.LeaseService) { s.Bindings[0].Hostname = "\xff" },
		"a long name":           func(s *ctl.LeaseService) { s.Bindings[0].Hostname = string(make([]byte, 64)) },
	} {
		s := local()
		change(&s)
		if _, err := newService(s); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	none := local()
	none.Bindings = nil
	mustService(t, none)
	mustService(t, lan(true))
}
