package ctl_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

// TestPowerCuts cuts every kind of change of STATE at every system call. What
// is then on the disk, be it all that was done or only what was synced, has
// of every object the text and the name that it had or those that it was
// given, and a daemon serves them.
func TestPowerCuts(t *testing.T) {
	c := newCrash(t)
	kernel, raw := file(t, "vmlinuz", "kernel"), file(t, "disk.raw", "disk")
	var web, db *ctl.VM
	mode := uint32(0o600)

	c.step("serve for the first time", 3, func() { c.open() })
	c.step("mkdir", 1, func() { web = c.create("web") })
	c.step("an attribute", 1, func() { ok(t, web.Set(alice, "disk/0/path", raw)) })
	c.step("another's attribute", 1, func() { ok(t, web.Set(root, "disk/0/path", raw+"2")) })
	c.step("the first again", 1, func() { ok(t, web.Set(alice, "disk/0/path", raw)) })
	c.step("an edit", 1, func() { ok(t, web.Edit(alice, "kernel "+kernel+"\ncpus 2\nnote a\n")) })
	c.step("a replacement", 1, func() {
		ok(t, web.Replace(root, "begin\ndisk/0/path "+raw+"\nkernel "+kernel+"\nmemory 64M\nend\n"))
	})
	c.step("more than a block", 1, func() { ok(t, web.Set(alice, "note", strings.Repeat("a note ", 500))) })
	c.step("still more than a block", 1, func() { ok(t, web.Set(alice, "note", strings.Repeat("another ", 500))) })
	c.step("less", 1, func() { ok(t, web.Set(alice, "note", "")) })
	c.step("still less", 1, func() { ok(t, web.Set(alice, "cpus", "3")) })
	c.step("as before", 1, func() { ok(t, web.Set(alice, "cpus", "")) })
	c.step("what is there already", 0, func() { ok(t, web.Replace(alice, web.Config())) })
	c.step("mkdir disk/1", 1, func() { ok(t, web.AddPart(alice, ctl.Part{Dir: "disk", N: 1})) })
	c.step("rmdir disk/1", 1, func() { ok(t, web.RemovePart(alice, ctl.Part{Dir: "disk", N: 1})) })
	c.step("chmod", 1, func() { ok(t, web.SetAccess(alice, "do/start", ctl.AccessChange{Mode: &mode})) })
	c.step("modes", 1, func() { ok(t, web.SetModes(root, "begin\ncpus 0600 root root\nend\n", files)) })
	c.step("chmod of a file of no machine", 1, func() { ok(t, c.m.SetAccess(root, "vm", ctl.AccessChange{Mode: &mode})) })

	c.step("start, which settles a format", 2, func() { ok(t, web.Do(ctx, alice, "start", "")) })
	c.step("a guest's end", 2, func() {
		c.host.Guest(web.ID()).Print("login: ")
		c.host.Guest(web.ID()).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
		becomes(t, web, "stopped")
	})
	c.step("start and failure", 4, func() {
		ok(t, web.Do(ctx, alice, "start", ""))
		c.m.Close()
		c.host.Guest(web.ID()).Print("panic")
		c.host.Guest(web.ID()).Die()
		becomes(t, web, "failed the guest process died")
	})
	c.step("clear-failed", 1, func() { ok(t, web.Do(ctx, root, "clear-failed", "")) })
	c.step("a start that fails", 2, func() {
		c.host.Refused = func(string) error { return syscall.ENOMEM }
		refused(t, web.Do(ctx, root, "start", ""), syscall.ENOMEM, "")
		c.host.Refused = nil
	})
	c.step("start", 2, func() { ok(t, web.Do(ctx, alice, "start", "")) })
	c.step("a new daemon, which adopts", 0, func() {
		c.open()
		web = c.m.VM("web")
		becomes(t, web, "running")
	})
	c.step("kill", 1, func() { ok(t, web.Do(ctx, root, "kill", "")) })

	c.step("start with UEFI", 5, func() {
		ok(t, web.Set(alice, "kernel", ""))
		ok(t, web.Set(alice, "firmware", uefi(t, "one")))
		ok(t, web.Do(ctx, root, "clear-failed", ""))
		ok(t, web.Do(ctx, root, "start", ""))
	})
	c.step("kill", 1, func() { ok(t, web.Do(ctx, root, "kill", "")) })
	c.step("start with another UEFI", 4, func() {
		ok(t, web.Set(alice, "firmware", uefi(t, "two")))
		ok(t, web.Do(ctx, root, "start", ""))
	})
	c.step("kill", 1, func() { ok(t, web.Do(ctx, root, "kill", "")) })

	c.step("autostart", 1, func() { ok(t, web.Set(root, "autostart", "yes")) })
	c.step("the host's boot", 3, func() {
		c.m.Boot = "boot-2"
		ok(t, c.m.Autostart(ctx))
		becomes(t, web, "running")
	})
	c.step("kill", 1, func() { ok(t, web.Do(ctx, root, "kill", "")) })

	var lan *ctl.Switch
	c.step("mkdir of a switch", 2, func() {
		var err error
		lan, err = c.m.CreateSwitch(alice, "lan", 0o755, alice.GID)
		ok(t, err)
	})
	c.step("its definition", 1, func() { ok(t, lan.Edit(root, "address 10.0.0.1/24\ndhcp yes\n")) })
	c.step("a NIC", 1, func() { ok(t, web.Set(root, "nic/0/switch", "lan")) })
	c.step("start, which leases", 3, func() {
		ok(t, web.Do(ctx, root, "clear-failed", ""))
		ok(t, web.Do(ctx, root, "start", ""))
	})
	c.step("kill", 1, func() { ok(t, web.Do(ctx, root, "kill", "")) })
	c.step("the end of a NIC and its lease", 2, func() { ok(t, web.RemovePart(root, ctl.Part{Dir: "nic"})) })
	c.step("mv of a switch", 1, func() { ok(t, c.m.Rename(root, lan, "wan")) })
	c.step("net/", 1, func() { ok(t, c.m.NetSet(root, "prefix", "10.64.0.0/10")) })

	c.step("mkdir of another", 1, func() { db = c.create("db") })
	c.step("its path", 1, func() { ok(t, db.Set(alice, "kernel", kernel)) })
	c.step("instance.allow", 1, func() { ok(t, web.Set(root, "instance.allow", "disk")) })
	c.step("an instance", 1, func() {
		_, err := c.m.Instance(alice, web, "mine", 0o755, 0)
		ok(t, err)
	})
	c.step("mv", 1, func() { ok(t, c.m.Rename(root, web, "www")) })
	c.step("mv to a name that was there", 1, func() { ok(t, c.m.Rename(root, db, "web")) })
	c.step("a daemon that finds no removed/", 0, func() {
		ok(t, os.Remove(filepath.Join(c.fs.dir, "removed")))
		c.open()
		web, db = c.m.VM("www"), c.m.VM("web")
	})
	c.step("limits of all", 1, func() { ok(t, c.m.User("default").Set(root, "vms", "3")) })
	c.step("limits of one", 2, func() { c.limits("54321") })
	c.step("a limit", 1, func() { ok(t, c.m.User("54321").Set(root, "memory", "1G")) })
	c.step("rmdir of limits", 1, func() { ok(t, c.m.Remove(root, c.m.User("54321"))) })
	c.step("limits of him again", 1, func() { c.limits("54321") })
	c.step("rmdir of the instance", 1, func() { ok(t, c.m.Remove(alice, c.m.VM("mine"))) })
	c.step("rmdir of a switch", 1, func() { ok(t, c.m.Remove(root, c.m.Switch("wan"))) })
	c.step("years pass", 0, func() { c.age("vm/web") })
	c.step("rmdir", 1, func() { ok(t, c.m.Remove(root, db)) })
	c.step("mkdir of the name and the id that are free", 1, func() { db = c.create("web") })
	c.step("rmdir by the guest's end", 6, func() {
		ok(t, db.Edit(root, "ephemeral yes\nkernel "+kernel+"\n"))
		ok(t, db.Do(ctx, root, "start", ""))
		c.m.Close()
		c.host.Guest(db.ID()).Print("bye")
		c.host.Guest(db.ID()).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
		for !db.Removed() {
			time.Sleep(time.Millisecond)
		}
	})

	c.step("what cuts leave", 0, func() {
		c.leave("vm/.new-a/definition.0")
		c.leave("vm/www/console.new")
		c.leave("vmfs.new")
		c.leave("events.new")
		c.expired = c.age("removed/web.*")
	})
	c.late("a new daemon, which tidies up", 0, func() {
		c.open()
		if _, err := os.Stat(filepath.Join(c.fs.dir, "removed", c.expired)); err == nil {
			t.Errorf("%s is still there", c.expired)
		}
	})
	c.check()
}

