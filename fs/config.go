package fs

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"syscall"

	"vmfs/ctl"
)

// configHandle is an open config or modes: each write edits, or is a part of
// a framed text that replaces the whole.
type configHandle struct {
	textHandle
	edit, replace func(by ctl.Cred, text string) error

	mu    sync.Mutex // one write of an open file at a time
	frame frame
}

func openConfig(n *node, o opened) (Handle, error) {
	return &configHandle{textHandle: textHandle{opened: o}, edit: n.obj.Edit, replace: n.obj.Replace}, nil
}

func openModes(n *node, o opened) (Handle, error) {
	set := func(by ctl.Cred, text string) error { return n.obj.SetModes(by, text, n.defaultOf) }
	return &configHandle{textHandle: textHandle{opened: o}, edit: set, replace: set}, nil
}

// defaults has what holds of each file of an object until somebody changes it,
// by the object's directory and the file's path below the object.
var defaults map[string]map[string]ctl.Default

func init() { // the table reaches here
	defaults = make(map[string]map[string]ctl.Default)
	for _, l := range lines {
		if l.of == "" {
			continue
		}
		if defaults[l.of] == nil {
			defaults[l.of] = make(map[string]ctl.Default)
		}
		for _, path := range l.below {
			defaults[l.of][path] = l.def()
		}
	}
}

// def is what holds of a file's access until somebody changes it.
func (l *line) def() ctl.Default { return ctl.Default{Mode: l.mode, Root: l.root} }

func (n *node) defaultOf(path string) (def ctl.Default, ok bool) {
	def, ok = defaults[n.of][path]
	return def, ok
}

func (h *configHandle) Write(_ context.Context, p []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.gone()
	if err == nil {
		err = h.take(p)
	}
	return h.refuse(h.by, err)
}

func (h *configHandle) take(p []byte) error {
	before := len(h.frame.text)
	whole, edit, err := h.frame.add(p)
	if quota := h.t.held.resize(h.by, before, len(h.frame.text)); quota != nil {
		h.t.held.resize(h.by, before, 0)
		h.frame = frame{}
		return quota
	}
	switch {
	case err != nil:
		return err
	case whole != "":
		return h.replace(h.by, whole)
	case edit != "":
		return h.edit(h.by, edit)
	}
	return nil
}

func (h *configHandle) Close() {
	h.textHandle.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.frame.text); !h.frame.long && !blank(h.frame.text) {
		h.refuse(h.by, ctl.Errorf(syscall.EINVAL, "%s: closed before a line \"end\": %d bytes were dropped", h.name(), n))
	}
	h.t.held.resize(h.by, len(h.frame.text), 0)
	h.frame = frame{}
}

// frame gathers a text from a line begin to a line end, out of any number of
// writes. The zero frame has none begun.
type frame struct {
	text []byte // what there is of it
	long bool   // it is too long: it is refused up to its line end; text is its tail
}

// add takes a write. If that is an edit, or makes one, it gives it; if it
// completes a framed text, it gives that, from begin to end. With an error
// nothing stays.
func (f *frame) add(p []byte) (whole, edit string, err error) {
	text, long := append(f.text, p...), f.long
	*f = frame{}
	if !long {
		start, how := head(text)
		long = len(text)-start > MaxWrite
		switch {
		case how == edits && long:
			return "", "", errTooLong
		case how == edits:
			return "", string(text), nil
		case how == undecided && !long:
			f.text = text
			return "", "", nil
		}
		text = text[start:]
	}
	end, after := tail(text)
	switch {
	case long && end < 0:
		f.text, f.long = bytes.Clone(text[max(0, len(text)-len("\nend")):]), true
		return "", "", errTooLong
	case long:
		return "", "", errTooLong
	case end < 0:
		f.text = text
		return "", "", nil
	case !blank(after):
		return "", "", ctl.Errorf(syscall.EINVAL, "write: there is more behind the line \"end\"")
	}
	// A remark may be cut too: what comes next is the rest of it.
	f.text = bytes.Clone(after[bytes.LastIndexByte(after, '\n')+1:])
	return string(text[:end]) + "\n", "", nil
}

var errTooLong = ctl.Errorf(syscall.EFBIG, "write: more than %d bytes", MaxWrite)

// How a text goes on from its head.
type manner int

const (
	edits     manner = iota
	begins           // its first line but for comments is begin
	undecided        // that line is not there, or not whole
)

// head says how a text goes on, and where its line begin starts.
func head(text []byte) (start int, how manner) {
	for start < len(text) {
		line, _, whole := bytes.Cut(text[start:], []byte("\n"))
		switch {
		case string(line) == "begin":
			return start, begins
		case !whole && (line[0] == '#' || strings.HasPrefix("begin", string(line))):
			return 0, undecided
		case !isComment(line):
			return 0, edits
		}
		start += len(line) + 1
	}
	return 0, edits
}

// tail finds the line end: text[:end] goes up to it, after is what follows.
// A line end without its newline counts where the write stops: a text that
// an editor left so would otherwise be dropped without a word.
func tail(text []byte) (end int, after []byte) {
	if i := bytes.Index(text, []byte("\nend\n")); i >= 0 {
		return i + len("\nend"), text[i+len("\nend\n"):]
	}
	if bytes.HasSuffix(text, []byte("\nend")) {
		return len(text), nil
	}
	return -1, nil
}

// blank reports whether text has no line that says something.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		if !isComment(bytes.TrimSuffix(line, []byte("\n"))) {
			return false
		}
	}
	return true
}

func isComment(line []byte) bool { return len(line) == 0 || line[0] == '#' }
