package ctl

import (
	"context"
	"io"
	"os"
	"sync"
	"time"
)

// logKept is how much of a machine's console is kept on disk when a launch
// ends, and logMost how long console.log can get before its front is cut off
// again: it grows in between, so that tail -f follows.
const (
	logKept = ConsoleSize
	logMost = 2 * ConsoleSize
)

// launchConsole is the console of one launch, also after its end for those
// who still read.
type launchConsole struct {
	mu      sync.RWMutex
	live    Console // nil once closed
	tail    []byte  // the end of it, once closed, if there were readers
	base    uint64  // position of tail
	end     uint64  // position after the last byte, once closed
	readers int
}

func newLaunchConsole(c Console) *launchConsole { return &launchConsole{live: c} }

// readAt is Console.ReadAt before and after the end.
func (c *launchConsole) readAt(p []byte, pos uint64) (n int, at uint64) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.live != nil {
		return c.live.ReadAt(p, pos)
	}
	pos = max(pos, c.base)
	if pos >= c.base+uint64(len(c.tail)) {
		return 0, c.end
	}
	return copy(p, c.tail[pos-c.base:]), pos
}

// position is after the last byte.
func (c *launchConsole) position() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.live != nil {
		return liveEnd(c.live)
	}
	return c.end
}

// liveEnd is where a console ends; one that claims to be longer than sizes
// can count lies.
func liveEnd(c Console) uint64 { return min(c.End(), 1<<62) }

var never = make(chan struct{})

func (c *launchConsole) changed() <-chan struct{} {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.live != nil {
		return c.live.Changed()
	}
	return never // the end of the launch wakes
}

// close takes the live console away: the mapping behind it goes.
func (c *launchConsole) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		return
	}
	c.end = liveEnd(c.live)
	if c.readers > 0 {
		c.keepTail(make([]byte, min(c.end, logMost)))
	}
	c.live = nil
}

// keepTail reads the end of the live console into p, which it gives in
// pieces.
func (c *launchConsole) keepTail(p []byte) {
	n, base := 0, c.end-uint64(len(p))
	for n < len(p) {
		more, at := c.live.ReadAt(p[n:], base+uint64(n))
		if more == 0 {
			break
		}
		if at != base+uint64(n) { // what was before it is overwritten
			n, base = copy(p, p[n:n+more]), at
			continue
		}
		n += more
	}
	c.tail, c.base = p[:n], base
}

// hold counts a reader, unless the console is closed already.
func (c *launchConsole) hold() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.readers++
	}
	return c.live != nil
}

// drop lets the last reader's end free what was kept for it.
func (c *launchConsole) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.readers--; c.readers == 0 {
		c.tail = nil
	}
}

// ConsoleReader reads a machine's console: what the present launch has
// printed, then the rest as it comes.
type ConsoleReader struct {
	vm *VM

	mu     sync.Mutex
	launch *launch // being read; nil between launches
	past   *launch // read to its end
	pos    uint64
}

// OpenConsole makes a reader with a position of its own. The caller closes it.
func (vm *VM) OpenConsole() *ConsoleReader { return &ConsoleReader{vm: vm} }

// Read gives what was printed. At the end of a launch it is io.EOF, once;
// after that, and on a stopped machine, it waits for the next launch. Without
// wait, nothing to read is io.EOF. A reader that falls more than ConsoleSize
// behind goes on with the oldest that is left.
func (r *ConsoleReader) Read(ctx context.Context, p []byte, wait bool) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, again, err := r.take(p)
		if n > 0 || err != nil {
			return n, err
		}
		if !wait {
			return 0, io.EOF
		}
		select {
		case <-again.console:
		case <-again.state:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// wakers are what a reader with nothing to read waits for.
type wakers struct{ console, state <-chan struct{} }

func (r *ConsoleReader) take(p []byte) (int, wakers, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := wakers{console: never, state: r.vm.sinceAny.wait()}
	if r.launch == nil && r.vm.Removed() {
		return 0, w, r.vm.gone()
	}
	if r.launch == nil && !r.next() {
		return 0, w, nil
	}
	c := r.launch.console
	w.console = c.changed()
	ended := isClosed(r.launch.ended) // before the last look
	if n, at := c.readAt(p, r.pos); n > 0 {
		r.pos = at + uint64(n)
		return n, w, nil
	}
	if !ended {
		return 0, w, nil
	}
	r.leave()
	return 0, w, io.EOF
}

// next takes up the present launch, if it has a console and was not read to
// its end.
func (r *ConsoleReader) next() bool {
	r.vm.mu.Lock()
	defer r.vm.mu.Unlock()
	l := r.vm.launch
	if l == nil || l.console == nil || l == r.past || !l.console.hold() {
		return false
	}
	r.launch, r.pos = l, 0
	return true
}

func (r *ConsoleReader) leave() {
	if r.launch != nil {
		r.launch.console.drop()
		r.past, r.launch = r.launch, nil
	}
}

// Close lets go of what the reader keeps of a launch that ended.
func (r *ConsoleReader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leave()
}

// keptLog is how much of former launches is kept, and since when.
func keptLog(path string) (int64, time.Time) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, time.Time{}
	}
	return info.Size(), info.ModTime()
}

