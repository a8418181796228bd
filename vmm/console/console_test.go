package console

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// open makes a Writer and a Reader of it.
func open(t testing.TB) (*Writer, *Reader) {
	t.Helper()
	w, err := NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w, read(t, w)
}

// read gives w a Reader as another process would make it: of a description
// that it received.
func read(t testing.TB, w *Writer) *Reader {
	t.Helper()
	memory, bell, err := w.Share()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(memory.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(os.NewFile(uintptr(fd), "memory"), bell)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// pattern is n bytes that say where they are: the byte at pos is always the
// same, and its neighbours differ.
func pattern(pos uint64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = at(pos + uint64(i))
	}
	return p
}

func at(pos uint64) byte { return byte(pos*167 + pos>>8*13 + pos>>19*101) }

func TestReadAt(t *testing.T) {
	w, r := open(t)
	buf := make([]byte, 100)
	if n, at := r.ReadAt(buf, 0); n != 0 || at != 0 {
		t.Errorf("an empty console: ReadAt = %d, %d, want 0, 0", n, at)
	}
	w.Write([]byte("hello "))
	w.Write([]byte("world"))
	for _, tc := range []struct {
		pos  uint64
		want string
	}{{0, "hello world"}, {6, "world"}, {11, ""}, {12, ""}, {math.MaxUint64, ""}} {
		n, at := r.ReadAt(buf, tc.pos)
		if got := string(buf[:n]); got != tc.want || at != tc.pos {
			t.Errorf("ReadAt(%d) = %q at %d, want %q", tc.pos, got, at, tc.want)
		}
	}
	if n, _ := r.ReadAt(buf[:3], 2); string(buf[:n]) != "llo" {
		t.Errorf("a short buffer has %q, want llo", buf[:n])
	}
	if n, _ := r.ReadAt(nil, 0); n != 0 {
		t.Errorf("no buffer: n = %d", n)
	}
	if got := r.End(); got != 11 {
		t.Errorf("End = %d, want 11", got)
	}
}

func TestWrap(t *testing.T) {
	w, r := open(t)
	var end uint64
	for end < 3*ringSize {
		w.Write(pattern(end, 30011))
		end += 30011
	}
	// The oldest bytes that are promised are there, and right.
	pos := end - ctl.ConsoleSize
	var got []byte
	buf := make([]byte, 1<<20)
	for pos < end {
		n, at := r.ReadAt(buf, pos)
		if n == 0 || at != pos {
			t.Fatalf("ReadAt(%d) = %d bytes at %d", pos, n, at)
		}
		got = append(got, buf[:n]...)
		pos += uint64(n)
	}
	if want := pattern(end-ctl.ConsoleSize, ctl.ConsoleSize); !bytes.Equal(got, want) {
		t.Error("the last 256 KiB are not what was written")
	}
	// Who asks for what is gone begins at the oldest that is kept for sure.
	n, at := r.ReadAt(buf, 5)
	if want := end - ctl.ConsoleSize; at != want || !bytes.Equal(buf[:n], pattern(want, n)) {
		t.Errorf("ReadAt(5) begins at %d, want %d", at, want)
	}
}

func TestOneLargeWrite(t *testing.T) {
	w, r := open(t)
	p := pattern(0, 2*ringSize+12345)
	if n, err := w.Write(p); n != len(p) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	buf := make([]byte, 1000)
	n, at := r.ReadAt(buf, uint64(len(p)-1000))
	if n != 1000 || !bytes.Equal(buf, p[at:]) {
		t.Errorf("the last 1000 bytes: %d at %d", n, at)
	}
}

// TestRace has one writer that never waits and readers that never do: what
// they get is in order and right, or missing.
func TestRace(t *testing.T) {
	w, r := open(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		var pos uint64
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			n := 1 + i*7919%9973
			w.Write(pattern(pos, n))
			pos += uint64(n)
			runtime.Gosched()
		}
	})
	var read, lost uint64
	some := make(chan struct{}, 1)
	var mu sync.Mutex
	for range 2 {
		wg.Go(func() {
			var pos, skipped uint64
			buf := make([]byte, 50000)
			for {
				select {
				case <-stop:
					mu.Lock()
					defer mu.Unlock()
					read += pos - skipped
					lost += skipped
					return
				default:
				}
				n, at := r.ReadAt(buf, pos)
				if at < pos {
					t.Errorf("ReadAt(%d) went back to %d", pos, at)
				}
				if !bytes.Equal(buf[:n], pattern(at, n)) {
					t.Errorf("ReadAt(%d): %d bytes at %d are not what was written", pos, n, at)
					return
				}
				skipped += at - pos
				pos = at + uint64(n)
				if n > 0 {
					select {
					case some <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	select {
	case <-some:
		time.Sleep(300 * time.Millisecond)
	case <-time.After(time.Minute):
	}
	close(stop)
	wg.Wait()
	if read == 0 {
		t.Error("nothing was read")
	}
	t.Logf("read %d bytes, missed %d", read, lost)
}

func TestChanged(t *testing.T) {
	w, r := open(t)
	for range 3 {
		changed := r.Changed()
		select {
		case <-changed:
			t.Fatal("changed without a change")
		case <-time.After(5 * time.Millisecond):
		}
		w.Write([]byte("x"))
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal("the reader was not told")
		}
	}
}

func TestNewReaderReplacesTheOld(t *testing.T) {
	w, old := open(t)
	r := read(t, w)
	changed := r.Changed()
	w.Write([]byte("x"))
	<-changed
	if n, _ := old.ReadAt(make([]byte, 9), 0); n != 1 {
		t.Errorf("the old reader sees %d bytes, want 1", n)
	}
}

// A bell that nobody answers, with its counter full, does not stop the writer.
func TestFullBell(t *testing.T) {
	w, _ := open(t)
	var full [8]byte
	binary.NativeEndian.PutUint64(full[:], math.MaxUint64-1)
	_, bell, err := w.Share()
	if err != nil {
		t.Fatal(err)
	}
	defer bell.Close()
	unix.Write(int(bell.Fd()), full[:])
	done := make(chan struct{})
	go func() { w.Write([]byte("x")); close(done) }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Error("Write waits for a reader")
	}
}

func TestAfterClose(t *testing.T) {
	w, r := open(t)
	w.Write([]byte("kept"))
	w.Close()
	if n, err := w.Write([]byte("lost")); n != 4 || err != nil {
		t.Errorf("Write after Close = %d, %v", n, err)
	}
	buf := make([]byte, 9)
	if n, _ := r.ReadAt(buf, 0); string(buf[:n]) != "kept" {
		t.Errorf("after the writer's end: %q, want kept", buf[:n])
	}
	r.Close()
	if n, _ := r.ReadAt(buf, 0); n != 0 || r.End() != 0 {
		t.Errorf("after Close: %d bytes, end %d", n, r.End())
	}
	if err := r.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// The reader cannot write what it was given, nor resize it.
func TestSeals(t *testing.T) {
	w, _ := open(t)
	memory, bell, err := w.Share()
	if err != nil {
		t.Fatal(err)
	}
	bell.Close()
	fd := int(memory.Fd())
	if _, err := unix.Mmap(fd, 0, mapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err == nil {
		t.Error("a second writable map was possible")
	}
	if _, err := unix.Pwrite(fd, []byte("x"), 0); err == nil {
		t.Error("pwrite was possible")
	}
	if unix.Ftruncate(fd, 0) == nil || unix.Ftruncate(fd, mapSize*2) == nil {
		t.Error("resizing was possible")
	}
}

func TestHostileFiles(t *testing.T) {
	memfd := func(size int64, seal int) func() *os.File {
		return func() *os.File {
			fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
			if err != nil {
				t.Fatal(err)
			}
			unix.Ftruncate(fd, size)
			unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seal)
			return os.NewFile(uintptr(fd), "x")
		}
	}
	for name, memory := range map[string]func() *os.File{
		"not a memfd": func() *os.File { f, _ := os.Open("/dev/null"); return f },
		"not sealed":  memfd(mapSize, 0),
		"half sealed": memfd(mapSize, unix.F_SEAL_GROW),
		"too small":   memfd(mapSize-4096, seals),
		"too large":   memfd(mapSize+4096, seals),
	} {
		bell, _ := os.Open("/dev/null")
		if r, err := NewReader(memory(), bell); err == nil {
			r.Close()
			t.Errorf("%s: taken", name)
		}
		if bell.Close() == nil {
			t.Errorf("%s: the bell was left open", name)
		}
	}
}

func FuzzHostileRing(f *testing.F) {
	f.Add(uint64(0), uint64(0), uint64(0), 10)
	f.Add(uint64(math.MaxUint64), uint64(0), uint64(0), 100)
	f.Add(uint64(math.MaxUint64), uint64(math.MaxUint64), uint64(math.MaxUint64-5), 100)
	f.Add(uint64(10), uint64(5), uint64(0), ringSize*2)
	f.Add(uint64(ringSize), uint64(ringSize*3), uint64(0), ringSize)
	f.Add(uint64(ringSize+7), uint64(ringSize+100), uint64(7), 1000)
	mem := make([]byte, mapSize)
	f.Fuzz(func(t *testing.T, end, claim, pos uint64, size int) {
		r := &Reader{ring: ring{mem}}
		r.ring.end().Store(end)
		r.ring.claim().Store(claim)
		p := make([]byte, max(0, min(size, 1<<20)))
		n, at := r.ReadAt(p, pos)
		if n < 0 || n > len(p) || at < pos {
			t.Errorf("end %d claim %d: ReadAt(%d bytes, %d) = %d at %d", end, claim, len(p), pos, n, at)
		}
		if n > 0 && at+uint64(n) > end {
			t.Errorf("end %d claim %d: ReadAt(%d) gave bytes beyond the end", end, claim, pos)
		}
	})
}
