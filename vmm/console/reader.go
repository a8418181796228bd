package console

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// Reader is core's end, a ctl.Console. Any number of goroutines may use it,
// each with a position of its own.
type Reader struct {
	bell *os.File

	mu      sync.RWMutex // held for reading while the memory is looked at
	ring    ring         // of no memory after Close
	changed chan struct{}
}

var _ ctl.Console = (*Reader)(nil)

// NewReader takes both files of Writer.Share, and closes memory at once and
// bell at Close; on an error both. The error says what is wrong with them.
func NewReader(memory, bell *os.File) (*Reader, error) {
	defer memory.Close()
	r, err := newReader(memory, bell)
	if err != nil {
		bell.Close()
		return nil, err
	}
	return r, nil
}

func newReader(memory, bell *os.File) (*Reader, error) {
	if err := check(int(memory.Fd())); err != nil {
		return nil, err
	}
	bell, err := pollable(bell)
	if err != nil {
		return nil, err
	}
	ring, err := mapRing(int(memory.Fd()), unix.PROT_READ)
	if err != nil {
		bell.Close()
		return nil, err
	}
	r := &Reader{ring: ring, bell: bell, changed: make(chan struct{})}
	go r.listen()
	return r, nil
}

// check looks whether touching the memory can fault: it must be as large as
// it is mapped, and stay so.
func check(fd int) error {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("console: not a memfd: %w", err)
	}
	if have&seals != seals {
		return fmt.Errorf("console: the memory is not sealed (%#x)", have)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("console: %w", err)
	}
	if st.Size != mapSize {
		return fmt.Errorf("console: the memory has %d bytes, not %d", st.Size, mapSize)
	}
	return nil
}

// pollable makes f one that a goroutine can wait for without a thread, and
// that Close interrupts. It closes f.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("console: bell: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("console: bell: %w", err)
	}
	return os.NewFile(uintptr(fd), "console bell"), nil
}

// restTime is between two rings of the bell that are listened to. It bounds
// what a writer can make core do, and gathers what comes byte by byte.
const restTime = time.Millisecond

// listen waits for the bell until Close, or until it turns out to be none.
func (r *Reader) listen() {
	var count [8]byte
	for {
		if n, err := r.bell.Read(count[:]); err != nil || n == 0 {
			return
		}
		r.mu.Lock()
		close(r.changed)
		r.changed = make(chan struct{})
		r.mu.Unlock()
		time.Sleep(restTime)
	}
}

// Changed is closed when there is more than there was at the call.
func (r *Reader) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// End is the position after the last byte.
func (r *Reader) End() uint64 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.ring.mem == nil {
		return 0
	}
	return r.ring.end().Load()
}

// copySize bounds one copy, so that a writer cannot overtake a reader of the
// oldest bytes that are kept before it has printed as many again.
const copySize = ctl.ConsoleSize / 4

// ReadAt copies what was printed from pos on into p, at most 64 KiB of it,
// without waiting: at is where it began, n is 0 at the end and after Close.
// If the bytes at pos are gone it begins ctl.ConsoleSize before the end.
func (r *Reader) ReadAt(p []byte, pos uint64) (n int, at uint64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.ring.mem == nil {
		return 0, pos
	}
	p = p[:min(len(p), copySize)]
	// Once is enough unless the writer prints a whole ring meanwhile.
	for range 4 {
		if n, at, ok := r.try(p, pos); ok {
			return n, at
		}
	}
	return 0, pos
}

// try is one attempt; it fails if all that it copied was overwritten.
func (r *Reader) try(p []byte, pos uint64) (n int, at uint64, ok bool) {
	end := r.ring.end().Load()
	if pos >= end || len(p) == 0 {
		return 0, pos, true
	}
	if gone := r.gone(end); pos < gone {
		pos = max(gone, end-min(end, ctl.ConsoleSize))
	}
	if pos >= end {
		return 0, pos, false
	}
	n = int(min(uint64(len(p)), end-pos))
	r.ring.get(p[:n], pos)
	gone := r.gone(end)
	if gone <= pos {
		return n, pos, true
	}
	if gone-pos >= uint64(n) {
		return 0, pos, false
	}
	lost := int(gone - pos)
	return copy(p, p[lost:n]), gone, true
}

// gone is the position before which bytes are overwritten now. The processor
// keeps loads in order, so that bytes copied before this call and not gone
// were good. end is what was taken before: a claim before it is a lie.
func (r *Reader) gone(end uint64) uint64 {
	claim := max(end, r.ring.claim().Load())
	return claim - min(claim, ringSize)
}

// Close releases the memory and ends the goroutine. Who waits on Changed is
// not woken.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ring.mem == nil {
		return nil
	}
	unix.Munmap(r.ring.mem)
	r.ring.mem = nil
	// Closing waits for a Read that is under way, and the other end could
	// have made that one blocking.
	go r.bell.Close()
	return nil
}
