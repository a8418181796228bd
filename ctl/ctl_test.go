package ctl_test

import (
	"context"
	"errors"
	"fmt"
	"io"
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

var (
	ctx   = context.Background()
	root  = ctl.Cred{}
	alice = ctl.Cred{UID: 52001, GID: 52001}
)

// open starts a daemon's half on dir and host.
func open(t *testing.T, dir string, host ctl.Host) *ctl.Manager {
	t.Helper()
	return openIn(t, "boot-1", dir, host)
}

// openIn is open in a boot of the host.
func openIn(t *testing.T, boot, dir string, host ctl.Host) *ctl.Manager {
	t.Helper()
	m, err := ctl.Open(ctx, ctl.Options{State: dir, Boot: boot, Version: "test", Host: host, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// machine makes a daemon with one machine that has a kernel and a disk.
func machine(t *testing.T) (*ctl.Manager, *ctl.VM, *ctltest.Host) {
	t.Helper()
	host := ctltest.NewHost()
	m := open(t, t.TempDir(), host)
	vm, err := m.Create(alice, "web", 0o755, 52001)
	if err != nil {
		t.Fatal(err)
	}
	ok(t, vm.Set(alice, "kernel", file(t, "vmlinuz", "kernel")))
	ok(t, vm.Set(root, "disk/0/path", file(t, "disk.raw", "disk")))
	return m, vm, host
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused wants err to carry errno and to say what words say.
func refused(t *testing.T, err error, errno syscall.Errno, words string) {
	t.Helper()
	if !errors.Is(err, errno) || !strings.Contains(err.Error(), words) {
		t.Errorf("got %v (%v), want %v that says %q", err, ctl.Errno(err), errno, words)
	}
}

// await waits for a condition.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited a minute in vain for %s", what)
}

// becomes waits for a status.
func becomes(t *testing.T, vm *ctl.VM, want string) {
	t.Helper()
	await(t, fmt.Sprintf("%s to be %q", vm.Name(), want), func() bool { return strings.TrimSuffix(vm.Status(), "\n") == want })
}

func TestNames(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	for _, name := range []string{"", ".", "..", ".a", "-a", "_a", "a/b", "a b", "ä", strings.Repeat("a", 64), "a\n"} {
		_, err := m.Create(root, name, 0o755, 0)
		refused(t, err, syscall.EINVAL, "the first a letter or digit")
	}
	for _, name := range []string{"a", "9", "A.b-c_d", strings.Repeat("a", 63)} {
		_, err := m.Create(root, name, 0o755, 0)
		ok(t, err)
		_, err = m.Create(root, name, 0o755, 0)
		refused(t, err, syscall.EEXIST, "taken")
	}
}

func TestValues(t *testing.T) {
	_, vm, _ := machine(t)
	for _, c := range []struct{ attr, in, want string }{
		{"cpus", "8", "8"}, {"cpus", "08", "8"}, {"memory", "1G", "1024M"}, {"memory", "1048576", "1M"},
		{"memory", "1536k", "1M"}, {"memory", "16T", "16777216M"}, {"disk/0/readonly", "1", "yes"},
		{"disk/0/readonly", "0", "no"}, {"boot", "cdrom", "cdrom"}, {"cmdline", " a  b", " a  b"},
	} {
		ok(t, vm.Set(root, c.attr, c.in))
		if got := vm.Get(c.attr); got != c.want {
			t.Errorf("%s %q reads %q, want %q", c.attr, c.in, got, c.want)
		}
		ok(t, vm.Set(root, c.attr, ""))
	}
	if got := vm.Get("cpus") + vm.Get("memory") + vm.Get("cmdline") + vm.Get("boot"); got != "1512Mdisk" {
		t.Errorf("defaults read %q", got)
	}
	for attr, bad := range map[string][]string{
		"cpus":            {"0", "65", "-1", "1.5", "x", " 1", "1 ", "+1"},
		"memory":          {"0", "1023K", "17T", "M", "-1M", "1MM", "99999999999999999999", "1P"},
		"kernel":          {"vmlinuz", "/a\x00", "/a\rb", "/" + strings.Repeat("a", 4095)},
		"cmdline":         {strings.Repeat("a", 2048), "a\tb", "a\x1bb"},
		"boot":            {"floppy", "Disk"},
		"disk/0/readonly": {"maybe", "YES"},
		"disk/0/format":   {"vmdk"},
		"disk/16":         {"/a"}, "disk/01": {"/a"}, "disk/-1": {"/a"}, "colour": {"red"}, "disk/0/colour": {"red"},
	} {
		for _, v := range bad {
			before := vm.Get(attr)
			refused(t, vm.Set(root, attr, v), syscall.EINVAL, attr)
			if vm.Get(attr) != before {
				t.Errorf("%s changed to %q by the refused %q", attr, vm.Get(attr), v)
			}
		}
	}
}

func TestNothingChangesWhenWhatIsThereIsWritten(t *testing.T) {
	m, vm, _ := machine(t)
	ok(t, vm.Set(alice, "cpus", "2"))
	config, mtime, events := vm.Config(), vm.Mtime("cpus"), m.EventsText()
	ok(t, vm.Set(root, "cpus", "2"))
	ok(t, vm.Set(root, "memory", "512M"))
	ok(t, vm.Replace(root, config))
	ok(t, vm.Edit(root, "cpus 2\n# a comment\n\n"))
	if vm.Config() != config || !vm.Mtime("cpus").Equal(mtime) || m.EventsText() != events {
		t.Errorf("something changed:\n%s%s", vm.Config(), m.EventsText())
	}
}

func TestConfig(t *testing.T) {
	_, vm, _ := machine(t)
	kernel := vm.Get("kernel")
	ok(t, vm.Edit(root, "cpus 4\nmemory 1G\ndisk/1/path /b\n-kernel\n-disk/0\n"))
	want := "begin\ncpus 4\ndisk/1/path /b\nmemory 1024M\nend\n"
	if vm.Config() != want {
		t.Errorf("config:\n%swant:\n%s", vm.Config(), want)
	}
	for text, words := range map[string]string{
		"cpus 2\ncolour red\n":      "line 2: colour: no such attribute",
		"cpus 2\nmemory 2G":         "newline",
		"cpus\n":                    "-cpus unsets it",
		"cpus \n":                   "-cpus unsets it",
		"-disk/7\n":                 "disk/7: no such disk",
		"edition x\n":               "not a number",
		"begin\ncpus 2\n":           "begin",
		"cpus 2\nmemory 1\x01\n":    "line 2",
		"cpus 3\ndisk/99/path /a\n": "numbered 0 to 15",
	} {
		err := vm.Edit(root, text)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: got %v, want %q", text, err, words)
		}
	}
	refused(t, vm.Edit(root, "edition 999\ncpus 2\n"), syscall.EBUSY, "the present one is")
	for _, text := range []string{"begin\n", "begin\ncpus 2\n", "begin\ncpus 2\nend", "cpus 2\nend\n", "begin\nend\nend\n", "begin\ncpus 99\nend\n"} {
		if err := vm.Replace(root, text); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("Replace(%q): %v, want EINVAL", text, err)
		}
	}
	refused(t, vm.Replace(root, "begin\n# x\ncolour red\nend\n"), syscall.EINVAL, "line 3: colour: no such attribute")
	if vm.Config() != want {
		t.Errorf("a refused text changed the definition:\n%s", vm.Config())
	}
	said := "begin\ncpus 1\nkernel " + kernel + "\nend\n"
	ok(t, vm.Replace(root, said))
	if vm.Config() != said {
		t.Errorf("a default that was said is not there:\n%s", vm.Config())
	}
	ok(t, vm.Replace(root, "begin\nkernel "+kernel+"\nend\n"))
	if want := "begin\nkernel " + kernel + "\nend\n"; vm.Config() != want || len(vm.Parts("disk")) != 0 {
		t.Errorf("config:\n%swant:\n%s", vm.Config(), want)
	}
}

func TestEverythingOutlivesTheDaemon(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	vm, err := m.Create(alice, "web", 0o2755, 7)
	ok(t, err)
	ok(t, vm.Edit(alice, "cpus 2\ndisk/3/path /a b\ncmdline x=\"y\"  z\n"))
	mode := uint32(0o640)
	ok(t, vm.SetAccess(root, "do/start", ctl.AccessChange{Mode: &mode, GID: &alice.GID}))
	ok(t, m.SetAccess(root, "vm", ctl.AccessChange{Mode: &mode}))
	ok(t, m.Rename(root, vm, "www"))
	events := m.EventsText()

	m = open(t, dir, host)
	again := m.VM("www")
	if again == nil || m.VM("web") != nil || len(m.VMs()) != 1 {
		t.Fatalf("machines: %v", m.VMs())
	}
	if again.Config() != vm.Config() || again.Serial() != vm.Serial() || again.ID() != vm.ID() || !again.Mtime("cpus").Equal(vm.Mtime("cpus")) {
		t.Errorf("read back:\n%swant:\n%s", again.Config(), vm.Config())
	}
	if got, want := again.Access("do/start", ctl.Default{Mode: 0o660}), (ctl.Access{Mode: 0o640, UID: 52001, GID: 52001}); got != want {
		t.Errorf("do/start is %v, want %v", got, want)
	}
	if got, want := again.Access("do/stop", ctl.Default{Mode: 0o660}), (ctl.Access{Mode: 0o660, UID: 52001, GID: 7}); got != want {
		t.Errorf("do/stop is %v, want %v", got, want)
	}
	if got := m.Access("vm", ctl.Access{Mode: 0o1755}); got.Mode != 0o640 {
		t.Errorf("vm is %v", got)
	}
	if !strings.HasPrefix(m.EventsText(), events) {
		t.Errorf("events:\n%swant at first:\n%s", m.EventsText(), events)
	}
	if other, err := m.Create(root, "new", 0o755, 0); err != nil || other.Serial() <= vm.Serial() || other.ID() != 2 {
		t.Errorf("a new machine has serial %d, id %d, %v", other.Serial(), other.ID(), err)
	}
}

func TestUnknownLinesAreKeptAndRefuseTheStart(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	_, err := m.Create(root, "web", 0o755, 0)
	ok(t, err)
	path := filepath.Join(dir, "vm", "web")
	text := m.VM("web").Saved() + "hologram yes\n"
	ok(t, os.WriteFile(filepath.Join(path, "definition.1"), []byte(ctl.SlotText(text, 2)), 0o600))
	vm := open(t, dir, host).VM("web")
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EINVAL, "hologram")
	if !strings.Contains(vm.Check(ctx), "hologram") {
		t.Errorf("check: %s", vm.Check(ctx))
	}
	ok(t, vm.Set(root, "cpus", "2"))
	if text, _ := os.ReadFile(filepath.Join(path, "definition.0")); !strings.Contains(string(text), "\nhologram yes\n") {
		t.Errorf("the line is gone:\n%s", text)
	}
	ok(t, os.WriteFile(filepath.Join(dir, "vmfs"), []byte("format 2\n"), 0o600))
	if _, err := ctl.Open(ctx, ctl.Options{State: dir, Host: host}); err == nil || !strings.Contains(err.Error(), "format 1, not 2") {
		t.Errorf("a newer format: %v", err)
	}
}

func TestABrokenDefinitionKeepsItsName(t *testing.T) {
	for _, c := range []struct{ name, slot, text, want string }{
		{"none", "console", "login: ", "neither definition.0 nor definition.1 is whole"},
		{"empty", "definition.0", "", "neither definition.0 nor definition.1 is whole"},
		{"spoilt", "definition.1", "id 1\nserial 1\n", "neither definition.0 nor definition.1 is whole"},
		{"senseless", "definition.1", ctl.SlotText("id x\n", 1), "line 1: id:"},
		{"unreadable", "definition.0/x", "", "definition.0: is a directory"},
	} {
		dir, said := t.TempDir(), ""
		path := filepath.Join(dir, "vm", c.name, c.slot)
		ok(t, os.MkdirAll(filepath.Dir(path), 0o700))
		ok(t, os.WriteFile(path, []byte(c.text), 0o600))
		m, err := ctl.Open(ctx, ctl.Options{State: dir, Host: ctltest.NewHost(), Log: func(format string, args ...any) {
			said += fmt.Sprintf(format, args...)
		}})
		ok(t, err)
		defer m.Drop()
		if m.VM(c.name) != nil || len(m.VMs()) != 0 || !strings.Contains(said, c.want) || !strings.HasPrefix(said, "vm "+c.name+": ") {
			t.Errorf("%s: %v served; said %q, want %q", c.name, m.VMs(), said, c.want)
		}
		_, err = m.Create(root, c.name, 0o755, 0)
		refused(t, err, syscall.EEXIST, "taken")
	}
}

func TestLife(t *testing.T) {
	m, vm, host := machine(t)
	ok(t, vm.Do(ctx, alice, "start", ""))
	becomes(t, vm, "running")
	if len(host.Asked) != 2 || host.Asked[0] != alice.UID || host.Asked[1] != 0 {
		t.Errorf("files were opened as %v, want as who set each", host.Asked)
	}
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EALREADY, "start web: it is running")
	refused(t, m.Remove(root, vm), syscall.EBUSY, "running")
	refused(t, m.Rename(root, vm, "www"), syscall.EBUSY, "running")
	ok(t, vm.Do(ctx, root, "pause", ""))
	becomes(t, vm, "paused")
	ok(t, vm.Do(ctx, root, "pause", ""))
	ok(t, vm.Do(ctx, root, "reset", ""))
	ok(t, vm.Do(ctx, root, "resume", ""))
	becomes(t, vm, "running")
	info := vm.Info(ctx)
	for _, want := range []string{"id 1\n", "generation 1\n", "engine qemu 7.2.0 tcg\n", "engine_reason tcg, no kvm: this is a test\n", "pid 1001\n", "cpu_usec 1000000\n", "start_allowed_in_ms 0\n"} {
		if !strings.Contains(info, want) {
			t.Errorf("info has no %q:\n%s", want, info)
		}
	}
	w := vm.OpenWait()
	ok(t, vm.Do(ctx, root, "stop", "60"))
	becomes(t, vm, "stopping")
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EBUSY, "stopping")
	refused(t, vm.Do(ctx, root, "pause", ""), syscall.EINVAL, "stopping")
	host.Guest(1).EndAs(ctl.Exit{Who: "root", How: "stop"})
	if got, err := w.Wait(ctx); got != "stopped\n" || err != nil {
		t.Errorf("wait: %q, %v", got, err)
	}
	if host.Guest(1) != nil {
		t.Error("the guest process is still there")
	}
	if info := vm.Info(ctx); !strings.Contains(info, "exit root 2") || !strings.Contains(info, " stop\n") {
		t.Errorf("info has no exit record:\n%s", info)
	}
	for _, verb := range []string{"stop", "kill"} {
		ok(t, vm.Do(ctx, root, verb, ""))
	}
	for _, verb := range []string{"reset", "pause", "resume"} {
		refused(t, vm.Do(ctx, root, verb, ""), syscall.EINVAL, verb+" web: it is stopped")
	}
	refused(t, vm.Do(ctx, root, "dance", ""), syscall.EINVAL, "no such verb")
	refused(t, vm.Do(ctx, root, "stop", "soon"), syscall.EINVAL, "seconds")
	refused(t, vm.Do(ctx, root, "kill", "now"), syscall.EINVAL, "no argument")
	ok(t, m.Remove(root, vm))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.ENOENT, "removed")
	if _, err := os.Stat(vm.Get("disk/0/path")); err != nil {
		t.Errorf("the image: %v", err)
	}
}

