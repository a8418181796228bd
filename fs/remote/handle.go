package remote

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

// nonBlock is how long a read may take that is not to wait. 9P has no word
// for that: the server is asked to forget what it has not answered by then.
const nonBlock = 50 * time.Millisecond

// handle is an open file. It dies with its connection.
type handle struct {
	fid
	tree   *Tree
	flags  fs.Flags
	most   int // bytes of a read or a write
	stream bool

	read, written atomic.Int64 // where a stream and where writes go on
}

// Open leaves it to the server whether by may.
func (n file) Open(ctx context.Context, by ctl.Cred, flags fs.Flags) (fs.Handle, error) {
	names, err := n.names()
	if err != nil {
		return nil, err
	}
	f, _, err := n.reach(ctx, by.UID)
	if err != nil {
		return nil, err
	}
	most, err := f.open(ctx, mode(flags))
	if err != nil {
		f.clunk(nil)
		return nil, err
	}
	h := &handle{fid: f, tree: n.tree, flags: flags, most: most}
	// By the contract all that waits is there. It has to be a stream to
	// the kernel, or a write would wait for a read of the same open file.
	h.stream = len(names) > 0 && names[0] == "live"
	if flags.Write {
		n.tree.cache.forget() // clone makes something
	}
	return h, nil
}

func mode(f fs.Flags) proto.Mode {
	switch {
	case f.Read && f.Write:
		return proto.Ordwr
	case f.Write:
		return proto.Owrite
	}
	return proto.Oread
}

func (h *handle) Stream() bool { return h.stream }

func (h *handle) Read(ctx context.Context, p []byte, off int64) (int, error) {
	if h.stream {
		off = h.read.Load() // of streams that have one, as wait does
	}
	var limit time.Duration
	if h.flags.NonBlock {
		limit = nonBlock
	}
	n, err := h.fid.read(ctx, limit, p[:min(len(p), h.most)], off)
	if h.flags.NonBlock && errors.Is(err, context.DeadlineExceeded) {
		return 0, nil
	}
	h.read.Add(int64(n))
	return n, err
}

func (h *handle) Write(ctx context.Context, p []byte) error {
	if len(p) > h.most {
		return ctl.Errorf(syscall.EFBIG, "a message of %d bytes: the server takes %d", len(p), h.most)
	}
	defer h.tree.cache.forget()
	err := h.fid.write(ctx, p, h.written.Load())
	if err == nil {
		h.written.Add(int64(len(p)))
	}
	return err
}

// Close returns before the server has closed the file.
func (h *handle) Close() {
	if h.flags.Write {
		h.clunk(h.tree.cache.forget)
		return
	}
	h.clunk(nil)
}
