package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// answerTime is how long the kernel's answer to a netlink request may take.
const answerTime = 10 * time.Second

// kernel is the conversation over netlink. Requests of our own go over a
// socket on which the kernel says in words why it refuses.
type kernel struct {
	*netlink.Handle
	words map[int]*nl.SocketHandle
}

func dial() (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	k := &kernel{Handle: h}
	if err := h.SetSocketTimeout(answerTime); err != nil {
		k.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE) // to no group
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	k.words = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	limit := unix.NsecToTimeval(int64(answerTime))
	if err := errors.Join(s.SetExtAck(true), s.SetReceiveTimeout(&limit), s.SetSendTimeout(&limit)); err != nil {
		k.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return k, nil
}

func (k *kernel) Close() {
	k.Handle.Close()
	for _, s := range k.words {
		s.Socket.Close()
	}
}

// about begins a message about the interface with an index, 0 for one that is
// to be made.
func about(family, index int) *nl.IfInfomsg {
	msg := nl.NewIfInfomsg(family)
	msg.Index = int32(index)
	return msg
}

// ask sends one request and gives the answers of a kind.
func (k *kernel) ask(kind, flags int, msg *nl.IfInfomsg, answer uint16, attrs ...nl.NetlinkRequestData) ([][]byte, error) {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = k.words
	req.AddData(msg)
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Execute(unix.NETLINK_ROUTE, answer)
}

// request sends one that is only done or refused.
func (k *kernel) request(kind, flags int, msg *nl.IfInfomsg, attrs ...nl.NetlinkRequestData) error {
	_, err := k.ask(kind, flags|unix.NLM_F_ACK, msg, 0, attrs...)
	return err
}

// set changes attributes of an interface.
func (k *kernel) set(index int, attrs ...nl.NetlinkRequestData) error {
	return k.request(unix.RTM_SETLINK, 0, about(unix.AF_UNSPEC, index), attrs...)
}

// create makes an interface that is not there: EEXIST if its name is taken.
func (k *kernel) create(name, kind string, mac net.HardwareAddr, data ...*nl.RtAttr) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte(kind))
	if len(data) > 0 {
		d := info.AddRtAttr(nl.IFLA_INFO_DATA, nil)
		for _, a := range data {
			d.AddChild(a)
		}
	}
	return k.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, about(unix.AF_UNSPEC, 0),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), nl.NewRtAttr(unix.IFLA_ADDRESS, mac), info)
}

func (k *kernel) delete(index int) error {
	err := k.request(unix.RTM_DELLINK, 0, about(unix.AF_UNSPEC, index))
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// setMaster makes an interface a port of another, or of none.
func (k *kernel) setMaster(index, master int) error {
	return k.set(index, nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(master))))
}

func (k *kernel) setAlias(index int, alias string) error {
	return k.set(index, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(alias)))
}

func (k *kernel) setGroup(index int, group uint32) error {
	return k.set(index, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
}

// setUp changes one flag and leaves the others to whoever changes them.
func (k *kernel) setUp(index int, up bool) error {
	msg := about(unix.AF_UNSPEC, index)
	msg.Change = unix.IFF_UP
	if up {
		msg.Flags = unix.IFF_UP
	}
	return k.request(unix.RTM_NEWLINK, 0, msg)
}

// iface is what the kernel says of an interface.
type iface struct {
	netlink.LinkAttrs
	link netlink.Link
	kind string
}

func (i *iface) up() bool { return i.RawFlags&unix.IFF_UP != 0 }

// byIndex finds an interface, nil if there is none.
func (k *kernel) byIndex(index int) (*iface, error) { return found(k.LinkByIndex(index)) }

// byName finds an interface, nil if there is none.
func (k *kernel) byName(name string) (*iface, error) { return found(k.LinkByName(name)) }

func found(l netlink.Link, err error) (*iface, error) {
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none), errors.Is(err, unix.ENODEV):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return &iface{LinkAttrs: *l.Attrs(), link: l, kind: l.Type()}, nil
}

