package ctl_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

var (
	bob = ctl.Cred{UID: 52002, GID: 52002}
	ops = ctl.Cred{UID: 52003, GID: 52003}
)

// limits says what a user may have, in the order of usage.
func limits(t *testing.T, m *ctl.Manager, name string, values ...string) {
	t.Helper()
	u := m.User(name)
	if u == nil {
		o, err := m.Make(root, "user", name, 0o755, 0)
		ok(t, err)
		u = o.(*ctl.User)
	}
	for i, v := range values {
		ok(t, u.Set(root, ctl.UserAttrs[i].Name, v))
	}
}

// usage wants the amounts that a user has, in the order of usage.
func usage(t *testing.T, m *ctl.Manager, by ctl.Cred, want string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(m.User(ctl.DefaultUser).Usage(by)) {
		got = append(got, strings.Fields(line)[1])
	}
	if s := strings.Join(got, " "); s != want {
		t.Errorf("%s uses %s, want %s", by, s, want)
	}
}

// bare makes a machine of by's that can start.
func bare(t *testing.T, m *ctl.Manager, by ctl.Cred, name, config string) *ctl.VM {
	t.Helper()
	vm, err := m.Create(by, name, 0o755, by.GID)
	ok(t, err)
	if config != "" {
		ok(t, vm.Edit(by, config))
	}
	return vm
}

func TestLimitDefaults(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	if got, want := m.User("default").Usage(alice), "vms 0 64\ncpus 0 4\nmemory 0M 2048M\nnics 0 8\n"; got != want {
		t.Errorf("usage %q, want %q", got, want)
	}
	if got, want := m.User("default").Usage(root), "vms 0 max\ncpus 0 max\nmemory 0M max\nnics 0 max\n"; got != want {
		t.Errorf("root's usage %q, want %q", got, want)
	}
	limits(t, m, "52001", "", "max")
	limits(t, m, "default", "7", "08", "3g", "0")
	if got, want := m.User("52001").Usage(bob), "vms 0 7\ncpus 0 max\nmemory 0M 3072M\nnics 0 0\n"; got != want {
		t.Errorf("usage %q, want %q", got, want)
	}
	host.Abandon()
	m = open(t, dir, host)
	if got, want := m.User("default").Usage(bob), "vms 0 7\ncpus 0 8\nmemory 0M 3072M\nnics 0 0\n"; got != want {
		t.Errorf("usage %q, want %q", got, want)
	}
	events := m.EventsText()
	ok(t, m.User("52001").Set(root, "vms", "7")) // so it is
	if got := m.EventsText(); got != events {
		t.Errorf("writing what is there made an event: %s", strings.TrimPrefix(got, events))
	}
	for attr, bad := range map[string][]string{
		"vms": {"-1", "x", "1.5", "Max", "2147483648", "1 ", "1G"}, "cpus": {"4x"}, "nics": {"+1"},
		"memory": {"-1", "1MM", "x", "17T", "99999999999999999999"}, "usage": {"1"}, "disks": {"1"},
	} {
		for _, v := range bad {
			refused(t, m.User("default").Set(root, attr, v), syscall.EINVAL, attr)
		}
	}
	ok(t, m.User("default").Set(root, "memory", "0"))
	ok(t, m.User("default").Set(root, "memory", ""))
	if got := m.User("52001").Get("memory"); got != "2048M" {
		t.Errorf("memory is %s after it was unset", got)
	}
}

