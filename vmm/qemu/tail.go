package qemu

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// tailSize is how much of QEMU's standard error is kept.
const tailSize = 4 << 10

// tail keeps the last that was written to a pipe.
type tail struct {
	pipe *os.File
	done chan struct{}

	mu   sync.Mutex
	text []byte // at most tailSize
}

// newTail makes a pipe; its writing end is the caller's.
func newTail() (*tail, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	t := &tail{pipe: r, done: make(chan struct{})}
	go t.listen()
	return t, w, nil
}

func (t *tail) listen() {
	defer close(t.done)
	buf := make([]byte, 512)
	for {
		n, err := t.pipe.Read(buf)
		if err != nil {
			return
		}
		t.mu.Lock()
		t.text = append(t.text, buf[:n]...)
		if over := len(t.text) - tailSize; over > 0 {
			t.text = append(t.text[:0], t.text[over:]...)
		}
		t.mu.Unlock()
	}
}

// last is the last line with something in it.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	line := strings.TrimSpace(string(t.text))
	line = line[strings.LastIndexByte(line, '\n')+1:]
	return clean(strings.TrimPrefix(line, "qemu-system-x86_64: "))
}

// drain waits until all is read, once the writer has ended.
func (t *tail) drain() {
	t.pipe.SetReadDeadline(time.Now().Add(time.Second))
	<-t.done
}

// Close ends the listening.
func (t *tail) Close() error { return t.pipe.Close() }

// clean makes text from QEMU one that people may see: a line of bounded
// length, without control bytes.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}