// keepConsole puts what a launch printed behind what is kept of former ones,
// and closes its console.
func (vm *VM) keepConsole(l *launch) {
	vm.mu.Lock()
	c := l.console
	vm.mu.Unlock()
	if c == nil {
		return
	}
	if c.position() > 0 {
		if err := vm.saveLog(l); err != nil {
			vm.m.failed("vm %s: console.log: %v", vm.Name(), err)
		}
	}
	c.close()
}

func (vm *VM) saveLog(l *launch) error {
	text := make([]byte, vm.ConsoleLogSize())
	n, err := vm.ConsoleLogAt(text, 0)
	if err != nil && err != io.EOF {
		return err
	}
	tmp := vm.consolePath() + ".new"
	if err := writeFile(tmp, string(text[:n])); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := vm.putLog(l, tmp, int64(n)); err != nil {
		return err
	}
	return syncDir(vm.dir())
}

// putLog makes tmp what is kept, so that readers see what the launch printed
// in one place at any time.
func (vm *VM) putLog(l *launch, tmp string, size int64) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if err := os.Rename(tmp, vm.consolePath()); err != nil {
		return err
	}
	vm.kept, l.logged = size, true
	return nil
}

// logOrigin is where console.log begins, counted from the first byte that is
// kept of former launches: it moves in steps of logKept.
func logOrigin(total int64) int64 {
	if total <= logMost {
		return 0
	}
	return (total - logMost + logKept - 1) / logKept * logKept
}

// logParts are what console.log is made of now.
func (vm *VM) logParts() (kept int64, c *launchConsole, total int64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	kept, total = vm.kept, vm.kept
	if l := vm.launch; l != nil && l.console != nil && !l.logged {
		c = l.console
		total += int64(c.position())
	}
	return kept, c, total
}

// ConsoleLogSize is the size of console.log.
func (vm *VM) ConsoleLogSize() int64 {
	_, _, total := vm.logParts()
	return total - logOrigin(total)
}

// ConsoleLogAt reads console.log: what is kept of former launches, then what
// the present one printed. io.EOF at the end.
func (vm *VM) ConsoleLogAt(p []byte, off int64) (n int, err error) {
	if vm.Removed() {
		return 0, vm.gone()
	}
	kept, c, total := vm.logParts()
	pos := logOrigin(total) + off
	if off < 0 || pos >= total {
		return 0, io.EOF
	}
	if pos < kept {
		f, err := os.Open(vm.consolePath())
		if err != nil {
			return 0, saveError("console.log", err)
		}
		defer f.Close()
		n, err = f.ReadAt(p[:min(int64(len(p)), kept-pos)], pos)
		if err != nil && err != io.EOF {
			return n, err
		}
		pos += int64(n)
	}
	for n < len(p) && c != nil && pos >= kept {
		more, at := c.readAt(p[n:], uint64(pos-kept))
		if more == 0 {
			break
		}
		n, pos = n+more, kept+int64(at)+int64(more)
	}
	return n, nil
}

// consoleTime is when console.log was seen to grow last.
func (vm *VM) consoleTime() time.Time {
	_, _, total := vm.logParts()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if total != vm.logSize {
		vm.logSize, vm.logTime = total, time.Now()
	}
	return vm.logTime
}
