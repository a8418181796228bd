package main_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"vmfs/fs/fstest"
)

// TestConformance holds the tree of a daemon as it is shipped, with all its
// roles and confinements, against the rules.
func TestConformance(t *testing.T) {
	fstest.Run(t, daemon(t))
}

// daemon serves for one test and gives the mount point. It ends with the
// test, with exit status 0, and leaves nothing.
func daemon(t *testing.T) (mnt string) {
	t.Helper()
	requirements(t)
	program := program(t)
	dir, err := os.MkdirTemp("", "vmfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{dir: dir, tag: 400000 + uint64(os.Getpid())%100000*4 + tags.Add(1)<<10}
	t.Cleanup(func() { s.leftNothing(t) })
	mnt = filepath.Join(dir, "m")
	if err := os.Chmod(dir, 0o755); err != nil { // other users pass
		t.Fatal(err)
	}
	for _, d := range []string{mnt, dir + "/images"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("prlimit", "--msgqueue="+strconv.FormatUint(s.tag, 10), program, "serve",
		"-m", mnt, "-state", dir+"/state", "-run", dir+"/run", "-images", dir+"/images")
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
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve after SIGTERM: %v; it said:\n%s", err, log.Bytes())
		}
	})
	said := make([]byte, 256)
	n, _ := stdout.Read(said)
	if want := "vmfs: serving " + mnt + "\n"; string(said[:n]) != want {
		t.Fatalf("serve: got %q, want %q", said[:n], want)
	}
	return mnt
}

// leftNothing ends what a daemon left and takes it for an error, but for the
// cover of the mount point, which is meant to stay.
func (s *stage) leftNothing(t *testing.T) {
	for _, p := range s.processes() {
		t.Errorf("left: %v", p)
		syscall.Kill(p.pid, syscall.SIGKILL)
	}
	for _, m := range s.mounts() {
		if m.point != s.dir+"/m" {
			t.Errorf("left: mount %s %s", m.point, m.fstype)
		}
		syscall.Unmount(m.point, syscall.MNT_DETACH)
	}
	os.RemoveAll(s.dir)
}
