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
			run(b, fmt.Sprintf("%s/%dKiB/bare", name, size>>10), size, bench.Bare)
			run(b, fmt.Sprintf("%s/%dKiB/device", name, size>>10), size, bench.Device)
			bench.Close()
		}
	}
}

// run measures batches.
func run(b *testing.B, name string, size int, batch func() error) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(int64(size))
		b.ReportAllocs()
		for n := 0; n < b.N; n += virtiotest.Batch {
			if err := batch(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
