package priv

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// image is a qcow2 image of no contents in the making; its zero value is one
// of version 3 with nothing behind it.
type image struct {
	base, format string
	change       func(h *qcow2Header)
	extensions   []byte // before the base's format
	cut          int    // bytes that are missing at the end
}

func (im image) bytes() []byte {
	const cluster = 512
	h := qcow2Header{
		Magic: 0x514649fb, Version: 3, ClusterBits: 9, Size: 1 << 20,
		L1Size: 1, L1Offset: 3 * cluster, RefcountOffset: cluster, RefcountClusters: 1,
		RefcountOrder: 4, Length: lengthVersion3,
	}
	extensions := im.extensions
	if im.format != "" {
		extensions = append(extensions, extension(extensionBaseFormat, im.format)...)
	}
	extensions = append(extensions, extension(extensionEnd, "")...)
	if im.base != "" {
		h.BaseOffset = lengthVersion3 + uint64(len(extensions))
		h.BaseSize = uint32(len(im.base))
	}
	if im.change != nil {
		im.change(&h)
	}
	var b bytes.Buffer
	binary.Write(&b, binary.BigEndian, h)
	all := make([]byte, max(4*cluster, b.Len()+len(extensions)+len(im.base)))
	copy(all, b.Bytes())
	copy(all[lengthVersion3:], extensions)
	copy(all[lengthVersion3+len(extensions):], im.base)
	return all[:len(all)-im.cut]
}

