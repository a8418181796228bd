package qemu

import (
	"runtime"
	"sync"
)

// thread does things on one thread of the kernel. Landlock bounds each thread
// by itself: a child may be signalled, and looked at through /proc, only from
// the thread that started it, since only there the bounds are the child's.
type thread struct {
	mu   sync.Mutex // one thing at a time
	work chan func()
	over bool
}

func newThread() *thread {
	t := &thread{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this
		for f := range t.work {
			f()
		}
	}()
	return t
}

// do does f and returns when that is done. After end it does nothing.
func (t *thread) do(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	done := make(chan struct{})
	t.work <- func() { defer close(done); f() }
	<-done
}

// end lets the thread go.
func (t *thread) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		t.over = true
		close(t.work)
	}
}
