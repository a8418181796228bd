package native

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"vmfs/vmm/kvm"
)

// line is an interrupt line: an eventfd that KVM listens to.
type line struct {
	mu sync.Mutex
	fd int // -1 once it is closed
}

func newLine(vm *kvm.VM, gsi uint32) (*line, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := vm.IRQFD(fd, gsi); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &line{fd: fd}, nil
}

// raise is an edge. It can be called from anywhere, after close too.
func (l *line) raise() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		one := [8]byte{0: 1}
		unix.Write(l.fd, one[:])
	}
}

// level is an edge whenever the level rises.
func (l *line) level(high bool) {
	if high {
		l.raise()
	}
}

func (l *line) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
}
