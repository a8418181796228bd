package network

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// A group is a set of interface names in each of the two tables, and, where
// /etc/iproute2/group gives it a number, the number that ip(8) shows.

// Groups says which groups a link is in: see ctl.Network.
func (n *Network) Groups(l ctl.Link, groups []string) error {
	return n.do("group", l, func() error {
		r, i, err := n.at(l)
		if err != nil {
			return err
		}
		for _, g := range groups {
			if !setName(g) {
				return ctl.Errorf(syscall.EINVAL, "%s: nftables takes names of letters, digits, '.', '_' and '-' that begin with a letter", g)
			}
		}
		old := slices.Clone(r.groups)
		if err := n.joinGroups(l, r, groups); err != nil {
			return undo(err, func() error { return n.leaveGroups(l, r, without(r.groups, old)) })
		}
		if err := n.leaveGroups(l, r, without(old, groups)); err != nil {
			return err
		}
		number := r.number
		if len(groups) > 0 {
			number = groupNumber(groups[0])
		}
		if number == i.Group {
			return nil
		}
		return n.kernel.setGroup(i.Index, number)
	})
}

func without(all, these []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(these, s) })
}

// setName reports whether nft(8) could write a set of this name.
func setName(s string) bool {
	if s == "" {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

// joinGroups puts the interface of a link into sets, which are made where
// they are missing: also into those that it is in by its record, since who
// loads his ruleset anew may have flushed them.
func (n *Network) joinGroups(l ctl.Link, r *record, groups []string) error {
	if len(groups) == 0 {
		return nil
	}
	if add := without(groups, r.groups); len(add) > 0 {
		for _, g := range add {
			if !slices.Contains(r.groups, g) {
				r.groups = append(r.groups, g)
			}
		}
		if err := n.save(l, r); err != nil {
			return err
		}
	}
	c := talkTables()
	for _, f := range families {
		for _, g := range groups {
			if err := n.member(c, f, g, r.ifname); err != nil {
				return fmt.Errorf("set %s: %w", g, err)
			}
		}
	}
	return tablesError(c.Flush())
}

// member prepares an element of a set, and what it needs to be there.
func (n *Network) member(c *nftables.Conn, f nftables.TableFamily, group, ifname string) error {
	t, err := n.haveTable(c, f)
	if err != nil {
		return err
	}
	// Without its byte order nft(8) shows every name as an empty one.
	set := &nftables.Set{Table: n.table(f), Name: group, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
	if t == nil {
		if err := n.willMake(made("table", f)); err != nil {
			return err
		}
		c.AddTable(set.Table)
	}
	there, err := c.GetSetByName(set.Table, group)
	switch {
	case absent(err) || t == nil:
		if err := n.roomInLedger(f); err != nil {
			return err
		}
		if err := n.willMake(made("set", f, group)); err != nil {
			return err
		}
		return c.AddSet(set, []nftables.SetElement{{Key: ifnameKey(ifname)}})
	case err != nil:
		return tablesError(err)
	case there.KeyType.Name != nftables.TypeIFName.Name || there.Interval || there.IsMap:
		return ctl.Errorf(syscall.EEXIST, "table %s has it already, and not as a plain set of the type ifname", set.Table.Name)
	}
	return c.SetAddElements(there, []nftables.SetElement{{Key: ifnameKey(ifname)}})
}

// ifnameKey is how a set spells the name of an interface.
func ifnameKey(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// leaveGroups takes the interface of a link out of sets, and removes those
// sets that were made and that nobody is in.
func (n *Network) leaveGroups(l ctl.Link, r *record, groups []string) error {
	if len(groups) == 0 {
		return nil
	}
	groups = slices.Clone(groups)
	c := talkTables()
	for _, f := range families {
		for _, g := range groups {
			if n.namesake(l, r.ifname, g) {
				continue
			}
			set := &nftables.Set{Table: n.table(f), Name: g, KeyType: nftables.TypeIFName}
			if err := c.SetDeleteElements(set, []nftables.SetElement{{Key: ifnameKey(r.ifname)}}); err != nil {
				return tablesError(err)
			}
			if err := c.Flush(); err != nil && !absent(err) {
				return tablesError(err)
			}
		}
	}
	r.groups = without(r.groups, groups)
	if err := n.save(l, r); err != nil {
		return err
	}
	return n.sweepTables()
}

// namesake reports whether another link has an interface of the same name in
// a group: the older of the two is gone.
func (n *Network) namesake(l ctl.Link, ifname, group string) bool {
	for other, r := range n.links {
		if other != l && r.ifname == ifname && slices.Contains(r.groups, group) {
			return true
		}
	}
	return false
}

// groupFiles are where ip(8) and nft(8) look for the numbers of groups.
var groupFiles = []string{"/etc/iproute2/group", "/etc/iproute2/group.d/*.conf", "/usr/share/iproute2/group", "/usr/lib/iproute2/group"}

const maxGroupFile = 64 << 10

// groupNumber is the number of a group, 0 if nothing gives it one: a number
// of our own choosing could be another's already.
func groupNumber(group string) uint32 {
	for _, pattern := range groupFiles {
		paths, _ := filepath.Glob(pattern)
		for _, path := range paths {
			if text, err := readHead(path); err == nil {
				if n, ok := findGroup(text, group); ok {
					return n
				}
			}
		}
	}
	return 0
}

func readHead(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxGroupFile))
}

// findGroup finds "NUMBER NAME" in a text where # begins a comment.
func findGroup(text []byte, group string) (uint32, bool) {
	for line := range bytes.Lines(text) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		f := strings.Fields(string(line))
		if len(f) != 2 || f[1] != group {
			continue
		}
		if n, err := strconv.ParseUint(f[0], 0, 32); err == nil {
			return uint32(n), true
		}
	}
	return 0, false
}
