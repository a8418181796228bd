package ctl

import (
	"context"
	"os"
	"slices"
)

// want is a file of a launch: where it is named, and where it goes.
type want struct {
	attr string
	Want
	uid  uint32
	take func(o Opened)
}

// wants lists the files in the order in which vmd opens them: kernel or
// firmware, cdrom, disks.
func (d *definition) wants(spec *Launch) []want {
	var list []want
	file := func(attr, format string, write bool, take func(Opened)) {
		if v := d.attrs[attr]; v.text != "" {
			list = append(list, want{attr, Want{v.text, write, format}, v.uid, take})
		}
	}
	only := func(to **os.File) func(Opened) {
		return func(o Opened) { *to = o[0].File }
	}
	file("kernel", FormatRaw, false, only(&spec.Kernel))
	file("initrd", FormatRaw, false, only(&spec.Initrd))
	file("firmware", FormatFirmware, false, func(o Opened) {
		spec.Firmware = o[0].File
		if len(o) > 1 {
			spec.Vars = o[1].File
		}
	})
	file("cdrom", FormatRaw, false, only(&spec.Cdrom))
	for _, n := range d.numbers("disk") {
		readonly := d.get(diskAttr(n, "readonly")) == "yes"
		file(diskAttr(n, "path"), d.get(diskAttr(n, "format")), !readonly, func(o Opened) {
			spec.Disks = append(spec.Disks, LaunchDisk{N: n, ReadOnly: readonly, Images: o})
		})
	}
	return list
}

// open has every file of a launch opened with the rights of who set its
// path. One request a user, users in the order of their first file.
func (vm *VM) open(ctx context.Context, d *definition, spec *Launch) error {
	list := d.wants(spec)
	opened := make([]Opened, len(list))
	var done []uint32
	for _, first := range list {
		if slices.Contains(done, first.uid) {
			continue
		}
		done = append(done, first.uid)
		if err := vm.openAs(ctx, first.uid, list, opened); err != nil {
			for _, o := range opened {
				o.Close()
			}
			return err
		}
	}
	for i, w := range list {
		w.take(opened[i])
	}
	return vm.ownVars(d, spec)
}

func (vm *VM) openAs(ctx context.Context, uid uint32, list []want, opened []Opened) error {
	var wants []Want
	var at []int
	for i, w := range list {
		if w.uid == uid {
			wants, at = append(wants, w.Want), append(at, i)
		}
	}
	got, err := vm.m.Host.Open(ctx, uid, wants)
	if err != nil {
		return err
	}
	for k, o := range got {
		opened[at[k]] = o
	}
	return nil
}
