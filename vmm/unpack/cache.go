package unpack

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// Bounds of a Cache.
const (
	cacheRoom    = 192 << 20 // bytes of kernels: two or three of a distribution
	cacheLimit   = 128 << 20 // bytes of one
	cacheInput   = 64 << 20  // bytes of a bzImage; a greater one is not looked at
	cacheWorkers = 2         // bzImages that are unpacked at a time, of each user one
	cacheReaders = 16        // bzImages of one user that are read at a time
	cacheRefused = 256       // that are remembered as not to be unpacked
)

// Cache has kernels at hand that were unpacked, in memory that nobody can
// change, by what is in their bzImages. What is not at hand is unpacked while
// nobody waits for it: the kernel does it itself meanwhile, in the guest, as
// fast.
//
// It reads users' files and looks at nothing in them; what comes out of Unpack
// it checks for being such memory, of an ELF file. Its methods may be called
// from several goroutines.
type Cache struct {
	// Unpack has the kernel taken out of a bzImage, which is a sealed memory
	// file and stays the caller's: at most limit bytes, in a sealed memory file
	// that the caller closes. EINVAL, EOPNOTSUPP and ETIMEDOUT mean that it
	// cannot be done, EPROTO and EIO that the unpacking process broke.
	Unpack func(ctx context.Context, bzImage *os.File, limit int64) (*os.File, error)
	Log    func(format string, args ...any)

	mu      sync.Mutex
	kept    []kernel // the last that was asked for last
	refused map[key]bool
	working map[uint32]key // by user
	reading map[uint32]int // how many, by user
}

// key is what a bzImage is told by. Nothing of it is a user's to choose.
type key struct {
	version int
	sum     [sha256.Size]byte
}

// kernel is what came out of one.
type kernel struct {
	key  key
	file *os.File
	size int64
}

// Get returns the kernel that is in a bzImage, open for reading, if it is at
// hand; the caller closes it. Else it returns nil, and may have it the next
// time. The file stays the caller's, uid is who named it. It may lie where
// nothing answers: nil is returned then when ctx ends, and at once when too many
// of the user's do.
func (c *Cache) Get(ctx context.Context, uid uint32, bzImage *os.File) *os.File {
	if !c.enter(uid) {
		return nil
	}
	own, err := unix.FcntlInt(bzImage.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		c.leave(uid)
		return nil
	}
	got := make(chan *os.File, 1)
	go func() {
		defer c.leave(uid)
		f := os.NewFile(uintptr(own), bzImage.Name())
		defer f.Close()
		got <- c.get(ctx, uid, f)
	}()
	select {
	case f := <-got:
		return f
	case <-ctx.Done():
		go func() {
			if f := <-got; f != nil {
				f.Close()
			}
		}()
		return nil
	}
}

// enter counts a reader of a user's, for as long as its file holds it up: that
// may be for good, and it has a thread.
func (c *Cache) enter(uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading[uid] >= cacheReaders {
		return false
	}
	if c.reading == nil {
		c.reading = make(map[uint32]int)
	}
	c.reading[uid]++
	return true
}

// leave is the counterpart of enter.
func (c *Cache) leave(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading[uid]--; c.reading[uid] == 0 {
		delete(c.reading, uid)
	}
}

func (c *Cache) get(ctx context.Context, uid uint32, bzImage *os.File) *os.File {
	size, err := fileSize(bzImage)
	if err != nil || size > cacheInput || isELF(bzImage) {
		return nil
	}
	k, err := sum(ctx, bzImage, size, io.Discard)
	if err != nil {
		return nil // whoever loads it will say so
	}
	if f := c.find(k); f != nil {
		return f
	}
	c.fetch(ctx, uid, k, bzImage, size)
	return nil
}

// isELF reports whether a file is a kernel as it comes out.
func isELF(f *os.File) bool {
	var magic [4]byte
	n, _ := f.ReadAt(magic[:], 0)
	return n == len(magic) && string(magic[:]) == "\x7fELF"
}

