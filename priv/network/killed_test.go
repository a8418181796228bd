package network

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmfs/ctl"
)

// everything does to the host all that can be done to it, and undoes it.
func everything(t *testing.T, n *Network) {
	_, err := n.Bridge(one, "")
	ok(t, err)
	ok(t, n.Alias(one, "lan"))
	ok(t, n.Addresses(one, prefixes("10.1.0.1/24", "fd00:1::1/64")))
	ok(t, n.Masquerade(one, prefixes("10.1.0.0/24")))
	ok(t, n.SetUp(one, true))
	_, err = n.Bridge(two, "br0")
	ok(t, err)
	ok(t, n.Alias(two, "dmz"))
	ok(t, n.Uplink(two, "up0"))
	ok(t, n.Addresses(two, prefixes("10.2.0.1/24")))
	ok(t, n.Groups(two, []string{"outer"}))
	ok(t, n.SetUp(two, true))
	f, _, err := n.Tap(nic0, "tap")
	ok(t, err)
	defer f.Close()
	ok(t, n.Attach(nic0, one, ctl.Port{MAC: mac0, Locked: true}))
	ok(t, n.Groups(nic0, []string{"web", "inner"}))
	ok(t, n.SetUp(nic0, true))
	g, _, err := n.Tap(nic1, "tap3")
	ok(t, err)
	ok(t, n.Attach(nic1, two, ctl.Port{MAC: mac0}))
	ok(t, n.SetUp(nic1, true))
	g.Close()
	for _, l := range []ctl.Link{nic0, nic1, one, two} {
		ok(t, n.Release(l))
	}
}

var usable = []string{"br0", "tap3", "up0"}

// TestKilled kills who does everything at many moments, and looks that the
// next finds and undoes it all.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("VMFS_TEST_KILLED"); dir != "" {
		n := open(t, dir, usable...)
		os.Stdout.WriteString("begins\n")
		everything(t, n)
		return
	}
	if !alone(t) {
		return
	}
	for _, line := range []string{
		"ip link add name br0 type bridge", "ip link set br0 alias printers group 7", "ip addr add 10.9.0.1/24 dev br0",
		"ip tuntap add tap3 mode tap", "ip link set tap3 alias mine", "ip link add up0 type veth peer name up1",
		"ip link set br0 up", "ip link set up0 up", "ip link set tap3 up", "ip link set br0 down", "ip link set up0 down", "ip link set tap3 down",
	} {
		run(t, line)
	}
	before := snapshot(t)
	whole := killAfter(t, t.TempDir(), time.Minute)
	times := 25
	if testing.Short() {
		times = 10
	}
	cut := 0
	for i := range times {
		dir := t.TempDir()
		killAfter(t, dir, whole*time.Duration(i)/time.Duration(times))
		n := open(t, dir, usable...)
		all, err := n.Links(ctl.Link{}, 100)
		ok(t, err)
		cut += len(all)
		for _, s := range all {
			ok(t, n.Release(s.Link))
		}
		same(t, before, dir)
		if t.Failed() {
			t.Fatalf("killed after %d of %d parts of %v", i, times, whole)
		}
	}
	if cut == 0 {
		t.Error("nobody was killed in the middle of anything")
	}
}

// halfMade makes the record of something look as if its maker had been killed
// between making it and saying so.
func halfMade(t *testing.T, dir, name string, index int) {
	t.Helper()
	text, err := os.ReadFile(dir + "/" + name)
	ok(t, err)
	r, err := parseRecord(text)
	ok(t, err)
	if r.index != index {
		t.Fatalf("%s: index %d, want %d", name, r.index, index)
	}
	r.index = 0
	ok(t, (records{dir}).write(name, r.text()))
}

func TestHalfMade(t *testing.T) {
	if !alone(t) {
		return
	}
	dir := t.TempDir()
	before := snapshot(t)
	n := open(t, dir)
	_, err := n.Bridge(one, "")
	ok(t, err)
	halfMade(t, dir, "link.switch1", n.links[one].index)
	n = open(t, dir)
	if s, err := n.Observe(one); err != nil || s.Ifname != "switch1" {
		t.Errorf("observe: %+v, %v", s, err)
	}

	// Another's, who took the name before it was made.
	halfMade(t, dir, "link.switch1", n.links[one].index)
	run(t, "ip link set switch1 address 02:00:00:00:00:09")
	n = open(t, dir)
	refused(t, n.SetUp(one, true), syscall.ENOENT, "switch1")
	run(t, "ip link del switch1")
	same(t, before, dir)
}

// killAfter runs everything in another process for a time, and says how long
// it ran.
func killAfter(t *testing.T, dir string, limit time.Duration) time.Duration {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestKilled$", "-test.count=1")
	cmd.Env = append(os.Environ(), "VMFS_TEST_KILLED="+dir)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		ok(t, err)
		if strings.HasPrefix(line, "begins") {
			break
		}
	}
	begin := time.Now()
	timer := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	rest, _ := r.ReadString(0)
	took := time.Since(begin)
	timer.Stop()
	if cmd.Wait() != nil && strings.Contains(rest, "FAIL") {
		t.Fatal(rest)
	}
	return took
}
