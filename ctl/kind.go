package ctl

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// MaxParts is how many parts of one sort an object can have.
const MaxParts = 16

// Part is a numbered part of an object, with attributes of its own: a
// directory like disk/0. The zero Part is none.
type Part struct {
	Dir string
	N   int // 0..MaxParts-1
}

func (p Part) String() string { return p.Dir + "/" + strconv.Itoa(p.N) }

// attr is the path of an attribute of p.
func (p Part) attr(file string) string { return p.String() + "/" + file }

func diskAttr(n int, file string) string { return Part{"disk", n}.attr(file) }
func nicAttr(n int, file string) string  { return Part{"nic", n}.attr(file) }

// PartNumber parses the N of disk/N, which has one form only.
func PartNumber(s string) (n int, ok bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && n < MaxParts && strconv.Itoa(n) == s
}

// kind is a kind of object: what it is called, and what it has.
type kind struct {
	dir    string   // its directory in the tree and in STATE
	noun   string   // for people
	parts  []string // directories of numbered parts
	byName map[string]*Attr
	attrs  []Attr
	fixed  bool // its objects keep their names

	checkName func(name string) error
}

func newKind(dir, noun string, attrs []Attr, parts ...string) *kind {
	k := &kind{dir: dir, noun: noun, attrs: attrs, parts: parts, byName: make(map[string]*Attr), checkName: checkName}
	for i := range attrs {
		k.byName[attrs[i].Name] = &attrs[i]
	}
	return k
}

var machines = newKind("vm", "machine", Attrs, "disk", "nic")

// partNames are what parts are called, for people.
var partNames = map[string]string{"disk": "disk", "nic": "NIC"}

// attrOf finds the attribute that path names and, for one of a part, the
// part.
func (k *kind) attrOf(path string) (a *Attr, p Part, err error) {
	name := path
	if dir, rest, ok := strings.Cut(path, "/"); ok && slices.Contains(k.parts, dir) {
		n, file, _ := strings.Cut(rest, "/")
		if p, err = k.part(dir, n); err != nil {
			return nil, p, err
		}
		name = dir + "/N/" + file
	}
	if a = k.byName[name]; a == nil {
		return nil, p, Errorf(syscall.EINVAL, "%.80s: no such attribute", path)
	}
	return a, p, nil
}

// part makes a Part of the two words of its path.
func (k *kind) part(dir, number string) (Part, error) {
	n, ok := PartNumber(number)
	i := slices.Index(k.parts, dir)
	if !ok || i < 0 {
		return Part{}, errPart(dir, number)
	}
	return Part{k.parts[i], n}, nil // not dir, which may be a word of a long text
}

func errPart(dir, number string) error {
	return Errorf(syscall.EINVAL, "%s/%.20s: a %s is numbered 0 to %d", dir, number, partNames[dir], MaxParts-1)
}

// byPart orders parts.
func byPart(a, b Part) int { return cmp.Or(cmp.Compare(a.Dir, b.Dir), cmp.Compare(a.N, b.N)) }
