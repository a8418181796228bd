package vmm

import (
	"io"
	"sync"
	"syscall"
	"time"

	"vmfs/ctl"
)

// Bounds of the console's input.
const (
	maxInput  = 64 << 10    // bytes that wait for the guest, and of one write
	inputTime = time.Second // for the guest to make room
)

// input is what was typed and the guest has not read.
type input struct {
	mu      sync.Mutex
	queue   []byte
	closed  bool
	changed chan struct{} // closed and replaced when any of these changes
}

func newInput() *input { return &input{changed: make(chan struct{})} }

// put appends all of p, or nothing: EAGAIN if there is no room in time.
func (in *input) put(p []byte) error {
	if len(p) > maxInput {
		return ctl.Errorf(syscall.EFBIG, "console: %d bytes at once, at most %d", len(p), maxInput)
	}
	late := time.NewTimer(inputTime)
	defer late.Stop()
	for {
		done, changed, err := in.tryPut(p)
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-late.C:
			return ctl.Errorf(syscall.EAGAIN, "console: the guest does not read")
		}
	}
}

func (in *input) tryPut(p []byte) (done bool, changed <-chan struct{}, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.closed:
		return false, nil, ctl.Errorf(syscall.EPIPE, "console: the machine has ended")
	case len(in.queue)+len(p) > maxInput:
		return false, in.changed, nil
	}
	in.queue = append(in.queue, p...)
	in.tell()
	return true, nil, nil
}

func (in *input) tell() {
	close(in.changed)
	in.changed = make(chan struct{})
}

// feed writes what comes to the guest's serial line, until that or the input
// is closed. The line takes a few bytes at a time, as fast as the guest reads
// them, so what is there is not copied far ahead.
func (in *input) feed(line io.Writer) {
	buf := make([]byte, 1024)
	for {
		n := in.take(buf)
		if n == 0 {
			return
		}
		if _, err := line.Write(buf[:n]); err != nil {
			return
		}
	}
}

// take waits for bytes; none come after close.
func (in *input) take(buf []byte) int {
	for {
		in.mu.Lock()
		if in.closed || len(in.queue) > 0 {
			defer in.mu.Unlock()
			n := copy(buf, in.queue)
			in.queue = append(in.queue[:0], in.queue[n:]...)
			in.tell()
			return n
		}
		changed := in.changed
		in.mu.Unlock()
		<-changed
	}
}

// close drops what nobody will read.
func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed {
		in.closed = true
		in.queue = nil
		in.tell()
	}
}
