package unpack

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// The container of xz (xz-file-format.txt 1.2.1). It is read here, and only
// LZMA2 by the library, because kernels are packed behind the filter for x86
// code, which the library does not know.

const (
	xzMagic  = "\xfd7zXZ\x00"
	xzFooter = "YZ"

	xzFilterX86   = 0x04
	xzFilterLZMA2 = 0x21

	xzCheckCRC32 = 1
	xzCheckCRC64 = 4

	xzHasPacked   = 1 << 6 // block flags
	xzHasUnpacked = 1 << 7
	xzFilters     = 3
	xzReserved    = 0x3c

	xzMaxBlocks = 1 << 10
)

// xz unpacks one stream.
func (p *payload) xz(w io.Writer) error {
	x := &xzReader{src: p.src, w: w, want: p.want}
	if err := x.header(); err != nil {
		return err
	}
	for {
		size, err := x.src.ReadByte()
		if err != nil {
			return err
		}
		if size == 0 {
			break
		}
		if err := x.block(size); err != nil {
			return err
		}
	}
	if err := x.index(); err != nil {
		return err
	}
	return x.src.end()
}

type xzReader struct {
	src     *source
	w       io.Writer
	want    int64 // bytes at most, and so of a dictionary
	flags   [2]byte
	records []xzRecord
}

// xzRecord is what the index says of a block.
type xzRecord struct{ packed, unpacked uint64 }

func (x *xzReader) read(n int) ([]byte, error) {
	p := make([]byte, n)
	_, err := io.ReadFull(x.src, p)
	return p, err
}

// sealed takes n bytes and their CRC32.
func (x *xzReader) sealed(n int) ([]byte, error) {
	p, err := x.read(n + 4)
	if err == nil && le.Uint32(p[n:]) != crc32.ChecksumIEEE(p[:n]) {
		err = bad("xz: a header's checksum is wrong")
	}
	return p[:n], err
}

func (x *xzReader) header() error {
	if magic, err := x.read(len(xzMagic)); err != nil || string(magic) != xzMagic {
		return cmp.Or(err, error(bad("xz: not its magic")))
	}
	flags, err := x.sealed(2)
	if err != nil {
		return err
	}
	x.flags = [2]byte(flags)
	if newCheck(flags[1]) == nil || flags[0] != 0 {
		return bad("xz: a check of kind %d", flags[1])
	}
	return nil
}

func newCheck(kind byte) hash.Hash {
	switch kind {
	case xzCheckCRC32:
		return crc32.NewIEEE()
	case xzCheckCRC64:
		return crc64.New(crc64.MakeTable(crc64.ECMA))
	}
	return nil
}

// block unpacks one block, whose header's size byte was taken.
func (x *xzReader) block(size byte) error {
	start := x.src.n - 1
	if len(x.records) == xzMaxBlocks {
		return bad("xz: more than %d blocks", xzMaxBlocks)
	}
	h, err := x.blockHeader(size)
	if err != nil {
		return err
	}
	packed := x.src.n
	lz, err := lzma.Reader2Config{DictCap: int(h.dict)}.NewReader2(x.src)
	if err != nil {
		return err
	}
	check := newCheck(x.flags[1])
	out := &counter{w: io.MultiWriter(x.w, check)}
	if err := h.copy(out, lz); err != nil {
		return err
	}
	if !lz.EOS() {
		return io.ErrUnexpectedEOF
	}
	packed = x.src.n - packed
	unpadded := x.src.n - start + int64(check.Size())
	if h.packed >= 0 && h.packed != packed || h.unpacked >= 0 && h.unpacked != out.n {
		return bad("xz: a block of another size than it says")
	}
	if err := x.padding(packed); err != nil {
		return err
	}
	if sum, err := x.read(check.Size()); err != nil {
		return err
	} else if !bytes.Equal(sum, littleEndian(check)) {
		return bad("xz: the checksum is wrong")
	}
	x.records = append(x.records, xzRecord{uint64(unpadded), uint64(out.n)})
	return nil
}

// xzBlock is a block's header.
type xzBlock struct {
	packed, unpacked int64 // -1: not said
	x86              bool
	dict             int64 // bytes
}

