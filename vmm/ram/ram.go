// Package ram is a guest's memory: a sealed memfd, mapped, at the addresses
// where the guest sees it. It needs no KVM, so that whatever works on guest
// memory can be tested on any machine.
//
// Guest-physical memory is one region from 0, or two when there is more than
// 3 GiB of it: [0, 3 GiB) and [4 GiB, ...). Between them are the registers of
// the devices and of the interrupt controllers.
//
// It trusts nothing about an address or a length; whatever lies outside a
// region, reaches over its end or wraps around is ErrBounds. It cannot keep the
// guest's CPUs from writing while one reads. What a slice shows may change
// between two looks, and the race detector does not see it. So code that
// believes something which the guest wrote copies it out once, checks the
// copy, and uses the copy; and code that shares an index with the guest loads
// and stores it with one aligned access of its size.
package ram

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The addresses between the regions.
const (
	HoleStart = 3 << 30 // the first that is no memory
	HoleEnd   = 4 << 30 // the first that is again
)

// PageSize is what sizes are multiples of, in bytes.
const PageSize = 4096

// maxBytes keeps every address within what an int64 and a CPU with 46
// physical bits can say.
const maxBytes = 32 << 40

// ErrBounds is wrapped by the error of every access outside the memory.
var ErrBounds = errors.New("outside the guest's memory")

// Region is memory without a gap.
type Region struct {
	Addr  uint64 // where the guest sees it
	Bytes []byte // where we do
}

// RAM is a guest's memory. All methods but Close may be called at the same
// time.
type RAM struct {
	file    *os.File
	regions []Region
	size    uint64
}

// New makes memory of size bytes, a positive multiple of PageSize; all of it
// is zero, and costs nothing until it is touched. Close releases it.
func New(size uint64) (*RAM, error) {
	if size == 0 || size%PageSize != 0 || size > maxBytes {
		return nil, fmt.Errorf("ram: %d bytes: not a positive multiple of %d up to %d", size, PageSize, uint64(maxBytes))
	}
	file, err := memory(size)
	if err != nil {
		return nil, fmt.Errorf("ram: memfd of %d bytes: %w", size, err)
	}
	m := &RAM{file: file, size: size}
	low := min(size, HoleStart)
	if err = m.add(0, 0, low); err == nil && size > low {
		err = m.add(HoleEnd, low, size-low)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("ram: map %d bytes: %w", size, err)
	}
	return m, nil
}

// memory makes the memfd. It can neither shrink, which would make an access
// a SIGBUS, nor grow.
func memory(size uint64) (*os.File, error) {
	fd, err := unix.MemfdCreate("guest-ram", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "guest-ram")
	err = unix.Ftruncate(fd, int64(size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// add maps n bytes of the file as a region. Neither a core file nor a child
// gets them.
func (m *RAM) add(addr, offset, n uint64) error {
	p, err := unix.Mmap(int(m.file.Fd()), int64(offset), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	m.regions = append(m.regions, Region{addr, p})
	for _, advice := range []int{unix.MADV_DONTDUMP, unix.MADV_DONTFORK} {
		if err := unix.Madvise(p, advice); err != nil {
			return err
		}
	}
	return nil
}

// Size is how much there is, in bytes.
func (m *RAM) Size() uint64 { return m.size }

// Regions are the regions, ascending. They are not the caller's to change.
func (m *RAM) Regions() []Region { return m.regions }

// Slice is the memory itself: n bytes at the guest-physical address addr, all
// within one region. It is valid until Close; its capacity is n. The guest
// may write to it at any time.
func (m *RAM) Slice(addr, n uint64) ([]byte, error) {
	for _, r := range m.regions {
		have := uint64(len(r.Bytes))
		if off := addr - r.Addr; addr >= r.Addr && off <= have && n <= have-off {
			return r.Bytes[off : off+n : off+n], nil
		}
	}
	return nil, fmt.Errorf("ram: %d bytes at %#x: %w", n, addr, ErrBounds)
}

// ReadAt copies memory from the guest-physical address addr to p: all of p or
// nothing.
func (m *RAM) ReadAt(p []byte, addr int64) (int, error) {
	from, err := m.Slice(uint64(addr), uint64(len(p)))
	return copy(p, from), err
}

// WriteAt copies p to the memory at the guest-physical address addr: all of p
// or nothing.
func (m *RAM) WriteAt(p []byte, addr int64) (int, error) {
	to, err := m.Slice(uint64(addr), uint64(len(p)))
	return copy(to, p), err
}

// Zero makes all memory what New made it, and gives the host its pages back.
func (m *RAM) Zero() error {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := unix.Fallocate(int(m.file.Fd()), mode, 0, int64(m.size)); err != nil {
		return fmt.Errorf("ram: zero: %w", err)
	}
	return nil
}

// Resident is how many bytes of the memory were touched, and are the host's
// cost.
func (m *RAM) Resident() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(m.file.Fd()), &st); err != nil {
		return 0, fmt.Errorf("ram: %w", err)
	}
	return uint64(st.Blocks) * 512, nil
}

// Close releases the memory. Nothing may use a slice of it any more; that
// includes the CPUs.
func (m *RAM) Close() error {
	var errs []error
	for _, r := range m.regions {
		errs = append(errs, unix.Munmap(r.Bytes))
	}
	m.regions = nil
	return errors.Join(append(errs, m.file.Close())...)
}
