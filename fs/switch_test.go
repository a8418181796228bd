package fs_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/fs"
)

// lan makes a switch, and a NIC of web that is of it.
func lan(t *testing.T, tr *fs.Tree) {
	t.Helper()
	_, err := walk(t, tr, "switch").(fs.Dir).Mkdir(bg, root, "lan", 0o777)
	ok(t, err)
	_, err = walk(t, tr, "vm/web/nic").(fs.Dir).Mkdir(bg, alice, "0", 0o777)
	ok(t, err)
	ok(t, write(t, tr, root, "vm/web/nic/0/switch", "lan\n"))
}

// The files of a switch do what a machine's do, on the switch.
func TestSwitch(t *testing.T) {
	tr, m, _ := tree(t)
	lan(t, tr)
	ok(t, write(t, tr, root, "switch/lan/config", "address 10.0.0.1/24\ndhcp yes\n"))
	ok(t, write(t, tr, alice, "vm/web/ctl", "start\n"))
	for path, want := range map[string]string{
		"switch/lan/ctl": "lan\n", "switch/lan/status": "up\n", "switch/lan/config": "begin\naddress 10.0.0.1/24\ndhcp yes\nend\n",
		"switch/lan/edition": "1\n", "switch/lan/check": "ok\n", "switch/lan/do/up": "", "switch/lan/isolated": "no\n",
		"switch/lan/ports":      "web/0 tap0 " + m.VM("web").Get("nic/0/mac") + " up\n",
		"vm/web/nic/0/ifname":   "tap0\n",
		"vm/web/nic/0/address":  "10.0.0.2/24\n",
		"vm/web/nic/0/switch":   "lan\n",
		"net/prefix":            "100.64.0.0/10\n",
		"switch/lan/config.old": "begin\nend\n",
		"switch/lan/modes":      "begin\n. 0755 root root\nend\n",
		"vm/web/nic/0/up":       "yes\n",
		"switch/lan/ifname":     "",
		"switch/lan/err":        "",
		"vm/web/nic/0/rdomain":  "0\n",
	} {
		if got := text(t, open(t, tr, root, path, reading)); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if got := text(t, open(t, tr, root, "switch/lan/leases", reading)); !strings.HasPrefix(got, "10.0.0.2 ") || !strings.Contains(got, " web/0 20") {
		t.Errorf("leases: %q", got)
	}
	if got := text(t, open(t, tr, root, "vm/web/nic/0/stats", reading)); !strings.HasPrefix(got, "rx_bytes 0\n") {
		t.Errorf("stats: %q", got)
	}
	for _, c := range []struct {
		path, text string
		errno      syscall.Errno
	}{
		{"switch/lan/ports", "\n", syscall.EINVAL},
		{"switch/lan/ctl", "start\n", syscall.EINVAL},
		{"switch/lan/ctl", "remove\n", syscall.EBUSY},
		{"switch/lan/address", "10.0.0.0/24", syscall.EINVAL},
		{"switch/lan/leases", "x", syscall.EPERM},
		{"net/prefix", "x", syscall.EINVAL},
		{"vm/web/nic/0/ifname", "x", syscall.EPERM},
	} {
		if err := write(t, tr, root, c.path, c.text); !errors.Is(err, c.errno) {
			t.Errorf("%q to %s: got %v, want %v", c.text, c.path, err, c.errno)
		}
	}
	switches := walk(t, tr, "switch").(fs.Dir)
	if err := switches.Rmdir(bg, root, "lan"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("rmdir of a switch in use: %v", err)
	}
	ok(t, write(t, tr, root, "switch/lan/do/down", "\n"))
	ok(t, write(t, tr, root, "vm/web/do/kill", "\n"))
	ok(t, switches.Rename(bg, root, "lan", switches, "wan"))
	ok(t, write(t, tr, root, "switch/wan/ctl", "wan\n")) // what is there
	ok(t, write(t, tr, root, "switch/wan/ctl", "remove\n"))
	if _, err := switches.Lookup(bg, "wan"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("after remove: %v", err)
	}
	if err := switches.Rename(bg, root, "wan", walk(t, tr, "vm").(fs.Dir), "x"); !errors.Is(err, syscall.EPERM) {
		t.Errorf("mv of a switch among machines: %v", err)
	}
}

// What is root's on somebody's machine is so in stat, and in config too: there
// the mode bits and the groups of who opened it decide.
func TestRootsFiles(t *testing.T) {
	tr, _, _ := tree(t)
	lan(t, tr)
	for path, owner := range map[string]uint32{"tap": 0, "group": 0, "rdomain": 0, "locked": 0, "mac": alice.UID, "up": alice.UID, "ifname": alice.UID} {
		a, err := walk(t, tr, "vm/web/nic/0/"+path).Attr(bg)
		ok(t, err)
		if a.UID != owner || a.GID != owner {
			t.Errorf("nic/0/%s belongs to %d:%d, want %d", path, a.UID, a.GID, owner)
		}
	}
	for _, path := range []string{"vm/web/config", "vm/web/nic/0/locked"} {
		if g, is := walk(t, tr, path).(fs.Grouper); !is || !g.WantsGroups(writing) || g.WantsGroups(reading) {
			t.Errorf("%s does not ask for the groups of who writes", path)
		}
	}
	if err := write(t, tr, alice, "vm/web/config", "nic/0/locked yes\n"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("alice locks her NIC: %v", err)
	}
	ops, mode := uint32(2100), uint32(0o664)
	ok(t, walk(t, tr, "vm/web/nic/0/locked").SetAttr(bg, root, ctl.AccessChange{Mode: &mode, GID: &ops}))
	member := alice
	member.Groups = []uint32{ops}
	ok(t, write(t, tr, member, "vm/web/config", "nic/0/locked yes\n"))
	if got := text(t, open(t, tr, root, "vm/web/modes", reading)); !strings.Contains(got, "nic/0/locked 0664 root 2100\n") || strings.Contains(got, "nic/0/tap") {
		t.Errorf("modes: %s", got)
	}
	if err := walk(t, tr, "vm/web/nic").(fs.Dir).Rmdir(bg, alice, "0"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("alice removes it: %v", err)
	}
	ok(t, walk(t, tr, "vm/web/nic").(fs.Dir).Rmdir(bg, root, "0"))
}

// Objects of all kinds have inode numbers of their own, and their doors are
// told of their changes.
func TestSwitchChanges(t *testing.T) {
	tr, _, _ := tree(t)
	lan(t, tr)
	seen := map[uint64]string{}
	var visit func(path string, n fs.Node)
	visit = func(path string, n fs.Node) {
		a, err := n.Attr(bg)
		ok(t, err)
		if seen[a.Ino] != "" {
			t.Errorf("%s and %s have inode number %d", path, seen[a.Ino], a.Ino)
		}
		seen[a.Ino] = path
		if d, isDir := n.(fs.Dir); isDir {
			list, err := d.List(bg)
			ok(t, err)
			for _, e := range list {
				visit(path+"/"+e.Name, e.Node)
			}
		}
	}
	visit("", tr.Root())
	told := map[string]bool{}
	tr.Watch(func(list []fs.Change) {
		for _, c := range list {
			told[seen[c.Ino]] = true
		}
	})
	ok(t, write(t, tr, root, "switch/lan/note", "a note"))
	for _, path := range []string{"/switch/lan/note", "/switch/lan/config", "/events.log"} {
		if !told[path] {
			t.Errorf("nobody was told of %s", path)
		}
	}
	for path := range told {
		if strings.HasPrefix(path, "/vm/") {
			t.Errorf("a change of the switch was told of %s", path)
		}
	}
	told = map[string]bool{}
	ok(t, write(t, tr, root, "vm/web/ctl", "start"))
	for _, path := range []string{"/vm/web/nic/0/ifname", "/switch/lan/status"} {
		if !told[path] {
			t.Errorf("nobody was told of %s", path)
		}
	}
}
