package virtio_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/vmm/virtio"
	"vmfs/vmm/virtio/virtiotest"
)

const ringFeatures = virtiotest.Indirect | virtiotest.EventIdx | virtiotest.Version1

func newDriver(t testing.TB, dev virtio.Device, size uint64) *virtiotest.Driver {
	t.Helper()
	d, err := virtiotest.New(dev, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func initQueues(t testing.TB, d *virtiotest.Driver, features uint64, size int) []*virtiotest.Queue {
	t.Helper()
	qs, err := d.Init(features, size)
	if err != nil {
		t.Fatal(err)
	}
	return qs
}

// next waits for a chain.
func next(t testing.TB, q *virtiotest.Queue) virtiotest.Used {
	t.Helper()
	u, err := q.Next()
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// needsReset waits until the device gave up, which it must say by a
// configuration interrupt, and is why.
func needsReset(t testing.TB, d *virtiotest.Driver) error {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); d.Load(virtiotest.InterruptStatus)&2 == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("no configuration interrupt; status %#x", d.Load(virtiotest.Status))
		}
		time.Sleep(50 * time.Microsecond)
	}
	if s := d.Load(virtiotest.Status); s&virtiotest.NeedsReset == 0 {
		t.Errorf("status %#x, want DEVICE_NEEDS_RESET in it", s)
	}
	err := d.Dev.Failure()
	if err == nil {
		t.Error("no reason is given")
		err = errors.New("none")
	}
	return err
}

// cpu is the process's CPU time.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// needRoot skips what makes a tap.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("making a tap needs root's rights")
	}
}
