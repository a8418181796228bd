package ctl_test

import (
	"strings"
	"testing"

	"vmfs/ctl"
)

// A machine whose guest process exceeded its cgroup says so, unless it was to
// end anyway, or something else ended it.
func TestOutOfMemory(t *testing.T) {
	for _, tt := range []struct {
		exit   ctl.Exit
		killed uint64
		want   string
	}{
		{ctl.Exit{Failed: true, Who: "host", How: "QEMU was killed"}, 1, "failed out of memory, at the limit of its cgroup: QEMU was killed"},
		{ctl.Exit{Failed: true, Who: "guest", How: "panic"}, 0, "failed panic"},
		{ctl.Exit{Who: "root", How: "kill"}, 1, "stopped"},
	} {
		_, vm, host := machine(t)
		ok(t, vm.Do(ctx, root, "start", ""))
		if got := vm.Info(ctx); !strings.Contains(got, "\ncgroup none: this is a test\n") {
			t.Errorf("info: got %q, want its cgroup", got)
		}
		host.SetBounds(vm.ID(), ctl.Bounds{Killed: tt.killed})
		host.Guest(vm.ID()).EndAs(tt.exit)
		becomes(t, vm, tt.want)
	}
}