// uefi makes the two files of a UEFI firmware.
func uefi(t *testing.T, template string) string {
	code := file(t, "CODE.fd", "code")
	ok(t, os.WriteFile(strings.Replace(code, "CODE", "VARS", 1), []byte(template), 0o600))
	return code
}

// TestPowerCutsOfEvents does that where the log of events is made anew.
func TestPowerCutsOfEvents(t *testing.T) {
	c := newCrash(t)
	var vm *ctl.VM
	c.step("serve", 3, func() { c.open() })
	c.step("mkdir", 1, func() { vm = c.create("web") })
	c.step("start", 2, func() { ok(t, vm.Do(ctx, root, "start", "")) })
	c.step("events", 0, func() {
		for range 8300 {
			ok(t, vm.Do(ctx, root, "reset", ""))
		}
	})
	c.sparse = true
	c.check()
}

// crash is a daemon on a disk whose power will have been cut.
type crash struct {
	t      *testing.T
	fs     *crashFS
	host   *ctltest.Host
	m      *ctl.Manager
	steps  []step
	sparse bool // not after what is written, but for the last of a step

	expired string // a removed definition that is so old that it may be gone

	highest []given           // after so many calls
	lines   map[uint64]string // events, by number
}

// step is a change: the calls that made it end before end.
type step struct {
	name   string
	end    int
	writes int  // how many times an object is given a text or a name
	late   bool // it is certain only after a later step
}

