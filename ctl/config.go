package ctl

import (
	"iter"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// value is an attribute that was set: to what, by whom, when. An unset one
// keeps its time with an empty text.
type value struct {
	text  string
	uid   uint32
	mtime time.Time
}

// get reads an attribute: its value, its default, or nothing.
func (d *definition) get(path string) string {
	if v := d.attrs[path]; v.text != "" {
		return v.text
	}
	if a, p, err := d.kind.attrOf(path); err == nil && d.has(p) {
		return a.Default
	}
	return ""
}

// has reports whether p is there, or none.
func (d *definition) has(p Part) bool { return p == Part{} || d.parts[p] }

// set changes one attribute in d. It reports whether that changed anything.
func (d *definition) set(by Cred, path, text string, now time.Time) (bool, error) {
	a, p, err := d.kind.attrOf(path)
	if err != nil {
		return false, err
	}
	text, err = a.canonical(text)
	if err != nil {
		return false, Errorf(syscall.EINVAL, "%s: %v", path, err)
	}
	if !d.has(p) {
		if text == "" {
			return false, Errorf(syscall.ENOENT, "%s: no such %s", path, partNames[p.Dir])
		}
		if err := d.mayChangeParts(by, p.Dir); err != nil {
			return false, err
		}
		d.makePart(p)
	}
	// What is there already is no change, so a path keeps the rights of who
	// set it when somebody else writes the same.
	old := d.attrs[path]
	if old.text == text || !d.whole && old.text == "" && text == a.Default {
		return false, nil
	}
	if err := d.mayChange(by, path); err != nil {
		return false, err
	}
	d.attrs[d.kind.own(path)] = value{strings.Clone(text), by.UID, now} // not the whole message
	switch a.Name {
	case "disk/N/path":
		d.unsettle(p.N, by, now)
	case "disk/N/format":
		delete(d.settled, p.N)
	}
	return true, nil
}

// mayChange refuses a change of what is root's, or was given to another than
// the owner, by one who may not write its file. All else follows from the right
// to the definition.
func (d *definition) mayChange(by Cred, path string) error {
	a, _, err := d.kind.attrOf(path)
	if err != nil || d.whole {
		return nil
	}
	return d.follows(by, path, a.Access(), MayWrite)
}

// mayChangeParts is the same for making and removing parts.
func (d *definition) mayChangeParts(by Cred, dir string) error {
	if d.whole {
		return nil
	}
	return d.follows(by, dir, partsAccess, MayWrite|MaySearch)
}

// follows reports whether the right want to a file follows from the right to
// the definition, or is there.
func (d *definition) follows(by Cred, path string, def Default, want uint32) error {
	f := d.access(path, def)
	if !def.Root && f.UID == d.owner() || f.Allows(by, want) {
		return nil
	}
	return Errorf(syscall.EACCES, "%s: it is %s's, and %s may not write it", path, UserName(f.UID), by)
}

// unsettle makes the format of a disk whose image changed be looked at
// again, if it was looked at and not written.
func (d *definition) unsettle(disk int, by Cred, now time.Time) {
	format := diskAttr(disk, "format")
	if d.settled[disk] {
		delete(d.settled, disk)
		d.attrs[format] = value{"", by.UID, now}
	}
}

// addPart makes a part without values.
func (d *definition) addPart(p Part) error {
	if _, err := d.kind.part(p.Dir, strconv.Itoa(p.N)); err != nil {
		return err
	}
	if d.parts[p] {
		return Errorf(syscall.EEXIST, "%s: it is there", p)
	}
	d.makePart(p)
	return nil
}

// makePart makes a part without values.
func (d *definition) makePart(p Part) {
	d.parts[p] = true
	if !d.whole {
		d.handDown(p)
	}
}

// handDown gives the files of a new part to whom its directory was given.
func (d *definition) handDown(p Part) {
	in := d.access(p.Dir, partsAccess).UID
	for path, a := range d.files() {
		if strings.HasPrefix(path, p.attr("")) && !a.Root {
			d.giveTo(path, in, unset)
		}
	}
}

// files goes through the attributes that there are, set or not, by path.
func (d *definition) files() iter.Seq2[string, *Attr] {
	return func(yield func(string, *Attr) bool) {
		for i := range d.kind.attrs {
			a := &d.kind.attrs[i]
			dir, file, ofPart := strings.Cut(a.Name, "/N/")
			if !ofPart && !yield(a.Name, a) {
				return
			}
			for _, n := range d.numbers(dir) {
				if ofPart && !yield(Part{dir, n}.attr(file), a) {
					return
				}
			}
		}
	}
}

// removePart takes a part and its values out of d.
func (d *definition) removePart(by Cred, p Part) error {
	if !d.parts[p] {
		return Errorf(syscall.ENOENT, "%s: no such %s", p, partNames[p.Dir])
	}
	prefix := p.attr("")
	for path, v := range d.attrs {
		if !strings.HasPrefix(path, prefix) {
			continue
		}
		if v.text != "" {
			if err := d.mayChange(by, path); err != nil {
				return err
			}
		}
		delete(d.attrs, path)
	}
	delete(d.parts, p)
	if p.Dir == "disk" {
		delete(d.settled, p.N)
	}
	d.dropPolicy(p)
	return nil
}

// dropPolicy forgets who may do what with a part that goes: the next one of
// its number is another.
func (d *definition) dropPolicy(p Part) {
	prefix := p.attr("")
	for path := range d.nodes {
		if strings.HasPrefix(path+"/", prefix) {
			delete(d.nodes, path)
		}
	}
}

// config is the definition flattened: `path value` lines in byte order
// between begin and end.
func (d *definition) config() string { return flat(d.said()) }

// said are the values that were set, by path.
func (d *definition) said() map[string]string {
	m := make(map[string]string, len(d.attrs))
	for path, v := range d.attrs {
		if v.text != "" {
			m[path] = v.text
		}
	}
	return m
}

func flat(values map[string]string) string {
	lines := make([]string, 0, len(values))
	for path, text := range values {
		lines = append(lines, path+" "+text+"\n")
	}
	sort.Strings(lines)
	return "begin\n" + strings.Join(lines, "") + "end\n"
}

// edit applies the lines of one write to d: all or, with an error, none that
// counts, since the caller throws d away.
func (d *definition) edit(by Cred, text string, now time.Time) (changed bool, err error) {
	if !wholeLines(text) {
		return false, errCut("config")
	}
	for i, line := range strings.Split(text, "\n") {
		c, err := d.editLine(by, line, now)
		if err != nil {
			return false, Errorf(Errno(err), "config line %d: %v", i+1, err)
		}
		changed = changed || c
	}
	return changed, nil
}

// wholeLines reports whether text is a line, or several that all end.
func wholeLines(text string) bool {
	return !strings.Contains(text, "\n") || strings.HasSuffix(text, "\n")
}

func errCut(file string) error {
	return Errorf(syscall.EINVAL, "%s: the last of several lines does not end: a newline is missing, or the text was cut", file)
}

// framed gives what is between the lines begin and end, with an empty line in
// the place of begin, so that lines are counted as in the writer's file.
func framed(text string) (lines string, ok bool) {
	if lines, ok = strings.CutPrefix(text, "begin\n"); ok {
		lines, ok = strings.CutSuffix("\n"+lines, "\nend\n")
	}
	return lines + "\n", ok
}

func (d *definition) editLine(by Cred, line string, now time.Time) (bool, error) {
	if line == "" || line[0] == '#' {
		return false, nil
	}
	if path, ok := strings.CutPrefix(line, "-"); ok {
		return d.unset(by, path, now)
	}
	path, text, ok := strings.Cut(line, " ")
	switch {
	case path == "edition":
		return false, d.checkEdition(text)
	case !ok || text == "":
		if _, _, err := d.kind.attrOf(path); err != nil {
			return false, err
		}
		return false, Errorf(syscall.EINVAL, "%s: no value; -%s unsets it", path, path)
	}
	return d.set(by, path, text, now)
}

// unset is what a line `-path` does.
func (d *definition) unset(by Cred, path string, now time.Time) (bool, error) {
	if dir, n, ok := strings.Cut(path, "/"); ok && slices.Contains(d.kind.parts, dir) && !strings.Contains(n, "/") {
		p, err := d.kind.part(dir, n)
		if err != nil {
			return false, err
		}
		if err := d.mayChangeParts(by, dir); err != nil {
			return false, err
		}
		return true, d.removePart(by, p)
	}
	return d.set(by, path, "", now)
}

func (d *definition) checkEdition(text string) error {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return Errorf(syscall.EINVAL, "edition: not a number")
	}
	if n != d.edition {
		return Errorf(syscall.EBUSY, "edition %d: the present one is %d", n, d.edition)
	}
	return nil
}

