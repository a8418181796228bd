// Package unpack takes the kernel out of a bzImage, so that no guest spends
// its own time on that: gzip, xz, lz4 and zstd are what distributions use.
//
// It is a role of its own, a process for one file, because decompressors are
// the largest parsers in vmfs and the file is a user's. That process has no
// path, no capability, no right but to read one open file and to fill one
// memory file, and bounds on its memory and its time. It trusts nothing in the
// file: a header's sizes are checked against it, what comes out is exactly as
// long as the file says, no longer than the caller allows, and no buffer is
// larger than that.
//
// What comes out has the file's checksum where the format has one (gzip, xz,
// mostly zstd; not lz4). That it is a kernel is for package boot to see.
//
// Whoever keeps what came out keeps it by the SHA-256 of the whole bzImage and
// by Version: not by path, time or inode, which a user can arrange.
package unpack

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"

	"vmfs/ctl"
	"vmfs/vmm/boot"
)

// Version is a part of the key of a kept result. It changes when Unpack would
// make something else of the same file.
const Version = 1

// Limit is a good limit for Unpack: four times a large distribution's kernel.
const Limit = 256 << 20

var le = binary.LittleEndian

// Unpack writes the kernel in the bzImage r, of size bytes, to w, and returns
// how many bytes that were. More than limit, or more than the kernel says that
// it needs, is refused before anything is written. Errors are *ctl.Error:
// EINVAL for what is no bzImage or a damaged one, EOPNOTSUPP for one that is
// packed in another way or not at all, which can still be booted as it is, and
// what reading or writing returned.
func Unpack(r io.ReaderAt, size int64, w io.Writer, limit int64) (int64, error) {
	file := io.NewSectionReader(r, 0, size)
	h, err := boot.ParseHeader(file)
	if err != nil {
		return 0, err
	}
	p, err := newPayload(file, h, limit)
	if err != nil {
		return 0, err
	}
	out := &exact{w: w, left: p.want}
	if err := p.unpack(out); err != nil {
		return 0, out.explain(err, p.src.err)
	}
	if out.left != 0 {
		return 0, bad("ends %d bytes before its %d", out.left, p.want)
	}
	return p.want, nil
}

// payload is the compressed part of a bzImage.
type payload struct {
	src    *source // what the format has, without the length behind it
	size   int64   // of that, in bytes
	want   int64   // bytes, unpacked
	unpack func(io.Writer) error
}

// lengthSize is the unpacked length behind every payload, little-endian; for
// gzip it is part of the format.
const lengthSize = 4

// newPayload looks at the first bytes and at the last.
func newPayload(file *io.SectionReader, h *boot.Header, limit int64) (*payload, error) {
	if h.PayloadSize < 32 || h.PayloadSize > limit {
		return nil, bad("a payload of %d bytes, want 32 to %d", h.PayloadSize, limit)
	}
	var head [8]byte
	var tail [lengthSize]byte
	for _, part := range []struct {
		p   []byte
		off int64
	}{{head[:], h.Payload}, {tail[:], h.Payload + h.PayloadSize - lengthSize}} {
		if n, err := file.ReadAt(part.p, part.off); n != len(part.p) {
			return nil, ctl.Errorf(ctl.Errno(err), "kernel: read at %d: %v", part.off, err)
		}
	}
	p := &payload{size: h.PayloadSize, want: int64(le.Uint32(tail[:]))}
	if !p.choose(head[:]) {
		return nil, ctl.Errorf(syscall.EOPNOTSUPP, "kernel: a bzImage whose payload begins % x: not gzip, xz, lz4 or zstd", head[:6])
	}
	if p.want == 0 || p.want > limit || p.want > int64(h.InitSize) {
		return nil, bad("%d bytes unpacked, where it needs %d to run and %d are allowed", p.want, h.InitSize, limit)
	}
	p.src = newSource(io.NewSectionReader(file, h.Payload, p.size))
	return p, nil
}

// choose finds the format by its first bytes.
func (p *payload) choose(head []byte) bool {
	switch {
	case head[0] == 0x1f && head[1] == 0x8b:
		p.unpack = p.gzip
		return true // the length is its own
	case string(head[:6]) == xzMagic:
		p.unpack = p.xz
	case le.Uint32(head) == lz4Magic:
		p.unpack = p.lz4
	case le.Uint32(head) == zstdMagic:
		p.unpack = p.zstd
	default:
		return false
	}
	p.size -= lengthSize
	return true
}

