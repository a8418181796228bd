package kvm

import "testing"

// find is a leaf of a list, nil if it is not there.
func find(entries []CPUIDEntry, leaf, index uint32) *CPUIDEntry {
	for i := range entries {
		if entries[i].Leaf == leaf && entries[i].Index == index {
			return &entries[i]
		}
	}
	return nil
}

// TestFilterHost filters what this host supports for CPUs of several VMs and
// gives it to KVM.
func TestFilterHost(t *testing.T) {
	s := open(t)
	supported, err := s.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := s.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	for id := range 2 {
		c, err := vm.CreateVCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, quirk := range []Quirk{NoQuirk, KVMPVM} {
			if err := c.SetCPUID(Filter(supported, CPU{ID: id, Count: 2, Quirk: quirk})); err != nil {
				t.Errorf("CPU %d, quirk %q: %v", id, quirk, err)
			}
		}
	}
}

// TestFilter filters a CPU that supports everything.
func TestFilter(t *testing.T) {
	supported := []CPUIDEntry{{Leaf: 0, EAX: 0x1f}}
	for _, leaf := range []uint32{1, 4, 6, 7, 0xa, 0xb, 0xd, 0x12, 0x1f, 0x40000001, 0x80000001, 0x80000008, 0x8000000a, 0x8000001d, 0x8000001e} {
		supported = append(supported, CPUIDEntry{Leaf: leaf, EAX: all, EBX: all, ECX: all, EDX: all})
	}
	supported = append(supported,
		CPUIDEntry{Leaf: 4, Index: 1, EAX: 0x21}, // a cache of level 1
		CPUIDEntry{Leaf: 4, Index: 2},            // no cache: the end
		CPUIDEntry{Leaf: 0xd, Index: 17, EAX: 64},
		CPUIDEntry{Leaf: 0x15})
	got := Filter(supported, CPU{ID: 3, Count: 6})
	if n := len(supported); got[0] != supported[0] || supported[n-1].Leaf != 0x15 || supported[1].EBX != all {
		t.Error("leaf 0 or the argument was changed")
	}
	for _, c := range []struct {
		what      string
		got, want uint32
	}{
		{"APIC id, count and clflush", find(got, 1, 0).EBX, 3<<24 | 6<<16 | 0xffff},
		{"features", find(got, 1, 0).ECX, all &^ (1<<3 | 1<<5 | 1<<15 | 1<<27)},
		{"HTT", find(got, 1, 0).EDX & multiple, multiple},
		{"level 7 cache", find(got, 4, 0).EAX >> 14, 5<<12 | 5},
		{"level 1 cache", find(got, 4, 1).EAX, 0x21 | 5<<26},
		{"power", find(got, 6, 0).EAX, 4},
		{"cores of AMD", find(got, 0x80000008, 0).ECX & 0xf0ff, 3<<12 | 5},
		{"extended id", find(got, 0x8000001e, 0).EAX, 3},
		{"SVM", find(got, 0x80000001, 0).ECX & 4, 0},
		{"x2APIC id", find(got, 0xb, 0).EDX, 3},
		{"core shift", find(got, 0xb, 1).EAX, 3},
		{"cores", find(got, 0xb, 1).EBX, 6},
		{"the end", find(got, 0xb, 2).ECX, 2},
		{"hypercalls", find(got, 0x40000001, 0).EAX, all},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %#x, want %#x", c.what, c.got, c.want)
		}
	}
	for _, gone := range [][2]uint32{{0xa, 0}, {0x12, 0}, {0x1f, 0}, {0x8000000a, 0}, {4, 2}, {0xd, 17}, {0x15, 0}} {
		if e := find(got, gone[0], gone[1]); e != nil {
			t.Errorf("leaf %#x.%d is there: %+v", gone[0], gone[1], *e)
		}
	}
	one := Filter(supported, CPU{ID: 0, Count: 1})
	if e := find(one, 1, 0); e.EDX&multiple != 0 {
		t.Error("a single CPU has HTT")
	}
	if e := find(one, 0xb, 1); e.EAX != 0 || e.EBX != 1 {
		t.Errorf("a single CPU's topology: %+v", *e)
	}
}

func TestQuirk(t *testing.T) {
	supported := []CPUIDEntry{{Leaf: 1, ECX: 1 << 13}, {Leaf: 7, EBX: 1 << 24}, {Leaf: 0x40000001, EAX: 0x01007efb}}
	got := Filter(supported, CPU{Count: 1, Quirk: KVMPVM})
	if e := find(got, 1, 0); e.ECX&(1<<13) != 0 {
		t.Error("cmpxchg16b is there")
	}
	if e := find(got, 7, 0); e != nil {
		t.Error("clwb is there")
	}
	if e := find(got, 0x40000001, 0); e.EAX != 0x0100120b {
		t.Errorf("paravirtualization: %#x", e.EAX)
	}
	if e := find(Filter(supported, CPU{Count: 1}), 0x40000001, 0); e.EAX != 0x01007efb {
		t.Errorf("without the quirk: %#x", e.EAX)
	}
}