// replace makes d what a text from begin to end says and nothing else. What
// was there and is said again keeps its setter and its time.
func (d *definition) replace(by Cred, text string, now time.Time) (changed bool, err error) {
	lines, ok := framed(text)
	if !ok {
		return false, Errorf(syscall.EINVAL, "config: a whole definition is a line begin, lines, and a line end")
	}
	was := d.parts
	next := &definition{kind: d.kind, edition: d.edition, whole: true, attrs: map[string]value{}, parts: map[Part]bool{}, settled: map[int]bool{}}
	if _, err := next.edit(by, lines, now); err != nil {
		return false, err
	}
	next.keepSettled(d)
	next.keepMACs(d)
	changed, err = next.takeOver(d, by, now)
	if err != nil {
		return false, err
	}
	next.dropStale()
	for p := range d.parts {
		if !next.parts[p] {
			d.dropPolicy(p)
		}
	}
	d.attrs, d.parts, d.settled = next.attrs, next.parts, next.settled
	for p := range d.parts {
		if !was[p] {
			d.handDown(p)
		}
	}
	return changed || !maps.Equal(d.parts, was), nil
}

// takeOver makes what is said in d as it was in old keep its setter and its
// time, and unsets what is not said any more.
func (d *definition) takeOver(old *definition, by Cred, now time.Time) (changed bool, err error) {
	for _, p := range partsThatDiffer(d.parts, old.parts) {
		if err := old.mayChangeParts(by, p.Dir); err != nil {
			return false, err
		}
	}
	differs := func(path string) error {
		changed = true
		return old.mayChange(by, path)
	}
	for path, v := range d.attrs {
		if was := old.attrs[path]; was.text == v.text {
			d.attrs[path] = was
		} else if err := differs(path); err != nil {
			return false, err
		}
	}
	for path, v := range old.attrs {
		if _, said := d.attrs[path]; !said && v.text != "" {
			if err := differs(path); err != nil {
				return false, err
			}
			d.attrs[path] = value{"", by.UID, now}
		}
	}
	return changed, nil
}

