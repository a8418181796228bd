package ctl

import (
	"crypto/rand"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
)

// NetGet reads a file of net/.
func (m *Manager) NetGet(name string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if v := m.root.net[name]; v != "" {
		return v
	}
	return netAttr(name).Default
}

func netAttr(name string) *Attr {
	if i := slices.IndexFunc(NetAttrs, func(a Attr) bool { return a.Name == name }); i >= 0 {
		return &NetAttrs[i]
	}
	return &Attr{Name: name}
}

// NetSet writes one, for good; an empty value gives the default back, or draws
// another network. What runs keeps what it has.
func (m *Manager) NetSet(by Cred, name, text string) error {
	text, err := netAttr(name).canonical(text)
	if err != nil {
		return Errorf(syscall.EINVAL, "net/%s: %v", name, err)
	}
	m.making.Lock()
	defer m.making.Unlock()
	if text == m.NetGet(name) || text == "" && m.root.net[name] == "" {
		return nil
	}
	r := m.root
	r.net = maps.Clone(m.root.net)
	if r.net[name] = text; text == "" {
		delete(r.net, name)
		r.draw()
	}
	if err := m.setRoot(r); err != nil {
		return saveError("net/"+name, err)
	}
	m.log.append(0, "-", "config", by.String(), "net/"+name)
	m.changed(Change{nil, "net", Contents})
	return nil
}

// draw chooses the IPv6 network of local NICs, once: one of RFC 4193.
func (r *rootState) draw() (drawn bool) {
	if r.net["prefix6"] != "" {
		return false
	}
	var a [16]byte
	rand.Read(a[1:6])
	a[0] = 0xfd
	r.net["prefix6"] = netip.PrefixFrom(netip.AddrFrom16(a), 64).String()
	return true
}

// localAddrs are the ends of the link of a local NIC.
func (m *Manager) localAddrs(id uint32, n int) (LocalAddrs, error) {
	prefix, err := netip.ParsePrefix(m.NetGet("prefix"))
	if err != nil {
		return LocalAddrs{}, err
	}
	var prefix6 netip.Prefix
	if m.NetGet("inet6") == "yes" {
		if prefix6, err = netip.ParsePrefix(m.NetGet("prefix6")); err != nil {
			return LocalAddrs{}, err
		}
	}
	return Local(prefix, prefix6, id, n)
}

// resolvConfs are where a host says which resolvers it asks; the second is
// that of systemd-resolved, which puts its own into the first.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// maxResolvers is how many a guest is told of.
const maxResolvers = 3

// resolvers are those of the host that a guest can reach too.
func resolvers() []netip.Addr {
	for _, path := range resolvConfs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if list := parseResolvers(string(text)); len(list) > 0 {
			return list
		}
	}
	return nil
}

// parseResolvers finds the resolvers in a resolv.conf, but for those that
// only the host itself reaches.
func parseResolvers(text string) []netip.Addr {
	var list []netip.Addr
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" || len(list) == maxResolvers {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil || a.IsLoopback() || a.IsUnspecified() || a.Zone() != "" || slices.Contains(list, a.Unmap()) {
			continue
		}
		list = append(list, a.Unmap())
	}
	return list
}