// nameOf is what an interface is called, for a message.
func (k *kernel) nameOf(index int) string {
	if i, err := k.byIndex(index); err == nil && i != nil {
		return i.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// again repeats a listing that changes interrupted.
func again[T any](list func() (T, error)) (all T, err error) {
	for range 20 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}

// addrs lists the addresses of one interface, or of all if index is 0.
func (k *kernel) addrs(index int) ([]addr, error) {
	all, err := again(func() ([]netlink.Addr, error) { return k.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []addr
	for _, a := range all {
		if p, ok := prefixOf(a.IPNet); ok && (index == 0 || a.LinkIndex == index) {
			out = append(out, addr{p, a.LinkIndex})
		}
	}
	return out, nil
}

// addr is an address of an interface.
type addr struct {
	netip.Prefix
	index int
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok && bits > 0
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (k *kernel) addAddr(index int, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // nobody else has it: usable at once
	}
	if p.Addr().IsLinkLocalUnicast() {
		a.Scope = unix.RT_SCOPE_LINK
	}
	err := k.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, a)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func (k *kernel) removeAddr(index int, p netip.Prefix) error {
	err := k.AddrDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, &netlink.Addr{IPNet: ipNet(p)})
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// setMAC sets the address of an interface, which for a bridge means that it
// does not take its ports' any more.
func (k *kernel) setMAC(index int, mac net.HardwareAddr) error {
	return k.set(index, nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
}

// harden makes an interface that was made here say and take as little as it
// can: see the package's text. It is down still.
func (k *kernel) harden(i *iface) error {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(iflaInetConf, nil)
	for _, c := range ipv4Conf {
		conf.AddRtAttr(c.key, nl.Uint32Attr(c.value))
	}
	if err := k.set(i.Index, spec); err != nil {
		return fmt.Errorf("IPv4 settings of %s: %w", i.Name, err)
	}
	return setIPv6(i.Name, false)
}

// iflaInetConf is IFLA_INET_CONF of if_link.h; the keys below are of ip.h.
const iflaInetConf = 1

var ipv4Conf = []struct {
	key   int
	value uint32
}{
	{4, 0},  // accept_redirects: guests are no routers to listen to
	{6, 0},  // send_redirects: to an isolated port they would tell of what it cannot reach
	{8, 1},  // rp_filter: no packet from whom the link does not lead to
	{9, 0},  // accept_source_route
	{19, 1}, // arp_ignore: answers for the link's own addresses only
}

const ipv6Conf = "/proc/sys/net/ipv6/conf/"

// setIPv6 turns IPv6 of an interface that was made here on or off. The
// kernel takes these settings as files only.
func setIPv6(ifname string, on bool) error {
	if _, err := os.Stat(ipv6Conf); err != nil {
		if on {
			return fmt.Errorf("IPv6: %w", syscall.EAFNOSUPPORT)
		}
		return nil // a kernel without IPv6
	}
	settings := []struct{ key, value string }{{"disable_ipv6", "1"}}
	if on {
		settings = []struct{ key, value string }{
			{"accept_ra", "0"}, {"autoconf", "0"}, {"accept_redirects", "0"},
			{"addr_gen_mode", "1"}, // none but those that are given
			{"disable_ipv6", "0"},
		}
	}
	for _, s := range settings {
		if err := os.WriteFile(ipv6Conf+ifname+"/"+s.key, []byte(s.value), 0); err != nil {
			return fmt.Errorf("IPv6 settings: %w", err)
		}
	}
	return nil
}

// sysctl reads a number of the kernel's; ok is false if it is not there.
func sysctl(path string) (value string, ok bool) {
	b, err := os.ReadFile("/proc/sys/" + path)
	return strings.TrimSpace(string(b)), err == nil
}