func partsThatDiffer(a, b map[Part]bool) []Part {
	var list []Part
	for _, dir := range []map[Part]bool{a, b} {
		for p := range dir {
			if a[p] != b[p] {
				list = append(list, p)
			}
		}
	}
	return list
}

// keepSettled carries over the formats that were settled for the images that
// stay: were they looked at again, a guest could have written itself another
// format meanwhile.
func (d *definition) keepSettled(old *definition) {
	for n := range old.settled {
		path, format := diskAttr(n, "path"), diskAttr(n, "format")
		said := d.attrs[format].text
		if d.attrs[path].text != old.attrs[path].text || said != "" && said != old.attrs[format].text {
			continue
		}
		d.settled[n] = true
		d.attrs[format] = old.attrs[format]
	}
}

// keepMACs carries over the MACs that are not said: a NIC is known by it.
func (d *definition) keepMACs(old *definition) {
	for _, n := range d.numbers("nic") {
		mac := nicAttr(n, "mac")
		if v := old.attrs[mac]; d.attrs[mac].text == "" && v.text != "" {
			d.attrs[mac] = v
		}
	}
}

// dropStale forgets values of parts that are not there.
func (d *definition) dropStale() {
	for path := range d.attrs {
		if _, p, err := d.kind.attrOf(path); err != nil || !d.has(p) {
			delete(d.attrs, path)
		}
	}
}
