package ctl

import (
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
	if a, disk, err := attrOf(path); err == nil && (disk < 0 || d.disks[disk]) {
		return a.Default
	}
	return ""
}

// set changes one attribute in d. It reports whether that changed anything.
func (d *definition) set(by Cred, path, text string, now time.Time) (bool, error) {
	a, disk, err := attrOf(path)
	if err != nil {
		return false, err
	}
	text, err = a.canonical(text)
	if err != nil {
		return false, Errorf(syscall.EINVAL, "%s: %v", path, err)
	}
	if disk >= 0 && !d.disks[disk] {
		if text == "" {
			return false, Errorf(syscall.ENOENT, "%s: no such disk", path)
		}
		d.disks[disk] = true
	}
	// What is there already is no change, so a path keeps the rights of who
	// set it when somebody else writes the same.
	old := d.attrs[path]
	if old.text == text || old.text == "" && text == a.Default && !d.whole {
		return false, nil
	}
	d.attrs[path] = value{text, by.UID, now}
	switch a.Name {
	case "disk/N/path":
		d.unsettle(disk, by, now)
	case "disk/N/format":
		delete(d.settled, disk)
	}
	return true, nil
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

func diskAttr(n int, file string) string {
	return "disk/" + strconv.Itoa(n) + "/" + file
}

// removeDisk takes disk n and its values out of d.
func (d *definition) removeDisk(n int) error {
	if !d.disks[n] {
		return Errorf(syscall.ENOENT, "disk/%d: no such disk", n)
	}
	delete(d.disks, n)
	delete(d.settled, n)
	prefix := diskAttr(n, "")
	for path := range d.attrs {
		if strings.HasPrefix(path, prefix) {
			delete(d.attrs, path)
		}
	}
	d.dropPolicy(n)
	return nil
}

// dropPolicy forgets who may do what with a disk that goes: the next one of
// its number is another.
func (d *definition) dropPolicy(n int) {
	prefix := diskAttr(n, "")
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
	lines := strings.Split(text, "\n")
	last := len(lines) - 1
	if last > 0 && lines[last] != "" {
		return false, Errorf(syscall.EINVAL, "config: the last of several lines does not end: a newline is missing, or the text was cut")
	}
	for i, line := range lines {
		c, err := d.editLine(by, line, now)
		if err != nil {
			return false, Errorf(Errno(err), "config line %d: %v", i+1, err)
		}
		changed = changed || c
	}
	return changed, nil
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
		if _, _, err := attrOf(path); err != nil {
			return false, err
		}
		return false, Errorf(syscall.EINVAL, "%s: no value; -%s unsets it", path, path)
	}
	return d.set(by, path, text, now)
}

// unset is what a line `-path` does.
func (d *definition) unset(by Cred, path string, now time.Time) (bool, error) {
	if n, ok := strings.CutPrefix(path, "disk/"); ok && !strings.Contains(n, "/") {
		disk, err := diskNumber(n)
		if err != nil {
			return false, err
		}
		return true, d.removeDisk(disk)
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
	body, ok := strings.CutPrefix(text, "begin\n")
	if !ok || !strings.HasSuffix("\n"+body, "\nend\n") {
		return false, Errorf(syscall.EINVAL, "config: a whole definition is a line begin, lines, and a line end")
	}
	body = "\n" + strings.TrimSuffix(body, "end\n") // the line begin counts, as in the writer's file

	next := &definition{edition: d.edition, whole: true, attrs: map[string]value{}, disks: map[int]bool{}, settled: map[int]bool{}}
	if _, err := next.edit(by, body, now); err != nil {
		return false, err
	}
	next.keepSettled(d)
	for path, v := range next.attrs {
		if old := d.attrs[path]; old.text == v.text {
			next.attrs[path] = old
		} else {
			changed = true
		}
	}
	for path, v := range d.attrs {
		if _, said := next.attrs[path]; !said && v.text != "" {
			next.attrs[path] = value{"", by.UID, now}
			changed = true
		}
	}
	changed = changed || len(next.disks) != len(d.disks)
	next.dropStale()
	for n := range d.disks {
		if !next.disks[n] {
			d.dropPolicy(n)
		}
	}
	d.attrs, d.disks, d.settled = next.attrs, next.disks, next.settled
	return changed, nil
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

// dropStale forgets values of disks that are not there.
func (d *definition) dropStale() {
	for path := range d.attrs {
		if _, disk, err := attrOf(path); err != nil || disk >= 0 && !d.disks[disk] {
			delete(d.attrs, path)
		}
	}
}
