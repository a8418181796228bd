package ctl_test

import (
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
)

// In a daemon that a user started, he is in root's place, and root is not.
func TestRuler(t *testing.T) {
	ctl.RuledBy(alice.UID, alice.GID)
	defer ctl.RuledBy(0, 0)
	m, vm, host := machine(t)
	own := ctl.Default{Mode: 0o644, Root: true}
	want := ctl.Access{Mode: 0o644, UID: alice.UID, GID: alice.GID}
	if got := vm.Access("nic/0/locked", own); got != want {
		t.Errorf("what is root's is %v, want alice's: %v", got, want)
	}
	if a := ctl.RootAccess(0o600); !a.Allows(alice, ctl.MayWrite) || a.Allows(root, ctl.MayRead) {
		t.Errorf("%v: alice may not, or root may", a)
	}
	if a := (ctl.Access{UID: 5}); !a.Allows(alice, ctl.MayRead|ctl.MayWrite) {
		t.Error("alice does not rule")
	}
	m.Refused(root, "ctl", syscall.EACCES)
	m.Refused(alice, "ctl", syscall.EINVAL)
	if all, own := m.Refusals(alice.UID, ""), m.Refusals(0, ""); strings.Count(all, "\n") != 2 || strings.Count(own, "\n") != 1 {
		t.Errorf("alice reads %q, root %q", all, own)
	}

	// A NIC has no tap there, and the start says what it may have.
	ok(t, vm.AddPart(alice, ctl.Part{Dir: "nic"}))
	refused(t, vm.Do(ctx, alice, "start", ""), syscall.EPERM, "nic/0/user yes")
	ok(t, vm.Edit(alice, "nic/0/user yes\n"))
	for _, c := range []struct{ config, undo, words string }{
		{"nic/0/local yes\n", "-nic/0/local\n", "nic/0/local"},
		{"nic/0/switch lan\n", "-nic/0/switch\n", "nic/0/switch"},
		{"nic/0/tap tap3\n", "-nic/0/tap\n", "nic/0/tap"},
		{"nic/0/up no\n", "-nic/0/up\n", "nic/0/up"},
	} {
		ok(t, vm.Edit(alice, c.config))
		refused(t, vm.Do(ctx, alice, "start", ""), syscall.EINVAL, c.words)
		ok(t, vm.Edit(alice, c.undo))
	}
	ok(t, vm.Do(ctx, alice, "start", ""))
	if !host.Guest(1).Outward() {
		t.Error("the guest has no network")
	}
	if ifname := vm.NICIfname(0); ifname != "" {
		t.Errorf("a NIC of the engine's own has the interface %s", ifname)
	}
	ok(t, vm.Set(alice, "nic/0/switch", "")) // nothing is plugged
	ok(t, vm.Do(ctx, alice, "kill", ""))
}
