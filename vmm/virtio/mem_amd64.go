package virtio

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The accesses to memory that the guest writes at the same time, and all of
// this package's use of unsafe. That an unaligned load is one load, and that
// the rings' byte order (1.4) is the machine's, is so on amd64; the file's
// name says it.

// load64 loads a word of a descriptor, once. An indirect table may stand at
// any address, so p need not be aligned.
func load64(p unsafe.Pointer) uint64 { return atomic.LoadUint64((*uint64)(p)) }

// load16 loads the half word at p, a multiple of 2, once: by way of the word
// around it, which no page boundary divides.
func load16(p unsafe.Pointer) uint16 {
	odd := uintptr(p) & 2
	word := atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(odd))))
	return uint16(word >> (8 * odd))
}

// store16 stores a half word that only the device writes; its neighbours may
// be the guest's.
//
//go:noinline
func store16(p unsafe.Pointer, v uint16) { *(*uint16)(p) = v }

// store32 is store16 for a word. It becomes visible no later than the next
// publish32.
func store32(p unsafe.Pointer, v uint32) { *(*uint32)(p) = v }

// publish32 stores an aligned word after everything stored before it, and
// before anything loaded after it.
func publish32(p unsafe.Pointer, v uint32) { atomic.StoreUint32((*uint32)(p), v) }

// start is where p begins; p is not empty.
func start(p []byte) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(p)) }

// iovec is p as system calls take it; p is not empty.
func iovec(p []byte) unix.Iovec {
	return unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
}

// iovBytes is the reverse of iovec.
func iovBytes(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

// iovSkip is v without its first n bytes; n is less than its length.
func iovSkip(v unix.Iovec, n uint64) unix.Iovec {
	v.Base = (*byte)(unsafe.Add(unsafe.Pointer(v.Base), n))
	v.Len -= n
	return v
}

// vectored is readv, writev, preadv2 or pwritev2, which may wait. The memory
// of iov, which is not empty, may be the guest's.
func vectored(call uintptr, fd int, iov []unix.Iovec, offset, flags int64) (int, error) {
	for {
		n, _, e := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)),
			uintptr(offset), 0, uintptr(flags))
		if e != unix.EINTR {
			return result(n, e)
		}
	}
}

// atOnce is how many bytes move in a time that a garbage collection may wait.
const atOnce = 128 << 10

// vectoredNow is vectored for at most atOnce bytes and a call that does not
// wait. It does not tell Go's scheduler, which is a tenth of the time of a
// small one.
func vectoredNow(call uintptr, fd int, iov []unix.Iovec, offset, flags int64) (int, error) {
	n, _, e := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)),
		uintptr(offset), 0, uintptr(flags))
	return result(n, e)
}

func result(n uintptr, e unix.Errno) (int, error) {
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}
