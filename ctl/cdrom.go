package ctl

import (
	"context"
	"os"
	"syscall"
	"time"
)

// cdromTime bounds a change of what is in the drive of a machine that runs:
// the time of an opener, and that of a guest process.
const cdromTime = 10 * time.Second

// drive is a cdrom drive in which a change of the definition changes the
// medium. Called with VM.edit held.
type drive struct {
	vm  *VM
	was value // what is put back by undo
	did bool
}

// changeMedium makes the drive hold what a changed definition says.
func (vm *VM) changeMedium(was, now *definition) (undo func(), err error) {
	d := drive{vm: vm, was: was.attrs["cdrom"]}
	return d.undo, d.change(now.attrs["cdrom"])
}

// change puts the medium now into the drive of a machine that runs, opened
// with the rights of who set it and as they are now. With an error the old
// one is in there, and the definition is not to change either.
func (d *drive) change(now value) error {
	if now.text == d.was.text {
		return nil
	}
	g, err := d.vm.driven()
	if err != nil || g == nil {
		return err
	}
	if err := d.vm.insert(g, now); err != nil {
		return err
	}
	d.did = true
	return nil
}

// undo puts back what was there, since the definition could not be saved.
func (d *drive) undo() {
	if !d.did {
		return
	}
	g, err := d.vm.driven()
	if err == nil && g != nil {
		err = d.vm.insert(g, d.was)
	}
	if err != nil {
		d.vm.m.failed("vm %s: cdrom: %v", d.vm.Name(), err)
	}
}

// driven is the guest whose drive follows the definition; nil for a machine
// that does not run.
func (vm *VM) driven() (Guest, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch {
	case vm.launch == nil:
		return nil, nil
	case vm.state == Starting:
		return nil, Errorf(syscall.EBUSY, "cdrom: %s is starting, and what it starts with is fixed", vm.Name())
	case vm.launch.guest == nil:
		return nil, Errorf(syscall.EAGAIN, "cdrom: the guest process of %s does not answer", vm.Name())
	}
	return vm.launch.guest, nil
}

// insert opens a medium and gives it to the guest.
func (vm *VM) insert(g Guest, medium value) error {
	ctx, cancel := context.WithTimeout(context.Background(), cdromTime)
	defer cancel()
	var f *os.File
	if medium.text != "" {
		opened, err := vm.m.Host.Open(ctx, medium.uid, []Want{{Path: medium.text, Format: FormatRaw}})
		if err != nil {
			return Errorf(Errno(err), "cdrom: %v", err)
		}
		defer opened[0].Close()
		f = opened[0][0].File
	}
	err := g.Cdrom(ctx, f)
	switch Errno(err) {
	case syscall.EPIPE: // its process is gone, and its drive
		return nil
	case syscall.EBUSY:
		return Errorf(syscall.EBUSY, "cdrom %s: locked by %s", medium.text, vm.m.holder(f, false))
	}
	return err
}
