package ninep

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/fs"
)

func TestMayChange(t *testing.T) {
	a := &fs.Attr{Mode: 0o640, UID: alice.UID, GID: alice.GID}
	in := ctl.Cred{UID: alice.UID, GID: alice.GID, Groups: []uint32{52100}}
	id := func(n uint32) *uint32 { return &n }
	for _, c := range []struct {
		by   ctl.Cred
		c    ctl.AccessChange
		want bool
	}{
		{root, ctl.AccessChange{Mode: id(0), UID: id(7), GID: id(7)}, true},
		{alice, ctl.AccessChange{Mode: id(0o600)}, true},
		{bob, ctl.AccessChange{Mode: id(0o640)}, false},
		{alice, ctl.AccessChange{UID: id(bob.UID)}, false},
		{alice, ctl.AccessChange{UID: id(alice.UID)}, true},
		{bob, ctl.AccessChange{UID: id(bob.UID)}, false},
		{alice, ctl.AccessChange{GID: id(alice.GID)}, true},
		{alice, ctl.AccessChange{GID: id(52100)}, false},
		{in, ctl.AccessChange{GID: id(52100)}, true},
		{bob, ctl.AccessChange{GID: id(52100)}, false},
		{in, ctl.AccessChange{Mode: id(0), GID: id(7)}, false},
	} {
		if err := mayChange(&c.by, a, c.c); (err == nil) != c.want {
			t.Errorf("%v %+v: %v", c.by.UID, c.c, err)
		}
	}
}

// In a sticky directory an entry is its owner's, the directory's and root's.
func TestMayRemove(t *testing.T) {
	entry := &fs.Attr{UID: alice.UID}
	for _, c := range []struct {
		by   ctl.Cred
		dir  fs.Attr
		want error
	}{
		{alice, fs.Attr{Mode: 0o1777}, nil},
		{bob, fs.Attr{Mode: 0o1777}, syscall.EPERM},
		{bob, fs.Attr{Mode: 0o777}, nil},
		{bob, fs.Attr{Mode: 0o1777, UID: bob.UID}, nil},
		{root, fs.Attr{Mode: 0o1777, UID: bob.UID}, nil},
		{bob, fs.Attr{Mode: 0o1755}, syscall.EACCES},
		{bob, fs.Attr{Mode: 0o1772}, syscall.EACCES},
		{bob, fs.Attr{Mode: 0o1770, GID: 52100}, syscall.EPERM},
		{bob, fs.Attr{Mode: 0o770, GID: 52100}, nil},
	} {
		if err := mayRemove(&c.by, &c.dir, entry); !errors.Is(err, c.want) {
			t.Errorf("%d in %o of %d: %v, want %v", c.by.UID, c.dir.Mode, c.dir.UID, err, c.want)
		}
	}
}

// All modes, for the owner, one of the group and another, against the bits.
func TestMayOpen(t *testing.T) {
	for mode := range uint32(0o1000) {
		a := &fs.Attr{Mode: mode, UID: alice.UID, GID: 52100}
		for _, c := range []struct {
			by    ctl.Cred
			shift uint
		}{{alice, 6}, {bob, 3}, {ctl.Cred{UID: 52003, GID: 52100}, 3}, {ctl.Cred{UID: 52003}, 0}} {
			bits := mode >> c.shift & 7
			for _, f := range []struct {
				flags fs.Flags
				exec  bool
				need  uint32
			}{{fs.Flags{Read: true}, false, 4}, {fs.Flags{Write: true}, false, 2}, {fs.Flags{Read: true, Write: true}, false, 6}, {fs.Flags{Read: true}, true, 5}} {
				want := bits&f.need == f.need
				if got := mayOpen(&c.by, a, f.flags, f.exec) == nil; got != want {
					t.Errorf("%d opens %03o of %d:%d %+v: %v", c.by.UID, mode, a.UID, a.GID, f, got)
				}
			}
		}
	}
}

// A check costs no memory and at most 2 us, with more groups than anybody has.
func BenchmarkCheck(b *testing.B) {
	for _, groups := range []int{0, 32, 1000} {
		by := ctl.Cred{UID: 52001, GID: 52001, Groups: make([]uint32, groups)}
		a := &fs.Attr{Mode: 0o640, UID: 1, GID: 2}
		b.Run(fmt.Sprint(groups, " groups"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if mayOpen(&by, a, fs.Flags{Read: true}, false) == nil {
					b.Fatal("allowed")
				}
			}
			if ns := b.Elapsed().Nanoseconds() / int64(b.N); b.N > 10000 && ns > 2000 {
				b.Errorf("%d ns", ns)
			}
		})
	}
}

func TestCheckAllocates(t *testing.T) {
	by := ctl.Cred{UID: 52001, GID: 52001, Groups: make([]uint32, 32)}
	a, dir := &fs.Attr{Mode: 0o640, UID: 1, GID: 2}, &fs.Attr{Mode: 0o1777, Dir: true}
	mode := uint32(0)
	if n := testing.AllocsPerRun(100, func() {
		mayOpen(&by, a, fs.Flags{Read: true}, false)
		mayRemove(&by, dir, a)
		mayChange(&by, a, ctl.AccessChange{Mode: &mode, GID: &mode})
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}
