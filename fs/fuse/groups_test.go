package fuse

import (
	"slices"
	"testing"
)

func TestParseGroups(t *testing.T) {
	const status = "Name:\tcat\nUid:\t1\t1\t1\t2001\nGid:\t1\t1\t1\t2002\nGroups:\t100 2002 \n"
	if got := parseGroups(status, 2001, 2002); !slices.Equal(got, []uint32{100, 2002}) {
		t.Errorf("got %v", got)
	}
	for _, c := range []struct {
		status   string
		uid, gid uint32
	}{{status, 1, 2002}, {status, 2001, 1}, {"", 0, 0}, {"Uid:\nGid:\nGroups: 0\n", 0, 0}, {"Uid: 0 0 0\nGid: 0 0 0 0\nGroups: 0\n", 0, 0}} {
		if got := parseGroups(c.status, c.uid, c.gid); got != nil {
			t.Errorf("%q as %d, %d: got %v, want none", c.status, c.uid, c.gid, got)
		}
	}
}

func FuzzParseGroups(f *testing.F) {
	f.Add("Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 1 \n")
	f.Fuzz(func(t *testing.T, status string) { parseGroups(status, 0, 0) })
}
