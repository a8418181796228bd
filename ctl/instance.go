package ctl

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// InstanceAccess is who may make instances of a machine until somebody changes
// it: who may write its file instance.
var InstanceAccess = Default{Mode: 0o200}

// partsAccess is the same of the directories of parts.
var partsAccess = Default{Mode: 0o750}

// instanceWords are what a machine can allow the owners of its instances to
// set: the attribute or the parts of that name.
var instanceWords = []string{"boot", "cdrom", "cpus", "disk", "instance", "memory", "nic"}

func canonAllow(s string) (string, error) {
	words := strings.Fields(s)
	for _, w := range words {
		if !slices.Contains(instanceWords, w) {
			return "", fmt.Errorf("%.20q: not one of %s", w, strings.Join(instanceWords, " "))
		}
	}
	slices.Sort(words)
	return strings.Join(slices.Compact(words), " "), nil
}

// Instance makes a machine that belongs to by and gid as an instance of base,
// whose right to do so is the door's to check. EEXIST, EDQUOT.
func (m *Manager) Instance(by Cred, base *VM, name string, mode, gid uint32) (*VM, error) {
	return m.vms.makeOf(by, name, mode, gid, func(d *definition) error {
		if base.Removed() {
			return base.gone()
		}
		now, of := time.Now(), base.def.Load()
		if len(of.unknown) > 0 {
			return Errorf(syscall.EINVAL, "instance of %s: its definition is of a newer vmfs", base.Name())
		}
		d.inherit(of, now)
		return m.macs.drawMACs(d, by, now)
	}, "instance of "+base.Name())
}

// inherit makes d, which is new, an instance of base. A path keeps who set it.
// What its owner is not allowed to set belongs to who it belongs to in base,
// mostly the owner, so that nobody can allow what he was not allowed himself.
func (d *definition) inherit(base *definition, now time.Time) {
	for p := range base.parts {
		if p.Dir != "disk" {
			d.parts[p] = true
		}
	}
	for path, v := range base.attrs {
		if a, p, err := d.kind.attrOf(path); err == nil && v.text != "" && d.has(p) && !ownAttrs[a.Name] {
			d.attrs[path] = value{v.text, v.uid, now}
		}
	}
	allowed := strings.Fields(base.get("instance.allow"))
	keep := func(word, path string, def Default, mode int64) {
		of := base.access(path, def).UID
		switch {
		case slices.Contains(allowed, word) && of == base.owner():
			return
		case of == d.owner(): // he was given the base's, not this
			of = base.owner()
		}
		d.giveTo(path, of, mode)
	}
	for path, a := range d.files() {
		if !a.Root {
			keep(a.word(), path, a.Access(), unset)
		}
	}
	for _, dir := range d.kind.parts {
		keep(dir, dir, partsAccess, 0o755) // its owner is to see what there is
	}
	keep("instance", "instance", InstanceAccess, unset)
}

// ownAttrs are those that an instance does not have from its base.
var ownAttrs = map[string]bool{"instance.allow": true, "nic/N/mac": true, "nic/N/tap": true}

// word is what allows to set a: the first part of its name.
func (a *Attr) word() string {
	word, _, _ := strings.Cut(a.Name, "/")
	return strings.TrimSuffix(word, ".allow")
}

// giveTo makes a file another's, if it is not his.
func (d *definition) giveTo(path string, uid uint32, mode int64) {
	if uid != d.owner() {
		d.nodes[path] = node{mode, int64(uid), unset}
	}
}