const (
	lz4Magic  = 0x184c2102 // the legacy frame
	zstdMagic = 0xfd2fb528
)

func (p *payload) gzip(w io.Writer) error {
	z, err := gzip.NewReader(p.src)
	if err != nil {
		return err
	}
	z.Multistream(false)
	if _, err := io.Copy(w, z); err != nil {
		return err
	}
	return p.src.end()
}

// lz4 unpacks a legacy frame (lz4_Frame_format.md, "Legacy frame"): blocks of
// 8 MiB, each with its packed length before it; the last one may be shorter.
func (p *payload) lz4(w io.Writer) error {
	const blockSize = 8 << 20
	var head [4]byte
	if _, err := io.ReadFull(p.src, head[:]); err != nil { // the magic
		return err
	}
	packed, block := make([]byte, lz4.CompressBlockBound(blockSize)), make([]byte, min(blockSize, p.want))
	for left := p.want; left > 0; {
		if _, err := io.ReadFull(p.src, head[:]); err != nil {
			return err
		}
		n := le.Uint32(head[:])
		if n == 0 || n > uint32(len(packed)) {
			return bad("an lz4 block of %d bytes", n)
		}
		if _, err := io.ReadFull(p.src, packed[:n]); err != nil {
			return err
		}
		want := min(left, blockSize)
		if got, err := lz4.UncompressBlock(packed[:n], block[:want]); err != nil {
			return err
		} else if int64(got) != want {
			return bad("an lz4 block with %d bytes of %d", got, want)
		}
		if _, err := w.Write(block[:want]); err != nil {
			return err
		}
		left -= want
	}
	return p.src.end()
}

// zstd unpacks in one piece: kernels are packed with a window of 128 MiB,
// which would be twice that in buffers, and what comes out is its own window.
func (p *payload) zstd(w io.Writer) error {
	packed := make([]byte, p.size)
	if _, err := io.ReadFull(p.src, packed); err != nil {
		return err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return err
	}
	defer d.Close()
	out, err := d.DecodeAll(packed, make([]byte, 0, p.want))
	if err != nil {
		return err
	}
	_, err = w.Write(out)
	return err
}

// source is what is to be unpacked. It counts, and remembers what reading the
// file returned, since a decompressor may say something else.
type source struct {
	r   *bufio.Reader
	n   int64 // bytes taken
	err error // of the file
}

func newSource(r io.Reader) *source {
	s := &source{}
	s.r = bufio.NewReaderSize(noting{r, s}, 64<<10)
	return s
}

// noting sets the error of a source.
type noting struct {
	r io.Reader
	s *source
}

func (n noting) Read(p []byte) (int, error) {
	k, err := n.r.Read(p)
	if err != nil && err != io.EOF {
		n.s.err = err
	}
	return k, err
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	return n, err
}

// ReadByte makes decompressors read no more than they need.
func (s *source) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.n++
	}
	return b, err
}

// end wants nothing to be left.
func (s *source) end() error {
	if _, err := s.r.Peek(1); err == nil {
		return bad("something behind its end")
	}
	return nil
}

// exact passes on as many bytes as were said, and no more.
type exact struct {
	w    io.Writer
	left int64
	err  error // of w
}

func (e *exact) Write(p []byte) (int, error) {
	if int64(len(p)) > e.left {
		return 0, bad("more bytes than it says")
	}
	n, err := e.w.Write(p)
	e.left -= int64(n)
	if err != nil {
		e.err = err
	}
	return n, err
}

// explain says which of the three it was: the writer, the file, or what is
// in it.
func (e *exact) explain(err, read error) error {
	switch {
	case e.err != nil:
		return ctl.Errorf(ctl.Errno(e.err), "kernel: write: %v", e.err)
	case read != nil:
		return ctl.Errorf(ctl.Errno(read), "kernel: read: %v", read)
	}
	if own := (*ctl.Error)(nil); errors.As(err, &own) {
		return own
	}
	return bad("%v", err)
}

func bad(format string, args ...any) error {
	return ctl.Errorf(syscall.EINVAL, "kernel: unpack: %s", fmt.Sprintf(format, args...))
}
