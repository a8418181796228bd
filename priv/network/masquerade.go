package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// natChain is the chain of our own table that has the masquerade rules, each
// with its switch as a comment.
const natChain = "masquerade"

// Masquerade says from which networks behind a switch packets leave with the
// host's address: see ctl.Network.
func (n *Network) Masquerade(sw ctl.Link, from []netip.Prefix) error {
	return n.do("masquerade", sw, func() error {
		_, b, err := n.at(sw)
		if err != nil {
			return err
		}
		for _, p := range from {
			if err := n.allowed(p); err != nil {
				return err
			}
		}
		if len(from) == 0 {
			return n.unmasquerade(sw)
		}
		return n.replaceRules(sw, b.Name, from)
	})
}

// replaceRules puts the rules of a switch in the place of those it had, all
// at once.
func (n *Network) replaceRules(sw ctl.Link, bridge string, from []netip.Prefix) error {
	const f = nftables.TableFamilyINet
	c := talkTables()
	t, err := n.haveTable(c, f)
	if err != nil {
		return err
	}
	if t == nil {
		if err := n.willMake(made("table", f)); err != nil {
			return err
		}
	}
	t = c.AddTable(n.table(f))
	rules, chain, err := n.rules(c)
	if err != nil {
		return err
	}
	if !chain {
		if err := n.willMake(made("chain", f, natChain)); err != nil {
			return err
		}
	}
	ch := c.AddChain(&nftables.Chain{Name: natChain, Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	for _, r := range rules {
		if commentOf(r) == sw.String() {
			if err := c.DelRule(r); err != nil {
				return tablesError(err)
			}
		}
	}
	for _, p := range from {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: masquerade(p.Masked(), bridge), UserData: comment(sw.String())})
	}
	if err := c.Flush(); err != nil {
		return undo(tablesError(err), n.sweepTables)
	}
	return nil
}

// masquerade is the rule "ip saddr NET oifname != BRIDGE masquerade".
func masquerade(from netip.Prefix, bridge string) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	if is6(from) {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	address := from.Addr().AsSlice()
	size := uint32(len(address))
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipNet(from).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: ifnameKey(bridge)},
		&expr.Masq{},
	}
}

// comment is the user data of a rule that nft(8) shows as its comment.
func comment(s string) []byte { return userdata.AppendString(nil, userdata.TypeComment, s) }

// commentOf is the inverse. Rules of others have what they like there.
func commentOf(r *nftables.Rule) string {
	for data := r.UserData; len(data) >= 2 && len(data) >= 2+int(data[1]); data = data[2+int(data[1]):] {
		if value := data[2 : 2+int(data[1])]; userdata.Type(data[0]) == userdata.TypeComment && len(value) > 0 {
			return string(value[:len(value)-1])
		}
	}
	return ""
}

// rules lists the rules of our chain, and says whether there is one.
func (n *Network) rules(c *nftables.Conn) ([]*nftables.Rule, bool, error) {
	t := n.table(nftables.TableFamilyINet)
	chains, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, false, tablesError(err)
	}
	i := slices.IndexFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == t.Name && ch.Name == natChain })
	if i < 0 {
		return nil, false, nil
	}
	chain := chains[i]
	rules, err := c.GetRules(t, chain)
	if err != nil {
		return nil, true, tablesError(err)
	}
	for _, r := range rules {
		r.Table, r.Chain = t, chain
	}
	return rules, true, nil
}

// unmasquerade removes the rules of a switch.
func (n *Network) unmasquerade(l ctl.Link) error {
	if !l.Switch || len(n.ledger) == 0 {
		return nil
	}
	if err := n.deleteRules(func(owner ctl.Link) bool { return owner == l }); err != nil {
		return err
	}
	return n.sweepTables()
}

// sweepRules removes the rules of switches that have no record.
func (n *Network) sweepRules() error {
	return n.deleteRules(func(owner ctl.Link) bool { return n.links[owner] == nil })
}

// deleteRules removes rules by the switches that they are for.
func (n *Network) deleteRules(of func(ctl.Link) bool) error {
	c := talkTables()
	rules, _, err := n.rules(c)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if owner, err := ctl.ParseLink(commentOf(r)); err == nil && of(owner) {
			if err := c.DelRule(r); err != nil {
				return tablesError(err)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("masquerade rules: %w", tablesError(err))
	}
	return nil
}
