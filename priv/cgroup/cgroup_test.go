package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The box's session shows what the kernel makes of all this; here is what goes
// wrong. A fake is directories with files in them, which limit nobody.

// fake is a host whose cgroups are directories of the test's.
type fake struct {
	t       *testing.T
	root    string          // where they are
	lacks   string          // a file that no new one has
	stays   map[string]bool // those that cannot be removed
	records string
}

func newFake(t *testing.T) *fake {
	dir := t.TempDir()
	f := &fake{t: t, root: dir + "/cgroup", records: dir + "/records", stays: map[string]bool{}}
	if err := os.Mkdir(f.records, 0o700); err != nil {
		t.Fatal(err)
	}
	f.make("")
	f.write("cgroup.controllers", "cpuset cpu io memory pids\n")
	f.write("cgroup.subtree_control", "cpu memory pids\n")
	os.Remove(f.root + "/cgroup.type")
	return f
}

// make makes a cgroup below the root that has all controllers.
func (f *fake) make(path string) {
	f.t.Helper()
	if err := f.mkdir(filepath.Join(f.root, path)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) mkdir(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": "", "cgroup.procs": "", "cgroup.type": "domain\n",
		"cgroup.kill": "", "cgroup.events": "populated 0\nfrozen 0\n", "memory.events": "low 0\noom_kill 0\n",
		"memory.max": "max\n", "memory.swap.max": "max\n", "pids.max": "max\n", "cpu.weight": "100\n",
	} {
		if name == f.lacks {
			continue
		}
		if err := os.WriteFile(path+"/"+name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// rmdir removes a cgroup, as the kernel does, if no other is in it.
func (f *fake) rmdir(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	if f.stays[filepath.Base(path)] || slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
		return syscall.EBUSY
	}
	return os.RemoveAll(path)
}

func (f *fake) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.root, name), []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// host is f with this process in a cgroup below the root.
func (f *fake) host(own string) host {
	proc := f.t.TempDir()
	write := func(name, text string) string {
		if err := os.WriteFile(proc+"/"+name, []byte(text), 0o600); err != nil {
			f.t.Fatal(err)
		}
		return proc + "/" + name
	}
	return host{
		self:   write("self", "1:name=systemd:/x\n0::/"+own+"\n"),
		mounts: write("mounts", "22 1 0:20 / /proc rw - proc proc rw\n23 1 0:21 / "+f.root+" rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"),
		booted: proc + "/no systemd",
		is:     func(path string) bool { return strings.HasPrefix(path, f.root) },
		mkdir:  f.mkdir, rmdir: f.rmdir,
		delegated: func(string) bool { return false },
	}
}

func (f *fake) open(own, dir string) *Tree {
	if own+dir == "" {
		dir = f.root
	}
	return open(f.host(own), Options{Records: f.records, Name: "vmfs", Dir: dir})
}

// dirs lists the cgroups, and files the records.
func (f *fake) dirs() (list []string) {
	filepath.WalkDir(f.root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && path != f.root {
			list = append(list, strings.TrimPrefix(path, f.root+"/"))
		}
		return nil
	})
	return list
}

