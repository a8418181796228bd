package native

import (
	"io"
	"sync"
	"time"
)

// A guest prints byte by byte. After the first, a little is waited for more,
// so that not every byte wakes readers.
const (
	printDelay = time.Millisecond
	printSize  = 4096 // bytes that do not wait
)

// screen gathers what is printed and writes it to out, which must not wait.
type screen struct {
	out io.Writer

	mu    sync.Mutex
	text  []byte
	timer *time.Timer // set when there is text
}

func newScreen(out io.Writer) *screen {
	return &screen{out: out, text: make([]byte, 0, printSize)}
}

// Write takes all of p.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.text)+len(p) > cap(s.text) {
		s.print()
	}
	if len(p) > cap(s.text) {
		s.out.Write(p)
		return len(p), nil
	}
	s.text = append(s.text, p...)
	switch {
	case len(s.text) > len(p): // it is set
	case s.timer == nil:
		s.timer = time.AfterFunc(printDelay, s.flush)
	default:
		s.timer.Reset(printDelay)
	}
	return len(p), nil
}

// print is flush with the lock held.
func (s *screen) print() {
	if len(s.text) > 0 {
		s.out.Write(s.text)
		s.text = s.text[:0]
	}
}

// flush writes what is there.
func (s *screen) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.print()
}
