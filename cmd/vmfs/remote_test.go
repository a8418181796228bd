package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vmfs/fs/fstest"
)

// TestConformanceRemote holds the tree of a daemon against the same rules
// where vmfs mount has mounted it. That is root's, so everybody is himself
// there, and there is no exception.
func TestConformanceRemote(t *testing.T) {
	fstest.Run(t, remotely(t, daemon(t)))
}

// remotely mounts the tree of the daemon of a mount point on a directory
// beside it, for all users, until the test ends.
func remotely(t *testing.T, mnt string) (dir string) {
	t.Helper()
	dir = filepath.Join(filepath.Dir(mnt), "n")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program(t), "mount", "-allow-other", "unix!"+filepath.Dir(mnt)+"/run/9p.sock", dir)
	var log bytes.Buffer
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil || log.Len() > 0 {
			t.Errorf("mount after SIGTERM: %v; it said:\n%s", err, log.Bytes())
		}
	})
	said := make([]byte, 256)
	n, _ := stdout.Read(said)
	if want := "vmfs: mounted " + dir + "\n"; string(said[:n]) != want {
		t.Fatalf("mount: got %q, want %q; %s", said[:n], want, log.Bytes())
	}
	return dir
}
