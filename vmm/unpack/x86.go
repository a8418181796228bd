package unpack

import (
	"io"
	"math/bits"
)

// x86Filter turns the absolute targets of CALL and JMP, which pack better,
// back into relative ones (xz-file-format.txt, 5.3.2; the rules which bytes
// count as such an instruction are those of all implementations, and no
// specification says them).
//
// Bytes are passed on to w. Close passes on the last ones, which cannot be an
// instruction.
type x86Filter struct {
	w    io.Writer
	pos  uint32 // of buf in the whole
	mask byte   // which of the three bytes before look like an instruction and were left alone
	buf  []byte
}

// x86Size is an instruction's: the opcode and four bytes of target.
const x86Size = 5

func (f *x86Filter) Write(p []byte) (int, error) {
	f.buf = append(f.buf, p...)
	return len(p), f.flush(f.convert())
}

func (f *x86Filter) Close() error { return f.flush(len(f.buf)) }

// flush passes on the first n bytes.
func (f *x86Filter) flush(n int) error {
	_, err := f.w.Write(f.buf[:n])
	f.buf = append(f.buf[:0], f.buf[n:]...)
	f.pos += uint32(n)
	return err
}

// convert goes through the bytes that have enough behind them, and returns
// how many they were.
func (f *x86Filter) convert() int {
	i := 0
	for i+x86Size <= len(f.buf) {
		if f.buf[i]&0xfe != 0xe8 {
			f.mask = f.mask << 1 & 7
			i++
			continue
		}
		if !f.instruction(i) {
			f.mask = (f.mask<<1 | 1) & 7
			i++
			continue
		}
		target := f.relative(le.Uint32(f.buf[i+1:]), f.pos+uint32(i)+x86Size)
		le.PutUint32(f.buf[i+1:], target)
		f.mask = 0
		i += x86Size
	}
	return i
}

// extends says whether b is the sign of a target within 16 MiB.
func extends(b byte) bool { return b == 0 || b == 0xff }

// instruction says whether the opcode at i was converted when packing. One
// whose target overlaps an opcode that was left alone was not, unless the
// packer could be undone.
func (f *x86Filter) instruction(i int) bool {
	if f.mask != 0 {
		if bits.OnesCount8(f.mask) > 1 || extends(f.buf[i+4-bits.Len8(f.mask)]) {
			return false
		}
	}
	return extends(f.buf[i+4])
}

// relative is the target as the instruction, which ends at end, had it. Where
// it would have come out with a sign in place of a byte that told convert to
// go on, the packer turned over what is below; that byte is then the
// complement of the target's own, which is no sign, so once is enough.
func (f *x86Filter) relative(target, end uint32) uint32 {
	v := target - end
	if n := 8 * bits.Len8(f.mask); n > 0 && extends(byte(v>>(24-n))) {
		v = (v ^ (1<<(32-n) - 1)) - end
	}
	return uint32(int32(v<<7) >> 7)
}
