package virtio

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds on what a guest takes from the host's generator.
const (
	rngRequest = 64 << 10 // bytes for one request
	rngRate    = 1 << 20  // bytes a second
	rngBurst   = 1 << 20  // bytes at once
)

// RNG is the entropy device (5.4). It gives what getrandom(2) gives, at most
// 1 MiB a second; a request gets at most 64 KiB, and the driver sees how much
// (5.4.6.2 lets it be less than was asked for).
type RNG struct {
	tokens int64 // bytes that may be given now
	last   time.Time
}

// NewRNG makes an entropy device.
func NewRNG() *RNG { return &RNG{tokens: rngBurst, last: time.Now()} }

func (*RNG) ID() uint32             { return idRNG }
func (*RNG) Features() uint64       { return 0 }
func (*RNG) QueueSizes() []uint16   { return []uint16{64} }
func (*RNG) ReadConfig(int, []byte) {}
func (*RNG) Attach(Host)            {}
func (*RNG) Start(uint64) error     { return nil }

// Serve fills the buffers of the only queue.
func (r *RNG) Serve(_ int, q *Queue) {
	for q.Wait() {
		for r.rest(q) {
			c := q.Next()
			if c == nil {
				break
			}
			if c.writeLen == 0 {
				q.Fail(errors.New("rng: a buffer that cannot be written"))
				break
			}
			q.Done(c, r.fill(c.toWrite()))
		}
	}
}

// rest waits until the guest may have a request filled. It is false when
// Serve shall return.
func (r *RNG) rest(q *Queue) bool {
	for {
		if r.tokens <= 0 {
			now := time.Now()
			r.tokens = min(rngBurst, r.tokens+int64(now.Sub(r.last).Seconds()*rngRate))
			r.last = now
		}
		if r.tokens > 0 {
			return q.running()
		}
		if !q.Poll(-1, 10*time.Millisecond) {
			return false
		}
	}
}

// fill fills a request and is how many bytes it got.
func (r *RNG) fill(iov []unix.Iovec) uint32 {
	total := 0
	for _, v := range iov {
		p := iovBytes(v)
		p = p[:min(len(p), rngRequest-total)]
		n, err := unix.Getrandom(p, 0)
		total += max(n, 0)
		if err != nil || n < len(p) || total == rngRequest {
			break
		}
	}
	r.tokens -= int64(total)
	return uint32(total)
}