func (f *fake) files() (list []string) {
	entries, err := os.ReadDir(f.records)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

var need = Need{Engine: "kvm", CPUs: 2, Memory: 512}

func (f *fake) started(tree *Tree, id uint32) {
	f.t.Helper()
	dir, err := tree.Make(id, need)
	if err != nil || dir == nil {
		text, _ := tree.State(id)
		f.t.Fatalf("make %d: got %v, %v (%s), want a directory", id, dir, err, text)
	}
	dir.Close()
}

func TestLife(t *testing.T) {
	f := newFake(t)
	tree := f.open("", "")
	f.started(tree, 3)
	text, ooms := tree.State(3)
	if want := f.root + "/vmfs/vm-3 memory 724M tasks 258 cpu_weight 200"; text != want || ooms != 0 {
		t.Errorf("state: got %q, %d, want %q, 0", text, ooms, want)
	}
	f.write("vmfs/vm-3/memory.events", "oom 2\noom_kill 1\n")
	if err := tree.End(3, time.Second); err != nil {
		t.Fatal(err)
	}
	if _, ooms := tree.State(3); ooms != 1 {
		t.Errorf("killed for memory, after the end: got %d, want 1", ooms)
	}
	f.started(tree, 3)
	if _, ooms := tree.State(3); ooms != 0 {
		t.Errorf("killed for memory, of the next: got %d, want 0", ooms)
	}
	tree.Close() // with a guest
	same(t, "cgroups", f.dirs(), "vmfs", "vmfs/vm-3")
	tree = f.open("", "")
	if err := tree.Sweep(func(id uint32) bool { return id == 3 }, 0); err != nil {
		t.Error(err)
	}
	same(t, "cgroups of the next daemon", f.dirs(), "vmfs", "vmfs/vm-3")
	if err := tree.End(3, time.Second); err != nil {
		t.Error(err)
	}
	tree.Close()
	same(t, "cgroups in the end", f.dirs())
	same(t, "records in the end", f.files())
}

// TestHalf fails each limit in turn: what was made goes, and the guest is told
// to start without, unless something stays.
func TestHalf(t *testing.T) {
	for _, lacks := range []string{"memory.max", "pids.max", "cpu.weight"} {
		f := newFake(t)
		tree := f.open("", "")
		f.lacks = lacks
		if dir, err := tree.Make(3, need); dir != nil || err != nil {
			t.Errorf("%s: got %v, %v, want neither", lacks, dir, err)
		}
		if text, _ := tree.State(3); !strings.HasPrefix(text, "none: ") || !strings.Contains(text, lacks) {
			t.Errorf("%s: got %q, want the file in it", lacks, text)
		}
		same(t, lacks+": cgroups", f.dirs(), "vmfs")
		f.stays["vm-4"] = true
		if dir, err := tree.Make(4, need); dir != nil || !errors.Is(err, syscall.EBUSY) {
			t.Errorf("%s, and it stays: got %v, %v, want %v", lacks, dir, err, syscall.EBUSY)
		}
		f.lacks, f.stays["vm-4"] = "", false
		f.started(tree, 4)
	}
	f := newFake(t)
	tree := f.open("", "")
	f.lacks = "memory.swap.max"
	f.started(tree, 3)
}

// TestRefusals is where there can be no tree: the reason is said for each guest
// and nothing is made or moved.
func TestRefusals(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for _, tt := range []struct {
		name, own, dir string
		set            func(f *fake, h *host)
		want           string
	}{
		{"no cgroups", "", "", func(f *fake, h *host) { h.mounts = h.self }, "no cgroups of version 2 are mounted"},
		{"the root", "", "", nil, "is the host's; -cgroup names another"},
		{"none there", "a", "", func(f *fake, h *host) { f.write("a/cgroup.controllers", "\n") }, "none of the controllers memory, pids, cpu"},
		{"another's process", "a", "", func(f *fake, h *host) { f.write("a/cgroup.procs", self+"\n1\n") }, "process 1 ("},
		{"systemd's", "a", "", func(f *fake, h *host) { h.booted = "/" }, "not delegated"},
		{"a service", "b.service", "", func(f *fake, h *host) {
			h.booted, h.delegated = "/", func(string) bool { return true }
		}, "-cgroup names another"},
		{"somebody above", "a/daemon", "", func(f *fake, h *host) { f.write("a/cgroup.procs", "1\n") }, "process 1 ("},
		{"named, missing", "", "missing", nil, "no such file"},
		{"named, not empty", "", "a", func(f *fake, h *host) { f.write("a/cgroup.procs", self+"\n") }, "process " + self},
		{"named, not one", "", "a", func(f *fake, h *host) { h.is = func(string) bool { return false } }, "not a cgroup"},
		{"cannot be made", "", "a", func(f *fake, h *host) {
			h.mkdir = func(path string) error {
				if filepath.Base(path) == "vmfs" {
					return syscall.EAGAIN // cgroup.max.descendants
				}
				return f.mkdir(path)
			}
		}, "resource temporarily unavailable"},
		{"another's of that name", "", "a", func(f *fake, h *host) { f.make("a/vmfs"); f.stays["vmfs"] = true }, "no record says by whom"},
		{"cannot be limited", "a", "", func(f *fake, h *host) {
			os.Remove(f.root + "/a/cgroup.subtree_control")
			os.Mkdir(f.root+"/a/cgroup.subtree_control", 0o755)
		}, "is a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			for _, dir := range []string{"a", "a/daemon", "b.service"} {
				if dir != "a/daemon" || tt.own == dir {
					f.make(dir)
				}
			}
			for _, dir := range []string{"a", "a/daemon", "b.service"} {
				if tt.own == dir {
					f.write(dir+"/cgroup.procs", self+"\n")
				}
			}
			h := f.host(tt.own)
			if tt.set != nil {
				tt.set(f, &h)
			}
			before := f.dirs()
			dir := tt.dir
			if dir != "" {
				dir = filepath.Join(f.root, dir)
			}
			tree := open(h, Options{Records: f.records, Name: "vmfs", Dir: dir})
			if !strings.Contains(tree.Why(), tt.want) {
				t.Errorf("got %q, want %q in it", tree.Why(), tt.want)
			}
			same(t, "cgroups", f.dirs(), before...)
			if dir, err := tree.Make(3, need); dir != nil || err != nil {
				t.Errorf("make: got %v, %v, want neither", dir, err)
			}
			if text, _ := tree.State(3); text != "none: "+tree.Why() {
				t.Errorf("state: got %q, want the reason", text)
			}
			if err := tree.End(3, 0); err != nil {
				t.Error(err)
			}
			tree.Close()
			same(t, "records", f.files())
		})
	}
}