func TestEnds(t *testing.T) {
	_, vm, host := machine(t)
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Guest(1).EndAs(ctl.Exit{Failed: true, Who: "host", How: "qemu exited: signal 11\nboom"})
	becomes(t, vm, "failed qemu exited: signal 11 boom")
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	becomes(t, vm, "stopped")

	ok(t, vm.Do(ctx, root, "start", ""))
	host.Guest(1).Die()
	becomes(t, vm, "failed the guest process died")
	ok(t, vm.Do(ctx, root, "clear-failed", ""))

	ok(t, vm.Do(ctx, root, "start", ""))
	ok(t, vm.Do(ctx, alice, "kill", ""))
	if got := vm.Status(); got != "stopped\n" {
		t.Errorf("after kill it is %q at once", got)
	}
}

func TestFastRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, vm, host := machine(t)
		for range 3 {
			ok(t, vm.Do(ctx, root, "start", ""))
			ok(t, vm.Do(ctx, root, "kill", ""))
		}
		refused(t, vm.Do(ctx, root, "start", ""), syscall.EAGAIN, "allowed again in")
		if vm.Status() != "stopped\n" {
			t.Errorf("a refused start changed the status to %q", vm.Status())
		}
		ok(t, vm.Do(ctx, root, "clear-failed", ""))
		ok(t, vm.Do(ctx, root, "start", ""))
		for n := range 2 {
			host.Guest(1).Reboot()
			await(t, "a reboot", func() bool { return strings.Count(vm.EventsText(), " rebooted ") == n+1 })
			becomes(t, vm, "running")
		}
		host.Guest(1).Reboot()
		becomes(t, vm, "failed rebooted too fast")
		refused(t, vm.Do(ctx, root, "start", ""), syscall.EAGAIN, "allowed again in")
	})
}

