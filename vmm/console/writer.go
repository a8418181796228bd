package console

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Writer is the guest process's end.
type Writer struct {
	memory *os.File

	mu   sync.Mutex // one writes at a time
	ring ring
	bell int // an eventfd, -1 while nobody listens
}

// NewWriter makes an empty ring.
func NewWriter() (*Writer, error) {
	fd, err := unix.MemfdCreate("console", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("console: memfd: %w", err)
	}
	w := &Writer{memory: os.NewFile(uintptr(fd), "console"), bell: -1}
	if err := unix.Ftruncate(fd, mapSize); err != nil {
		w.memory.Close()
		return nil, fmt.Errorf("console: memfd: %w", err)
	}
	if w.ring, err = mapRing(fd, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		w.memory.Close()
		return nil, err
	}
	// The map that is there stays writable, later ones are not.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals|unix.F_SEAL_FUTURE_WRITE|unix.F_SEAL_SEAL); err != nil {
		w.Close()
		return nil, fmt.Errorf("console: seal: %w", err)
	}
	return w, nil
}

// Write appends p to the ring and tells the reader. It never waits and never
// fails; after Close it does nothing.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ring.mem == nil {
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), ringSize/4)
		w.append(rest[:n])
		rest = rest[n:]
	}
	w.signal()
	return len(p), nil
}

// signal rings the bell. A full counter is a bell that was rung, so no error
// matters; the descriptor is not the runtime's, which would wait.
func (w *Writer) signal() {
	if w.bell >= 0 {
		one := [8]byte{0: 1}
		unix.Write(w.bell, one[:])
	}
}

func (w *Writer) append(p []byte) {
	end := w.ring.end().Load()
	next := end + uint64(len(p))
	w.ring.claim().Store(next)
	w.ring.put(end, p)
	w.ring.end().Store(next)
}

// Share gives what NewReader takes: the memory, and an eventfd that is
// written at each growth from now on. Only the last that was given is; the
// caller closes bell, and not memory.
func (w *Writer) Share() (memory, bell *os.File, err error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, nil, fmt.Errorf("console: eventfd: %w", err)
	}
	theirs, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil, nil, fmt.Errorf("console: eventfd: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropBell()
	w.bell = fd
	return w.memory, os.NewFile(uintptr(theirs), "console bell"), nil
}

func (w *Writer) dropBell() {
	if w.bell >= 0 {
		unix.Close(w.bell)
		w.bell = -1
	}
}

// Close releases the memory; readers keep theirs.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dropBell()
	if w.ring.mem != nil {
		unix.Munmap(w.ring.mem)
		w.ring.mem = nil
	}
	return w.memory.Close()
}
