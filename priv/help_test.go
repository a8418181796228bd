package priv

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// helper builds the static program of testdata/role, which the tests run in
// the place of vmfs.
var helper = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "priv")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "role"), "./testdata/role")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("%v\n%s", err, out)
	}
	return dir, nil
})

var built bool

func TestMain(m *testing.M) {
	code := m.Run()
	if built {
		dir, _ := helper()
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// program is the path of the helper, which is also what roles are made of
// from then on. It skips where nothing can be tested with it.
func program(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to start processes of other users")
	}
	built = true
	dir, err := helper()
	if err != nil {
		t.Fatal(err)
	}
	self = filepath.Join(dir, "role")
	return self
}

// tempDir is a directory that every user may pass through, with a short name.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// eventually waits until ok, at most for a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 6000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}
