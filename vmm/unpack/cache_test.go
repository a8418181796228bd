package unpack

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// unpacker is what a Cache of a test asks.
type unpacker struct {
	Cache
	t  *testing.T
	mu sync.Mutex

	asked []string                 // what was in the bzImages
	do    func() (*os.File, error) // what comes of the next
}

func newUnpacker(t *testing.T) *unpacker {
	u := &unpacker{t: t, do: func() (*os.File, error) { return sealed(t, "\x7fELF and so on", 0), nil }}
	u.Unpack = u.unpack
	u.Log = t.Logf
	t.Cleanup(func() {
		for _, k := range u.kept {
			k.file.Close()
		}
	})
	return u
}

func (u *unpacker) unpack(_ context.Context, bzImage *os.File, limit int64) (*os.File, error) {
	b, err := io.ReadAll(io.NewSectionReader(bzImage, 0, limit))
	if seals, _ := unix.FcntlInt(bzImage.Fd(), unix.F_GET_SEALS, 0); err != nil || seals != allSeals {
		u.t.Errorf("to unpack: seals %#x, %v", seals, err)
	}
	u.mu.Lock()
	u.asked = append(u.asked, string(b))
	do := u.do
	u.mu.Unlock()
	return do()
}

// count is how often it was asked.
func (u *unpacker) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.asked)
}

// idle waits until nothing is unpacked.
func (u *unpacker) idle() {
	u.t.Helper()
	until(u.t, "idle", func() bool {
		u.Cache.mu.Lock()
		defer u.Cache.mu.Unlock()
		return len(u.working) == 0 && len(u.reading) == 0
	})
}

