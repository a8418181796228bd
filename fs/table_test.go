package fs

import (
	"slices"
	"strings"
	"testing"

	"vmfs/ctl"
)

// Every line has what its kind needs, and a mode that agrees with it.
func TestTable(t *testing.T) {
	for _, l := range lines {
		reads, writes := l.mode&0o444 != 0, l.mode&0o222 != 0
		switch {
		case l.kind == directory:
			if l.read != nil || l.write != nil || l.open != nil || !reads || l.mode&0o100 == 0 {
				t.Errorf("%s: a directory of mode %04o, or one that is read or written", l.path, l.mode)
			}
			continue
		case (l.mkdir != nil || l.rmdir != nil || l.many != nil):
			t.Errorf("%s: a file with entries", l.path)
		case l.values == "":
			t.Errorf("%s: no help", l.path)
		case l.mode&^0o666 != 0:
			t.Errorf("%s: a file of mode %04o", l.path, l.mode)
		case l.open == nil && writes != (l.write != nil):
			t.Errorf("%s: mode %04o, but written is %v", l.path, l.mode, l.write != nil)
		case l.open == nil && l.read == nil && l.write == nil:
			t.Errorf("%s: neither read nor written", l.path)
		case (l.kind == grows || l.kind == waits || l.kind == stream) != (l.open != nil && l.read == nil):
			t.Errorf("%s: kind %d does not go with how it is opened", l.path, l.kind)
		}
		if waiting := l.kind == waits || l.kind == stream; waiting != (strings.HasPrefix(l.path, "live/")) {
			t.Errorf("%s: what waits is below live/, and nothing else", l.path)
		}
	}
}

// The contract's modes, word for word.
func TestModes(t *testing.T) {
	want := map[string]uint32{
		"": 0o755, "help": 0o444, "ctl": 0o600, "version": 0o444, "err": 0o444, "events.log": 0o440, "clone": 0o666, "metrics": 0o440,
		"vm": 0o1755, "live": 0o755, "live/vm": 0o755, "live/vm/NAME": 0o755, "live/events": 0o440, "live/wait": 0o444,
		"live/vm/NAME/console": 0o600, "live/vm/NAME/events": 0o440, "live/vm/NAME/wait": 0o444,
		"vm/NAME": 0o755, "vm/NAME/ctl": 0o660, "vm/NAME/do": 0o755, "vm/NAME/config": 0o640, "vm/NAME/config.old": 0o440, "vm/NAME/edition": 0o440, "vm/NAME/modes": 0o600,
		"vm/NAME/status": 0o444, "vm/NAME/instance": 0o200,
		"vm/NAME/info": 0o444, "vm/NAME/check": 0o440, "vm/NAME/pending": 0o440, "vm/NAME/err": 0o444,
		"vm/NAME/console.log": 0o440, "vm/NAME/events.log": 0o440, "vm/NAME/disk": 0o750, "vm/NAME/disk/N": 0o750,
	}
	for path, mode := range map[string]uint32{
		"switch": 0o1755, "switch/NAME": 0o755, "switch/NAME/ctl": 0o660, "switch/NAME/do": 0o755, "switch/NAME/config": 0o640,
		"switch/NAME/config.old": 0o440, "switch/NAME/edition": 0o440, "switch/NAME/modes": 0o600, "switch/NAME/status": 0o444,
		"switch/NAME/err": 0o444, "switch/NAME/events.log": 0o440, "switch/NAME/ports": 0o664, "switch/NAME/leases": 0o440, "switch/NAME/check": 0o444,
		"vm/NAME/nic": 0o750, "vm/NAME/nic/N": 0o750, "vm/NAME/nic/N/ifname": 0o440, "vm/NAME/nic/N/address": 0o440, "vm/NAME/nic/N/stats": 0o440,
		"net": 0o700, "net/prefix": 0o600, "net/inet6": 0o600, "net/prefix6": 0o600,
		"switch/NAME/do/up": 0o660, "switch/NAME/do/down": 0o660,
	} {
		want[path] = mode
	}
	want["user"], want["user/NAME"], want["user/NAME/usage"] = 0o755, 0o755, 0o444
	for _, v := range ctl.Verbs {
		want["vm/NAME/do/"+v.Name] = 0o660
	}
	for _, a := range ctl.Attrs {
		want["vm/NAME/"+a.Name] = 0o640
	}
	for _, a := range ctl.SwitchAttrs {
		want["switch/NAME/"+a.Name] = 0o640
	}
	roots := []string{"switch/NAME/ifname", "switch/NAME/uplink", "switch/NAME/rdomain", "switch/NAME/group", "switch/NAME/address", "switch/NAME/nat", "switch/NAME/locked",
		"vm/NAME/nic/N/tap", "vm/NAME/nic/N/group", "vm/NAME/nic/N/rdomain", "vm/NAME/nic/N/locked",
		"user/NAME/vms", "user/NAME/cpus", "user/NAME/memory", "user/NAME/nics"}
	for _, path := range roots {
		want[path] = 0o644
	}
	for _, l := range lines {
		if l.root != slices.Contains(roots, l.path) {
			t.Errorf("%s: root's is %v", l.path, l.root)
		}
		if mode, ok := want[l.path]; !ok || mode != l.mode {
			t.Errorf("%s: mode %04o, want %04o (%v)", l.path, l.mode, mode, ok)
		}
		delete(want, l.path)
	}
	for path := range want {
		t.Errorf("%s is not in the table", path)
	}
}

func TestHelp(t *testing.T) {
	help := helpText()
	for _, l := range lines[1:] {
		if !strings.Contains(help, "\n"+l.path) || !strings.Contains(help, l.values+"\n") {
			t.Errorf("help does not name %s", l.path)
		}
	}
	for _, v := range ctl.Verbs {
		if !strings.Contains(help, v.Help) {
			t.Errorf("help does not say what %s does", v.Name)
		}
	}
}

// No two files have one inode number, and all fit.
func TestInos(t *testing.T) {
	if len(lines) >= 1<<rowBits || ctl.MaxParts > 1<<partBits {
		t.Fatalf("%d lines and %d disks do not fit in an inode number", len(lines), ctl.MaxParts)
	}
	seen := map[uint64]string{}
	add := func(ino uint64, path string) {
		if seen[ino] != "" {
			t.Errorf("%s and %s have inode number %d", path, seen[ino], ino)
		}
		seen[ino] = path
	}
	for _, l := range lines {
		if l.of == "" {
			add(l.row, l.path)
			continue
		}
		for _, serial := range []uint64{1, 2, 1 << 30} {
			add(l.ino(serial, 0, 0), l.path)
			for n := 1; n < len(l.below); n++ {
				add(l.ino(serial, n, 0), l.path)
				add(l.ino(serial, n, 1), l.path)
			}
		}
	}
	if lines[0].row != 1 || lines[0].path != "" {
		t.Error("the root's inode number is not 1")
	}
}