// TestStrays is what a daemon finds that does not know how the last one ended.
func TestStrays(t *testing.T) {
	f := newFake(t)
	tree := f.open("", "")
	for id := uint32(1); id <= 3; id++ {
		f.started(tree, id)
	}
	f.make("vmfs/vm-7")                                 // killed before it was on record
	f.make("vmfs/other")                                // nobody's that we know
	f.write("vmfs/vm-2/cgroup.events", "populated 1\n") // nobody can kill it
	f.make("vmfs/new")                                  // another of that name
	os.RemoveAll(f.root + "/vmfs/vm-3")
	if err := os.Rename(f.root+"/vmfs/new", f.root+"/vmfs/vm-3"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.records+"/cgroup.5", []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.make("a")
	next := f.open("", f.root+"/a")
	err := next.Sweep(func(uint32) bool { return false }, 0)
	if err == nil || !strings.Contains(err.Error(), "vm-2: killed, but not gone") {
		t.Errorf("sweep: got %v, want vm-2 in it", err)
	}
	same(t, "cgroups", f.dirs(), "a", "a/vmfs", "vmfs", "vmfs/other", "vmfs/vm-2", "vmfs/vm-3", "vmfs/vm-7")
	same(t, "records", f.files(), "cgroup.2", "cgroups")

	f.write("vmfs/vm-2/cgroup.events", "populated 0\n")
	if err := f.open("", "").Sweep(func(uint32) bool { return false }, 0); err != nil {
		t.Error(err)
	}
	same(t, "cgroups of the one after", f.dirs(), "a", "vmfs", "vmfs/other")
}

// TestAnotherNumber leaves a tree alone that only has the name of ours.
func TestAnotherNumber(t *testing.T) {
	f := newFake(t)
	f.make("a")
	f.make("a/vmfs")
	r := records{f.records}
	if err := r.writeTrees([]madeTree{{place: place{f.root + "/a/vmfs", 1}, enabled: []string{"pids"}}}); err != nil {
		t.Fatal(err)
	}
	tree := f.open("", "")
	if err := tree.Sweep(func(uint32) bool { return false }, 0); err != nil {
		t.Error(err)
	}
	tree.Close()
	same(t, "cgroups", f.dirs(), "a", "a/vmfs")
}

func TestParseSelf(t *testing.T) {
	for text, want := range map[string]string{
		"0::/\n":                         "/",
		"4:memory:/x\n0::/a/b.service\n": "/a/b.service",
		"4:memory:/x\n":                  "",
		"0::/../../x\n":                  "",
		"0::/a (deleted)\n":              "",
		"0::a\n":                         "",
		"":                               "",
	} {
		got, err := parseSelf(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	mounts := "24 1 0:5 / /dev rw - devtmpfs dev rw\n31 23 0:26 /other /mnt rw - cgroup2 c rw\n" +
		"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
	for path, want := range map[string]string{
		"/a/b": "/sys/fs/cgroup/a/b", "/": "/sys/fs/cgroup", "/other/x": "/mnt/x", "/otherx": "/sys/fs/cgroup/otherx",
	} {
		if got, err := parseMounts(mounts, path); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	for _, text := range []string{"", "a b c\n", "30 23 0:26 /x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", `30 23 0:26 / /a\040b rw - cgroup2 c rw`} {
		if got, err := parseMounts(text, "/a"); err == nil {
			t.Errorf("%q: got %q, want an error", text, got)
		}
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		need   Need
		memory uint64 // MiB
		tasks  int
		weight int
	}{
		{Need{Engine: "native", CPUs: 1, Memory: 64}, 64 + 128 + 4, 257, 100},
		{Need{Engine: "kvm", CPUs: 4, Memory: 2048, Images: 2, Files: 40}, 2048 + 192 + 4*8 + 16 + 2*34 + 80, 260, 400},
		{Need{Engine: "tcg", CPUs: 2, Memory: 512}, 512 + 320 + 2*(8+16) + 4, 258, 200},
		{Need{Engine: "tcg", CPUs: 1, Memory: 16384}, 16384 + 320 + 8 + 128 + 128, 257, 100},
		{Need{Engine: "kvm", CPUs: 64, Memory: 1}, 1 + 192 + 512, 320, 6400},
	} {
		l, err := tt.need.limits()
		if err != nil || l.memory != tt.memory<<20 || l.tasks != tt.tasks || l.weight != tt.weight {
			t.Errorf("%+v: got %+v, %v, want %d MiB, %d tasks, weight %d", tt.need, l, err, tt.memory, tt.tasks, tt.weight)
		}
	}
	for _, n := range []Need{{}, {Engine: "xen", CPUs: 1, Memory: 1}, {Engine: "kvm", Memory: 1}, {Engine: "kvm", CPUs: 1}, {Engine: "kvm", CPUs: 1, Memory: 1, Images: -1}} {
		if l, err := n.limits(); err == nil {
			t.Errorf("%+v: got %+v, want an error", n, l)
		}
	}
}

func FuzzTrees(f *testing.F) {
	f.Add([]byte("tree 4711 memory,pids,cpu daemon \"/sys/fs/cgroup/machines/vmfs\"\ntree 0 - - \"/x\"\n"))
	f.Add([]byte("tree 1 io - \"/x\"\n"))
	f.Add([]byte("tree x - - /x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if trees, err := parseTrees(text); err == nil && string(treesText(trees)) != string(text) {
			t.Errorf("%q became %q", text, treesText(trees))
		}
	})
}

func FuzzGuest(f *testing.F) {
	f.Add([]byte("cgroup 4712 \"/sys/fs/cgroup/machines/vmfs/vm-3\"\n"))
	f.Add([]byte("none \"no cgroups of version 2 are mounted\"\n"))
	f.Add([]byte("cgroup 1 \"\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if g, err := parseGuest(text); err == nil && string(g.text()) != string(text) {
			t.Errorf("%q became %q", text, g.text())
		}
	})
}
