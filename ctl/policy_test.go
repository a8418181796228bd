package ctl_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

// files are the files of a machine that these tests know.
func files(path string) (ctl.Default, bool) {
	mode, ok := map[string]uint32{"": 0o755, "cpus": 0o640, "do/start": 0o660, "live/console": 0o600}[path]
	return ctl.Default{Mode: mode}, ok
}

func TestModes(t *testing.T) {
	_, vm, _ := machine(t)
	if got, want := vm.Modes(files), "begin\n. 0755 52001 52001\nend\n"; got != want {
		t.Errorf("modes: %q, want %q", got, want)
	}
	ok(t, vm.SetModes(root, "do/start 0660 root 100\n# a comment\nlive/console 640 52001 52001\n", files))
	want := "begin\n. 0755 52001 52001\ndo/start 0660 root users\nlive/console 0640 52001 52001\nend\n"
	if got := vm.Modes(files); got != want {
		t.Errorf("modes:\n%swant:\n%s", got, want)
	}
	for text, words := range map[string]string{
		"cpus 0600 root\n":                         "not `path mode owner group`",
		"colour 0600 root root\n":                  "colour: no such file",
		"cpus 4755 root root\n":                    "no mode",
		"cpus 0600 nobody-there root\n":            "owner nobody-there",
		"cpus 0600 root nobody-there\n":            "group nobody-there",
		"cpus 0600 4294967295 root\n":              "owner 4294967295",
		"cpus 0600 root root\ncpus 0644 root root": "newline",
		"begin\ncpus 0600 root root\n":             "a line end",
		"-.\n":                                     "cannot be unset",
	} {
		refused(t, vm.SetModes(root, text, files), syscall.EINVAL, words)
	}
	if got := vm.Modes(files); got != want {
		t.Errorf("refused texts changed it:\n%s", got)
	}
	ok(t, vm.SetModes(root, want, files))
	ok(t, vm.SetModes(root, "-live/console\n", files))
	ok(t, vm.SetModes(root, "begin\ncpus 0600 52001 52001\nend\n", files))
	if got, want := vm.Modes(files), "begin\n. 0755 52001 52001\ncpus 0600 52001 52001\nend\n"; got != want {
		t.Errorf("modes:\n%swant:\n%s", got, want)
	}
}

// Writing modes grants nothing that chmod and chown would not.
func TestModesAreNoWayAroundChown(t *testing.T) {
	_, vm, _ := machine(t)
	ops := ctl.Cred{UID: 52001, GID: 52001, Groups: []uint32{100}}
	ok(t, vm.SetModes(ops, "cpus 0644 52001 users\n", files))
	refused(t, vm.SetModes(ops, "cpus 0644 root users\n", files), syscall.EPERM, "only root gives a file away")
	refused(t, vm.SetModes(ops, "cpus 0644 52001 root\n", files), syscall.EPERM, "not in group root")
	other := ctl.Cred{UID: 52002, GID: 52002}
	refused(t, vm.SetModes(other, "cpus 0666 52001 users\n", files), syscall.EPERM, "it is 52001's")
	refused(t, vm.SetModes(other, "begin\nend\n", files), syscall.EPERM, "it is 52001's")
	ok(t, vm.SetModes(other, "cpus 0644 52001 users\n", files)) // no change
}

func TestConfigOld(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	vm, err := open(t, dir, host).Create(root, "web", 0o755, 0)
	ok(t, err)
	if vm.ConfigOld() != "" || vm.Edition() != 0 {
		t.Errorf("new: %q, edition %d", vm.ConfigOld(), vm.Edition())
	}
	ok(t, vm.Edit(root, "cpus 2\nnote a b\n"))
	ok(t, vm.Edit(root, "cpus 3\n"))
	ok(t, vm.Edit(root, "cpus 3\n"))
	vm = open(t, dir, host).VM("web")
	if want := "begin\ncpus 2\nnote a b\nend\n"; vm.ConfigOld() != want || vm.Edition() != 2 {
		t.Errorf("config.old %q, edition %d, want %q, 2", vm.ConfigOld(), vm.Edition(), want)
	}
	ok(t, vm.Replace(root, vm.ConfigOld()))
	if vm.Get("cpus") != "2" {
		t.Errorf("cpus is %s after taking it back", vm.Get("cpus"))
	}
	ok(t, vm.Edit(root, "edition 3\ncpus 4\n"))
	refused(t, vm.Edit(root, "edition 3\ncpus 5\n"), syscall.EBUSY, "the present one is 4")
}

func TestEphemeral(t *testing.T) {
	m, vm, host := machine(t)
	ok(t, vm.Do(ctx, root, "start", ""))
	ok(t, vm.Set(root, "ephemeral", "yes"))
	if got := vm.Pending(); got != "" {
		t.Errorf("pending: %q", got)
	}
	host.Guest(1).EndAs(ctl.Exit{Failed: true, Who: "host", How: "boom"})
	becomes(t, vm, "failed boom")
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	ok(t, vm.Do(ctx, root, "start", ""))
	ok(t, vm.Do(ctx, root, "kill", ""))
	await(t, "the machine's end", func() bool { return m.VM("web") == nil })
}

