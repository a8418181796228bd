package fs

import (
	"sync"
	"syscall"

	"vmfs/ctl"
)

// readAt copies what s has from off on.
func readAt(s string, p []byte, off int64) int {
	if off < 0 || off >= int64(len(s)) {
		return 0
	}
	return copy(p, s[off:])
}

// snapshot is the one text that an open file shows, from its first read on.
type snapshot struct {
	mu   sync.Mutex
	text string
	ok   bool
}

func (s *snapshot) taken() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text, s.ok
}

// take keeps text, unless another read was faster, and gives what is kept.
func (s *snapshot) take(o *opened, text string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ok {
		return s.text, nil
	}
	if err := o.t.held.resize(o.by, 0, len(text)); err != nil {
		return "", err
	}
	s.text, s.ok = text, true
	return text, nil
}

func (s *snapshot) drop(o *opened) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.t.held.resize(o.by, len(s.text), 0)
	s.text, s.ok = "", false
}

// held counts what the open files of each user hold in memory.
type held struct {
	mu    sync.Mutex
	bytes map[uint32]int
}

const (
	heldFree = 256      // a text up to this is not counted: the kernel holds as much for the open file
	heldMost = 16 << 20 // of one user; root has no bound
)

// resize counts a text of by that had before bytes and has after now. EDQUOT
// if that is too much; then nothing is counted.
func (h *held) resize(by ctl.Cred, before, after int) error {
	more := counted(after) - counted(before)
	if more == 0 || by.Rules() {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.bytes[by.UID] + more
	switch {
	case more > 0 && n > heldMost:
		return ctl.Errorf(syscall.EDQUOT, "your open files hold %d bytes of text: at most %d", h.bytes[by.UID], heldMost)
	case n == 0:
		delete(h.bytes, by.UID)
	case h.bytes == nil:
		h.bytes = map[uint32]int{by.UID: n}
	default:
		h.bytes[by.UID] = n
	}
	return nil
}

func counted(n int) int {
	if n <= heldFree {
		return 0
	}
	return n
}
