package priv

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"strings"
	"syscall"

	"vmfs/ctl"
)

// A qcow2 image says in its first cluster which file is behind it. This is
// all that is read of an image: the header, and its extensions. What else is
// in there is QEMU's business, which is told of every file by descriptor and
// follows no name.

// qcow2Magic begins the images of QEMU's copy-on-write formats.
const qcow2Magic = "QFI\xfb"

// Bounds of an image; QEMU has the same.
const (
	minClusterBits   = 9
	maxClusterBits   = 21
	maxBaseName      = 1023
	maxL1Table       = 32 << 20
	maxRefcountTable = 8 << 20
	maxSnapshots     = 1 << 16
)

// Features that whoever opens an image must know.
const (
	featureDirty       = 1 << iota // QEMU repairs it
	featureCorrupt                 // an image that QEMU gave up
	featureDataFile                // the data is in yet another file
	featureCompression             // a kind of compression is named
	featureSubclusters             // longer entries in the tables
	featuresKnown      = featureSubclusters<<1 - 1
)

// Header extensions that matter here.
const (
	extensionEnd        = 0
	extensionBaseFormat = 0xe2792aca
	extensionCrypt      = 0x0537be77
	extensionDataFile   = 0x44415441
)

// qcow2Header is the header as it is on disk, big-endian. Version 2 ends
// before Incompatible.
type qcow2Header struct {
	Magic, Version   uint32
	BaseOffset       uint64
	BaseSize         uint32
	ClusterBits      uint32
	Size             uint64
	Crypt            uint32
	L1Size           uint32
	L1Offset         uint64
	RefcountOffset   uint64
	RefcountClusters uint32
	Snapshots        uint32
	SnapshotsOffset  uint64

	Incompatible, Compatible, Autoclear uint64
	RefcountOrder                       uint32
	Length                              uint32
}

const (
	lengthVersion2 = 72
	lengthVersion3 = 104
)

// base is the file behind an image; the zero base is none.
type base struct {
	name   string // as the header has it, never empty
	format string // "raw" or "qcow2"
}

