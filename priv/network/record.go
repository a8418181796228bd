package network

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"vmfs/ctl"
)

// record is what is remembered of a link: enough to find its interface, and
// to leave it as it was.
//
//	interface br0
//	index 12
//	made no
//	alias "the printers"
//	up yes
//	number 0
//	uplink eth1 3 no
//	table 10
//	group dmz
//	address 10.1.0.1/24
type record struct {
	ifname string
	index  int // 0: it is about to be made
	made   bool
	mac    net.HardwareAddr // that it was made with; nil for a tap

	// Of what was found: what it was.
	alias  string
	up     bool
	number uint32 // IFLA_GROUP
	flags  uint16 // of a tap, as TUNSETIFF takes them

	// What was done to it, or is about to be.
	port   int // index of the bridge into which it was put
	uplink uplink
	table  uint32         // of its VRF
	groups []string       // sets that it is in
	addrs  []netip.Prefix // that it was given
}

// uplink is an interface that was made a port of a switch.
type uplink struct {
	ifname string // empty for none
	index  int
	up     bool // it was so
}

const maxRecord = 64 << 10 // bytes

var errRecord = errors.New("not a record")

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// text is the record as it is kept.
func (r *record) text() []byte {
	b := fmt.Appendf(nil, "interface %s\nindex %d\nmade %s\n", r.ifname, r.index, yesNo(r.made))
	if r.mac != nil {
		b = fmt.Appendf(b, "mac %s\n", r.mac)
	}
	if !r.made {
		b = fmt.Appendf(b, "alias %q\nup %s\nnumber %d\n", r.alias, yesNo(r.up), r.number)
	}
	if r.flags != 0 {
		b = fmt.Appendf(b, "flags %d\n", r.flags)
	}
	if r.port != 0 {
		b = fmt.Appendf(b, "port %d\n", r.port)
	}
	if r.uplink.ifname != "" {
		b = fmt.Appendf(b, "uplink %s %d %s\n", r.uplink.ifname, r.uplink.index, yesNo(r.uplink.up))
	}
	if r.table != 0 {
		b = fmt.Appendf(b, "table %d\n", r.table)
	}
	for _, g := range r.groups {
		b = fmt.Appendf(b, "group %s\n", g)
	}
	for _, a := range r.addrs {
		b = fmt.Appendf(b, "address %s\n", a)
	}
	return b
}

// parseRecord reads what text makes and nothing else.
func parseRecord(text []byte) (*record, error) {
	r := &record{}
	if len(text) > maxRecord {
		return nil, errRecord
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if err := r.parseLine(key, value); err != nil {
			return nil, errRecord
		}
	}
	if !ValidName(r.ifname) || r.index < 0 || !bytes.Equal(r.text(), text) {
		return nil, errRecord
	}
	return r, nil
}

func (r *record) parseLine(key, value string) (err error) {
	var n uint64
	switch key {
	case "interface":
		r.ifname = value
	case "index":
		n, err = strconv.ParseUint(value, 10, 31)
		r.index = int(n)
	case "made":
		r.made = value == "yes"
	case "mac":
		r.mac, err = net.ParseMAC(value)
	case "alias":
		r.alias, err = strconv.Unquote(value)
	case "up":
		r.up = value == "yes"
	case "number":
		n, err = strconv.ParseUint(value, 10, 32)
		r.number = uint32(n)
	case "flags":
		n, err = strconv.ParseUint(value, 10, 16)
		r.flags = uint16(n)
	case "port":
		n, err = strconv.ParseUint(value, 10, 31)
		r.port = int(n)
	case "uplink":
		r.uplink, err = parseUplink(value)
	case "table":
		n, err = strconv.ParseUint(value, 10, 32)
		r.table = uint32(n)
	case "group":
		r.groups = append(r.groups, value)
	case "address":
		var p netip.Prefix
		p, err = netip.ParsePrefix(value)
		r.addrs = append(r.addrs, p)
	default:
		err = errRecord
	}
	return err
}

func parseUplink(value string) (uplink, error) {
	f := strings.Split(value, " ")
	if len(f) != 3 || !ValidName(f[0]) {
		return uplink{}, errRecord
	}
	n, err := strconv.ParseUint(f[1], 10, 31)
	return uplink{f[0], int(n), f[2] == "yes"}, err
}

// records is the directory of records. Files of others in it are left alone.
type records struct{ dir string }

const (
	linkPrefix = "link."
	vrfPrefix  = "vrf."
	ledgerName = "nftables"
	unfinished = ".network."
)

// write puts a file in its place whole: a crash leaves it or what was there,
// and a file beside it, which load removes.
func (d records) write(name string, text []byte) error {
	tmp := d.dir + "/" + unfinished + name
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if err := os.Rename(tmp, d.dir+"/"+name); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

func (d records) remove(name string) error {
	if err := os.Remove(d.dir + "/" + name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("record: %w", err)
	}
	return nil
}

// load reads all records of links and VRFs. One that cannot be read is an
// error: what it tells of would be lost track of.
func (d records) load() (links map[ctl.Link]*record, vrfs map[uint32]*record, err error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, nil, err
	}
	links, vrfs = make(map[ctl.Link]*record), make(map[uint32]*record)
	for _, e := range entries {
		path := d.dir + "/" + e.Name()
		if strings.HasPrefix(e.Name(), unfinished) {
			if err := os.Remove(path); err != nil {
				return nil, nil, err
			}
			continue
		}
		token, isLink := strings.CutPrefix(e.Name(), linkPrefix)
		number, isVRF := strings.CutPrefix(e.Name(), vrfPrefix)
		if !isLink && !isVRF {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, err
		}
		r, err := parseRecord(text)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		l, bad := ctl.ParseLink(token)
		table, err := strconv.ParseUint(number, 10, 32)
		switch {
		case isLink && bad == nil:
			links[l] = r
		case isVRF && err == nil:
			vrfs[uint32(table)] = r
		default:
			return nil, nil, fmt.Errorf("%s: %w", path, errRecord)
		}
	}
	return links, vrfs, nil
}

// compareLinks orders switches before machines, and both by number.
func compareLinks(a, b ctl.Link) int {
	rank := func(l ctl.Link) []uint64 {
		if l.Switch {
			return []uint64{0, uint64(l.ID)}
		}
		return []uint64{1, uint64(l.ID), uint64(l.NIC)}
	}
	return slices.Compare(rank(a), rank(b))
}

// sorted lists the links of records in order.
func sorted(links map[ctl.Link]*record) []ctl.Link {
	return slices.SortedFunc(maps.Keys(links), compareLinks)
}

// ValidName reports whether an interface can be called so here: at most 15
// bytes that are printed, no blank and none of / : % " \.
func ValidName(name string) bool {
	if name == "" || len(name) >= 16 || name == "." || name == ".." {
		return false
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