// Limits are kept under names that are somebody's, each one's once.
func TestUserNames(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	make := func(name string) error {
		_, err := m.Make(root, "user", name, 0o755, 0)
		return err
	}
	for _, name := range []string{"", ".a", "-a", "a b", "ä", strings.Repeat("a", 64), "01", "4294967295", "18446744073709551615", "root", "0"} {
		refused(t, make(name), syscall.EINVAL, "")
	}
	refused(t, make("nobody-there"), syscall.ENOENT, "no such user")
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skipf("skipping login names: %v", err)
	}
	ok(t, make("nobody"))
	refused(t, make("nobody"), syscall.EEXIST, "taken")
	refused(t, make(nobody.Uid), syscall.EEXIST, "user/nobody is the same user")
	refused(t, m.Rename(root, m.User("nobody"), "52001"), syscall.EPERM, "its name")
	refused(t, m.Remove(root, m.User("default")), syscall.EPERM, "for all")
	ok(t, m.Remove(root, m.User("nobody")))
	ok(t, make(nobody.Uid))
	refused(t, make("nobody"), syscall.EEXIST, "user/"+nobody.Uid)
	uid, _ := strconv.ParseUint(nobody.Uid, 10, 32)
	limits(t, m, nobody.Uid, "1")
	by := ctl.Cred{UID: uint32(uid)}
	bare(t, m, by, "a", "")
	_, err = m.Create(by, "b", 0o755, 0)
	refused(t, err, syscall.EDQUOT, "mkdir b: vms: nobody would have 2: at most 1, says user/"+nobody.Uid+"/vms")
}

// vms counts directories, of their owners.
func TestLimitOfMachines(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	limits(t, m, "default", "2")
	a, b := bare(t, m, alice, "a", ""), bare(t, m, alice, "b", "")
	bare(t, m, bob, "c", "")
	_, err := m.CreateFree(alice, 0o755, 0)
	refused(t, err, syscall.EDQUOT, "at most 2, says user/default/vms")
	usage(t, m, alice, "2 0 0M 0")
	ok(t, m.Remove(alice, a))
	bare(t, m, alice, "d", "")
	for n := range 5 {
		bare(t, m, root, fmt.Sprint("r", n), "")
	}
	ok(t, b.SetAccess(root, "", ctl.AccessChange{UID: &bob.UID}))
	usage(t, m, alice, "1 0 0M 0")
	usage(t, m, bob, "2 0 0M 0")
	_, err = m.Create(bob, "e", 0o755, 0)
	refused(t, err, syscall.EDQUOT, "52002 would have 3")
	limits(t, m, "52002", "max")
	bare(t, m, bob, "e", "")
}

// A start is charged to the owner, whoever starts, and refused over the limit
// with the numbers; the limit itself is allowed.
func TestLimitOfStarts(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	a := bare(t, m, alice, "a", "cpus 3\nmemory 2000M\nnic/0/local yes\n")
	b := bare(t, m, alice, "b", "memory 48M\n")
	ok(t, a.Do(ctx, root, "start", ""))
	usage(t, m, alice, "2 3 2000M 1")
	ok(t, b.Do(ctx, ops, "start", ""))
	usage(t, m, alice, "2 4 2048M 1")
	usage(t, m, root, "0 0 0M 0")
	c := bare(t, m, alice, "c", "memory 1M\n")
	if got, want := c.Check(ctx), "cpus: 52001 would have 5: at most 4, says user/default/cpus\n"; got != want {
		t.Errorf("check %q, want %q", got, want)
	}
	refused(t, c.Do(ctx, root, "start", ""), syscall.EDQUOT, "start c: cpus: 52001 would have 5: at most 4, says user/default/cpus")
	if got := c.Status(); !strings.HasPrefix(got, "failed start c: cpus: ") {
		t.Errorf("status: %q", got)
	}
	usage(t, m, alice, "3 4 2048M 1")
	limits(t, m, "52001", "", "max")
	refused(t, c.Do(ctx, root, "start", ""), syscall.EDQUOT, "start c: memory: 52001 would have 2049M: at most 2048M, says user/52001/memory")
	limits(t, m, "52001", "", "max", "3G", "1")
	ok(t, c.Edit(alice, "nic/0/local yes\n"))
	refused(t, c.Do(ctx, root, "start", ""), syscall.EDQUOT, "start c: nics: 52001 would have 2: at most 1")
	limits(t, m, "52001", "", "0", "0", "0") // who has too much keeps it
	usage(t, m, alice, "3 4 2048M 1")
	ok(t, b.Do(ctx, alice, "kill", ""))
	refused(t, b.Do(ctx, alice, "start", ""), syscall.EDQUOT, "would have 4: at most 0")
	limits(t, m, "52001", "", "max", "max", "0")
	ok(t, b.Do(ctx, alice, "start", "")) // it adds no NIC to those that are too many

	// The owner is changed while it runs: it counts for the other at once,
	// also beyond what he may have.
	ok(t, a.SetAccess(root, "", ctl.AccessChange{UID: &bob.UID}))
	ok(t, b.SetAccess(root, "", ctl.AccessChange{UID: &bob.UID}))
	usage(t, m, alice, "1 0 0M 0")
	usage(t, m, bob, "2 4 2048M 1")
	ok(t, a.SetAccess(root, "", ctl.AccessChange{UID: &root.UID}))
	ok(t, c.Do(ctx, alice, "kill", ""))
	ok(t, a.Do(ctx, root, "kill", ""))
	ok(t, a.Do(ctx, root, "start", ""))
	usage(t, m, bob, "1 1 48M 0")
}

