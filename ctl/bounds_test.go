package ctl_test

import (
	"os"
	"path/filepath"
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

// A machine's files count with what is copied of them, however long they are:
// their user has no more memory for that.
func TestFilesCount(t *testing.T) {
	file := func(size int64) *os.File {
		f, err := os.Create(filepath.Join(t.TempDir(), "file"))
		ok(t, err)
		t.Cleanup(func() { f.Close() })
		ok(t, f.Truncate(size))
		return f
	}
	for _, tt := range []struct {
		launch ctl.Launch
		want   int
	}{
		{ctl.Launch{}, 0},
		{ctl.Launch{Kernel: file(1), Initrd: file(3<<20 + 1)}, 5},
		{ctl.Launch{Kernel: file(1 << 40)}, 256},
		{ctl.Launch{Kernel: file(1 << 40), Initrd: file(1 << 40)}, 256 + 2048},
		{ctl.Launch{Firmware: file(1 << 40), Vars: file(1 << 40)}, 32},
	} {
		if got := tt.launch.Process().FilesMiB; got != tt.want {
			t.Errorf("%d MiB count, want %d", got, tt.want)
		}
	}
}