// blockHeader reads the rest of a header (3.1).
func (x *xzReader) blockHeader(size byte) (*xzBlock, error) {
	body, err := x.read(int(size)*4 + 3)
	if err != nil {
		return nil, err
	}
	whole := append([]byte{size}, body...)
	end := len(whole) - 4
	if le.Uint32(whole[end:]) != crc32.ChecksumIEEE(whole[:end]) {
		return nil, bad("xz: a block header's checksum is wrong")
	}
	f := fields{whole[1:end]}
	h := &xzBlock{packed: -1, unpacked: -1}
	flags := f.byte()
	if flags&xzHasPacked != 0 {
		h.packed = f.number()
	}
	if flags&xzHasUnpacked != 0 {
		h.unpacked = f.number()
	}
	ok := flags&xzReserved == 0 && h.filters(&f, int(flags&xzFilters)+1, x.want)
	if !ok || f.bad() || len(bytes.Trim(f.p, "\x00")) != 0 {
		return nil, bad("xz: a block header that is none of a kernel's")
	}
	return h, nil
}

// filters takes LZMA2, or the filter for x86 code before it.
func (h *xzBlock) filters(f *fields, n int, want int64) bool {
	id, props := f.number(), f.number()
	if n == 2 {
		if id != xzFilterX86 || props != 0 {
			return false
		}
		h.x86 = true
		id, props = f.number(), f.number()
	}
	bits := f.byte()
	if n > 2 || id != xzFilterLZMA2 || props != 1 || bits > 40 {
		return false
	}
	h.dict = (2 | int64(bits)&1) << (bits/2 + 11)
	// No reference reaches further back than the beginning.
	h.dict = max(min(h.dict, want), lzma.MinDictCap)
	return true
}

// copy unpacks, through the filter if there is one.
func (h *xzBlock) copy(w io.Writer, r io.Reader) error {
	if !h.x86 {
		_, err := io.Copy(w, r)
		return err
	}
	f := &x86Filter{w: w}
	if _, err := io.CopyBuffer(f, r, make([]byte, 64<<10)); err != nil {
		return err
	}
	return f.Close()
}

// padding takes zeros up to a multiple of four bytes after n.
func (x *xzReader) padding(n int64) error {
	p, err := x.read(int(-n & 3))
	if err == nil && len(bytes.Trim(p, "\x00")) != 0 {
		err = bad("xz: padding that is not zero")
	}
	return err
}

// index reads the index, whose first byte was taken, and the footer (chapters
// 4 and 2.1.2), and wants them to say what was found.
func (x *xzReader) index() error {
	want := []byte{0}
	want = binary.AppendUvarint(want, uint64(len(x.records)))
	for _, r := range x.records {
		want = binary.AppendUvarint(want, r.packed)
		want = binary.AppendUvarint(want, r.unpacked)
	}
	want = append(want, make([]byte, -len(want)&3)...)
	want = le.AppendUint32(want, crc32.ChecksumIEEE(want))
	size := len(want)
	footer := le.AppendUint32(nil, uint32(size/4-1))
	footer = append(footer, x.flags[:]...)
	want = le.AppendUint32(want, crc32.ChecksumIEEE(footer))
	want = append(append(want, footer...), xzFooter...)
	got, err := x.read(len(want) - 1)
	if err == nil && !bytes.Equal(got, want[1:]) {
		err = bad("xz: an index that says something else")
	}
	return err
}

// littleEndian is a checksum as xz writes it.
func littleEndian(h hash.Hash) []byte {
	p := h.Sum(nil)
	for i, j := 0, len(p)-1; i < j; i, j = i+1, j-1 {
		p[i], p[j] = p[j], p[i]
	}
	return p
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// fields takes bytes and numbers off a header. Past the end all are -1 or 0,
// and bad says so.
type fields struct{ p []byte }

func (f *fields) byte() byte {
	if len(f.p) == 0 {
		f.p = nil
		return 0
	}
	b := f.p[0]
	f.p = f.p[1:]
	return b
}

// number is a multibyte integer (1.2).
func (f *fields) number() int64 {
	v, n := binary.Uvarint(f.p)
	if n <= 0 || n > 9 || n > 1 && f.p[n-1] == 0 {
		f.p = nil
		return -1
	}
	f.p = f.p[n:]
	return int64(v)
}

func (f *fields) bad() bool { return f.p == nil }
