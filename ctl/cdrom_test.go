package ctl_test

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vmfs/ctl"
)

func TestCdromLive(t *testing.T) {
	m, vm, host := machine(t)
	one, two := file(t, "one.iso", "1"), file(t, "two.iso", "2")
	ok(t, vm.Set(root, "cdrom", one))
	ok(t, vm.Do(ctx, root, "start", ""))
	holds := func(want string) {
		t.Helper()
		if got := host.Guest(1).Medium(); got != want || vm.Get("cdrom") != want {
			t.Errorf("drive %q, attribute %q, want %q", got, vm.Get("cdrom"), want)
		}
	}
	holds(one)

	ok(t, vm.Set(alice, "cdrom", two))
	holds(two)
	if uid := host.Asked[len(host.Asked)-1]; uid != alice.UID {
		t.Errorf("opened as %d, want who set it", uid)
	}
	if w := host.Wants[0]; w != (ctl.Want{Path: two, Format: "raw"}) {
		t.Errorf("wanted %+v", w)
	}
	if p := vm.Pending(); p != "" {
		t.Errorf("pending %q", p)
	}

	// What cannot be had changes nothing, also as a part of more.
	edition := vm.Edition()
	refused(t, vm.Set(root, "cdrom", "/no/such.iso"), syscall.ENOENT, "/no/such.iso")
	refused(t, vm.Edit(root, "note new\ncdrom /no/such.iso\n"), syscall.ENOENT, "/no/such.iso")
	host.Refused = func(step string) error { return ctl.Errorf(syscall.EIO, "%s: no", step) }
	refused(t, vm.Set(root, "cdrom", one), syscall.EIO, "cdrom: no")
	host.Refused = nil
	holds(two)
	if vm.Edition() != edition || vm.Get("note") != "" {
		t.Errorf("edition %d, note %q after refusals", vm.Edition(), vm.Get("note"))
	}

	// Nor does what cannot be saved.
	kept := filepath.Join(m.State, "vm", "web")
	ok(t, os.Rename(kept, kept+".away"))
	refused(t, vm.Set(root, "cdrom", one), syscall.ENOENT, "the state directory")
	ok(t, os.Rename(kept+".away", kept))
	holds(two)

	// Paused, and with a whole definition.
	ok(t, vm.Do(ctx, root, "pause", ""))
	ok(t, vm.Edit(root, "cdrom "+one+"\n"))
	holds(one)
	asked := len(host.Asked)
	ok(t, vm.Set(alice, "cdrom", one))
	ok(t, vm.Set(alice, "note", "not the drive's"))
	if len(host.Asked) != asked {
		t.Error("opened for no change")
	}
	ok(t, vm.Set(root, "cdrom", ""))
	holds("")

	ok(t, vm.Do(ctx, root, "kill", ""))
	ok(t, vm.Set(root, "cdrom", "/no/such.iso"))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.ENOENT, "/no/such.iso")
}

// What a machine starts with is fixed while it starts.
func TestCdromWhileStarting(t *testing.T) {
	_, vm, host := machine(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	host.Blocking = func(context.Context) { close(begun); <-goOn }
	started := make(chan error)
	go func() { started <- vm.Do(ctx, root, "start", "") }()
	<-begun
	refused(t, vm.Set(root, "cdrom", file(t, "iso", "1")), syscall.EBUSY, "web is starting")
	ok(t, vm.Set(root, "note", "is not"))
	close(goOn)
	ok(t, <-started)
	ok(t, vm.Set(root, "cdrom", file(t, "iso", "1")))
}
