package priv

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"vmfs/ctl"
	"vmfs/priv/lease"
	"vmfs/priv/network"
	"vmfs/priv/wire"
)

var _ ctl.Network = (*Client)(nil)

// Tap opens the tap of a NIC; the caller closes the file.
func (c *Client) Tap(ctx context.Context, nic ctl.Link, name string) (*os.File, string, error) {
	m, err := c.caller.Call(ctx, nil, "tap", nic.String(), name)
	if err != nil {
		return nil, "", err
	}
	if len(m.Fields) != 1 || !network.ValidName(m.Fields[0]) || len(m.Files) != 1 {
		m.Close()
		return nil, "", errAnswer("tap")
	}
	return m.Take(0), m.Fields[0], nil
}

// Bridge makes the bridge of a switch, or takes one that is listed.
func (c *Client) Bridge(ctx context.Context, sw ctl.Link, ifname string) (string, error) {
	if err := possible("bridge", sw, ifname); err != nil {
		return "", err
	}
	f, err := c.call(ctx, "bridge", sw.String(), ifnameArg(ifname))
	if err != nil {
		return "", err
	}
	if len(f) != 1 || !network.ValidName(f[0]) {
		return "", errAnswer("bridge")
	}
	return f[0], nil
}

// possible refuses a name that no interface can have: priv would end core
// for what is a user's mistake.
func possible(op string, l ctl.Link, ifname string) error {
	if ifname != "" && (ifname == noName || !network.ValidName(ifname)) {
		return ctl.Errorf(syscall.EINVAL, "%s %v: %.40q is no interface's name", op, l, ifname)
	}
	return nil
}

// Release takes away what was made for a link and puts back what was found.
func (c *Client) Release(ctx context.Context, l ctl.Link) error { return c.link(ctx, "release", l) }

// Alias says what an interface is for.
func (c *Client) Alias(ctx context.Context, l ctl.Link, name string) error {
	return c.link(ctx, "alias", l, name)
}

// Attach makes a NIC a port of a switch.
func (c *Client) Attach(ctx context.Context, nic, sw ctl.Link, p ctl.Port) error {
	return c.link(ctx, "attach", nic, sw.String(), p.MAC.String(), yesNo(p.Locked), yesNo(p.Isolated))
}

// Detach takes a NIC out of its switch.
func (c *Client) Detach(ctx context.Context, nic ctl.Link) error { return c.link(ctx, "detach", nic) }

// Uplink makes an interface that is listed a port of a switch.
func (c *Client) Uplink(ctx context.Context, sw ctl.Link, ifname string) error {
	if err := possible("uplink", sw, ifname); err != nil {
		return err
	}
	return c.link(ctx, "uplink", sw, ifnameArg(ifname))
}

// Rdomain puts a link into the VRF of a routing table.
func (c *Client) Rdomain(ctx context.Context, l ctl.Link, table uint32) error {
	return c.link(ctx, "rdomain", l, decimal(table))
}

// Groups says which groups a link is in, each once.
func (c *Client) Groups(ctx context.Context, l ctl.Link, groups []string) error {
	var args []string
	seen := make(map[string]bool)
	for _, g := range groups {
		if _, err := parseGroup(g); err != nil {
			return ctl.Errorf(syscall.EINVAL, "group %v: %v", l, err)
		}
		if !seen[g] {
			args = append(args, g)
		}
		seen[g] = true
	}
	return c.link(ctx, "groups", l, args...)
}

// Addresses says which addresses a link has, and no others of ours.
func (c *Client) Addresses(ctx context.Context, l ctl.Link, addrs []netip.Prefix) error {
	return c.link(ctx, "addresses", l, prefixArgs(addrs)...)
}

// Masquerade says from which networks packets leave with the host's address.
func (c *Client) Masquerade(ctx context.Context, sw ctl.Link, from []netip.Prefix) error {
	return c.link(ctx, "masquerade", sw, prefixArgs(masked(from))...)
}

func masked(all []netip.Prefix) []netip.Prefix {
	all = slices.Clone(all)
	for i, p := range all {
		all[i] = p.Masked()
	}
	return all
}

func prefixArgs(all []netip.Prefix) []string {
	var args []string
	for _, p := range all {
		args = append(args, p.String())
	}
	return args
}

// SetUp sets a link up or down.
func (c *Client) SetUp(ctx context.Context, l ctl.Link, up bool) error {
	return c.link(ctx, "up", l, yesNo(up))
}

// Links lists what priv's records have, in order.
func (c *Client) Links(ctx context.Context) ([]ctl.LinkState, error) {
	var all []ctl.LinkState
	for after := noName; ; after = all[len(all)-1].Link.String() {
		fields, err := c.call(ctx, "links", after)
		if err != nil {
			return nil, err
		}
		for _, f := range fields {
			s, err := parseState(strings.Split(f, " "))
			if err != nil || s.Link.String() == after {
				return nil, errAnswer("links")
			}
			all = append(all, s)
		}
		if len(fields) < linksPage {
			return all, nil
		}
	}
}

// Observe says what the kernel has of a link.
func (c *Client) Observe(ctx context.Context, l ctl.Link) (ctl.LinkState, error) {
	f, err := c.call(ctx, "observe", l.String())
	if err != nil {
		return ctl.LinkState{}, err
	}
	return parseState(f)
}

// Ways says what of the host is in the way of forwarding from networks.
func (c *Client) Ways(ctx context.Context, l ctl.Link, forward []netip.Prefix) ([]string, error) {
	return c.call(ctx, "ways", append([]string{l.String()}, prefixArgs(masked(forward))...)...)
}

// Listen opens the packet socket of a link; the caller closes it.
func (c *Client) Listen(ctx context.Context, l ctl.Link) (*os.File, error) {
	return c.file(ctx, "listen", l.String())
}

// Lease starts the process that answers DHCP; the same one if it runs. What
// a caller Closes is closed for all.
func (c *Client) Lease(ctx context.Context) (ctl.Lease, error) {
	c.leasing.Lock()
	defer c.leasing.Unlock()
	if c.lease != nil {
		select {
		case <-c.lease.Done():
		default:
			return c.lease, nil
		}
	}
	f, err := c.file(ctx, "lease")
	if err != nil {
		return nil, err
	}
	conn, err := wire.NewConn(f)
	if err != nil {
		return nil, err
	}
	l, err := lease.Meet(conn)
	if err != nil {
		return nil, err
	}
	c.lease = l
	return l, nil
}

// link asks for something about a link that is answered with nothing.
func (c *Client) link(ctx context.Context, verb string, l ctl.Link, args ...string) error {
	_, err := c.call(ctx, verb, append([]string{l.String()}, args...)...)
	return err
}

// file asks what is answered with one file.
func (c *Client) file(ctx context.Context, verb string, args ...string) (*os.File, error) {
	m, err := c.caller.Call(ctx, nil, verb, args...)
	if err != nil {
		return nil, err
	}
	if len(m.Files) != 1 {
		m.Close()
		return nil, errAnswer(verb)
	}
	return m.Take(0), nil
}
