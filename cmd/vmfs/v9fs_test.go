package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"vmfs/fs/fstest"
)

// What v9fs cannot say, by the functions that need it: of any dialect, and of
// 9P2000 alone, which has no numbers for owners.
var (
	v9fsExceptions = []fstest.Exception{
		{Function: "Waits", Reason: "v9fs has no word for O_NONBLOCK"},
		{Function: "Sizes", Reason: "blocks are as long as messages; see below"},
		{Function: "Times", Reason: "9P has no part of a second"},
		{Function: "Interrupts", Reason: "v9fs gathers what comes of a stream until its buffer is full"},
	}
	ownerless = append(slices.Clone(v9fsExceptions), []fstest.Exception{
		{Function: "Policy", Reason: "9P2000 has no word for the sticky bit, nor for bits that are refused"},
		{Function: "Users", Reason: "9P2000 shows no owners, and all users are who mounted"},
		{Function: "Requester", Reason: "all users are who mounted"},
		{Function: "RootsFiles", Reason: "a chown succeeds without effect"},
		{Function: "Limits", Reason: "all users are who mounted"},
		{Function: "Instances", Reason: "all users are who mounted"},
	}...)
)

// TestConformanceV9fs holds the tree of a daemon against the rules where Linux
// itself mounted it by 9P, as far as it can say them.
func TestConformanceV9fs(t *testing.T) {
	if os.Getenv("VMFS_TEST_BOX") == "" {
		t.Skip("skipping v9fs: its module is in scripts/testbed's kernel")
	}
	if out, err := exec.Command("modprobe", "-a", "9p", "9pnet_fd").CombinedOutput(); err != nil {
		t.Fatalf("modprobe: %v %s", err, out)
	}
	mnt := daemon(t)
	t.Run("9P2000.u", func(t *testing.T) {
		fstest.Run(t, v9fs(t, mnt, "version=9p2000.u,access=user"), v9fsExceptions...)
	})
	// A write of 64 KiB fits into such a message, and no longer one.
	t.Run("Sizes", func(t *testing.T) {
		fstest.Sizes(t, v9fs(t, mnt, "version=9p2000.u,access=user,msize=65560"))
	})
	t.Run("9P2000", func(t *testing.T) {
		fstest.Run(t, v9fs(t, mnt, "version=9p2000,dfltuid=0,dfltgid=0"), ownerless...)
	})
}

// v9fs mounts the tree of the daemon of a mount point beside it, until the
// test ends.
func v9fs(t *testing.T, mnt, options string) (dir string) {
	t.Helper()
	dir = filepath.Join(filepath.Dir(mnt), filepath.Base(t.Name()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Dir(mnt) + "/run/9p.sock"
	if err := syscall.Mount(socket, dir, "9p", 0, "trans=unix,uname=root,"+options); err != nil {
		t.Fatalf("mount -t 9p -o %s: %v", options, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("umount %s: %v", dir, err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
	return dir
}