func TestAutostart(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := openIn(t, "boot-1", dir, host)
	for _, name := range []string{"a", "b", "c"} {
		vm, err := m.Create(root, name, 0o755, 0)
		ok(t, err)
		ok(t, vm.Set(root, "kernel", file(t, "k", "k")))
		if name != "b" {
			ok(t, vm.Set(root, "autostart", "1"))
		}
	}
	ok(t, m.Autostart(ctx))
	becomes(t, m.VM("a"), "running")
	becomes(t, m.VM("c"), "running")
	if m.VM("b").Status() != "stopped\n" || !strings.Contains(m.VM("a").EventsText(), " starting -") {
		t.Errorf("b is %s, a's events:\n%s", m.VM("b").Status(), m.VM("a").EventsText())
	}
	ok(t, m.VM("a").Do(ctx, root, "kill", ""))
	host.Abandon()
	m = openIn(t, "boot-1", dir, host)
	ok(t, m.Autostart(ctx))
	time.Sleep(20 * time.Millisecond)
	if m.VM("a").Status() != "stopped\n" {
		t.Error("it acted twice in one boot")
	}
	host.Abandon()
	m = openIn(t, "boot-2", dir, host)
	ok(t, m.Autostart(ctx))
	becomes(t, m.VM("a"), "running")
}

func TestCreateFree(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	_, err := m.Create(root, "vm1", 0o755, 0)
	ok(t, err)
	vm, err := m.CreateFree(alice, 0o755, 5)
	ok(t, err)
	if vm.Name() != "vm2" || !vm.Untouched() {
		t.Errorf("got %s, untouched %v", vm.Name(), vm.Untouched())
	}
	ok(t, vm.Set(alice, "cpus", "2"))
	if vm.Untouched() {
		t.Error("still untouched")
	}
}

func TestMetrics(t *testing.T) {
	m, vm, _ := machine(t)
	ok(t, vm.Do(ctx, root, "start", ""))
	m.Refused(root, "x", syscall.EPERM)
	text := m.MetricsText()
	for _, want := range []string{"vmfs_info{version=\"test\"} 1\n", "vmfs_machines{status=\"running\"} 1\n", "vmfs_starts_total 1\n",
		"vmfs_refusals_total 1\n", "vmfs_memory_bytes 536870912\n", "vmfs_cpus 1\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if !strings.HasSuffix(text, "\n# EOF\n") || strings.Count(text, "# TYPE") != len(ctl.Metrics) {
		t.Errorf("form:\n%s", text)
	}
}

// A removed definition stays for 30 days, counted from its removal and not
// from its last change, and goes with the first daemon after that.
func TestRemovedIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, host := t.TempDir(), ctltest.NewHost()
		m := open(t, dir, host)
		vm, err := m.Create(alice, "web", 0o755, 52001)
		ok(t, err)
		ok(t, vm.Set(alice, "note", "kept"))
		time.Sleep(365 * 24 * time.Hour)
		ok(t, m.Remove(root, vm))
		kept := func() string {
			open(t, dir, host)
			found, _ := filepath.Glob(dir + "/removed/web.*/definition.1")
			if len(found) == 0 {
				return ""
			}
			text, err := os.ReadFile(found[0])
			ok(t, err)
			return string(text)
		}
		time.Sleep(30 * 24 * time.Hour)
		if text := kept(); !strings.Contains(text, "note") {
			t.Errorf("after 30 days it is %q", text)
		}
		time.Sleep(time.Second)
		if text := kept(); text != "" {
			t.Errorf("after more it is still %q", text)
		}
	})
}

// On a machine that runs each attribute acts at once or waits in pending, as
// the table of attributes says, and a start takes all that waits.
func TestLiveOrPending(t *testing.T) {
	m, vm, _ := machine(t)
	_, err := m.CreateSwitch(root, "lan", 0o755, 0)
	ok(t, err)
	ok(t, vm.AddPart(root, ctl.Part{Dir: "nic"}))
	ok(t, vm.Do(ctx, root, "start", ""))
	values := map[string]string{
		"cpus": "2", "memory": "1G", "kernel": "/k", "initrd": "/i", "cmdline": "a b", "firmware": "/f", "cdrom": file(t, "cd", "cd"),
		"boot": "net", "engine": "qemu", "autostart": "yes", "ephemeral": "yes", "note": "a note",
		"disk/0/path": "/d", "disk/0/format": "qcow2", "disk/0/readonly": "yes",
		"nic/0/switch": "lan", "nic/0/mac": "fe:e1:bb:d1:00:01", "nic/0/local": "yes", "nic/0/up": "no", "nic/0/user": "yes",
		"nic/0/tap": "tap9", "nic/0/group": "ops", "nic/0/rdomain": "7", "nic/0/locked": "yes",
	}
	for _, a := range ctl.Attrs {
		path := strings.Replace(a.Name, "N", "0", 1)
		before := vm.Pending()
		ok(t, vm.Set(root, path, values[path]))
		added := strings.Contains("\n"+vm.Pending(), "\n"+path+" ")
		if added == a.Live || a.Live && vm.Pending() != before {
			t.Errorf("%s, live %v: pending:\n%s", path, a.Live, vm.Pending())
		}
	}
	ok(t, vm.Set(root, "cpus", "1"))
	if strings.Contains(vm.Pending(), "cpus") {
		t.Errorf("what is again as it runs waits:\n%s", vm.Pending())
	}
}
