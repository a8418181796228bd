package ctl

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// definition is all that is kept of one object. A definition that others
// can see is never changed: a change is made to a clone, saved, and put in
// its place.
type definition struct {
	kind *kind

	id         uint32 // the lowest free one at mkdir
	serial     uint64 // never used again
	generation uint64 // of the last launch
	edition    uint64 // changes so far
	created    time.Time
	changed    time.Time // when config was changed last

	attrs   map[string]value
	parts   map[Part]bool
	settled map[int]bool    // disks whose format was looked at, not written
	nodes   map[string]node // files whose mode or owner was set; "" is the directory

	leases []lease // of a switch

	old map[string]string // the values before the last change, if edition is not 0

	active   uint64            // the generation that runs and whose end is not recorded; 0 none
	launched map[string]string // the values it runs with
	exit     *Exit             // how the last launch ended
	failed   string            // why the machine is failed; empty if it is not

	unknown []string // lines that this program does not understand

	whole bool // being made of a whole text, where a default that is said stays said
}

func newDefinition(k *kind, id uint32, serial uint64, now time.Time) *definition {
	return &definition{kind: k, id: id, serial: serial, created: now, changed: now,
		attrs: map[string]value{}, parts: map[Part]bool{}, settled: map[int]bool{}, nodes: map[string]node{}}
}

func (d *definition) clone() *definition {
	c := *d
	c.attrs, c.parts, c.settled, c.nodes = maps.Clone(d.attrs), maps.Clone(d.parts), maps.Clone(d.settled), maps.Clone(d.nodes)
	c.leases = slices.Clone(d.leases)
	return &c
}

// numbers are those of the parts in a directory, in order.
func (d *definition) numbers(dir string) []int {
	var list []int
	for p := range d.parts {
		if p.Dir == dir {
			list = append(list, p.N)
		}
	}
	slices.Sort(list)
	return list
}

// values are the attributes that a launch depends on and that are set or have
// a default, by path.
func (d *definition) values() map[string]string {
	m := make(map[string]string)
	for path, a := range d.files() {
		if !a.Live {
			m[path] = d.get(path)
		}
	}
	maps.DeleteFunc(m, func(_, v string) bool { return v == "" })
	return m
}

// text is the form of a definition in STATE: a line a fact, its first word
// the key, what may hold blanks last and verbatim.
func (d *definition) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("id %d", d.id)
	line("serial %d", d.serial)
	line("generation %d", d.generation)
	line("edition %d", d.edition)
	line("created %s", stamp(d.created))
	line("changed %s", stamp(d.changed))
	if d.active != 0 {
		line("active %d", d.active)
	}
	if d.exit != nil {
		line("exit %s %s %s %s", endWord(d.exit.Failed), stamp(d.exit.At), oneWord(d.exit.Who), oneLine(d.exit.How))
	}
	if d.failed != "" {
		line("failed %s", oneLine(d.failed))
	}
	for _, p := range slices.SortedFunc(maps.Keys(d.parts), byPart) {
		line("%s %d", p.Dir, p.N)
	}
	for _, n := range sortedKeys(d.settled) {
		line("settled %d", n)
	}
	for _, p := range sortedKeys(d.nodes) {
		line("node %s", d.nodes[p].text(p))
	}
	for _, p := range sortedKeys(d.attrs) {
		v := d.attrs[p]
		line("attr %s %d %s %s", p, v.uid, stamp(v.mtime), v.text)
	}
	for _, p := range sortedKeys(d.old) {
		line("old %s %s", p, d.old[p])
	}
	for _, p := range sortedKeys(d.launched) {
		line("launched %s %s", p, d.launched[p])
	}
	for _, l := range d.leases {
		line("lease %s", l.text())
	}
	for _, l := range d.unknown {
		line("%s", l)
	}
	return b.String()
}

// understood refuses lines that this program does not know: it would act on
// half of what was said.
func (d *definition) understood() error {
	if len(d.unknown) == 0 {
		return nil
	}
	key, _, _ := strings.Cut(d.unknown[0], " ")
	return Errorf(syscall.EINVAL, "the definition has %q of a newer vmfs", key)
}