func TestAFailedStartKeepsTheDefinition(t *testing.T) {
	for _, step := range []string{"spawn", "give", "go"} {
		_, vm, host := machine(t)
		config := vm.Config()
		host.Refused = func(s string) error {
			if s == step {
				return ctl.Errorf(syscall.ENOMEM, "%s: no room", s)
			}
			return nil
		}
		refused(t, vm.Do(ctx, root, "start", ""), syscall.ENOMEM, "start web: "+step+": no room")
		if got := vm.Status(); got != "failed start web: "+step+": no room\n" {
			t.Errorf("status %q", got)
		}
		if strings.Replace(vm.Config(), "disk/0/format raw\n", "", 1) != config || host.Guest(1) != nil {
			t.Errorf("left over: guest %v, config\n%s", host.Guest(1), vm.Config())
		}
		host.Refused = nil
		ok(t, vm.Do(ctx, root, "start", "")) // it did not count as fast
	}
}

func TestMissingFiles(t *testing.T) {
	_, vm, host := machine(t)
	ok(t, vm.Set(root, "initrd", "/no/such/initrd"))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.ENOENT, "/no/such/initrd")
	if !strings.Contains(vm.Check(ctx), "initrd: open /no/such/initrd") {
		t.Errorf("check: %s", vm.Check(ctx))
	}
	ok(t, vm.Set(root, "initrd", ""))
	if got := vm.Check(ctx); got != "ok\n" {
		t.Errorf("check: %q, want ok", got)
	}
	host.Missing = true
	refused(t, vm.Do(ctx, root, "start", ""), syscall.ENODEV, "package qemu-system-x86")
	host.Missing = false
	ok(t, vm.Set(root, "engine", "native"))
	refused(t, vm.Do(ctx, root, "start", ""), syscall.ENODEV, "native")
	ok(t, vm.Set(root, "engine", ""))
	ok(t, vm.Set(root, "disk/0/path", file(t, "q", "QFI\xfb\x00\x00\x00\x03")))
	ok(t, vm.Do(ctx, root, "start", ""))
	if got := vm.Get("disk/0/format"); got != "qcow2" {
		t.Errorf("format is %q after the first start of a qcow2 image", got)
	}
}