func newCrash(t *testing.T) *crash {
	return &crash{t: t, fs: mountCrashFS(t), host: ctltest.NewHost(), lines: map[uint64]string{}}
}

// open starts a daemon, after the end of the one before.
func (c *crash) open() {
	c.t.Helper()
	if c.m != nil {
		c.host.Abandon()
	}
	c.m = open(c.t, c.fs.dir, c.host)
	c.t.Cleanup(c.m.Drop)
}

func (c *crash) create(name string) *ctl.VM {
	c.t.Helper()
	vm, err := c.m.Create(alice, name, 0o755, alice.GID)
	ok(c.t, err)
	return vm
}

func (c *crash) limits(name string) {
	c.t.Helper()
	_, err := c.m.Make(root, "user", name, 0o755, 0)
	ok(c.t, err)
}

// step does something that is certain when it has returned.
func (c *crash) step(name string, writes int, do func()) {
	do()
	c.m.Close()
	for n := -1; n != c.fs.count(); time.Sleep(10 * time.Millisecond) {
		n = c.fs.count()
	}
	c.mark(name, writes, false)
}

// late does something that is certain only later.
func (c *crash) late(name string, writes int, do func()) {
	do()
	c.mark(name, writes, true)
}

// mark ends a step.
func (c *crash) mark(name string, writes int, late bool) {
	c.steps = append(c.steps, step{name, c.fs.count(), writes, late})
}

// leave makes a file as a power cut may leave it.
func (c *crash) leave(path string) {
	path = filepath.Join(c.fs.dir, path)
	ok(c.t, os.MkdirAll(filepath.Dir(path), 0o700))
	ok(c.t, os.WriteFile(path, []byte("id 1\nser"), 0o600))
}

var longAgo = time.Now().Add(-1000 * time.Hour)

// age makes the last directory of a pattern look as if it had not changed
// for long, and says which it is.
func (c *crash) age(pattern string) string {
	dirs, _ := filepath.Glob(filepath.Join(c.fs.dir, pattern))
	last := dirs[len(dirs)-1]
	ok(c.t, os.Chtimes(last, longAgo, longAgo))
	f, err := os.Open(last)
	ok(c.t, err)
	defer f.Close()
	ok(c.t, f.Sync())
	return filepath.Base(last)
}

