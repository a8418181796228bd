package unpack

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// image wraps a payload as a kernel's build does.
func image(payload []byte) []byte {
	const setup = 2 * 512
	b := make([]byte, setup+(len(payload)+15)&^15)
	b[0x1f1] = 1
	le.PutUint32(b[0x1f4:], uint32(len(b)-setup)/16)
	le.PutUint16(b[0x1fe:], 0xaa55)
	b[0x201] = 0x6a
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x230:], 0x200000)
	le.PutUint16(b[0x236:], 1)
	le.PutUint32(b[0x24c:], uint32(len(payload)))
	le.PutUint64(b[0x258:], 0x1000000)
	le.PutUint32(b[0x260:], 512<<20)
	copy(b[setup:], payload)
	return b
}

// sized is packed bytes with the length of what they were behind them.
func sized(packed []byte, n int) []byte {
	return le.AppendUint32(bytes.Clone(packed), uint32(n))
}

func unpack(b []byte, limit int64) ([]byte, error) {
	var out bytes.Buffer
	n, err := Unpack(bytes.NewReader(b), int64(len(b)), &out, limit)
	if err == nil && n != int64(out.Len()) {
		err = errors.New("another length than it says")
	}
	return out.Bytes(), err
}

// sample is something like code: opcodes of calls in all neighbourhoods.
func sample(n int) []byte {
	r := rand.New(rand.NewPCG(8, 6))
	alphabet := []byte{0xe8, 0xe9, 0xe8, 0x00, 0xff, 0x00, 0xff, 1, 0x7f, 0x80, 0x55, 0x90}
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
		if i%64 > 56 {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

func gz(t testing.TB, p []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(p)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// lz4Legacy packs as lz4 -l does.
func lz4Legacy(t testing.TB, p []byte) []byte {
	b := le.AppendUint32(nil, lz4Magic)
	for len(p) > 0 {
		n := min(len(p), 8<<20)
		dst := make([]byte, lz4.CompressBlockBound(n))
		k, err := lz4.CompressBlock(p[:n], dst, nil)
		if err != nil || k == 0 {
			t.Fatal(k, err)
		}
		b = append(le.AppendUint32(b, uint32(k)), dst[:k]...)
		p = p[n:]
	}
	return b
}

func zst(t testing.TB, p []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(p, nil)
}

// tool packs by a program of the host, as a kernel's build does.
func tool(t testing.TB, p []byte, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s here", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(p)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestUnpack(t *testing.T) {
	for name, pack := range map[string]func(testing.TB, []byte) []byte{
		"gzip":    gz,
		"lz4":     func(t testing.TB, p []byte) []byte { return sized(lz4Legacy(t, p), len(p)) },
		"zstd":    func(t testing.TB, p []byte) []byte { return sized(zst(t, p), len(p)) },
		"gzip -9": func(t testing.TB, p []byte) []byte { return tool(t, p, "gzip", "-n", "-9") },
		"lz4 -l":  func(t testing.TB, p []byte) []byte { return sized(tool(t, p, "lz4", "-l", "-1", "-", "-"), len(p)) },
		"zstd -22": func(t testing.TB, p []byte) []byte {
			return sized(tool(t, p, "zstd", "-q", "-22", "--ultra", "--long=27"), len(p))
		},
		"xz": func(t testing.TB, p []byte) []byte {
			return sized(tool(t, p, "xz", "--check=crc32", "--lzma2=dict=1MiB"), len(p))
		},
		"xz --x86": func(t testing.TB, p []byte) []byte {
			return sized(tool(t, p, "xz", "--check=crc32", "--x86", "--lzma2=dict=32MiB"), len(p))
		},
		"xz of blocks": func(t testing.TB, p []byte) []byte {
			return sized(tool(t, p, "xz", "-T2", "--block-size=65536", "--check=crc64", "--x86", "--lzma2=preset=0"), len(p))
		},
	} {
		t.Run(name, func(t *testing.T) {
			sizes := []int{1, 100, 300_000}
			if name == "lz4 -l" {
				sizes = append(sizes, 9<<20) // two blocks
			}
			for _, n := range sizes {
				p := sample(n)
				packed := pack(t, p)
				if len(packed) < 32 {
					continue // no payload
				}
				got, err := unpack(image(packed), 16<<20)
				if err != nil {
					t.Fatalf("%d bytes: %v", n, err)
				}
				if !bytes.Equal(got, p) {
					t.Fatalf("%d bytes: something else came out", n)
				}
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	p := sample(100_000)
	xz := tool(t, p, "xz", "--check=crc32", "--x86", "--lzma2=preset=0")
	good := map[string][]byte{
		"gzip": gz(t, p), "lz4": sized(lz4Legacy(t, p), len(p)), "zstd": sized(zst(t, p), len(p)), "xz": sized(xz, len(p)),
	}
	for name, packed := range good {
		for what, b := range map[string][]byte{
			"says less":  sized(packed[:len(packed)-4], len(p)-1),
			"says more":  sized(packed[:len(packed)-4], len(p)+1),
			"cut":        sized(packed[:len(packed)/2], len(p)),
			"followed":   sized(append(bytes.Clone(packed[:len(packed)-4]), "something"...), len(p)),
			"only begun": sized(append(bytes.Clone(packed[:8]), make([]byte, 40)...), len(p)),
			"zeros in":   sized(append(append(bytes.Clone(packed[:50]), make([]byte, 500)...), packed[550:len(packed)-4]...), len(p)),
		} {
			if name == "lz4" && what == "zeros in" {
				continue // it has no checksum
			}
			if _, err := unpack(image(b), 1<<20); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s, %s: got %v, want EINVAL", name, what, err)
			}
		}
		if _, err := unpack(image(packed), int64(len(p))-1); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s over the limit: got %v, want EINVAL", name, err)
		}
	}
	other := sized(append([]byte("BZh91AY&SY"), make([]byte, 100)...), 1000)
	if _, err := unpack(image(other), 1<<20); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("bzip2: got %v, want EOPNOTSUPP", err)
	}
	if _, err := unpack([]byte(strings.Repeat("\x7fELF", 1000)), 1<<20); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("no bzImage: got %v, want EINVAL", err)
	}
}

// A bit that flips is noticed, or changes nothing that comes out: the length
// that a piece of LZMA2 says of itself is such a place.
func TestXZDamage(t *testing.T) {
	p := sample(3000)
	good := sized(tool(t, p, "xz", "--check=crc32", "--x86", "--lzma2=preset=0"), len(p))
	step := 1
	if testing.Short() {
		step = 7
	}
	for i := 0; i < len(good); i += step {
		b := bytes.Clone(good)
		b[i] ^= 0x10
		got, err := unpack(image(b), 1<<20)
		if err == nil && !bytes.Equal(got, p) {
			t.Fatalf("byte %d of %d: not noticed", i, len(good))
		}
	}
}

type failing struct{}

func (f failing) ReadAt(p []byte, off int64) (int, error) { return 0, syscall.EIO }
func (f failing) Write(p []byte) (int, error)             { return 0, syscall.ENOSPC }

func TestErrors(t *testing.T) {
	if _, err := Unpack(failing{}, 1<<20, io.Discard, 1<<20); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	b := image(gz(t, sample(10000)))
	if _, err := Unpack(bytes.NewReader(b), int64(len(b)), failing{}, 1<<20); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
}

// FuzzUnpack holds Unpack to its limit on any file.
func FuzzUnpack(f *testing.F) {
	p := sample(2000)
	f.Add(image(gz(f, p)))
	f.Add(image(sized(lz4Legacy(f, p), len(p))))
	f.Add(image(sized(zst(f, p), len(p))))
	if _, err := exec.LookPath("xz"); err == nil {
		f.Add(image(sized(tool(f, p, "xz", "--check=crc32", "--x86", "--lzma2=preset=0"), len(p))))
		f.Add(image(sized(tool(f, p, "xz", "-T2", "--block-size=512", "--check=crc64", "--lzma2=preset=0"), len(p))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		out, err := unpack(b, limit)
		if len(out) > limit {
			t.Fatalf("%d bytes", len(out))
		}
		if err == nil && len(out) == 0 {
			t.Fatal("nothing, without an error")
		}
	})
}

// FuzzXZ fuzzes the container alone, without a checksum that is in the way.
func FuzzXZ(f *testing.F) {
	p := sample(500)
	if _, err := exec.LookPath("xz"); err == nil {
		for _, check := range []string{"crc32", "crc64"} {
			f.Add(tool(f, p, "xz", "--check="+check, "--x86", "--lzma2=preset=0"))
		}
	}
	f.Add([]byte(xzMagic + "\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		pl := &payload{src: newSource(bytes.NewReader(b)), size: int64(len(b)), want: 1 << 16}
		if err := pl.xz(&exact{w: &out, left: pl.want}); err == nil && !bytes.HasPrefix(b, []byte(xzMagic)) {
			t.Fatal("not xz")
		}
	})
}

// FuzzX86 wants the same from the filter however its input is cut.
func FuzzX86(f *testing.F) {
	f.Add(sample(100), uint8(3))
	f.Add([]byte{0xe8, 0, 0, 0, 0, 0xe9, 0xff, 0xe8, 0xff, 0xff, 0xff, 0xff}, uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, parts bytes.Buffer
		one, many := x86Filter{w: &whole}, x86Filter{w: &parts}
		one.Write(b)
		one.Close()
		for rest := b; len(rest) > 0; {
			n := min(len(rest), 1+int(cut%17))
			many.Write(rest[:n])
			rest = rest[n:]
		}
		many.Close()
		if !bytes.Equal(whole.Bytes(), parts.Bytes()) || whole.Len() != len(b) {
			t.Fatal("the cuts show")
		}
	})
}
