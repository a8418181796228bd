package fs

import (
	"context"
	"io"
	"strings"
	"syscall"

	"vmfs/ctl"
)

// opened is what every open file knows: which file, for whom, how.
type opened struct {
	*node
	by    ctl.Cred
	flags Flags
}

func (f *file) Open(_ context.Context, by ctl.Cred, flags Flags) (Handle, error) {
	h, err := f.handle(by, flags)
	return h, f.refuse(by, err)
}

// WantsGroups makes a file a Grouper. Who only reads is asked for no more than
// the mode bits.
func (f *file) WantsGroups(flags Flags) bool { return f.groups && flags.Write }

func (f *file) handle(by ctl.Cred, flags Flags) (Handle, error) {
	if err := f.gone(); err != nil {
		return nil, err
	}
	if flags.Write && !f.writable() {
		return nil, ctl.Errorf(syscall.EPERM, "open: nothing can be written to it")
	}
	o := opened{&f.node, by, flags}
	if f.open != nil {
		return f.open(&f.node, o)
	}
	return &textHandle{opened: o}, nil
}

// writable reports whether a write can ever do something, for root too.
func (l *line) writable() bool { return l.mode&0o222 != 0 }

// message refuses what no file takes as one write.
func (o *opened) message(p []byte) error {
	if err := o.gone(); err != nil {
		return err
	}
	if len(p) > MaxWrite {
		return ctl.Errorf(syscall.EFBIG, "write: %d bytes: more than %d in one write", len(p), MaxWrite)
	}
	return nil
}

// textHandle is an open file whose reads are a text and whose writes are a
// line each.
type textHandle struct {
	opened
	snapshot
}

func (h *textHandle) Stream() bool { return false }
func (h *textHandle) Close()       { h.drop(&h.opened) }

func (h *textHandle) Read(ctx context.Context, p []byte, off int64) (int, error) {
	if err := h.gone(); err != nil {
		return 0, h.refuse(h.by, err)
	}
	if h.read == nil {
		return 0, nil
	}
	s, ok := h.taken()
	if !ok {
		s = h.read(ctx, h.node, h.by)
		// What does not wait is not interrupted: a signal that a client
		// did not mean for the read would cost it the text.
		if err := ctx.Err(); err != nil && h.kind == computed {
			return 0, err
		}
		var err error
		if s, err = h.take(&h.opened, s); err != nil {
			return 0, h.refuse(h.by, err)
		}
	}
	return readAt(s, p, off), nil
}

func (h *textHandle) Write(ctx context.Context, p []byte) error {
	err := h.message(p)
	if err == nil && len(p) > 0 {
		err = h.writeLine(ctx, string(p))
	}
	return h.refuse(h.by, err)
}

func (h *textHandle) writeLine(ctx context.Context, s string) error {
	if h.write == nil {
		return errNotWritten
	}
	s = strings.TrimSuffix(s, "\n")
	if strings.Contains(s, "\n") {
		return ctl.Errorf(syscall.EINVAL, "write: it takes one line, not several")
	}
	return h.write(ctx, h.node, h.by, s)
}

// growing is an open file that shows what is there at each read.
type growing struct {
	opened
	at func(p []byte, off int64) (int, error)
}

func (h *growing) Stream() bool { return false }
func (h *growing) Close()       {}

func (h *growing) Read(_ context.Context, p []byte, off int64) (int, error) {
	err := h.gone()
	n := 0
	if err == nil {
		n, err = h.at(p, off)
	}
	return n, h.refuse(h.by, notEOF(err))
}

func (h *growing) Write(context.Context, []byte) error { return h.refuse(h.by, errNotWritten) }

var errNotWritten = ctl.Errorf(syscall.EPERM, "write: nothing can be written to it")

// notEOF is err, but for an end of file, which a door says with 0 bytes.
func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// turn lets one read of an open file wait at a time; the others wait for it,
// and for their own interrupt.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

// take reports false if it is another's turn and o does not wait.
func (t turn) take(ctx context.Context, o *opened) (bool, error) {
	select {
	case t <- struct{}{}:
		return true, nil
	default:
		if o.flags.NonBlock {
			return false, nil
		}
	}
	select {
	case t <- struct{}{}:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (t turn) give() { <-t }

// streamHandle is an open stream: reads go on from each other.
type streamHandle struct {
	opened
	turn turn
	next func(ctx context.Context, p []byte, wait bool) (int, error)
	send func(ctx context.Context, by ctl.Cred, p []byte) error // nil if nothing can be written
	end  func()                                                 // nil if there is nothing to end
}

func (h *streamHandle) Stream() bool { return true }

func (h *streamHandle) Close() {
	if h.end != nil {
		h.end()
	}
}

func (h *streamHandle) Read(ctx context.Context, p []byte, _ int64) (int, error) {
	if ok, err := h.turn.take(ctx, &h.opened); !ok {
		return 0, err
	}
	defer h.turn.give()
	n, err := h.next(ctx, p, !h.flags.NonBlock)
	return n, h.refuse(h.by, notEOF(err))
}

func (h *streamHandle) Write(ctx context.Context, p []byte) error {
	err := h.message(p)
	switch {
	case err != nil:
	case h.send == nil:
		err = errNotWritten
	case len(p) > 0:
		err = h.send(ctx, h.by, p)
	}
	return h.refuse(h.by, err)
}

// waitHandle is an open file whose first read waits for something, and then
// is a text.
type waitHandle struct {
	opened
	snapshot
	turn turn
	done func() bool
	wait func(ctx context.Context) (string, error)
}

func (h *waitHandle) Stream() bool                        { return false }
func (h *waitHandle) Close()                              { h.drop(&h.opened) }
func (h *waitHandle) Write(context.Context, []byte) error { return h.refuse(h.by, errNotWritten) }

// Read gives what was waited for also when the machine is gone by then, as an
// ephemeral one is.
func (h *waitHandle) Read(ctx context.Context, p []byte, off int64) (int, error) {
	s, ok := h.taken()
	if !ok {
		err := h.gone()
		if err != nil && !h.done() {
			return 0, h.refuse(h.by, err)
		}
		if s, ok, err = h.first(ctx); !ok || err != nil {
			return 0, h.refuse(h.by, err)
		}
	}
	return readAt(s, p, off), nil
}

// first waits for the text. It reports false where the text is not there and
// the file was opened not to wait.
func (h *waitHandle) first(ctx context.Context) (string, bool, error) {
	if ok, err := h.turn.take(ctx, &h.opened); !ok {
		return "", false, err
	}
	defer h.turn.give()
	if s, ok := h.taken(); ok {
		return s, true, nil
	}
	if h.flags.NonBlock && !h.done() {
		return "", false, nil
	}
	s, err := h.wait(ctx)
	if err != nil {
		return "", false, err
	}
	s, err = h.take(&h.opened, s)
	return s, err == nil, err
}