// readQcow2 says what is behind the image r of size bytes. EINVAL for what is
// no image or a broken one, EOPNOTSUPP for what no machine here is given.
//
// The header has to say the base's format. To look at the base's first bytes
// instead is what QEMU did once, and unsafe: a raw base may have been a disk
// before, and a guest have written there a header that names another file.
func readQcow2(r io.ReaderAt, size int64) (base, error) {
	var first [lengthVersion3]byte
	n, err := r.ReadAt(first[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return base{}, err
	}
	if kindOfQcow(first[:n]) != "qcow2" {
		return base{}, ctl.Errorf(syscall.EINVAL, "not a qcow2 image of version 2 or 3")
	}
	var h qcow2Header
	binary.Read(bytes.NewReader(first[:]), binary.BigEndian, &h)
	if err := h.check(n, uint64(size)); err != nil {
		return base{}, err
	}
	cluster := make([]byte, min(h.cluster(), uint64(size)))
	if _, err := r.ReadAt(cluster, 0); err != nil && !errors.Is(err, io.EOF) {
		return base{}, err
	}
	if h.Version == 3 {
		if err := h.checkCompression(cluster); err != nil {
			return base{}, err
		}
	}
	return h.base(cluster)
}

// kindOfQcow tells "qcow2" from "qcow", another version of it, and from "",
// anything else.
func kindOfQcow(head []byte) string {
	if len(head) < 8 || string(head[:4]) != qcow2Magic {
		return ""
	}
	if v := binary.BigEndian.Uint32(head[4:]); v != 2 && v != 3 {
		return "qcow"
	}
	return "qcow2"
}

func (h *qcow2Header) cluster() uint64 { return 1 << h.ClusterBits }

// length is where the header ends and the extensions begin.
func (h *qcow2Header) length() uint64 {
	if h.Version == 2 {
		return lengthVersion2
	}
	return uint64(h.Length)
}

// check holds the fields against each other and against the size of the
// file, of which the first have bytes were read.
func (h *qcow2Header) check(have int, size uint64) error {
	if h.Version == 2 { // what follows is not the header's
		h.Incompatible, h.RefcountOrder, h.Length = 0, 4, lengthVersion2
	}
	if h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits {
		return broken("clusters of 2^%d bytes", h.ClusterBits)
	}
	least := lengthVersion2
	if h.Version == 3 {
		least = lengthVersion3
	}
	if have < least || h.length() < uint64(least) || h.length()%8 != 0 || h.length() > min(h.cluster(), size) {
		return broken("a header of %d bytes", h.length())
	}
	if h.RefcountOrder > 6 {
		return broken("counters of 2^%d bits", h.RefcountOrder)
	}
	if h.Crypt != 0 {
		return ctl.Errorf(syscall.EOPNOTSUPP, "the image is encrypted; there is nobody to ask for its key")
	}
	if err := h.checkFeatures(); err != nil {
		return err
	}
	return h.checkTables(size)
}

func (h *qcow2Header) checkFeatures() error {
	switch {
	case h.Incompatible&featureDataFile != 0:
		return ctl.Errorf(syscall.EOPNOTSUPP, "its data is in a file of its own (data_file), which no machine here is given")
	case h.Incompatible&^featuresKnown != 0:
		return ctl.Errorf(syscall.EOPNOTSUPP, "it needs feature %d, which is unknown", bits.TrailingZeros64(h.Incompatible&^featuresKnown))
	case h.Incompatible&featureCorrupt != 0:
		return broken("it is marked as corrupt; qemu-img check -r all may mend it")
	case h.Incompatible&featureSubclusters != 0 && h.ClusterBits < 14:
		return broken("extended entries with clusters of 2^%d bytes", h.ClusterBits)
	}
	return nil
}

// checkCompression looks at the one byte behind the fields that all headers
// of version 3 have. cluster is at least as long as the header.
func (h *qcow2Header) checkCompression(cluster []byte) error {
	kind := byte(0)
	if h.Length > lengthVersion3 {
		kind = cluster[lengthVersion3]
	}
	if kind > 1 || (kind != 0) != (h.Incompatible&featureCompression != 0) {
		return broken("compression %d", kind)
	}
	return nil
}

func (h *qcow2Header) checkTables(size uint64) error {
	for _, t := range []struct {
		what                 string
		offset, length, most uint64
	}{
		{"table of clusters", h.L1Offset, 8 * uint64(h.L1Size), maxL1Table},
		{"table of counters", h.RefcountOffset, uint64(h.RefcountClusters) << h.ClusterBits, maxRefcountTable},
		{"list of snapshots", h.SnapshotsOffset, uint64(h.Snapshots), maxSnapshots}, // a byte each, at least
	} {
		if t.length == 0 {
			continue
		}
		if t.length > t.most || t.offset%h.cluster() != 0 || t.offset == 0 || t.offset > size || t.length > size-t.offset {
			return broken("its %s is at %d, in a file of %d bytes", t.what, t.offset, size)
		}
	}
	return nil
}

// base reads the extensions and the name behind them out of the first
// cluster.
func (h *qcow2Header) base(cluster []byte) (base, error) {
	end := uint64(len(cluster))
	if h.BaseOffset != 0 {
		if h.BaseOffset < h.length() || h.BaseOffset > end || h.BaseSize == 0 || h.BaseSize > maxBaseName || uint64(h.BaseSize) > end-h.BaseOffset {
			return base{}, broken("its base is named by %d bytes at %d", h.BaseSize, h.BaseOffset)
		}
		end = h.BaseOffset
	}
	format, err := baseFormat(cluster[h.length():end])
	if err != nil || h.BaseOffset == 0 {
		return base{}, err
	}
	b := base{string(cluster[h.BaseOffset:][:h.BaseSize]), format}
	if err := b.check(); err != nil {
		return base{}, err
	}
	return b, nil
}

// baseFormat finds the format of the base in the extensions; empty if they do
// not say.
func baseFormat(area []byte) (format string, err error) {
	for len(area) >= 8 {
		kind, length := binary.BigEndian.Uint32(area), uint64(binary.BigEndian.Uint32(area[4:]))
		area = area[8:]
		if kind == extensionEnd {
			return format, nil
		}
		if length > uint64(len(area)) {
			return "", broken("a header extension of %d bytes", length)
		}
		switch kind {
		case extensionCrypt:
			return "", ctl.Errorf(syscall.EOPNOTSUPP, "the image is encrypted; there is nobody to ask for its key")
		case extensionDataFile:
			return "", ctl.Errorf(syscall.EOPNOTSUPP, "it names a file for its data (data_file), which no machine here is given")
		case extensionBaseFormat:
			if format != "" || length == 0 {
				return "", broken("the format of its base, said twice or empty")
			}
			format = string(area[:length])
		}
		area = area[min((length+7)&^7, uint64(len(area))):]
	}
	return format, nil
}

// check refuses a base that is none for us.
func (b base) check() error {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	protocol, _, found := strings.Cut(b.name, ":")
	switch {
	case strings.ContainsFunc(b.name, control):
		return broken("its base is named with control bytes")
	case found && !strings.Contains(protocol, "/"):
		return ctl.Errorf(syscall.EOPNOTSUPP, "its base %.80q is named by a protocol; only files are followed", b.name)
	case b.format == "":
		return ctl.Errorf(syscall.EINVAL, "it does not say the format of its base, which is not guessed: qemu-img rebase -u -F raw|qcow2 -b %s does", b.name)
	case b.format != "raw" && b.format != "qcow2":
		return ctl.Errorf(syscall.EOPNOTSUPP, "its base %s is %.20q; only raw and qcow2 are followed", b.name, b.format)
	}
	return nil
}

// from is the path of the base of the image at path: relative to where that
// is named, as all tools take it.
func (b base) from(path string) string {
	if strings.HasPrefix(b.name, "/") {
		return b.name
	}
	return path[:strings.LastIndexByte(path, '/')+1] + b.name
}

func broken(format string, args ...any) error {
	return ctl.Errorf(syscall.EINVAL, "a broken qcow2 image: "+format, args...)
}
