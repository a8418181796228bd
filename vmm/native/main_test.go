package native

import (
	"os"
	"testing"

	"vmfs/vmm/native/nativetest"
)

// TestMain keeps a CPU beside those of the tests, of which each ends its own.
func TestMain(m *testing.M) {
	idle, err := nativetest.KeepCPU()
	code := m.Run()
	if err == nil {
		idle.Close()
	}
	os.Exit(code)
}
