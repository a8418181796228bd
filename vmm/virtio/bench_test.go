package virtio_test

import (
	"fmt"
	"testing"

	"vmfs/vmm/virtio/virtiotest"
)

// The lines of issue 5: what moves through a device in batches of 32, and the
// same with system calls alone, in one process. An operation is one request.

func BenchmarkBlk(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, write := range []bool{false, true} {
			name := map[bool]string{false: "read", true: "write"}[write]
			bench, err := virtiotest.NewBlkBench(b.TempDir(), size, write)
			if err != nil {
				b.Fatal(err)
			}
			both(b, fmt.Sprintf("%s/%dKiB", name, size>>10), size, bench)
		}
	}
}

func BenchmarkNet(b *testing.B) {
	needRoot(b)
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, receive := range []bool{false, true} {
			name := map[bool]string{false: "send", true: "receive"}[receive]
			bench, err := virtiotest.NewNetBench(size, receive)
			if err != nil {
				b.Fatal(err)
			}
			both(b, fmt.Sprintf("%s/%dKiB", name, size>>10), size, bench)
		}
	}
}

// both measures a Bench and closes it.
func both(b *testing.B, name string, size int, bench *virtiotest.Bench) {
	run(b, name+"/bare", size, bench, bench.Bare)
	run(b, name+"/device", size, bench, bench.Device)
	if err := bench.Close(); err != nil {
		b.Error(err)
	}
}

// run measures batches.
func run(b *testing.B, name string, size int, bench *virtiotest.Bench, batch func() error) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(int64(size))
		b.ReportAllocs()
		for n := 0; n < b.N; n += bench.Requests {
			if bench.Prepare != nil {
				b.StopTimer()
				if err := bench.Prepare(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			if err := batch(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