// objects are what may not be mixed, by what they are called: texts, and
// where they are found. Machines go by their serial numbers.
func objects(d disk) map[string]string {
	all := map[string]string{"vmfs": d.text("vmfs")}
	for _, dir := range []string{"vm", "switch", "user", "removed"} {
		for _, name := range d.list(dir) {
			path := dir + "/" + name
			serial := serialOf(definition(d, path))
			if dir == "removed" {
				serial = name[strings.LastIndexByte(name, '.')+1:]
			}
			if strings.HasPrefix(name, ".new-") {
				continue
			}
			all["name of "+serial] += path
			all["definition of "+serial] = definition(d, path)
			all["console of "+serial] = d.text(path + "/console")
			for _, file := range d.list(path) {
				if strings.HasPrefix(file, "efivars.") && !strings.HasSuffix(file, ".new") {
					all[file+" of "+serial] = d.text(path + "/" + file)
				}
			}
		}
	}
	return all
}

// definition is that of a machine's directory; empty if no slot is whole.
func definition(d disk, path string) (text string) {
	var highest uint64
	for _, slot := range slots {
		if s, seq, ok := ctl.ParseSlot(d.text(path + "/" + slot)); ok && seq > highest {
			text, highest = s, seq
		}
	}
	return text
}

var slots = []string{"definition.0", "definition.1"}

// spoilt counts the slots of objects that have something that is not whole.
func spoilt(d disk) (n int) {
	for _, dir := range []string{"vm", "switch", "user"} {
		for _, name := range d.list(dir) {
			for _, slot := range slots {
				text := d.text(dir + "/" + name + "/" + slot)
				if _, _, ok := ctl.ParseSlot(text); !ok && text != "" && !strings.HasPrefix(name, ".new-") {
					n++
				}
			}
		}
	}
	return n
}

var serialLine = regexp.MustCompile(`(?m)^serial (\d+)$`)

func serialOf(definition string) string {
	if found := serialLine.FindStringSubmatch(definition); found != nil {
		return found[1]
	}
	return "no machine"
}

// history has each text that an object ever had, with the call that gave it.
type history map[string][]version

type version struct {
	from int
	text string
	left bool // it came back because the one after it is being removed
}

// past goes through the calls as they were made. An object that is there is
// given a text in no way but by a rename, or beside the one that it had.
func (c *crash) past() history {
	h, d := history{}, disk{1: {names: map[string]uint64{}}}
	for i := 0; i <= len(c.fs.calls); i++ {
		if i > 0 {
			d.does(c.fs.calls[i-1])
		}
		if i > 0 && (c.fs.calls[i-1].op == "sync" || c.fs.calls[i-1].op == "times") {
			continue
		}
		now := objects(d)
		for what := range h {
			if _, there := now[what]; !there {
				now[what] = ""
			}
		}
		for what, text := range now {
			old := ""
			if v := h[what]; len(v) > 0 {
				old = v[len(v)-1].text
			}
			if text == old {
				continue
			}
			if old != "" && text != "" && c.fs.calls[i-1].op != "move" && !beside(d, c.fs.calls[i-1], what, old) {
				c.t.Errorf("%s was changed in place by %+v", what, c.fs.calls[i-1])
			}
			h[what] = append(h[what], version{i, text, i > 0 && c.fs.calls[i-1].op == "unlink"})
		}
	}
	return h
}

// beside reports whether k, which changed a definition, left the old one where
// it was; or took the new one away, or all of a machine that was removed.
func beside(d disk, k call, what, old string) bool {
	switch k.op {
	case "truncate":
		return true
	case "unlink":
		return strings.HasPrefix(objects(d)[strings.Replace(what, "definition", "name", 1)], "removed/")
	}
	f := d[k.ino]
	defer func(data []byte) { f.data = data }(f.data)
	f.data = nil
	return k.op == "write" && objects(d)[what] == old
}

// during counts the versions that were made by calls from on and before end.
func (h history) during(from, end int) (n int) {
	for what, versions := range h {
		for _, v := range versions {
			if v.from > from && v.from <= end && v.text != "" && !v.left && !strings.HasPrefix(what, "name of ") ||
				v.from > from && v.from <= end && strings.HasPrefix(what, "name of ") && moved(versions, v) {
				n++
			}
		}
	}
	return n
}

// moved reports whether v is another name of what had one.
func moved(versions []version, v version) bool {
	i := slices.Index(versions, v)
	return i > 0 && versions[i-1].text != "" && v.text != ""
}

