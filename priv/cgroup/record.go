package cgroup

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The records lie beside priv's others: one of the trees that were made, the
// present one last, and one for each guest.
const (
	treesRecord = "cgroups"
	guestPrefix = "cgroup."
	unfinished  = ".cgroup." // a record that is being written
	maxRecord   = 64 << 10   // bytes
)

var errRecord = errors.New("not a record")

// madeTree is what is remembered of a tree.
//
//	tree 4711 memory,pids,cpu leaf "/sys/fs/cgroup/machines/vmfs"
type madeTree struct {
	place            // number 0: it is about to be made
	enabled []string // controllers that were enabled above it, for it
	leaf    bool     // the daemon moved into a cgroup beside it
}

func treesText(trees []madeTree) []byte {
	var b []byte
	for _, t := range trees {
		leaf := "-"
		if t.leaf {
			leaf = leafName
		}
		b = fmt.Appendf(b, "tree %d %s %s %q\n", t.number, cmp.Or(strings.Join(t.enabled, ","), "-"), leaf, t.path)
	}
	return b
}

// parseTrees reads what treesText makes and nothing else.
func parseTrees(text []byte) ([]madeTree, error) {
	if len(text) > maxRecord {
		return nil, errRecord
	}
	var trees []madeTree
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 5)
		if len(f) != 5 {
			return nil, errRecord
		}
		var t madeTree
		var err1, err2 error
		t.number, err1 = strconv.ParseUint(f[1], 10, 64)
		t.path, err2 = strconv.Unquote(f[4])
		if f[2] != "-" {
			t.enabled = strings.Split(f[2], ",")
		}
		t.leaf = f[3] != "-"
		if err1 != nil || err2 != nil || slices.ContainsFunc(t.enabled, func(c string) bool { return !slices.Contains(controllers, c) }) {
			return nil, errRecord
		}
		trees = append(trees, t)
	}
	if !bytes.Equal(treesText(trees), text) {
		return nil, errRecord
	}
	return trees, nil
}

// guest is what is remembered of a guest: its cgroup, or why it has none.
//
//	cgroup 4712 "/sys/fs/cgroup/machines/vmfs/vm-3"
//	none "no cgroups of version 2 are mounted"
type guest struct {
	place
	why string
}

func (g guest) text() []byte {
	if g.path == "" {
		return fmt.Appendf(nil, "none %q\n", g.why)
	}
	return fmt.Appendf(nil, "cgroup %d %q\n", g.number, g.path)
}

// parseGuest reads what text makes and nothing else.
func parseGuest(text []byte) (g guest, err error) {
	if len(text) > maxRecord {
		return guest{}, errRecord
	}
	line := strings.TrimSuffix(string(text), "\n")
	if why, ok := strings.CutPrefix(line, "none "); ok {
		g.why, err = strconv.Unquote(why)
	} else if rest, ok := strings.CutPrefix(line, "cgroup "); ok {
		number, path, _ := strings.Cut(rest, " ")
		var err1 error
		g.number, err1 = strconv.ParseUint(number, 10, 64)
		g.path, err = strconv.Unquote(path)
		err = errors.Join(err, err1)
	}
	if err != nil || !bytes.Equal(g.text(), text) {
		return guest{}, errRecord
	}
	return g, nil
}

// records is the directory of records. Files of others in it are left alone.
type records struct{ dir string }

// write puts a record in its place whole: a crash leaves it or what was there.
func (d records) write(name string, text []byte) error {
	tmp := d.dir + "/" + unfinished + name
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, d.dir+"/"+name); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

func (d records) remove(name string) { os.Remove(d.dir + "/" + name) }

func guestRecord(id uint32) string { return guestPrefix + strconv.FormatUint(uint64(id), 10) }

// guest is the record of a guest; fs.ErrNotExist if there is none.
func (d records) guest(id uint32) (guest, error) {
	text, err := os.ReadFile(d.dir + "/" + guestRecord(id))
	if err != nil {
		return guest{}, err
	}
	g, err := parseGuest(text)
	if err != nil {
		return guest{}, fmt.Errorf("%s/%s: %w", d.dir, guestRecord(id), err)
	}
	return g, nil
}

// guests lists the ids of which there are records.
func (d records) guests() ([]uint32, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var ids []uint32
	for _, e := range entries {
		text, ok := strings.CutPrefix(e.Name(), guestPrefix)
		id, err := strconv.ParseUint(text, 10, 32)
		if ok && err == nil && guestRecord(uint32(id)) == e.Name() {
			ids = append(ids, uint32(id))
		}
	}
	return ids, nil
}

// trees is the record of trees; none if it cannot be read, since what it tells
// of is then found again by its name or left.
func (d records) trees() []madeTree {
	text, err := os.ReadFile(d.dir + "/" + treesRecord)
	if err != nil {
		return nil
	}
	trees, err := parseTrees(text)
	if err != nil {
		return nil
	}
	return trees
}

func (d records) writeTrees(trees []madeTree) error {
	if len(trees) == 0 {
		d.remove(treesRecord)
		return nil
	}
	return d.write(treesRecord, treesText(trees))
}
