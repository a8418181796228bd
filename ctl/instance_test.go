package ctl_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

// policies are the files of a machine of which an instance's matter.
func policies(path string) (ctl.Default, bool) {
	for _, a := range ctl.Attrs {
		if path == strings.Replace(a.Name, "/N/", "/0/", 1) {
			return a.Access(), true
		}
	}
	def, ok := map[string]ctl.Default{"": {Mode: 0o755}, "disk": {Mode: 0o750}, "nic": {Mode: 0o750}, "instance": ctl.InstanceAccess}[path]
	return def, ok
}

// base makes a machine of root's with one of everything.
func base(t *testing.T, m *ctl.Manager, allow string) *ctl.VM {
	t.Helper()
	vm := bare(t, m, root, "base", "cpus 2\nmemory 64M\nkernel "+file(t, "vmlinuz", "kernel")+"\ncmdline quiet\ncdrom "+file(t, "cd", "cd")+
		"\nboot cdrom\nnote a note\ndisk/0/path /d\nnic/0/switch lan\nnic/0/mac 02:00:00:00:00:01\nnic/0/tap tap9\nnic/0/group ops\n")
	ok(t, vm.Set(root, "instance.allow", allow))
	return vm
}

func instance(t *testing.T, m *ctl.Manager, by ctl.Cred, of *ctl.VM, name string) *ctl.VM {
	t.Helper()
	vm, err := m.Instance(by, of, name, 0o755, 100)
	ok(t, err)
	return vm
}

// An instance has all but disks, MACs, names of taps, modes and what the base
// allows, and belongs to who made it; of its attributes, those that the base
// does not allow belong to the base's owner.
func TestInstance(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	of := base(t, m, "memory cpus  cpus")
	if got := of.Get("instance.allow"); got != "cpus memory" {
		t.Errorf("instance.allow is %q", got)
	}
	mode := uint32(0o666)
	ok(t, of.SetAccess(root, "cmdline", ctl.AccessChange{Mode: &mode}))
	vm := instance(t, m, alice, of, "mine")
	mac := vm.Get("nic/0/mac")
	want := strings.NewReplacer("disk/0/path /d\n", "", "nic/0/tap tap9\n", "", "02:00:00:00:00:01", mac, "instance.allow cpus memory\n", "").Replace(of.Config())
	if got := vm.Config(); got != want || !strings.HasPrefix(mac, "fe:e1:bb:d1:") {
		t.Errorf("config:\n%swant:\n%s", got, want)
	}
	policy := "begin\n. 0755 52001 users\n"
	for _, path := range []string{"autostart", "boot", "cdrom", "cmdline", "disk", "engine", "ephemeral", "firmware", "initrd", "instance", "instance.allow", "kernel",
		"nic", "nic/0/local", "nic/0/mac", "nic/0/switch", "nic/0/up", "nic/0/user", "note"} {
		mode := map[string]string{"disk": "0755", "nic": "0755", "instance": "0200"}[path]
		if mode == "" {
			mode = "0640"
		}
		policy += path + " " + mode + " root users\n"
	}
	if got := vm.Modes(policies); got != policy+"end\n" {
		t.Errorf("modes:\n%swant:\n%send\n", got, policy)
	}
	if got := vm.EventsText(); !strings.HasSuffix(got, " vm/mine created 52001 instance of base\n") {
		t.Errorf("events: %q", got)
	}
	m = open(t, dir, host)
	if again := m.VM("mine"); again.Config() != want || again.Modes(policies) != policy+"end\n" {
		t.Errorf("after a restart:\n%s%s", again.Config(), again.Modes(policies))
	}
}

// What is not allowed cannot be changed by way of config either.
func TestInstanceLimits(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	of := base(t, m, "memory cdrom")
	vm := instance(t, m, alice, of, "mine")
	config := vm.Config()
	for _, line := range []string{
		"cpus 1", "-cpus", "kernel /k", "cmdline x", "-cmdline", "boot disk", "note mine", "instance.allow cpus", "disk/0/path /d", "disk/0/readonly no",
		"-nic/0", "nic/0/switch wan", "nic/0/up no", "nic/1/up no", "nic/0/tap tap1", "nic/0/group wan", "-nic/0/group", "nic/0/mac 02:00:00:00:00:02",
		"ephemeral yes", "memory 1G\ncpus 8\n",
	} {
		refused(t, vm.Edit(alice, line), syscall.EACCES, "52001 may not write it")
	}
	for _, text := range []string{"begin\nend\n", strings.Replace(config, "cpus 2", "cpus 3", 1), strings.Replace(config, "begin\n", "begin\ndisk/0/readonly no\n", 1),
		strings.Replace(config, "begin\n", "begin\nnic/7/up yes\n", 1)} {
		refused(t, vm.Replace(alice, text), syscall.EACCES, "52001 may not write it")
	}
	refused(t, vm.SetModes(alice, "cpus 0660 52001 users\n", policies), syscall.EPERM, "it is root's")
	refused(t, vm.SetModes(alice, "-disk\n", policies), syscall.EPERM, "it is root's")
	refused(t, vm.SetModes(alice, "begin\n. 0700 52001 users\nend\n", policies), syscall.EPERM, "it is root's")
	if got := vm.Config(); got != config {
		t.Errorf("refused lines changed it:\n%s", got)
	}
	ok(t, vm.Edit(alice, "memory 1G\ncdrom /cd\n"))
	ok(t, vm.Replace(alice, strings.Replace(vm.Config(), "memory 1024M", "memory 32M", 1)))
	ok(t, vm.Edit(root, "cpus 4\ndisk/0/readonly yes\nnic/1/up no\n"))

	// What root adds of the sort is not the owner's either.
	refused(t, vm.Edit(alice, "disk/0/path /d\n"), syscall.EACCES, "disk/0/path: it is root's")
	refused(t, vm.Edit(alice, "nic/1/up yes\n"), syscall.EACCES, "nic/1/up: it is root's")
	ok(t, vm.Replace(root, strings.Replace(vm.Config(), "begin\n", "begin\ndisk/3/readonly yes\n", 1)))
	refused(t, vm.Edit(alice, "disk/3/path /d\n"), syscall.EACCES, "disk/3/path: it is root's")
}