func TestAFormatIsLookedAtOnce(t *testing.T) {
	_, vm, host := machine(t)
	image := vm.Get("disk/0/path")
	written := vm.Config()
	ok(t, vm.Do(ctx, root, "start", ""))
	if got := vm.Get("disk/0/format"); got != "raw" {
		t.Errorf("format is %q after the first start", got)
	}
	// The guest writes itself a header that names another file.
	ok(t, os.WriteFile(image, []byte("QFI\xfb\x00\x00\x00\x03"), 0o600))
	ok(t, vm.Do(ctx, root, "kill", ""))
	ok(t, vm.Replace(root, written))
	ok(t, vm.Do(ctx, root, "start", ""))
	if i := len(host.Wants) - 1; host.Wants[i] != (ctl.Want{Path: image, Write: true, Format: "raw"}) {
		t.Errorf("the second start wants %+v", host.Wants[i])
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	ok(t, vm.Set(root, "disk/0/path", "/elsewhere"))
	if got := vm.Get("disk/0/format"); got != "auto" {
		t.Errorf("format is %q with another path", got)
	}
}

func TestAnInterruptedStartIsUndone(t *testing.T) {
	_, vm, host := machine(t)
	host.Blocking = func(ctx context.Context) { <-ctx.Done() }
	start, cancel := context.WithCancel(ctx)
	time.AfterFunc(50*time.Millisecond, cancel)
	refused(t, vm.Do(start, root, "start", ""), syscall.EINTR, "interrupted")
	if vm.Status() != "stopped\n" || host.Guest(1) != nil {
		t.Errorf("left over: %s, %v", vm.Status(), host.Guest(1))
	}

	ended := make(chan error)
	go func() { ended <- vm.Do(ctx, root, "start", "") }()
	becomes(t, vm, "starting")
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EALREADY, "starting")
	refused(t, vm.Do(ctx, root, "reset", ""), syscall.EINVAL, "starting")
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	ok(t, vm.Do(ctx, alice, "kill", ""))
	refused(t, <-ended, syscall.EAGAIN, "ended by kill of 52001")
	if vm.Status() != "stopped\n" || host.Guest(1) != nil {
		t.Errorf("left over: %s, %v", vm.Status(), host.Guest(1))
	}
}

