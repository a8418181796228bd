package ctl_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

var eventForm = regexp.MustCompile(`^([0-9]+) 20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-9:]{8}\.[0-9]{3}Z (-|vm/\S+|switch/\S+) ([a-z]+) (\S+)( .+)?$`)

// All that can happen to machines makes the events of the list, every one of
// them, and no other.
func TestEventsAreAList(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	vm, err := m.Create(root, "web", 0o755, 0)
	ok(t, err)
	other, err := m.Create(root, "other", 0o755, 0)
	ok(t, err)
	ok(t, m.Remove(root, other))
	ok(t, m.Rename(root, vm, "www"))
	ok(t, vm.Set(root, "note", "a note"))
	mode := uint32(0o600)
	ok(t, vm.SetAccess(root, "cpus", ctl.AccessChange{Mode: &mode}))
	for _, verb := range []string{"start", "pause", "resume", "reset"} {
		ok(t, vm.Do(ctx, root, verb, ""))
	}
	host.Guest(vm.ID()).Reboot()
	happens(t, m, "rebooted")
	ok(t, vm.Do(ctx, root, "stop", ""))
	host.Guest(vm.ID()).EndAs(ctl.Exit{Who: "guest", How: "power-off"})
	becomes(t, vm, "stopped")
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	for _, why := range []error{context.Canceled, ctl.Errorf(syscall.EIO, "this is a test")} {
		host.Lock()
		host.Refused = func(string) error { return why }
		host.Unlock()
		if err := vm.Do(ctx, root, "start", ""); err == nil {
			t.Errorf("a start succeeded that ends with %v", why)
		}
	}
	host.Lock()
	host.Refused = nil
	host.Unlock()
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	_, err = m.CreateSwitch(root, "lan", 0o755, 0)
	ok(t, err)
	ok(t, vm.Set(root, "nic/0/switch", "lan"))
	ok(t, vm.Do(ctx, root, "start", ""))
	m.Close()
	host.Abandon()
	host.Change(ctl.NICLink(99, 0), func(*ctltest.Link) *ctltest.Link {
		return &ctltest.Link{LinkState: ctl.LinkState{Link: ctl.NICLink(99, 0), Ifname: "tap99"}}
	})
	m = open(t, dir, host)
	ok(t, m.Ctl(ctx, root, "shutdown"))
	host.Guest(vm.ID()).EndAs(ctl.Exit{Who: "root", How: "stop"})
	<-host.Down

	seen := map[string]bool{}
	for line := range strings.Lines(m.EventsText()) {
		f := eventForm.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if f == nil {
			t.Fatalf("no event has the form of %q", line)
		}
		seen[f[3]] = true
	}
	for _, e := range ctl.Events {
		if !seen[e.Name] {
			t.Errorf("there was no %q among:\n%s", e.Name, m.EventsText())
		}
		delete(seen, e.Name)
	}
	if len(seen) > 0 {
		t.Errorf("in no list: %v", seen)
	}
}

// happens waits for an event.
func happens(t *testing.T, m *ctl.Manager, name string) {
	t.Helper()
	await(t, "the event "+name, func() bool { return strings.Contains(m.EventsText(), " "+name+" ") })
}

// The last 4096 events are kept, over restarts too, and numbers go on. Who
// reads too slowly is told how many he lost, if he has room for that.
func TestEventsKept(t *testing.T) {
	dir, host := t.TempDir(), ctltest.NewHost()
	m := open(t, dir, host)
	vm, err := m.Create(root, "web", 0o755, 0)
	ok(t, err)
	ok(t, vm.Do(ctx, root, "start", ""))
	before := m.EventsText()
	slow := m.OpenEvents()
	const made = 5000
	for range made {
		ok(t, vm.Do(ctx, root, "reset", ""))
	}
	p := make([]byte, 1<<20)
	for _, room := range []int{0, 10, 40} {
		if n, err := slow.Read(ctx, p[:room], true); n != 0 || !errors.Is(err, syscall.EINVAL) {
			t.Errorf("read of %d bytes by one who fell behind: got %d bytes, %v, want EINVAL", room, n, err)
		}
	}
	n, err := slow.Read(ctx, p, true)
	ok(t, err)
	first, rest, _ := strings.Cut(string(p[:n]), "\n")
	if !strings.HasSuffix(first, fmt.Sprintf(" - lost - %d", made-4096)) || rest != m.EventsText() {
		t.Errorf("got %q and %d bytes more, want %d lost and %d bytes", first, len(rest), made-4096, len(m.EventsText()))
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	happens(t, m, "stopped")
	m.Close()
	was := strings.SplitAfter(m.EventsText(), "\n")
	now := strings.SplitAfter(open(t, dir, host).EventsText(), "\n")
	if !slices.Equal(now[:4095], was[1:4096]) || len(now) != 4096+1 {
		t.Errorf("the next daemon has %d events, from %q to %q", len(now)-1, now[0], now[4094])
	}
	want := strconv.Itoa(strings.Count(before, "\n") + made + 2)
	if f := eventForm.FindStringSubmatch(strings.TrimSuffix(now[4095], "\n")); f == nil || f[1] != want || f[3] != "serving" {
		t.Errorf("the last event is %q, want %s ... serving", now[4095], want)
	}
}

// metrics is what a parser of OpenMetrics takes: of each family its type, its
// help and its samples, in this order, with the type's suffix; and an end.
func TestMetricsForm(t *testing.T) {
	m, _, _ := machine(t)
	text, ended := strings.CutSuffix(m.MetricsText(), "# EOF\n")
	if !ended || !strings.HasSuffix(text, "\n") {
		t.Fatalf("it does not end with # EOF:\n%s", text)
	}
	suffix := map[string]string{"info": "_info", "counter": "_total", "gauge": ""}
	value := `(\{[a-z]+="[^"\\\n]*"\})? [0-9]+(\.[0-9]+)?\n`
	var form strings.Builder
	for _, f := range ctl.Metrics {
		end, known := suffix[f.Type]
		if !known || strings.HasSuffix(f.Name, end) && end != "" {
			t.Errorf("%s: type %s", f.Name, f.Type)
		}
		fmt.Fprintf(&form, "# TYPE %[1]s %[2]s\n# HELP %[1]s %[3]s\n(%[1]s%[4]s%[5]s)+", f.Name, f.Type, regexp.QuoteMeta(f.Help), end, value)
	}
	if !regexp.MustCompile("^" + form.String() + "$").MatchString(text) {
		t.Errorf("not of the form %s:\n%s", &form, text)
	}
}

// What a verb made of a machine is not taken back by what the guest said a
// moment before: status is true at once, and each turn is one event.
func TestTurnsAreEventsOnce(t *testing.T) {
	m, vm, _ := machine(t)
	ok(t, vm.Do(ctx, root, "start", ""))
	const turns = 2000
	for i := range turns {
		verb, want := "pause", "paused\n"
		if i%2 == 1 {
			verb, want = "resume", "running\n"
		}
		ok(t, vm.Do(ctx, root, verb, ""))
		if got := vm.Status(); got != want {
			t.Fatalf("after %s it is %q", verb, got)
		}
	}
	text := m.EventsText()
	if p, r := strings.Count(text, " paused root"), strings.Count(text, " resumed root"); p+r != turns {
		t.Errorf("%d pauses and resumes made %d and %d events", turns, p, r)
	}
}
