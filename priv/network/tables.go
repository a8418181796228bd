package network

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The nftables tables, one of the family inet and one of the family bridge,
// are where admins may add chains of their own that use the groups' sets: a
// set is seen in its own table only. So what was made in them is in a ledger,
// and is taken away when nothing uses it; nothing else is.

// ledger is what was made in the tables, a line each, such as
//
//	table inet
//	chain inet masquerade
//	set bridge dmz
type ledger []string

func (d records) loadLedger() (ledger, error) {
	text, err := os.ReadFile(d.dir + "/" + ledgerName)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	l := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for _, line := range l {
		if _, _, _, err := parseMade(line); err != nil {
			return nil, fmt.Errorf("%s/%s: %w", d.dir, ledgerName, err)
		}
	}
	return l, nil
}

// parseMade reads a line of the ledger.
func parseMade(line string) (kind string, f nftables.TableFamily, name string, err error) {
	w := strings.Split(line, " ")
	if len(w) < 2 || len(w) > 3 {
		return "", 0, "", errRecord
	}
	switch w[1] {
	case "inet":
		f = nftables.TableFamilyINet
	case "bridge":
		f = nftables.TableFamilyBridge
	default:
		return "", 0, "", errRecord
	}
	switch {
	case w[0] == "table" && len(w) == 2:
		return w[0], f, "", nil
	case (w[0] == "chain" || w[0] == "set") && len(w) == 3 && w[2] != "":
		return w[0], f, w[2], nil
	}
	return "", 0, "", errRecord
}

func made(kind string, f nftables.TableFamily, name ...string) string {
	family := "inet"
	if f == nftables.TableFamilyBridge {
		family = "bridge"
	}
	return strings.Join(append([]string{kind, family}, name...), " ")
}

func (n *Network) writeLedger(l ledger) error {
	err := error(nil)
	if len(l) == 0 {
		err = n.records.remove(ledgerName)
	} else {
		err = n.records.write(ledgerName, []byte(strings.Join(l, "\n")+"\n"))
	}
	if err == nil {
		n.ledger = l
	}
	return err
}

// willMake notes what is about to be made.
func (n *Network) willMake(line string) error {
	if slices.Contains(n.ledger, line) {
		return nil
	}
	return n.writeLedger(append(slices.Clone(n.ledger), line))
}

// talkTables begins a conversation with nftables: each transaction and each
// listing gets a socket of its own, on which it ends, or fails in time. The
// library counts the kernel's answers, and would wait for ever for one that
// does not come.
func talkTables() *nftables.Conn {
	limit := func(c *mdlayher.Conn) error { return c.SetDeadline(time.Now().Add(answerTime)) }
	c, _ := nftables.New(nftables.WithSockOptions(limit)) // fails only where it dials
	return c
}

// families of the tables.
var families = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge}

func (n *Network) table(f nftables.TableFamily) *nftables.Table {
	return &nftables.Table{Name: n.options.Tables, Family: f}
}

// haveTable finds the table of a family, nil if there is none.
func (n *Network) haveTable(c *nftables.Conn, f nftables.TableFamily) (*nftables.Table, error) {
	t, err := c.ListTableOfFamily(n.options.Tables, f)
	if absent(err) {
		return nil, nil
	}
	return t, tablesError(err)
}

// absent reports whether the kernel has no such thing.
func absent(err error) bool { return errors.Is(err, unix.ENOENT) }

// tablesError says what of nftables the kernel refused.
func tablesError(err error) error {
	if err == nil {
		return nil
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		if errno == unix.EAFNOSUPPORT || errno == unix.EPROTONOSUPPORT {
			errno = unix.EOPNOTSUPP
		}
		return fmt.Errorf("nftables: %w", errno)
	}
	return fmt.Errorf("nftables: %w", err)
}

// sweepTables removes what was made in the tables and is not used any more:
// rules and elements first, which their owners did, then this.
func (n *Network) sweepTables() error {
	if len(n.ledger) == 0 {
		return nil
	}
	if err := n.sweepRules(); err != nil {
		return err
	}
	c := talkTables()
	var left ledger
	for _, kind := range []string{"chain", "set", "table"} {
		for _, line := range n.ledger {
			k, f, name, err := parseMade(line)
			if err != nil || k != kind {
				continue
			}
			used, err := n.dropMade(c, kind, f, name)
			if err != nil {
				return tablesError(err)
			}
			if used {
				left = append(left, line)
			}
		}
	}
	if slices.Equal(left, n.ledger) {
		return nil
	}
	return n.writeLedger(left)
}

// dropMade removes one thing unless it is used. The kernel is asked to refuse
// what is not empty, since others may be adding to it.
func (n *Network) dropMade(c *nftables.Conn, kind string, f nftables.TableFamily, name string) (used bool, err error) {
	t := n.table(f)
	switch kind {
	case "set":
		return n.dropSet(c, t, name)
	case "chain":
		return spared(deleteEmpty(unix.NFT_MSG_DELCHAIN, f, attr(unix.NFTA_CHAIN_TABLE, t.Name), attr(unix.NFTA_CHAIN_NAME, name)))
	}
	return spared(deleteEmpty(unix.NFT_MSG_DELTABLE, f, attr(unix.NFTA_TABLE_NAME, t.Name)))
}

func (n *Network) dropSet(c *nftables.Conn, t *nftables.Table, name string) (used bool, err error) {
	set, err := c.GetSetByName(t, name)
	if err != nil {
		return spared(err)
	}
	elements, err := c.GetSetElements(set)
	if err != nil || len(elements) > 0 {
		return true, err
	}
	c.DelSet(set)
	return spared(c.Flush())
}

// spared tells what is used from what went wrong.
func spared(err error) (used bool, _ error) {
	switch {
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case absent(err):
		return false, nil
	}
	return false, err
}

func attr(kind uint16, text string) mdlayher.Attribute {
	return mdlayher.Attribute{Type: kind, Data: append([]byte(text), 0)}
}

// deleteEmpty deletes a table or a chain if there is nothing in it, else
// EBUSY: with a flag (NLM_F_NONREC) that the library does not have.
func deleteEmpty(message uint16, f nftables.TableFamily, attrs ...mdlayher.Attribute) error {
	c, err := mdlayher.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	data, err := mdlayher.MarshalAttributes(attrs)
	if err != nil {
		return err
	}
	header := func(family byte, resource uint16) []byte {
		return []byte{family, unix.NFNETLINK_V0, byte(resource >> 8), byte(resource)}
	}
	const nonrec = mdlayher.HeaderFlags(unix.NLM_F_NONREC)
	_, err = c.SendMessages([]mdlayher.Message{
		{Header: mdlayher.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: mdlayher.Request}, Data: header(0, unix.NFNL_SUBSYS_NFTABLES)},
		{Header: mdlayher.Header{Type: mdlayher.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | message), Flags: mdlayher.Request | mdlayher.Acknowledge | nonrec}, Data: append(header(byte(f), 0), data...)},
		{Header: mdlayher.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: mdlayher.Request}, Data: header(0, unix.NFNL_SUBSYS_NFTABLES)},
	})
	if err != nil {
		return err
	}
	_, err = c.Receive()
	return err
}