// What is changed of a machine that runs counts from its next start on.
func TestLimitsCountWhatRuns(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	a := bare(t, m, alice, "a", "cpus 2\nmemory 100M\nnic/0/local yes\n")
	ok(t, a.Do(ctx, alice, "start", ""))
	ok(t, a.Edit(alice, "cpus 4\nmemory 2G\nnic/1/local yes\n"))
	usage(t, m, alice, "1 2 100M 1")
	limits(t, m, "default", "", "1")

	// A daemon that finds it counts it, also beyond the limits.
	host.Abandon()
	m = open(t, dir, host)
	usage(t, m, alice, "1 2 100M 1")
	b := bare(t, m, alice, "b", "")
	refused(t, b.Do(ctx, alice, "start", ""), syscall.EDQUOT, "would have 3: at most 1")
	host.Guest(a.ID()).Die()
	becomes(t, m.VM("a"), "failed the guest process died")
	usage(t, m, alice, "2 0 0M 0")
	ok(t, b.Do(ctx, alice, "start", ""))

	// One that died meanwhile is not counted.
	host.Abandon()
	ok(t, host.End(ctx, b.ID()))
	m = open(t, dir, host)
	usage(t, m, alice, "2 0 0M 0")
}

// Every way in which a launch ends gives back what it was charged.
func TestLimitsAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, vm, host := machine(t)
		limits(t, m, "52001", "1", "1", "512M", "0")
		given := func(how string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			usage(t, m, alice, "1 0 0M 0")
			if t.Failed() {
				t.Fatal(how)
			}
			ok(t, vm.Do(ctx, alice, "clear-failed", ""))
		}
		for _, step := range []string{"spawn", "give", "go"} {
			host.Refused = func(s string) error {
				if s == step {
					return syscall.ENOMEM
				}
				return nil
			}
			refused(t, vm.Do(ctx, alice, "start", ""), syscall.ENOMEM, "")
			host.Refused = nil
			given("failed at " + step)
		}
		ok(t, vm.Set(alice, "initrd", "/no/such/file"))
		refused(t, vm.Do(ctx, alice, "start", ""), syscall.ENOENT, "")
		ok(t, vm.Set(alice, "initrd", ""))
		given("no such file")

		host.Blocking = func(ctx context.Context) { <-ctx.Done() }
		began := make(chan error)
		interrupted, interrupt := context.WithCancel(ctx)
		go func() { began <- vm.Do(interrupted, alice, "start", "") }()
		synctest.Wait()
		usage(t, m, alice, "1 1 512M 0")
		interrupt()
		refused(t, <-began, syscall.EINTR, "interrupted")
		given("interrupted")
		go func() { began <- vm.Do(ctx, alice, "start", "") }()
		synctest.Wait()
		ok(t, vm.Do(ctx, alice, "kill", ""))
		refused(t, <-began, syscall.EAGAIN, "ended by kill")
		given("ended by kill")
		refused(t, vm.Do(ctx, alice, "start", ""), syscall.ETIMEDOUT, "")
		given("timed out")
		host.Blocking = nil

		for how, end := range map[string]func(){
			"kill":      func() { ok(t, vm.Do(ctx, alice, "kill", "")) },
			"power-off": func() { host.Guest(vm.ID()).EndAs(ctl.Exit{Who: "guest", How: "power-off"}) },
			"panic":     func() { host.Guest(vm.ID()).EndAs(ctl.Exit{Failed: true, Who: "guest", How: "panic"}) },
			"killed":    func() { host.Guest(vm.ID()).Die() },
		} {
			ok(t, vm.Do(ctx, alice, "start", ""))
			usage(t, m, alice, "1 1 512M 0")
			end()
			given(how)
		}
		ok(t, vm.Do(ctx, alice, "start", ""))
		ok(t, vm.Do(ctx, alice, "restart", ""))
		synctest.Wait()
		host.Guest(vm.ID()).EndAs(ctl.Exit{Who: "52001", How: "stop", Restart: true})
		synctest.Wait()
		becomes(t, vm, "running")
		usage(t, m, alice, "1 1 512M 0")
		ok(t, vm.Do(ctx, alice, "kill", ""))
		given("restart")
	})
}