func until(t *testing.T, what string, true func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !true(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// get asks and closes; it is what was got, "" for nothing.
func (u *unpacker) get(uid uint32, bzImage *os.File) string {
	u.t.Helper()
	f := u.Get(u.t.Context(), uid, bzImage)
	if f == nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 64)
	n, _ := f.ReadAt(b, 0)
	return string(b[:n])
}

// sealed is a memory file, of size bytes if that is more than its text has.
func sealed(t *testing.T, text string, size int64) *os.File {
	f, err := newMemory()
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err == nil && size > 0 {
		err = f.Truncate(size)
	}
	if err == nil {
		err = seal(f)
	}
	if err != nil {
		t.Error(err)
	}
	return f
}

// What is not at hand is unpacked for the next who asks, whoever that is and
// wherever his file lies, and by nothing but its bytes.
func TestCache(t *testing.T) {
	u := newUnpacker(t)
	first := file(t, []byte("kernel 1"))
	if got := u.get(1000, first); got != "" {
		t.Fatalf("before anything was unpacked: %q", got)
	}
	u.idle()
	f := u.Get(t.Context(), 1001, file(t, []byte("kernel 1")))
	if f == nil {
		t.Fatal("the same kernel elsewhere is not at hand")
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY {
		t.Errorf("open with flags %#x, %v; want for reading", flags, err)
	}
	if u.count() != 1 {
		t.Errorf("it was unpacked %d times", u.count())
	}
	// The same file with other bytes is another kernel.
	if err := os.WriteFile(first.Name(), []byte("kernel 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := u.get(1000, first); got != "" {
		t.Errorf("another kernel in the same file: %q", got)
	}
	u.idle()
	if u.count() != 2 || u.asked[1] != "kernel 2" {
		t.Errorf("asked for %q", u.asked)
	}
}

// What needs no unpacking, or is too large, is not asked for.
func TestCacheLeaves(t *testing.T) {
	u := newUnpacker(t)
	huge := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(huge, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, cacheInput+1); err != nil {
		t.Fatal(err)
	}
	tooLarge, err := os.Open(huge)
	if err != nil {
		t.Fatal(err)
	}
	defer tooLarge.Close()
	for _, f := range []*os.File{file(t, []byte("\x7fELF...")), tooLarge} {
		if got := u.get(1000, f); got != "" {
			t.Errorf("%s: got %q", f.Name(), got)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if f := u.Get(over, 1000, file(t, []byte("a kernel"))); f != nil {
		t.Error("got a kernel when it was too late")
	}
	u.idle()
	if u.count() != 0 {
		t.Errorf("asked for %q", u.asked)
	}
}

// What cannot be unpacked is tried once; what could not be this time, again.
// What comes out is not believed.
func TestCacheRefused(t *testing.T) {
	for i, c := range []struct {
		what string
		do   func() (*os.File, error)
		once bool
	}{
		{"damaged", func() (*os.File, error) { return nil, ctl.Errorf(syscall.EINVAL, "kernel: damaged") }, true},
		{"unknown", func() (*os.File, error) { return nil, ctl.Errorf(syscall.EOPNOTSUPP, "kernel: packed otherwise") }, true},
		{"slow", func() (*os.File, error) { return nil, ctl.Errorf(syscall.ETIMEDOUT, "no end") }, true},
		{"died", func() (*os.File, error) { return nil, ctl.Errorf(syscall.EIO, "it died") }, true},
		{"busy", func() (*os.File, error) { return nil, ctl.Errorf(syscall.EAGAIN, "busy") }, false},
		{"no ELF", func() (*os.File, error) { return sealed(t, "#!/bin/sh", 0), nil }, true},
		{"too much", func() (*os.File, error) { return sealed(t, "\x7fELF", cacheLimit+1), nil }, true},
		{"a file that can change", func() (*os.File, error) { return os.Open(file(t, []byte("\x7fELF")).Name()) }, true},
		{"memory that can change", func() (*os.File, error) { return newMemory() }, true},
	} {
		u := newUnpacker(t)
		u.do = c.do
		f := file(t, []byte(strconv.Itoa(i)))
		for range 2 {
			if got := u.get(1000, f); got != "" {
				t.Errorf("%s: got %q", c.what, got)
			}
			u.idle()
		}
		if once := u.count() == 1; once != c.once {
			t.Errorf("%s: tried %d times", c.what, u.count())
		}
		if len(u.kept) != 0 {
			t.Errorf("%s: %d are kept", c.what, len(u.kept))
		}
	}
}

// A user has one at a time, and all of them two; others are started as they are.
func TestCacheIsBusy(t *testing.T) {
	u := newUnpacker(t)
	goOn := make(chan bool)
	u.do = func() (*os.File, error) {
		<-goOn
		return sealed(t, "\x7fELF", 0), nil
	}
	one, two, three := file(t, []byte("1")), file(t, []byte("2")), file(t, []byte("3"))
	u.get(1000, one)
	u.get(1000, two)   // has one at work
	u.get(1001, one)   // is at work
	u.get(1001, two)   // works
	u.get(1002, three) // no place
	until(t, "both at work", func() bool { return u.count() == 2 })
	close(goOn)
	u.idle()
	if u.count() != 2 || u.get(1002, one) == "" || u.get(1002, two) == "" || u.get(1002, three) != "" {
		t.Errorf("asked for %q", u.asked)
	}
	u.idle()
}

// Files that do not answer hold up so many readers, and no other user's.
func TestCacheReaders(t *testing.T) {
	u := newUnpacker(t)
	f := file(t, []byte("a kernel"))
	u.get(1000, f)
	u.idle()
	for range cacheReaders {
		if !u.enter(1000) {
			t.Fatal("no place for a reader")
		}
	}
	if u.get(1000, f) != "" || u.get(1001, f) == "" {
		t.Error("one more was read for who has all his places, or none for another")
	}
	u.leave(1000)
	if u.get(1000, f) == "" {
		t.Error("no place again")
	}
	for range cacheReaders - 1 {
		u.leave(1000)
	}
	u.idle()
}

// What was not asked for for longest goes, and what is out stays readable.
func TestCacheRoom(t *testing.T) {
	u := newUnpacker(t)
	u.do = func() (*os.File, error) { return sealed(t, "\x7fELF", cacheRoom/2-1), nil }
	files := []*os.File{file(t, []byte("1")), file(t, []byte("2")), file(t, []byte("3"))}
	for _, f := range files[:2] {
		u.get(1000, f)
		u.idle()
	}
	held := u.Get(t.Context(), 1000, files[1])
	u.get(1000, files[0]) // so the second is the oldest
	u.get(1000, files[2])
	u.idle()
	if held == nil {
		t.Fatal("two do not fit")
	}
	defer held.Close()
	if u.get(1000, files[0]) == "" || u.get(1000, files[2]) == "" || len(u.kept) != 2 {
		t.Errorf("%d are kept; the newest and the last that was asked for are not both", len(u.kept))
	}
	if !isELF(held) {
		t.Error("what is out cannot be read")
	}
	if u.get(1000, files[1]) != "" {
		t.Error("the oldest is kept")
	}
	u.idle()
}