// Disks and NICs that are allowed are his own, but for what is root's of them.
func TestInstanceParts(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	of := base(t, m, "disk nic instance")
	vm := instance(t, m, alice, of, "mine")
	ok(t, vm.Edit(alice, "disk/0/path /mine\ndisk/1/path /more\n-disk/1\nnic/0/switch wan\nnic/0/mac 02:00:00:00:00:07\nnic/1/local yes\n-nic/1\ninstance.allow disk\n"))
	for _, line := range []string{"nic/0/group x", "-nic/0", "nic/0/locked yes", "nic/2/tap tap4"} {
		refused(t, vm.Edit(alice, line), syscall.EACCES, "52001 may not write it")
	}
	if got := vm.Get("instance.allow") + vm.Get("nic/0/switch"); got != "diskwan" {
		t.Errorf("got %s", got)
	}
}

// Nobody allows what he was not allowed himself, and what he does not allow
// stays whose it was.
func TestInstanceOfInstance(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	of := instance(t, m, alice, base(t, m, "instance memory cpus"), "mine")
	ok(t, of.Set(alice, "instance.allow", "cpus boot disk nic cdrom"))
	vm := instance(t, m, bob, of, "his")
	ok(t, vm.Edit(bob, "cpus 1\n"))
	for line, words := range map[string]string{
		"memory 1G": "it is 52001's", "instance.allow cpus": "it is 52001's", "boot disk": "it is root's", "disk/0/path /d": "disk: it is root's",
		"nic/0/up no": "it is root's", "cdrom /c": "it is root's", "kernel /k": "it is root's",
	} {
		refused(t, vm.Edit(bob, line), syscall.EACCES, words)
	}
	ok(t, vm.Edit(alice, "memory 1G\n"))
}

// Inherited paths are opened with the rights of who set them in the base, his
// own disks with his, and the switch is attached with those of its setter.
func TestInstanceRights(t *testing.T) {
	host := ctltest.NewHost()
	m := open(t, t.TempDir(), host)
	create(t, m, "lan", "")
	of := base(t, m, "disk nic")
	ok(t, of.Set(bob, "cdrom", ""))
	ok(t, of.Set(bob, "cdrom", file(t, "cd", "cd")))
	vm := instance(t, m, alice, of, "mine")
	ok(t, vm.Set(alice, "disk/0/path", file(t, "disk", "disk")))
	host.Asked = nil
	ok(t, vm.Do(ctx, ops, "start", ""))
	if want := []uint32{0, bob.UID, alice.UID}; !slices.Equal(host.Asked, want) {
		t.Errorf("files were opened for %v, want %v", host.Asked, want)
	}
	usage(t, m, alice, "1 2 64M 1")
	refused(t, vm.Set(alice, "nic/0/switch", "wan"), syscall.ENOENT, "no switch wan")
	create(t, m, "wan", "")
	refused(t, vm.Set(alice, "nic/0/switch", "wan"), syscall.EACCES, "52001, who set it, may not write switch/wan/ports")
	ok(t, vm.Do(ctx, alice, "kill", ""))
	ok(t, m.Remove(alice, vm))
	usage(t, m, alice, "0 0 0M 0")
}

func TestInstancesThatCannotBe(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	of := base(t, m, "")
	make := func(name string) error {
		_, err := m.Instance(alice, of, name, 0o755, 0)
		return err
	}
	ok(t, of.SetAccess(root, "instance", ctl.AccessChange{UID: &alice.UID}))
	refused(t, make(""), syscall.EINVAL, "name")
	refused(t, make("a b"), syscall.EINVAL, "name")
	refused(t, make("base"), syscall.EEXIST, "taken")
	refused(t, of.Set(root, "instance.allow", "disk kernel"), syscall.EINVAL, "not one of boot cdrom")
	limits(t, m, "52001", "1")
	ok(t, make("a"))
	refused(t, m.VM("a").Edit(alice, "instance.allow cpus\n"), syscall.EACCES, "it is root's")
	if got := m.VM("a").Access("instance", ctl.InstanceAccess).UID; got != 0 {
		t.Errorf("instance of an instance belongs to %d", got)
	}
	refused(t, make("b"), syscall.EDQUOT, "mkdir b: vms: 52001 would have 2: at most 1")
	if len(m.VMs()) != 2 {
		t.Errorf("machines: %v", m.VMs())
	}
	ok(t, m.Remove(root, of))
	limits(t, m, "52001", "max")
	refused(t, make("b"), syscall.ENOENT, "base: the machine was removed")

	// His own instance is all his.
	of = bare(t, m, alice, "own", "cpus 2\n")
	ok(t, make("c"))
	of = m.VM("own")
	vm := instance(t, m, alice, of, "d")
	ok(t, vm.Edit(alice, "cpus 3\nkernel /k\ndisk/0/path /d\ninstance.allow cpus\n"))
}