func extension(kind uint32, data string) []byte {
	b := binary.BigEndian.AppendUint32(nil, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(append(b, data...), make([]byte, -len(data)&7)...)
}

// headers are images, and what is read of them: the base, or the error's
// number and a part of its words.
var headers = []struct {
	name  string
	image image
	want  string
}{
	{"no base", image{}, ""},
	{"a raw base", image{base: "../b.raw", format: "raw"}, "../b.raw raw"},
	{"a qcow2 base", image{base: "/b:c", format: "qcow2"}, "/b:c qcow2"},
	{"another extension", image{base: "b", format: "raw", extensions: extension(0x6803f857, "a feature's name")}, "b raw"},
	{"a format of no base", image{format: "vmdk"}, ""},
	{"features", image{change: func(h *qcow2Header) { h.Incompatible, h.Compatible, h.Autoclear = featureDirty, 1<<63, 1<<63 }}, ""},
	{"snapshots", image{change: func(h *qcow2Header) { h.Snapshots, h.SnapshotsOffset = 2, 1024 }}, ""},
	{"no table of clusters", image{change: func(h *qcow2Header) { h.L1Size, h.Size = 0, 0 }}, ""},

	{"no format", image{base: "b"}, "EINVAL does not say the format of its base"},
	{"another format", image{base: "b", format: "vmdk"}, `ENOTSUP its base b is "vmdk"`},
	{"two formats", image{base: "b", format: "raw", extensions: extension(extensionBaseFormat, "qcow2")}, "EINVAL said twice"},
	{"an empty format", image{base: "b", extensions: extension(extensionBaseFormat, "")}, "EINVAL said twice or empty"},
	{"json", image{base: `json:{"file":"/etc/shadow"}`, format: "raw"}, "ENOTSUP named by a protocol"},
	{"nbd", image{base: "nbd://host/disk", format: "raw"}, "ENOTSUP named by a protocol"},
	{"file:", image{base: "file:/b", format: "raw"}, "ENOTSUP named by a protocol"},
	{"a NUL in the name", image{base: "b\x00c", format: "raw"}, "EINVAL control bytes"},
	{"a newline in the name", image{base: "b\n", format: "raw"}, "EINVAL control bytes"},
	{"a name of no bytes", image{base: "b", format: "raw", change: func(h *qcow2Header) { h.BaseSize = 0 }}, "EINVAL named by 0 bytes"},
	{"a long name", image{base: strings.Repeat("b", 1024), format: "raw", change: func(h *qcow2Header) { h.ClusterBits, h.L1Size, h.RefcountClusters = 11, 0, 0 }}, "EINVAL named by 1024 bytes"},
	{"a name beyond the cluster", image{base: "b", format: "raw", change: func(h *qcow2Header) { h.BaseOffset = 600 }}, "EINVAL named by 1 bytes at 600"},
	{"a name across its end", image{base: "b", format: "raw", change: func(h *qcow2Header) { h.BaseOffset, h.BaseSize = 500, 20 }}, "EINVAL named by 20 bytes at 500"},
	{"a name in the header", image{base: "b", format: "raw", change: func(h *qcow2Header) { h.BaseOffset = 8 }}, "EINVAL named by 1 bytes at 8"},
	{"a name at the end of all numbers", image{base: "b", format: "raw", change: func(h *qcow2Header) { h.BaseOffset = 1<<64 - 1 }}, "EINVAL named by 1 bytes"},
	{"an extension across the end", image{extensions: binary.BigEndian.AppendUint64(nil, 1<<32|0xffffffff)}, "EINVAL extension of 4294967295 bytes"},

	{"a file for its data", image{change: func(h *qcow2Header) { h.Incompatible = featureDataFile }}, "ENOTSUP data_file"},
	{"a name for its data", image{extensions: extension(extensionDataFile, "d")}, "ENOTSUP data_file"},
	{"AES", image{change: func(h *qcow2Header) { h.Crypt = 1 }}, "ENOTSUP encrypted"},
	{"LUKS", image{change: func(h *qcow2Header) { h.Crypt = 2 }}, "ENOTSUP encrypted"},
	{"a pointer to keys", image{extensions: extension(extensionCrypt, "0123456789abcdef")}, "ENOTSUP encrypted"},
	{"corrupt", image{change: func(h *qcow2Header) { h.Incompatible = featureCorrupt }}, "EINVAL qemu-img check"},
	{"an unknown feature", image{change: func(h *qcow2Header) { h.Incompatible = 1 << 63 }}, "ENOTSUP feature 63"},
	{"small clusters with subclusters", image{change: func(h *qcow2Header) { h.Incompatible = featureSubclusters }}, "EINVAL extended entries"},
	{"compression that is not named", image{change: func(h *qcow2Header) { h.Incompatible = featureCompression }}, "EINVAL compression 0"},
	{"version 4", image{change: func(h *qcow2Header) { h.Version = 4 }}, "EINVAL not a qcow2 image"},
	{"another magic", image{change: func(h *qcow2Header) { h.Magic++ }}, "EINVAL not a qcow2 image"},

	{"small clusters", image{change: func(h *qcow2Header) { h.ClusterBits = 8 }}, "EINVAL clusters of 2^8"},
	{"large clusters", image{change: func(h *qcow2Header) { h.ClusterBits = 64 }}, "EINVAL clusters of 2^64"},
	{"a short header", image{change: func(h *qcow2Header) { h.Length = 96 }}, "EINVAL header of 96"},
	{"an odd header", image{change: func(h *qcow2Header) { h.Length = 108 }}, "EINVAL header of 108"},
	{"a header beyond its cluster", image{change: func(h *qcow2Header) { h.Length = 520 }}, "EINVAL header of 520"},
	{"large counters", image{change: func(h *qcow2Header) { h.RefcountOrder = 7 }}, "EINVAL counters of 2^7"},
	{"a table of clusters nowhere", image{change: func(h *qcow2Header) { h.L1Offset = 1 << 60 }}, "EINVAL table of clusters"},
	{"a table of clusters in the header", image{change: func(h *qcow2Header) { h.L1Offset = 0 }}, "EINVAL table of clusters"},
	{"an odd table of clusters", image{change: func(h *qcow2Header) { h.L1Offset = 520 }}, "EINVAL table of clusters"},
	{"a huge table of clusters", image{change: func(h *qcow2Header) { h.L1Size = 1<<32 - 1 }}, "EINVAL table of clusters"},
	{"a table of clusters across the end", image{change: func(h *qcow2Header) { h.L1Size = 65 }}, "EINVAL table of clusters"},
	{"a huge table of counters", image{change: func(h *qcow2Header) { h.RefcountClusters = 1<<32 - 1 }}, "EINVAL table of counters"},
	{"snapshots nowhere", image{change: func(h *qcow2Header) { h.Snapshots, h.SnapshotsOffset = 1, 1<<40 }}, "EINVAL list of snapshots"},
	{"cut in the header", image{cut: 4*512 - 100}, "EINVAL header of"},
	{"cut in the magic", image{cut: 4*512 - 6}, "EINVAL not a qcow2 image"},
	{"cut in the tables", image{cut: 600}, "EINVAL table of clusters"},
}

func TestReadQcow2(t *testing.T) {
	for _, c := range headers {
		b := c.image.bytes()
		got, err := readQcow2(bytes.NewReader(b), int64(len(b)))
		text := strings.TrimSpace(got.name + " " + got.format)
		if err != nil {
			text = unix.ErrnoName(ctl.Errno(err)) + " " + err.Error()
		}
		if text != c.want && (err == nil || !answers(text, c.want)) {
			t.Errorf("%s: got %q, want %q", c.name, text, c.want)
		}
	}
}

// Version 2 has a shorter header, and what follows is not part of it.
func TestReadVersion2(t *testing.T) {
	b := image{change: func(h *qcow2Header) { h.Version, h.BaseOffset, h.BaseSize = 2, 72+16, 3 }}.bytes()
	clear(b[72:512])
	copy(b[72:], extension(extensionBaseFormat, "raw"))
	copy(b[72+16:], "a/b")
	got, err := readQcow2(bytes.NewReader(b), int64(len(b)))
	if want := (base{"a/b", "raw"}); got != want || err != nil {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestBaseFrom(t *testing.T) {
	for name, want := range map[string]string{"/b": "/b", "b": "/i/d/b", "../b": "/i/d/../b", "e/b": "/i/d/e/b"} {
		if got := (base{name: name}).from("/i/d/top"); got != want {
			t.Errorf("%s from /i/d/top: got %s, want %s", name, got, want)
		}
	}
}

func FuzzReadQcow2(f *testing.F) {
	for _, c := range headers {
		f.Add(c.image.bytes(), int64(1<<20))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		got, err := readQcow2(bytes.NewReader(b), max(size, int64(len(b))))
		switch {
		case err != nil && got != base{}:
			t.Errorf("a base %v and an error %v", got, err)
		case err == nil && got != base{} && (len(got.name) > maxBaseName || got.format != "raw" && got.format != "qcow2" || got.from("/x")[0] != '/'):
			t.Errorf("base %v", got)
		}
	})
}

// TestQemuImages holds that what qemu-img makes is taken, whatever it is
// asked for, and goes on being taken when it has changed it.
func TestQemuImages(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("skipping: no qemu-img here (package qemu-utils)")
	}
	dir := t.TempDir()
	qemuImg := func(args ...string) {
		t.Helper()
		cmd := exec.Command("qemu-img", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	check := func(what string) {
		t.Helper()
		fi, err := os.Open(dir + "/i")
		if err != nil {
			t.Fatal(err)
		}
		defer fi.Close()
		st, _ := fi.Stat()
		if got, err := readQcow2(fi, st.Size()); err != nil || got != (base{"b", "raw"}) {
			t.Errorf("%s: got %v, %v", what, got, err)
		}
	}
	if err := os.WriteFile(dir+"/b", bytes.Repeat([]byte("base"), 1<<18), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "preallocation=metadata,extended_l2=on",
		"extended_l2=on", "compression_type=zstd", "lazy_refcounts=on,refcount_bits=1", "refcount_bits=64"} {
		qemuImg("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "b", "-o", options, "i", "1M")
		check(options)
		if !strings.HasSuffix(options, "refcount_bits=1") { // a cluster of a snapshot counts twice
			qemuImg("snapshot", "-c", "one", "i")
			check(options + " with a snapshot")
			qemuImg("snapshot", "-d", "one", "i")
		}
		qemuImg("resize", "-q", "i", "60G")
		check(options + " made larger")
	}
}
