package ninep

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"

	"vmfs/ctl"
	"vmfs/fs"
)

// fakeDir is a directory of files that do what a test says.
type fakeDir map[string]*fakeFile

func (d fakeDir) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{Ino: 1, Dir: true, Mode: 0o755, Mtime: time.Unix(1, 0)}, nil
}
func (d fakeDir) SetAttr(context.Context, ctl.Cred, ctl.AccessChange) error { return nil }
func (d fakeDir) Lookup(_ context.Context, name string) (fs.Node, error) {
	if f := d[name]; f != nil {
		return f, nil
	}
	return nil, syscall.ENOENT
}
func (d fakeDir) List(context.Context) (list []fs.Entry, _ error) {
	for name, f := range d {
		list = append(list, fs.Entry{Name: name, Node: f})
	}
	return list, nil
}
func (d fakeDir) Mkdir(context.Context, ctl.Cred, string, uint32) (fs.Node, error) {
	return fakeDir{}, nil
}
func (d fakeDir) Rmdir(context.Context, ctl.Cred, string) error                  { return nil }
func (d fakeDir) Rename(context.Context, ctl.Cred, string, fs.Dir, string) error { return nil }
func (d fakeDir) Deny(context.Context, ctl.Cred, string, string) error           { return syscall.EPERM }

// fakeFile counts who has it open.
type fakeFile struct {
	ino   uint64
	size  int64
	open  atomic.Int32
	read  func(ctx context.Context, p []byte) (int, error)
	write func(ctx context.Context, p []byte) error
}

func (f *fakeFile) Attr(context.Context) (fs.Attr, error) {
	return fs.Attr{Ino: f.ino, Mode: 0o666, Size: f.size}, nil
}
func (f *fakeFile) SetAttr(context.Context, ctl.Cred, ctl.AccessChange) error { return nil }
func (f *fakeFile) Open(context.Context, ctl.Cred, fs.Flags) (fs.Handle, error) {
	f.open.Add(1)
	return &fakeHandle{f: f}, nil
}

type fakeHandle struct {
	f      *fakeFile
	closed atomic.Bool
	using  atomic.Int32
}

func (h *fakeHandle) use() func() {
	if h.closed.Load() {
		panic("used after Close")
	}
	h.using.Add(1)
	return func() { h.using.Add(-1) }
}

func (h *fakeHandle) Read(ctx context.Context, p []byte, _ int64) (int, error) {
	defer h.use()()
	return h.f.read(ctx, p)
}

func (h *fakeHandle) Write(ctx context.Context, p []byte) error {
	defer h.use()()
	return h.f.write(ctx, p)
}

func (h *fakeHandle) Stream() bool { return true }

func (h *fakeHandle) Close() {
	if h.closed.Swap(true) || h.using.Load() != 0 {
		panic("closed twice, or while it is used")
	}
	h.f.open.Add(-1)
}

// waits is a read that waits for its interrupt.
func waits(ctx context.Context, _ []byte) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func takes(context.Context, []byte) error { return nil }
