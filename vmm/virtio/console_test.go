package virtio_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

// screen is what was printed.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func TestConsolePrints(t *testing.T) {
	var out screen
	d := newDriver(t, virtio.NewConsole(&out), 4<<20)
	q := initQueues(t, d, ringFeatures, 64)[1]
	addr, p := d.Alloc(10000)
	var want strings.Builder
	for i := range p {
		p[i] = byte('a' + i%26)
	}
	for _, n := range []int{1, 4096, 10000, 3} {
		q.Add(virtiotest.Buf{Addr: addr, Len: n / 2}, virtiotest.Buf{Addr: addr + uint64(n/2), Len: n - n/2})
		q.Kick()
		if u := next(t, q); u.Len != 0 {
			t.Errorf("%d bytes used", u.Len)
		}
		want.Write(p[:n])
	}
	if got := out.String(); got != want.String() {
		t.Errorf("printed %d bytes, want %d", len(got), want.Len())
	}
}

// TestConsoleTypes types before the guest is there, more than is kept, and
// over a reset.
func TestConsoleTypes(t *testing.T) {
	c := virtio.NewConsole(&screen{})
	d := newDriver(t, c, 4<<20)
	text := strings.Repeat("0123456789", 1000)
	typed := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte(text))
		typed <- err
	}()
	var got strings.Builder
	for round := 0; got.Len() < len(text); round++ {
		q := initQueues(t, d, ringFeatures, 64)[0]
		addr, p := d.Alloc(64)
		for range 20 {
			if got.Len() == len(text) {
				break
			}
			q.Add(virtiotest.Buf{Addr: addr, Len: 5, Write: true}, virtiotest.Buf{Addr: addr + 5, Len: 59, Write: true})
			q.Kick()
			u := next(t, q)
			got.Write(p[:u.Len])
		}
	}
	if got.String() != text {
		t.Error("what was read is not what was typed")
	}
	if err := <-typed; err != nil {
		t.Error(err)
	}
}

func TestConsoleClose(t *testing.T) {
	c := virtio.NewConsole(&screen{})
	newDriver(t, c, 1<<20)
	typed := make(chan error, 1)
	go func() {
		n, err := c.Write(make([]byte, 5000))
		if n != 4096 {
			t.Errorf("%d bytes were kept", n)
		}
		typed <- err
	}()
	select {
	case err := <-typed:
		t.Fatalf("a write over the bound did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	c.Close()
	if err := <-typed; !errors.Is(err, virtio.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// TestConsoleIdle sees that nothing turns in circles while nobody types and
// the guest has buffers.
func TestConsoleIdle(t *testing.T) {
	c := virtio.NewConsole(&screen{})
	d := newDriver(t, c, 1<<20)
	q := initQueues(t, d, ringFeatures, 64)[0]
	addr, p := d.Alloc(64)
	q.Add(virtiotest.Buf{Addr: addr, Len: 64, Write: true})
	q.Kick()
	least := time.Hour
	for try := 0; try < 20 && least > 50*time.Millisecond; try++ { // the runtime's own work counts too
		before := cpu(t)
		time.Sleep(200 * time.Millisecond)
		least = min(least, cpu(t)-before)
	}
	if least > 50*time.Millisecond {
		t.Errorf("at least %v of CPU time in 200ms of idling", least)
	}
	c.Write([]byte("x"))
	if u := next(t, q); u.Len != 1 || p[0] != 'x' {
		t.Errorf("%d bytes, %q", u.Len, p[:1])
	}
}