// allowed are the texts that an object may have when the power is cut after
// end calls and all that floor calls did is certain.
func (h history) allowed(what string, floor, end int) []string {
	texts := []string{""}
	for _, v := range h[what] {
		switch {
		case v.from <= floor:
			texts = []string{v.text}
		case v.from <= end:
			texts = append(texts, v.text)
		}
	}
	return texts
}

// check cuts the power after every call.
func (c *crash) check() {
	t := c.t
	h := c.past()
	begin, floor, cuts := 0, 0, 0
	seen := map[string]bool{}
	dir := fastDir(t)
	for _, s := range c.steps {
		if got := h.during(begin, s.end); got != s.writes {
			t.Errorf("%s: %d texts or names, want %d", s.name, got, s.writes)
		}
		for end := begin; end <= s.end; end++ {
			if end == 0 {
				continue
			}
			if c.sparse && end < s.end && c.fs.calls[end-1].op == "write" {
				continue
			}
			if end == s.end && !s.late {
				floor = end
			}
			for i, d := range disks(c.fs.calls[:end]) {
				cuts++
				where := fmt.Sprintf("%s: power cut after call %d of %d, %s (%d)", s.name, end-begin, s.end-begin, c.fs.calls[end-1].op, i)
				c.compare(where, h, d, floor, end)
				if key := d.key(longAgo.Add(time.Hour)); !seen[key] {
					seen[key] = true
					c.recover(where, d, dir, end)
				}
				if t.Failed() {
					t.FailNow()
				}
			}
		}
		begin = s.end
	}
	t.Logf("%d calls, %d power cuts, %d different disks", len(c.fs.calls), cuts, len(seen))
}

// compare wants each object as it was or as it was to be.
func (c *crash) compare(where string, h history, d disk, floor, end int) {
	now := objects(d)
	for what := range h {
		if got, want := now[what], h.allowed(what, floor, end); !slices.Contains(want, got) {
			c.t.Errorf("%s:\n%s is\n%q\nwant one of\n%q", where, what, got, want)
		}
	}
	for what := range now {
		if h[what] == nil && now[what] != "" {
			c.t.Errorf("%s:\n%s is there: %q", where, what, now[what])
		}
	}
}

// recover starts a daemon on what is left, and wants it to go on from there.
func (c *crash) recover(where string, d disk, dir string, end int) {
	t := c.t
	d.write(t, dir)
	m := c.serve(where, dir, spoilt(d))
	defer m.Drop()
	var ids []uint32
	for _, name := range d.list("vm") {
		if strings.HasPrefix(name, ".new-") {
			continue
		}
		vm := m.VM(name)
		if vm == nil {
			t.Fatalf("%s: %s is not served", where, name)
		}
		if got, want := lasts(vm.Saved()), lasts(definition(d, "vm/"+name)); got != want {
			t.Errorf("%s: %s was read as\n%swant\n%s", where, name, got, want)
		}
		if slices.Contains(ids, vm.ID()) {
			t.Errorf("%s: two machines have the id %d", where, vm.ID())
		}
		ids = append(ids, vm.ID())
	}
	if got := len(m.VMs()); got != len(ids) {
		t.Errorf("%s: %d machines, want %d", where, got, len(ids))
	}
	c.switches(where, d, m)
	c.users(where, d, m)
	for _, name := range d.list("removed") {
		if _, err := os.Stat(filepath.Join(dir, "removed", name)); err != nil && name != c.expired {
			t.Errorf("%s: removed definition: %v", where, err)
		}
	}
	if left, _ := filepath.Glob(dir + "/vm/.new-*"); left != nil {
		t.Errorf("%s: left over: %v", where, left)
	}
	c.events(where, m, end)
	c.goOn(where, m, ids, end)
	m.Close()
	again := c.serve(where, dir, 0)
	defer again.Drop()
	if len(again.VMs()) != 1 || again.VM("fresh") == nil {
		t.Errorf("%s: after that: %v", where, again.VMs())
	}
}

// switches wants each switch to be served. Leases of NICs that are gone are
// not.
func (c *crash) switches(where string, d disk, m *ctl.Manager) {
	for _, name := range d.list("switch") {
		if strings.HasPrefix(name, ".new-") {
			continue
		}
		sw := m.Switch(name)
		if sw == nil {
			c.t.Fatalf("%s: switch %s is not served", where, name)
		}
		if got, want := sw.Saved(), definition(d, "switch/"+name); got != want && !strings.HasPrefix(want, got) {
			c.t.Errorf("%s: switch %s was read as\n%swant\n%s", where, name, got, want)
		}
		if err := m.Remove(root, sw); err != nil {
			c.t.Errorf("%s: %v", where, err)
		}
	}
}

