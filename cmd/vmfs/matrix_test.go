package main_test

import (
	"testing"

	"vmfs/fs/fstest"
)

// TestMatrix holds who may do what with a daemon as it is shipped against the
// modes of the table of files.
func TestMatrix(t *testing.T) {
	mnt := daemon(t)
	fstest.Matrix(t, mnt, fstest.Syscalls(mnt))
}