func TestAGuestOutlivesTheDaemon(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	vm, err := m.Create(root, "web", 0o755, 0)
	ok(t, err)
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Guest(1).Print("before ")

	host.Abandon()
	m.Close() // the record is written behind the answer
	vm = open(t, dir, host).VM("web")
	becomes(t, vm, "running")
	host.Guest(1).Print("after")
	r := vm.OpenConsole()
	p := make([]byte, 100)
	if n, err := r.Read(ctx, p, true); string(p[:n]) != "before after" || err != nil {
		t.Errorf("console: %q, %v", p[:n], err)
	}
	if !strings.Contains(vm.Info(ctx), "generation 1\n") || !strings.Contains(vm.EventsText(), " adopted - generation 1") {
		t.Errorf("info:\n%sevents:\n%s", vm.Info(ctx), vm.EventsText())
	}
	ok(t, vm.Do(ctx, root, "pause", ""))

	// It ends while nobody is there.
	host.Abandon()
	host.Guest(1).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
	m = open(t, dir, host)
	vm = m.VM("web")
	becomes(t, vm, "stopped")
	if !strings.Contains(vm.Info(ctx), "exit guest ") || host.Guest(1) != nil {
		t.Errorf("info:\n%s", vm.Info(ctx))
	}

	// Its process dies while nobody is there.
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Abandon()
	m.Close()
	host.End(ctx, 1)
	vm = open(t, dir, host).VM("web")
	becomes(t, vm, "failed the guest process died while the daemon was away")
}