// users wants all limits to be as they were said.
func (c *crash) users(where string, d disk, m *ctl.Manager) {
	for _, name := range d.list("user") {
		if strings.HasPrefix(name, ".new-") {
			continue
		}
		u := m.User(name)
		if u == nil {
			c.t.Fatalf("%s: user/%s is not served", where, name)
		}
		if got, want := u.Saved(), definition(d, "user/"+name); got != want {
			c.t.Errorf("%s: user/%s was read as\n%swant\n%s", where, name, got, want)
		}
		if err := u.Set(root, "nics", "9"); err != nil {
			c.t.Errorf("%s: %v", where, err)
		}
	}
	if u := m.User("default"); u == nil || u.Get("cpus") != "4" {
		c.t.Errorf("%s: no limits for all", where)
	}
}

// serve opens what is left, and wants to hear of the slots that are spoilt
// and no other complaint.
func (c *crash) serve(where, dir string, spoilt int) *ctl.Manager {
	c.t.Helper()
	m, err := ctl.Open(ctx, ctl.Options{State: dir, Boot: "boot-9", Host: ctltest.NewHost(), Log: func(format string, args ...any) {
		said := fmt.Sprintf(format, args...)
		if strings.Contains(said, " is not whole: ") && spoilt > 0 {
			spoilt--
			return
		}
		c.t.Errorf("%s: the daemon said: %s", where, said)
	}})
	if err != nil {
		c.t.Fatalf("%s: %v", where, err)
	}
	if spoilt > 0 {
		c.t.Errorf("%s: the daemon did not say that %d slots are spoilt", where, spoilt)
	}
	return m
}

// lasts is a definition without its record of the launch, which the daemon
// that misses the guest changes.
func lasts(definition string) string {
	return regexp.MustCompile(`(?m)^(active|exit|failed|launched) .*\n`).ReplaceAllString(definition, "")
}

// goOn changes each machine, removes it, and makes another.
func (c *crash) goOn(where string, m *ctl.Manager, ids []uint32, end int) {
	t := c.t
	fresh, err := m.Create(root, "fresh", 0o755, 0)
	if err != nil || slices.Contains(ids, fresh.ID()) {
		t.Fatalf("%s: mkdir: %v, id %d among %v", where, err, fresh.ID(), ids)
	}
	if given := c.given(end).serial; given >= fresh.Serial() {
		t.Errorf("%s: the serial number %d is given out after %d", where, fresh.Serial(), given)
	}
	for _, vm := range m.VMs() {
		if vm == fresh {
			continue
		}
		if err := vm.Set(root, "note", "after "+where); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if err := m.Remove(root, vm); err != nil {
			t.Errorf("%s: %v", where, err)
		}
	}
}

var eventLine = regexp.MustCompile(`(?m)^\d+ ((\d+) 20\S+Z \S+ .*\n)`)

// events wants no event that was not, and no number twice.
func (c *crash) events(where string, m *ctl.Manager, end int) {
	last := c.given(end).seq
	for line := range strings.Lines(m.EventsText()) {
		seq, _, _ := strings.Cut(line, " ")
		n, err := strconv.ParseUint(seq, 10, 64)
		if err != nil || n <= last && line != c.lines[n] {
			c.t.Errorf("%s: event\n%swas\n%s", where, line, c.lines[n])
		}
	}
}

// given are the highest numbers that were given out.
type given struct{ serial, seq uint64 }

// given looks through the first calls, once.
func (c *crash) given(calls int) given {
	for i := len(c.highest); i <= calls; i++ {
		g := given{}
		if i > 0 {
			g = c.highest[i-1]
			text := c.fs.calls[i-1].data
			n, _ := strconv.ParseUint(serialOf(text), 10, 64)
			g.serial = max(g.serial, n)
			for _, e := range eventLine.FindAllStringSubmatch(text, -1) {
				n, _ := strconv.ParseUint(e[2], 10, 64)
				g.seq, c.lines[n] = max(g.seq, n), e[1]
			}
		}
		c.highest = append(c.highest, g)
	}
	return c.highest[calls]
}
