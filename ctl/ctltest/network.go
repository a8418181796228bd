package ctltest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"vmfs/ctl"
)

// Network is a fake ctl.Network: links that are only remembered.
type Network struct {
	mu     sync.Mutex
	refuse func(op string, l ctl.Link) error
	ways   []string
	links  map[ctl.Link]*Link
	ops    []string
	lease  *Lease
	leases int
}

// Link is what a Network remembers of a link.
type Link struct {
	ctl.LinkState
	Alias  string
	Groups []string
	Port   ctl.Port
	Table  uint32
	Uplink string
	NAT    []netip.Prefix
}

// RefuseNet says what each operation answers, by its name; nil for nothing.
func (n *Network) RefuseNet(f func(op string, l ctl.Link) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = f
}

// SetWays says what is in the way.
func (n *Network) SetWays(ways ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ways = ways
}

// Link is what there is of a link; false if there is nothing.
func (n *Network) Link(l ctl.Link) (Link, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.links[l]; k != nil {
		return *k, true
	}
	return Link{}, false
}

// Change changes what there is of a link behind ctl's back; f is given nil if
// there is nothing, and what it returns is there then.
func (n *Network) Change(l ctl.Link, f func(k *Link) *Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.links == nil {
		n.links = map[ctl.Link]*Link{}
	}
	if k := f(n.links[l]); k != nil {
		n.links[l] = k
	} else {
		delete(n.links, l)
	}
}

// Ops are the operations so far that changed something, and forgets them.
func (n *Network) Ops() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ops := strings.Join(n.ops, "\n")
	n.ops = nil
	return ops
}

// do does an operation on a link that has to be there.
func (n *Network) do(ctx context.Context, op string, l ctl.Link, detail string, f func(k *Link) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	n.ops = append(n.ops, strings.TrimSpace(fmt.Sprintf("%s %v %s", op, l, detail)))
	if n.refuse != nil {
		if err := n.refuse(op, l); err != nil {
			return err
		}
	}
	k := n.links[l]
	if k == nil || k.Ifname == "" {
		return ctl.Errorf(syscall.ENOENT, "%s %v: it has no interface", op, l)
	}
	return f(k)
}

// make is do of a link that is made.
func (n *Network) make(ctx context.Context, op string, l ctl.Link, detail string, f func(k *Link) error) error {
	n.mu.Lock()
	if n.links == nil {
		n.links = map[ctl.Link]*Link{}
	}
	had := n.links[l] != nil
	if !had {
		n.links[l] = &Link{LinkState: ctl.LinkState{Link: l, Ifname: "?", Ifindex: 10 + len(n.links), Made: true}}
	}
	n.mu.Unlock()
	err := n.do(ctx, op, l, detail, f)
	if err != nil && !had {
		n.Change(l, func(*Link) *Link { return nil })
	}
	return err
}

// free is the first of a row of names that no link has.
func (n *Network) free(prefix string, from int) string {
	for ; ; from++ {
		name := fmt.Sprint(prefix, from)
		taken := false
		for _, k := range n.links {
			taken = taken || k.Ifname == name
		}
		if !taken {
			return name
		}
	}
}

// Tap makes a tap of any file.
func (n *Network) Tap(ctx context.Context, l ctl.Link, name string) (f *os.File, ifname string, err error) {
	err = n.make(ctx, "tap", l, name, func(k *Link) error {
		if k.Ifname != "?" {
			return ctl.Errorf(syscall.EBUSY, "tap %v: %s is still there", l, k.Ifname)
		}
		if k.Ifname = name; name == "tap" {
			k.Ifname = n.free("tap", 0)
		}
		ifname = k.Ifname
		f, err = os.Open(os.DevNull)
		return err
	})
	return f, ifname, err
}

// Bridge makes a bridge, or takes one of any name.
func (n *Network) Bridge(ctx context.Context, l ctl.Link, ifname string) (name string, err error) {
	err = n.make(ctx, "bridge", l, ifname, func(k *Link) error {
		switch {
		case k.Ifname != "?":
		case ifname == "":
			k.Ifname = n.free("switch", int(l.ID))
		default:
			k.Ifname, k.Made = ifname, false
		}
		name = k.Ifname
		return nil
	})
	return name, err
}

// Release forgets a link, and that it was a master.
func (n *Network) Release(ctx context.Context, l ctl.Link) error {
	if _, ok := n.Link(l); !ok {
		return nil
	}
	return n.do(ctx, "release", l, "", func(k *Link) error {
		for _, other := range n.links {
			if l.Switch && other.Master == k.Ifname {
				other.Master = ""
			}
		}
		delete(n.links, l)
		return nil
	})
}

func (n *Network) Alias(ctx context.Context, l ctl.Link, name string) error {
	return n.do(ctx, "alias", l, name, func(k *Link) error { k.Alias = l.String() + "-" + name; return nil })
}