// Starts at the same time cannot exceed a limit together, whatever becomes of
// them, and at the end nothing is charged.
func TestLimitsUnderConcurrentStarts(t *testing.T) {
	host := ctltest.NewHost()
	m := open(t, t.TempDir(), host)
	limits(t, m, "default", "24", "10", "1000M", "3")
	host.Refused = func(string) error {
		if rand.IntN(20) == 0 {
			return syscall.ENOMEM
		}
		return nil
	}
	var list []*ctl.VM
	for n := range 24 {
		list = append(list, bare(t, m, alice, fmt.Sprint("a", n), fmt.Sprintf("cpus %d\nmemory %dM\n", 1+n%3, 50+n)))
		if n%4 == 0 {
			ok(t, list[n].Set(alice, "nic/0/local", "yes"))
		}
	}
	watching, stop := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for watching.Err() == nil {
			for i, line := range strings.Split(strings.TrimSpace(m.User("default").Usage(alice)), "\n") {
				f := strings.Fields(line)
				used, _ := strconv.Atoi(strings.TrimSuffix(f[1], "M"))
				limit, _ := strconv.Atoi(strings.TrimSuffix(f[2], "M"))
				if used > limit || i == 0 && used != 24 {
					t.Errorf("usage: %s", line)
				}
			}
		}
	}()
	var started, over atomic.Int32
	var wg sync.WaitGroup
	for _, vm := range list {
		for range 2 {
			wg.Go(func() {
				for range 15 {
					switch err := vm.Do(ctx, alice, "start", ""); {
					case err == nil:
						started.Add(1)
						if rand.IntN(4) == 0 {
							host.Guest(vm.ID()).Die()
						}
					case errors.Is(err, syscall.EDQUOT):
						over.Add(1)
					}
					vm.Do(ctx, alice, "kill", "")
					vm.Do(ctx, alice, "clear-failed", "")
				}
			})
		}
	}
	wg.Wait()
	stop()
	<-watched
	for _, vm := range list {
		ok(t, vm.Do(ctx, alice, "kill", ""))
		ok(t, vm.Do(ctx, alice, "clear-failed", ""))
		becomes(t, vm, "stopped")
	}
	usage(t, m, alice, "24 0 0M 0")
	if started.Load() == 0 || over.Load() == 0 {
		t.Errorf("%d started, %d were over: that shows nothing", started.Load(), over.Load())
	}
}

// As many machines as are allowed can be made at the same time, and no more.
func TestLimitUnderConcurrentMkdirs(t *testing.T) {
	m := open(t, t.TempDir(), ctltest.NewHost())
	limits(t, m, "default", "10")
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 4 {
				switch _, err := m.CreateFree(alice, 0o755, 0); {
				case err == nil:
					made.Add(1)
				case !errors.Is(err, syscall.EDQUOT):
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if made.Load() != 10 {
		t.Errorf("%d machines were made, want 10", made.Load())
	}
	usage(t, m, alice, "10 0 0M 0")
}

// What a start of an ordinary user costs on top, among many machines.
func BenchmarkLimit(b *testing.B) {
	m, err := ctl.Open(ctx, ctl.Options{State: b.TempDir(), Host: ctltest.NewHost()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for n := range 1000 {
		if _, err := m.Create(root, fmt.Sprint("vm", n), 0o755, 0); err != nil {
			b.Fatal(err)
		}
	}
	u := m.User(ctl.DefaultUser)
	for b.Loop() {
		u.Usage(alice)
	}
}