// sum copies a file and returns its key.
func sum(ctx context.Context, f *os.File, size int64, to io.Writer) (key, error) {
	h := sha256.New()
	w := io.MultiWriter(h, to)
	for off := int64(0); off < size; off += step {
		n := min(step, size-off)
		if err := ctx.Err(); err != nil {
			return key{}, err
		}
		if _, err := io.CopyN(w, io.NewSectionReader(f, off, n), n); err != nil {
			return key{}, err
		}
	}
	return key{Version, [sha256.Size]byte(h.Sum(nil))}, nil
}

const step = 1 << 20 // bytes that are read between two looks whether to go on

// find returns what is kept by a key, nil if nothing is.
func (c *Cache) find(k key) *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.kept, func(e kernel) bool { return e.key == k })
	if i < 0 {
		return nil
	}
	e := c.kept[i]
	c.kept = append(slices.Delete(c.kept, i, i+1), e)
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", e.file.Fd())) // for reading alone
	if err != nil {
		return nil
	}
	return f
}

// fetch begins to unpack a bzImage, if that is to be tried and there is a
// place. What is unpacked is a copy: the file is a user's, who could give it
// other bytes than those that the key is of.
func (c *Cache) fetch(ctx context.Context, uid uint32, k key, bzImage *os.File, size int64) {
	if !c.begin(uid, k) {
		return
	}
	copied, err := newMemory()
	if err == nil {
		var is key
		is, err = sum(ctx, bzImage, size, copied)
		if err == nil {
			err = seal(copied)
		}
		if err == nil && is == k {
			go c.work(uid, k, copied)
			return
		}
		copied.Close()
	}
	c.end(uid)
}

// begin takes a place for a user, if a key is to be unpacked.
func (c *Cache) begin(uid uint32, k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, busy := c.working[uid]; busy || len(c.working) == cacheWorkers || c.refused[k] {
		return false
	}
	for _, other := range c.working {
		if other == k {
			return false
		}
	}
	if c.working == nil {
		c.working, c.refused = make(map[uint32]key), make(map[key]bool)
	}
	c.working[uid] = k
	return true
}

// end gives the place back.
func (c *Cache) end(uid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.working, uid)
}

// work unpacks a copy, and keeps what comes out or that nothing does.
func (c *Cache) work(uid uint32, k key, bzImage *os.File) {
	defer c.end(uid)
	defer bzImage.Close()
	f, err := c.Unpack(context.Background(), bzImage, cacheLimit)
	if err == nil {
		err = c.keep(k, f)
	}
	if err == nil {
		return
	}
	c.Log("a kernel of user %d is started as it is: %v", uid, err)
	switch ctl.Errno(err) {
	case syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ETIMEDOUT, syscall.EPROTO, syscall.EIO:
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.refused) == cacheRefused {
			clear(c.refused)
		}
		c.refused[k] = true
	}
}

// keep takes over what came out, and lets go of what was not asked for for
// longest.
func (c *Cache) keep(k key, f *os.File) error {
	size, err := whole(f)
	if err != nil {
		f.Close()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = append(c.kept, kernel{k, f, size})
	room := int64(cacheRoom)
	for i := len(c.kept) - 1; i >= 0; i-- {
		if room -= c.kept[i].size; room < 0 {
			for _, e := range c.kept[:i+1] {
				e.file.Close()
			}
			c.kept = slices.Delete(c.kept, 0, i+1)
			break
		}
	}
	return nil
}

// whole wants a sealed memory file with an ELF file of a size that is allowed:
// a process made it that has read a user's bytes.
func whole(f *os.File) (size int64, err error) {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&allSeals != allSeals {
		return 0, ctl.Errorf(syscall.EPROTO, "unpack: what came out can be changed")
	}
	st, err := f.Stat()
	if err != nil {
		return 0, ctl.Errorf(syscall.EPROTO, "unpack: %v", err)
	}
	if st.Size() > cacheLimit || !isELF(f) {
		return 0, ctl.Errorf(syscall.EINVAL, "kernel: unpack: %d bytes, not an ELF file of at most %d", st.Size(), cacheLimit)
	}
	return st.Size(), nil
}
