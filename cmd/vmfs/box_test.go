package main_test

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vmfs/vmm/native/nativetest"
)

// TestBox runs the sessions that need a host of a certain kind: KVM that runs
// an ordinary kernel, cgroup v2, and whatever else scripts/testbed has.
func TestBox(t *testing.T) {
	if os.Getenv("VMFS_TEST_BOX") == "" {
		t.Skip("skipping the box's sessions: they are for scripts/testbed")
	}
	idle, err := nativetest.KeepCPU()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { idle.Close() }) // the sessions, which are parallel, end first
	run(t, testscript.Params{Dir: "testdata/box"})
}