func TestRestart(t *testing.T) {
	_, vm, host := machine(t)
	ok(t, vm.Do(ctx, root, "restart", ""))
	becomes(t, vm, "running")
	ok(t, vm.Do(ctx, root, "restart", "0"))
	await(t, "the next launch", func() bool { return strings.Contains(vm.Info(ctx), "generation 2\n") })
	becomes(t, vm, "running")
	if host.Guest(1) == nil {
		t.Errorf("not started again:\n%s", vm.Info(ctx))
	}
}

func TestConsole(t *testing.T) {
	m, vm, host := machine(t)
	early := vm.OpenConsole()
	defer early.Close()
	p := make([]byte, 1<<20)
	if n, err := early.Read(ctx, p, false); n != 0 || err != io.EOF {
		t.Errorf("nothing there, not waiting: %d, %v", n, err)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := early.Read(short, p, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopped: %v", err)
	}
	ok(t, vm.Do(ctx, root, "start", ""))
	host.Guest(1).Print("hello\n")
	late := vm.OpenConsole()
	defer late.Close()
	for _, r := range []*ctl.ConsoleReader{early, late} {
		if n, err := r.Read(ctx, p, true); string(p[:n]) != "hello\n" || err != nil {
			t.Errorf("read %q, %v", p[:n], err)
		}
	}
	ok(t, vm.Input(ctx, root, []byte("ls\n")))
	if got := host.Guest(1).Typed(); got != "ls\n" {
		t.Errorf("typed %q", got)
	}
	host.Guest(1).Print("bye\n")
	ok(t, vm.Do(ctx, root, "kill", ""))
	if n, err := early.Read(ctx, p, true); string(p[:n]) != "bye\n" || err != nil {
		t.Errorf("after the end: %q, %v", p[:n], err)
	}
	if n, err := early.Read(ctx, p, true); n != 0 || err != io.EOF {
		t.Errorf("at the end: %q, %v", p[:n], err)
	}
	refused(t, vm.Input(ctx, root, []byte("x")), syscall.EAGAIN, "stopped")

	ok(t, vm.Do(ctx, root, "start", ""))
	host.Guest(1).Print("again\n")
	if n, err := early.Read(ctx, p, true); string(p[:n]) != "again\n" || err != nil {
		t.Errorf("the next launch: %q, %v", p[:n], err)
	}
	n, _ := vm.ConsoleLogAt(p, 0)
	if got := string(p[:n]); got != "hello\nbye\nagain\n" || vm.ConsoleLogSize() != int64(n) {
		t.Errorf("console.log: %q, size %d", got, vm.ConsoleLogSize())
	}
	host.Guest(1).Print(strings.Repeat("0123456789abcdef", 40000))
	n, _ = vm.ConsoleLogAt(p, 0)
	if size := vm.ConsoleLogSize(); size < ctl.ConsoleSize || size > 2*ctl.ConsoleSize || int64(n) != size || p[n-1] != 'f' {
		t.Errorf("console.log after much: %d bytes, size %d", n, size)
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	if size := vm.ConsoleLogSize(); int64(n) != size {
		t.Errorf("console.log after the end has size %d, had %d", size, n)
	}
	ok(t, m.Remove(root, vm))
	// One who was behind reads the rest of his launch, its end, and no more.
	if n, err := late.Read(ctx, p, true); string(p[:n]) != "bye\n" || err != nil {
		t.Errorf("of a removed machine: %q, %v", p[:n], err)
	}
	if n, err := late.Read(ctx, p, true); n != 0 || err != io.EOF {
		t.Errorf("at the end: %q, %v", p[:n], err)
	}
	if _, err := late.Read(ctx, p, true); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("of a removed machine: %v", err)
	}
}

func TestEvents(t *testing.T) {
	m, vm, _ := machine(t)
	all, mine := m.OpenEvents(), vm.OpenEvents()
	ok(t, vm.Set(alice, "cpus", "3"))
	other, err := m.Create(root, "other", 0o755, 0)
	ok(t, err)
	p := make([]byte, 4096)
	n, err := all.Read(ctx, p, true)
	if lines := strings.Split(string(p[:n]), "\n"); err != nil || len(lines) != 3 || !strings.HasSuffix(lines[0], " vm/web config 52001 cpus") || !strings.HasSuffix(lines[1], " vm/other created root") {
		t.Errorf("all: %q, %v", p[:n], err)
	}
	if n, err := mine.Read(ctx, p, true); err != nil || strings.Count(string(p[:n]), "\n") != 1 {
		t.Errorf("mine: %q, %v", p[:n], err)
	}
	if _, err := mine.Read(ctx, p, false); err != io.EOF {
		t.Errorf("nothing: %v", err)
	}
	for i := range uint32(5000) {
		m.Refused(root, "x", syscall.EPERM) // no event
		if i < 2 {
			ok(t, other.SetAccess(root, "ctl", ctl.AccessChange{Mode: &i}))
		}
	}
	if n, err = all.Read(ctx, p[:20], false); n != 0 || !errors.Is(err, syscall.EINVAL) {
		t.Errorf("no room for a line: %q, %v", p[:n], err)
	}
	if got := vm.EventsText(); strings.Contains(got, "other") || !strings.Contains(got, " created 52001") {
		t.Errorf("events.log:\n%s", got)
	}
}

func TestRefusals(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	m.Refused(alice, "vm/web/cpus", ctl.Errorf(syscall.EINVAL, "cpus: no\nway"))
	m.Refused(root, "vm/web2/cpus", ctl.Errorf(syscall.EBUSY, "later"))
	for range 1000 {
		m.Refused(ctl.Cred{UID: 3000}, "vm", ctl.Errorf(syscall.EPERM, "spam"))
	}
	if got := m.Refusals(52001, ""); !strings.HasSuffix(got, " 52001 vm/web/cpus EINVAL cpus: no way\n") || strings.Count(got, "\n") != 1 {
		t.Errorf("alice reads %q", got)
	}
	if got := m.Refusals(0, "vm/web"); strings.Count(got, "\n") != 1 {
		t.Errorf("root reads of web %q", got)
	}
	if got := m.Refusals(0, ""); strings.Count(got, "\n") != 2+64 {
		t.Errorf("root reads %d lines", strings.Count(got, "\n"))
	}
}

func TestShutdown(t *testing.T) {
	m, vm, host := machine(t)
	ok(t, vm.Do(ctx, root, "start", ""))
	refused(t, m.Ctl(ctx, root, "reboot"), syscall.EINVAL, "not a verb")
	ok(t, m.Ctl(ctx, root, "shutdown"))
	becomes(t, vm, "stopping")
	select {
	case <-host.Down:
		t.Fatal("down before the guest ended")
	case <-time.After(50 * time.Millisecond):
	}
	host.Guest(1).EndAs(ctl.Exit{Who: "root", How: "stop"})
	<-host.Down
	if !host.Drained {
		t.Error("not drained")
	}
	refused(t, vm.Do(ctx, root, "start", ""), syscall.EBUSY, "shutting down")
}

func TestPending(t *testing.T) {
	_, vm, _ := machine(t)
	ok(t, vm.Do(ctx, root, "start", ""))
	if got := vm.Pending(); got != "" {
		t.Errorf("pending: %q", got)
	}
	ok(t, vm.Edit(root, "cpus 2\ncmdline a b\n-disk/0\n"))
	want := "cmdline - \"a b\"\ncpus 1 2\ndisk/0/format raw -\n"
	if got := vm.Pending(); !strings.HasPrefix(got, want) {
		t.Errorf("pending:\n%swant:\n%s", got, want)
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	if got := vm.Pending(); got != "" {
		t.Errorf("pending when stopped: %q", got)
	}
}

func FuzzEdit(f *testing.F) {
	for _, s := range []string{"cpus 2\n", "begin\nend\n", "-disk/0", "disk/1/path /a\n-disk/1\n", "edition 0\n", "# x\n\ncmdline a b", "memory 1G\x00"} {
		f.Add(s)
	}
	host := ctltest.NewHost()
	m, err := ctl.Open(ctx, ctl.Options{State: f.TempDir(), Host: host})
	if err != nil {
		f.Fatal(err)
	}
	vm, err := m.Create(root, "web", 0o755, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		before := vm.Config()
		if err := vm.Edit(root, text); err != nil && vm.Config() != before {
			t.Errorf("refused (%v), and changed:\n%s", err, vm.Config())
		}
		config := vm.Config()
		if err := vm.Replace(root, config); err != nil || vm.Config() != config {
			t.Errorf("its own config is refused or changed: %v\n%s%s", err, config, vm.Config())
		}
		if err := vm.Replace(root, text); err == nil && !strings.HasPrefix(text, "begin\n") {
			t.Errorf("replaced by %q", text)
		}
	})
}