// parseDefinition reads what text wrote. A line whose key is unknown is kept.
// What is kept of text is cloned: it would keep the whole of it in memory.
func parseDefinition(k *kind, text string) (*definition, error) {
	d := newDefinition(k, 0, 0, time.Time{})
	body, ok := strings.CutSuffix(text, "\n")
	if !ok {
		return nil, fmt.Errorf("the last line does not end")
	}
	for i, line := range strings.Split(body, "\n") {
		key, rest, _ := strings.Cut(line, " ")
		parse := definitionLines[key]
		if slices.Contains(k.parts, key) {
			parse = func(d *definition, s string) error { return d.parsePart(key, s) }
		}
		if parse == nil {
			d.unknown = append(d.unknown, strings.Clone(line))
			continue
		}
		if err := parse(d, rest); err != nil {
			return nil, fmt.Errorf("line %d: %s: %v", i+1, key, err)
		}
	}
	if d.id == 0 || d.serial == 0 {
		return nil, fmt.Errorf("no id or no serial")
	}
	return d, nil
}

// definitionLines has the parser of each line that text writes.
var definitionLines = map[string]func(d *definition, rest string) error{
	"id": func(d *definition, s string) error {
		n, err := strconv.ParseUint(s, 10, 32)
		d.id = uint32(n)
		return err
	},
	"serial":     func(d *definition, s string) error { return number(&d.serial, s) },
	"generation": func(d *definition, s string) error { return number(&d.generation, s) },
	"edition":    func(d *definition, s string) error { return number(&d.edition, s) },
	"active":     func(d *definition, s string) error { return number(&d.active, s) },
	"created":    func(d *definition, s string) error { return instant(&d.created, s) },
	"changed":    func(d *definition, s string) error { return instant(&d.changed, s) },
	"failed":     func(d *definition, s string) error { d.failed = strings.Clone(s); return nil },
	"settled":    parseSettled,
	"exit":       parseExit,
	"lease":      parseLease,
	"attr":       parseAttr,
	"launched":   func(d *definition, s string) error { return d.pair(&d.launched, s) },
	"old":        func(d *definition, s string) error { return d.pair(&d.old, s) },
	"node":       func(d *definition, s string) error { return parseNode(d.nodes, s) },
}

func parseExit(d *definition, s string) error {
	f := strings.SplitN(strings.Clone(s), " ", 4)
	if len(f) != 4 {
		return syscall.EINVAL
	}
	d.exit = &Exit{Failed: f[0] == endWord(true), Who: f[2], How: f[3]}
	return instant(&d.exit.At, f[1])
}

func parseAttr(d *definition, s string) error {
	f := strings.SplitN(s, " ", 4)
	if len(f) != 4 {
		return syscall.EINVAL
	}
	if _, _, err := d.kind.attrOf(f[0]); err != nil {
		d.unknown = append(d.unknown, "attr "+s)
		return nil
	}
	uid, err := strconv.ParseUint(f[1], 10, 32)
	if err != nil {
		return err
	}
	v := value{text: strings.Clone(f[3]), uid: uint32(uid)}
	err = instant(&v.mtime, f[2])
	d.attrs[d.kind.own(f[0])] = v
	return err
}

// pair reads a former value. It is mostly the present one, whose text then
// serves for both.
func (d *definition) pair(to *map[string]string, s string) error {
	path, text, _ := strings.Cut(s, " ")
	if *to == nil {
		*to = make(map[string]string)
	}
	own := d.attrs[path].text
	if own != text {
		own = strings.Clone(text)
	}
	(*to)[d.kind.own(path)] = own
	return nil
}

// own is path in a string that keeps no longer text in memory.
func (k *kind) own(path string) string {
	if a := k.byName[path]; a != nil {
		return a.Name
	}
	return strings.Clone(path)
}

func number(to *uint64, s string) (err error) {
	*to, err = strconv.ParseUint(s, 10, 64)
	return err
}

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }

func instant(to *time.Time, s string) (err error) {
	*to, err = time.Parse(time.RFC3339Nano, s)
	return err
}

func (d *definition) parsePart(dir, s string) error {
	p, err := d.kind.part(dir, s)
	if err == nil {
		d.parts[p] = true
	}
	return err
}

func parseSettled(d *definition, s string) error {
	p, err := d.kind.part("disk", s)
	if err == nil {
		d.settled[p.N] = true
	}
	return err
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// clock is a time as users read it in events and err.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z07:00") }

func endWord(failed bool) string {
	if failed {
		return "failed"
	}
	return "stopped"
}

// oneLine makes text that came from elsewhere fit a line of ours.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 1024 {
		s = strings.ToValidUTF8(s[:1024], "") + "..."
	}
	return strings.TrimSpace(s)
}

// oneWord is the same for a word.
func oneWord(s string) string {
	s = strings.ReplaceAll(oneLine(s), " ", "_")
	if s == "" {
		return "-"
	}
	return s
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
