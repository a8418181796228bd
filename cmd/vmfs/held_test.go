package main_test

import (
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"vmfs/priv/confine"
	"vmfs/priv/confine/held"
)

// mayHaveOpen is what the descriptors of each process lead to, by the
// beginnings of what /proc shows. $NAME is the stage's variable.
var mayHaveOpen = map[string][]struct{ file, why string }{
	"serve": {
		{"$RUN/lock", "held for as long as it serves"},
		{"$STATE", "the same"},
	},
	"core": {
		{"/dev/fuse", "the tree's requests"},
		{"$STATE/events", "events are appended"},
		{"/memfd:", "the consoles' rings"},
	},
	"guest": {
		{"/memfd:", "the console's ring; kernel and initrd"},
		{"/proc/", "what QEMU uses, looked up before the door closed"},
		{"$IMAGES/disk.raw", "the disk it was given"},
		{"/dev/net/tun", "its tap, which it closes when QEMU has ended"},
	},
	"lease": {
		{"packet socket", "the link that it answers on"},
	},
	"qemu-system-x86_64": {
		{"/memfd:", "kernel and initrd"},
		{"$IMAGES/disk.raw", "the disk it was given"},
		{"/dev/net/tun", "its tap"},
		{"/dev/kvm", "where KVM is used"},
	},
}

// everyoneHas is what any process may have open.
var everyoneHas = []string{"/dev/null", "socket:", "anon_inode:", "pipe:", "$WORK/"}

// heldNow holds the running processes against confine's tables, their
// descriptors against mayHaveOpen, and the guest's mounts against its jail's.
func heldNow(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 0, "held")
	engineAsked(ts)
	roles := map[string]confine.Role{"serve": confine.Priv, "core": confine.Core, "lease": confine.Lease, "guest": confine.Guest, "qemu-system-x86_64": confine.Guest}
	uids := map[string]uint32{"core": confine.CoreUID, "lease": confine.LeaseUID, "guest": confine.GuestUID + 1, "qemu-system-x86_64": confine.GuestUID + 1}
	if u := stageOf(ts).user; u != nil {
		roles["serve"], roles["core"] = confine.OrdinaryPriv, confine.Core.Ordinary()
		delete(roles, "lease") // he has no links to answer on
		uids = map[string]uint32{}
		for name := range roles {
			uids[name] = uint32(u.uid)
		}
	}
	seen := map[string]int{}
	processes := stageOf(ts).processes()
	packets := packetSockets(ts, processes)
	for _, p := range processes {
		name := p.role()
		role, ok := roles[name]
		if !ok {
			ts.Fatalf("%v runs, and is none of the roles", p)
		}
		seen[name]++
		if err := held.Check(p.pid, role, uids[name]); err != nil {
			ts.Fatalf("%v: %v", p, err)
		}
		filesHeld(ts, p, packets)
		if name == "guest" || name == "qemu-system-x86_64" {
			jailHeld(ts, p)
		}
	}
	for name := range roles {
		if seen[name] != 1 {
			ts.Fatalf("%d processes of the role %s, want 1", seen[name], name)
		}
	}
}

func filesHeld(ts *testscript.TestScript, p process, packets map[string]bool) {
	files, err := held.Files(p.pid)
	ts.Check(err)
	allowed := everyoneHas
	for _, f := range mayHaveOpen[p.role()] {
		allowed = append(allowed[:len(allowed):len(allowed)], f.file)
	}
	for fd, to := range files {
		if packets[to] {
			to = "packet " + to
		}
		ok := false
		for _, a := range allowed {
			ok = ok || strings.HasPrefix(to, os.Expand(a, ts.Getenv))
		}
		if !ok {
			ts.Fatalf("%v has %d open: %s", p, fd, to)
		}
	}
}

// packetSockets are the sockets on links in the network namespaces of processes,
// as /proc shows them among files.
func packetSockets(ts *testscript.TestScript, of []process) map[string]bool {
	found := map[string]bool{}
	for _, p := range of {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/packet", p.pid))
		ts.Check(err)
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[0] != "sk" {
				found["socket:["+f[len(f)-1]+"]"] = true
			}
		}
	}
	return found
}

// jailHeld wants read-only mounts of the system's own places and no others.
func jailHeld(ts *testscript.TestScript, p process) {
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.pid))
	ts.Check(err)
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		point, options := f[4], strings.Split(f[5], ",")
		known := point == "/" || point == "/usr" || point == "/proc" || point == "/etc/ld.so.cache" || point == "/etc/resolv.conf"
		if lib, _ := path.Match("/lib*", point); !known && !lib {
			ts.Fatalf("%v sees %s", p, point)
		}
		if options[0] != "ro" {
			ts.Fatalf("%v may write %s: %v", p, point, options)
		}
	}
	if !strings.Contains(string(mounts), " / / ") {
		ts.Fatalf("%v has no root of its own:\n%s", p, mounts)
	}
}
