package fs

import (
	"fmt"
	"strconv"
	"strings"

	"vmfs/ctl"
)

// place is where a line of the table is in the tree.
type place struct {
	row   uint64 // its number, from 1 on
	in    *line  // the directory
	names map[string]*line
	fixed []*line // the same, in the order of the table
	many  *line   // stands for any number of entries
	below []string
	of    string // it is an object's of this directory: vm, switch or user
	part  string // it is a part's, of this directory of the object
}

// index joins the lines of a table to a tree. The first is the root's.
func index(lines []*line) []*line {
	byPath := make(map[string]*line)
	for i, l := range lines {
		if byPath[l.path] != nil {
			panic(fmt.Sprintf("%s is twice in the table", l.path))
		}
		byPath[l.path] = l
		l.place = makePlace(l.path)
		l.row = uint64(i + 1)
	}
	for _, l := range lines[1:] {
		dir, name := "", l.path
		if i := strings.LastIndexByte(l.path, '/'); i >= 0 {
			dir, name = l.path[:i], l.path[i+1:]
		}
		parent := byPath[dir]
		l.in = parent
		if name == "NAME" || name == "N" {
			parent.many = l
			continue
		}
		parent.names[name] = l
		parent.fixed = append(parent.fixed, l)
	}
	return lines
}

func makePlace(path string) place {
	p := place{names: map[string]*line{}}
	below := path
	if dir, rest, ok := strings.Cut(path, "/NAME"); ok {
		kind, live := strings.CutPrefix(dir, "live/")
		if p.of, below = kind, strings.TrimPrefix(rest, "/"); live {
			below = "live" + rest
		}
	}
	if dir, file, ok := strings.Cut(below, "/N"); ok {
		p.part = dir
		for n := range ctl.MaxParts {
			p.below = append(p.below, dir+"/"+strconv.Itoa(n)+file)
		}
		return p
	}
	p.below = []string{below}
	return p
}

// name is the last word of a line's path.
func (l *line) name() string { return l.path[strings.LastIndexByte(l.path, '/')+1:] }
