package native

import (
	"os"
	"strings"
	"testing"
	"time"

	"vmfs/vmm/engine"
	"vmfs/vmm/native/nativetest"
)

// TestLinux boots the kernel and the initrd that VMFS_TEST_KERNEL and
// VMFS_TEST_INITRD name, which takes a KVM that runs an ordinary kernel.
func TestLinux(t *testing.T) {
	kernel, initrd := os.Getenv("VMFS_TEST_KERNEL"), os.Getenv("VMFS_TEST_INITRD")
	if kernel == "" {
		t.Skip("SKIPPED: VMFS_TEST_KERNEL names no kernel")
	}
	g := start(t, nativetest.New(), func(s *engine.Spec) {
		s.MemoryMiB = 192
		s.Cmdline = "console=ttyS0 earlyprintk=ttyS0 " + os.Getenv("VMFS_TEST_CMDLINE")
		for name, slot := range map[string]**os.File{kernel: &s.Kernel, initrd: &s.Initrd} {
			f, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			*slot = f
		}
	})
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if strings.Contains(g.printed(), "userland is up") {
			break
		}
		select {
		case <-g.Done():
			t.Fatalf("it ended: %+v\n%s", g.End(), g.printed())
		default:
		}
	}
	t.Logf("%s\nexits %+v", g.printed(), g.Exits())
}
