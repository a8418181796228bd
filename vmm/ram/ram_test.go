package ram

import (
	"bytes"
	"errors"
	"math"
	"testing"
)

func newRAM(t testing.TB, size uint64) *RAM {
	t.Helper()
	m, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestNewRefuses(t *testing.T) {
	for _, size := range []uint64{0, 1, PageSize - 1, PageSize + 1, maxBytes + PageSize, math.MaxUint64 - PageSize + 1} {
		if m, err := New(size); err == nil {
			m.Close()
			t.Errorf("New(%d) made memory", size)
		}
	}
}

func TestRegions(t *testing.T) {
	for _, c := range []struct {
		size uint64
		want [][2]uint64
	}{
		{PageSize, [][2]uint64{{0, PageSize}}},
		{HoleStart, [][2]uint64{{0, HoleStart}}},
		{HoleStart + PageSize, [][2]uint64{{0, HoleStart}, {HoleEnd, PageSize}}},
		{6 << 30, [][2]uint64{{0, HoleStart}, {HoleEnd, 3 << 30}}},
	} {
		m := newRAM(t, c.size)
		var got [][2]uint64
		for _, r := range m.Regions() {
			got = append(got, [2]uint64{r.Addr, uint64(len(r.Bytes))})
		}
		if len(got) != len(c.want) || got[0] != c.want[0] || got[len(got)-1] != c.want[len(c.want)-1] {
			t.Errorf("%d bytes: got regions %x, want %x", c.size, got, c.want)
		}
		if m.Size() != c.size {
			t.Errorf("%d bytes: Size is %d", c.size, m.Size())
		}
	}
}

// TestBounds asks for what begins, ends or wraps in the wrong place.
func TestBounds(t *testing.T) {
	m := newRAM(t, HoleStart+2*PageSize)
	const end = HoleEnd + 2*PageSize
	for _, c := range []struct {
		addr, n uint64
		ok      bool
	}{
		{0, 0, true},
		{0, 1, true},
		{0, HoleStart, true},
		{0, HoleStart + 1, false},
		{HoleStart - 1, 1, true},
		{HoleStart - 1, 2, false},
		{HoleStart, 0, true},
		{HoleStart, 1, false},
		{HoleEnd - 1, 1, false},
		{HoleEnd - 1, 2, false},
		{HoleEnd, 2 * PageSize, true},
		{end - 1, 1, true},
		{end, 0, true},
		{end, 1, false},
		{end + 1, 0, false},
		{math.MaxUint64, 1, false},
		{math.MaxUint64, math.MaxUint64, false},
		{1, math.MaxUint64, false},
		{HoleEnd, math.MaxUint64, false},
		{1 << 63, 8, false},
	} {
		p, err := m.Slice(c.addr, c.n)
		if (err == nil) != c.ok {
			t.Errorf("Slice(%#x, %#x): error %v, want ok %v", c.addr, c.n, err, c.ok)
		}
		if err != nil && !errors.Is(err, ErrBounds) {
			t.Errorf("Slice(%#x, %#x): %v is not ErrBounds", c.addr, c.n, err)
		}
		if err == nil && (uint64(len(p)) != c.n || uint64(cap(p)) != c.n) {
			t.Errorf("Slice(%#x, %#x): length %d, capacity %d", c.addr, c.n, len(p), cap(p))
		}
	}
	for _, addr := range []int64{-1, -8, math.MinInt64, HoleStart - 4} {
		var p [8]byte
		if n, err := m.ReadAt(p[:], addr); n != 0 || err == nil {
			t.Errorf("ReadAt(%d) = %d, %v", addr, n, err)
		}
		if n, err := m.WriteAt(p[:], addr); n != 0 || err == nil {
			t.Errorf("WriteAt(%d) = %d, %v", addr, n, err)
		}
	}
}

// TestCopies writes on both sides of the hole and zeroes.
func TestCopies(t *testing.T) {
	m := newRAM(t, HoleStart+PageSize)
	for _, addr := range []int64{0, 0x1234, HoleStart - 5, HoleEnd, HoleEnd + PageSize - 5} {
		want := []byte("guest")
		if n, err := m.WriteAt(want, addr); n != 5 || err != nil {
			t.Fatalf("WriteAt(%#x) = %d, %v", addr, n, err)
		}
		got := make([]byte, 5)
		if n, err := m.ReadAt(got, addr); n != 5 || err != nil || !bytes.Equal(got, want) {
			t.Errorf("ReadAt(%#x) = %d, %v: %q, want %q", addr, n, err, got, want)
		}
	}
	if n, err := m.Resident(); err != nil || n == 0 || n > 8*PageSize {
		t.Errorf("Resident = %d, %v; want some pages", n, err)
	}
	if err := m.Zero(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := m.ReadAt(got, HoleEnd); err != nil || !bytes.Equal(got, make([]byte, 5)) {
		t.Errorf("after Zero: %q, %v", got, err)
	}
}

// TestSealed tries to take memory away under the mapping.
func TestSealed(t *testing.T) {
	m := newRAM(t, PageSize)
	for _, size := range []int64{0, 2 * PageSize} {
		if err := m.file.Truncate(size); err == nil {
			t.Errorf("the memfd became %d bytes", size)
		}
	}
}

func FuzzSlice(f *testing.F) {
	m := newRAM(f, HoleStart+PageSize)
	f.Add(uint64(HoleStart-1), uint64(2))
	f.Add(uint64(math.MaxUint64), uint64(1))
	f.Fuzz(func(t *testing.T, addr, n uint64) {
		p, err := m.Slice(addr, n)
		if err != nil {
			return
		}
		last := addr + n
		if last < addr || last > HoleEnd+PageSize || addr < HoleStart && last > HoleStart || uint64(len(p)) != n {
			t.Errorf("Slice(%#x, %#x) gave %d bytes", addr, n, len(p))
		}
	})
}