func (n *Network) Attach(ctx context.Context, l, sw ctl.Link, p ctl.Port) error {
	return n.do(ctx, "attach", l, fmt.Sprint(sw, " ", p.MAC, " ", p.Locked, " ", p.Isolated), func(k *Link) error {
		b := n.links[sw]
		switch {
		case b == nil:
			return ctl.Errorf(syscall.ENOENT, "attach %v: %v has no interface", l, sw)
		case k.Master != "" && k.Master != b.Ifname:
			return ctl.Errorf(syscall.EBUSY, "attach %v: %s is a port of %s", l, k.Ifname, k.Master)
		}
		k.Master, k.Port, k.Locked, k.Isolated, k.Up = b.Ifname, p, p.Locked, p.Isolated, false
		return nil
	})
}

func (n *Network) Detach(ctx context.Context, l ctl.Link) error {
	return n.do(ctx, "detach", l, "", func(k *Link) error {
		k.Master, k.Port, k.Locked, k.Isolated, k.Up = "", ctl.Port{}, false, false, false
		return nil
	})
}

func (n *Network) Uplink(ctx context.Context, l ctl.Link, ifname string) error {
	return n.do(ctx, "uplink", l, ifname, func(k *Link) error { k.Uplink = ifname; return nil })
}

func (n *Network) Rdomain(ctx context.Context, l ctl.Link, table uint32) error {
	return n.do(ctx, "rdomain", l, fmt.Sprint(table), func(k *Link) error {
		if k.Table, k.Master = table, ""; table != 0 {
			k.Master = fmt.Sprint("vrf", table)
		}
		return nil
	})
}

func (n *Network) Groups(ctx context.Context, l ctl.Link, groups []string) error {
	return n.do(ctx, "group", l, strings.Join(groups, " "), func(k *Link) error { k.Groups = groups; return nil })
}

func (n *Network) Addresses(ctx context.Context, l ctl.Link, addrs []netip.Prefix) error {
	return n.do(ctx, "address", l, fmt.Sprint(addrs), func(k *Link) error { k.Addrs = addrs; return nil })
}

func (n *Network) Masquerade(ctx context.Context, l ctl.Link, from []netip.Prefix) error {
	return n.do(ctx, "nat", l, fmt.Sprint(from), func(k *Link) error { k.NAT = from; return nil })
}

func (n *Network) SetUp(ctx context.Context, l ctl.Link, up bool) error {
	return n.do(ctx, "up", l, fmt.Sprint(up), func(k *Link) error { k.Up = up; return nil })
}

func (n *Network) Links(ctx context.Context) ([]ctl.LinkState, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []ctl.LinkState
	for _, k := range n.links {
		list = append(list, k.LinkState)
	}
	slices.SortFunc(list, func(a, b ctl.LinkState) int { return strings.Compare(a.Link.String(), b.Link.String()) })
	return list, ctx.Err()
}

func (n *Network) Observe(_ context.Context, l ctl.Link) (ctl.LinkState, error) {
	k, ok := n.Link(l)
	if !ok {
		return ctl.LinkState{Link: l}, nil
	}
	return k.LinkState, nil
}

func (n *Network) Ways(context.Context, ctl.Link, []netip.Prefix) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways, nil
}

// Lease starts a fake process, or gives the one that runs.
func (n *Network) Lease(context.Context) (ctl.Lease, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		if err := n.refuse("lease", ctl.Link{}); err != nil {
			return nil, err
		}
	}
	if n.lease == nil || n.lease.ended {
		n.lease = &Lease{n: n, done: make(chan struct{}), served: map[ctl.Link]ctl.LeaseService{}}
		n.leases++
	}
	return n.lease, nil
}

func (n *Network) Listen(ctx context.Context, l ctl.Link) (f *os.File, err error) {
	err = n.do(ctx, "listen", l, "", func(*Link) error {
		f, err = os.Open(os.DevNull)
		return err
	})
	return f, err
}

// Served is what is answered on a link now, and how many processes there were.
func (n *Network) Served(l ctl.Link) (s ctl.LeaseService, ok bool, processes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lease != nil && !n.lease.ended {
		s, ok = n.lease.served[l]
	}
	return s, ok, n.leases
}

// EndLease is the process ending by itself.
func (n *Network) EndLease() {
	n.mu.Lock()
	l := n.lease
	n.mu.Unlock()
	if l != nil {
		l.Close()
	}
}

// Lease is a fake ctl.Lease.
type Lease struct {
	n      *Network
	done   chan struct{}
	ended  bool
	served map[ctl.Link]ctl.LeaseService
}

func (p *Lease) Serve(_ context.Context, l ctl.Link, socket *os.File, s ctl.LeaseService) error {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if p.n.refuse != nil {
		if err := p.n.refuse("serve", l); err != nil {
			return err
		}
	}
	_, open := p.served[l]
	if p.ended || open != (socket == nil) {
		return ctl.Errorf(syscall.EPIPE, "serve %v: ended %v, open %v, socket %v", l, p.ended, open, socket != nil)
	}
	p.served[l] = s
	return nil
}

func (p *Lease) Stop(_ context.Context, l ctl.Link) error {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	delete(p.served, l)
	return nil
}

func (p *Lease) Done() <-chan struct{} { return p.done }

func (p *Lease) Close() error {
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if !p.ended {
		p.ended = true
		close(p.done)
	}
	return nil
}
