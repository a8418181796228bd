package fuse

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/fs"
)

// bridge turns the kernel's requests into calls of Nodes.
type bridge struct {
	gofuse.RawFileSystem // ENOSYS for all that is not here
	inodes               inodes
	files                handles[fs.Handle]
	dirs                 handles[*dirHandle]
	notifier             *notifier
	timeout              time.Duration
}

func newBridge(root fs.Dir) *bridge {
	b := &bridge{RawFileSystem: gofuse.NewDefaultRawFileSystem(), inodes: newInodes(root), timeout: timeout}
	b.notifier = newNotifier(&b.inodes)
	return b
}

func (b *bridge) String() string                        { return "vmfs" }
func (b *bridge) Init(s *gofuse.Server)                 { b.notifier.server.Store(s) }
func (b *bridge) Forget(id, lookups uint64)             { b.inodes.forget(id, lookups) }
func (b *bridge) changed(changes []fs.Change)           { b.notifier.changed(changes) }
func (b *bridge) ReleaseDir(in *gofuse.ReleaseIn)       { b.dirs.remove(in.Fh) }
func (b *bridge) OnUnmount()                            { b.files.each(fs.Handle.Close) }
func cred(c *gofuse.Caller) ctl.Cred                    { return ctl.Cred{UID: c.Uid, GID: c.Gid} }
func newContext(cancel <-chan struct{}) *gofuse.Context { return &gofuse.Context{Cancel: cancel} }

// status is what the kernel hears of an error.
func status(err error) gofuse.Status {
	switch {
	case err == nil:
		return gofuse.OK
	case errors.Is(err, context.Canceled):
		return gofuse.EINTR
	case errors.Is(err, context.DeadlineExceeded):
		return gofuse.Status(syscall.ETIMEDOUT)
	}
	return gofuse.Status(ctl.Errno(err))
}

// stale is status for a request to which a name led the kernel. If what it
// was led to is gone, the name may lead to something new of which it was not
// told yet: on ESTALE it asks for the names of the path once more.
func stale(ctx context.Context, n fs.Node, err error) gofuse.Status {
	if ctl.Errno(err) == syscall.ENOENT {
		if _, err := n.Attr(ctx); err != nil && ctl.Errno(err) == syscall.ENOENT {
			return gofuse.Status(syscall.ESTALE)
		}
	}
	return status(err)
}

// dir finds a directory that the kernel knows.
func (b *bridge) dir(id uint64) (fs.Dir, gofuse.Status) {
	switch n := b.inodes.get(id).(type) {
	case fs.Dir:
		return n, gofuse.OK
	case nil:
		return nil, gofuse.ENOENT
	}
	return nil, gofuse.ENOTDIR
}

func (b *bridge) Lookup(cancel <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	d, code := b.dir(h.NodeId)
	if d == nil {
		return code
	}
	ctx := newContext(cancel)
	n, err := d.Lookup(ctx, name)
	if err != nil {
		return stale(ctx, d, err)
	}
	return b.entry(ctx, h.NodeId, name, n, out)
}

// entry tells the kernel of a node that it will know from now on.
func (b *bridge) entry(ctx context.Context, dir uint64, name string, n fs.Node, out *gofuse.EntryOut) gofuse.Status {
	attr, err := n.Attr(ctx)
	if err != nil {
		return status(err)
	}
	b.fillEntry(dir, name, n, &attr, out)
	return gofuse.OK
}

func (b *bridge) fillEntry(dir uint64, name string, n fs.Node, attr *fs.Attr, out *gofuse.EntryOut) {
	b.inodes.remember(attr.Ino, n, dir, name)
	out.NodeId = attr.Ino
	out.SetEntryTimeout(b.timeout)
	out.SetAttrTimeout(b.timeout)
	fill(&out.Attr, attr)
}

// fill translates attributes. Directories have one link, as on other file
// systems that do not count them: find(1) then looks instead of counting.
func fill(out *gofuse.Attr, a *fs.Attr) {
	out.Ino = a.Ino
	out.Mode = typeBits(a) | a.Mode
	out.Nlink = 1
	out.Uid, out.Gid = a.UID, a.GID
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Size+511) / 512
	out.Blksize = 64 << 10 // so that tools write a text in one piece
	if !a.Mtime.IsZero() {
		out.SetTimes(&a.Mtime, &a.Mtime, &a.Mtime)
	}
}

func typeBits(a *fs.Attr) uint32 {
	if a.Dir {
		return syscall.S_IFDIR
	}
	return syscall.S_IFREG
}

func (b *bridge) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	return b.attr(newContext(cancel), b.inodes.get(in.NodeId), out)
}

func (b *bridge) attr(ctx context.Context, n fs.Node, out *gofuse.AttrOut) gofuse.Status {
	if n == nil {
		return gofuse.ENOENT
	}
	attr, err := n.Attr(ctx)
	if err != nil {
		return status(err)
	}
	out.SetTimeout(b.timeout)
	fill(&out.Attr, &attr)
	return gofuse.OK
}

// SetAttr changes modes and owners. Lengths and times are taken and mean
// nothing: a shell sets a length before it writes, touch sets times.
func (b *bridge) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	n := b.inodes.get(in.NodeId)
	if n == nil {
		return gofuse.ENOENT
	}
	ctx := newContext(cancel)
	if c, some := accessChange(in); some {
		if err := n.SetAttr(ctx, cred(&in.Caller), c); err != nil {
			return stale(ctx, n, err)
		}
	}
	code := b.attr(ctx, n, out)
	if code == gofuse.ENOENT {
		return stale(ctx, n, syscall.ENOENT)
	}
	return code
}

func accessChange(in *gofuse.SetAttrIn) (c ctl.AccessChange, some bool) {
	if mode, ok := in.GetMode(); ok {
		c.Mode = &mode
	}
	if uid, ok := in.GetUID(); ok {
		c.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		c.GID = &gid
	}
	return c, c.Mode != nil || c.UID != nil || c.GID != nil
}

func (b *bridge) Mkdir(cancel <-chan struct{}, in *gofuse.MkdirIn, name string, out *gofuse.EntryOut) gofuse.Status {
	d, code := b.dir(in.NodeId)
	if d == nil {
		return code
	}
	ctx := newContext(cancel)
	n, err := d.Mkdir(ctx, cred(&in.Caller), name, in.Mode&0o777)
	if err != nil {
		return status(err)
	}
	return b.entry(ctx, in.NodeId, name, n, out)
}

func (b *bridge) Rmdir(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	d, code := b.dir(h.NodeId)
	if d == nil {
		return code
	}
	defer b.notifier.own(h.NodeId, name)()
	return status(d.Rmdir(newContext(cancel), cred(&h.Caller), name))
}

func (b *bridge) Rename(cancel <-chan struct{}, in *gofuse.RenameIn, oldName, newName string) gofuse.Status {
	d, code := b.dir(in.NodeId)
	if d == nil {
		return code
	}
	to, code := b.dir(in.Newdir)
	if to == nil {
		return code
	}
	if in.Flags&^uint32(unix.RENAME_NOREPLACE) != 0 {
		return gofuse.EINVAL
	}
	defer b.notifier.own(in.NodeId, oldName)()
	ctx := newContext(cancel)
	if err := d.Rename(ctx, cred(&in.Caller), oldName, to, newName); err != nil {
		return status(err)
	}
	if n, err := to.Lookup(ctx, newName); err == nil {
		if attr, err := n.Attr(ctx); err == nil {
			b.inodes.moved(attr.Ino, in.Newdir, newName)
		}
	}
	return gofuse.OK
}

func (b *bridge) deny(cancel <-chan struct{}, h *gofuse.InHeader, op, name string) gofuse.Status {
	d, code := b.dir(h.NodeId)
	if d == nil {
		return code
	}
	return status(d.Deny(newContext(cancel), cred(&h.Caller), op, name))
}

func (b *bridge) Unlink(cancel <-chan struct{}, h *gofuse.InHeader, name string) gofuse.Status {
	return b.deny(cancel, h, "unlink", name)
}

func (b *bridge) Create(cancel <-chan struct{}, in *gofuse.CreateIn, name string, _ *gofuse.CreateOut) gofuse.Status {
	return b.deny(cancel, &in.InHeader, "create", name)
}

func (b *bridge) Tmpfile(cancel <-chan struct{}, in *gofuse.CreateIn, _ *gofuse.CreateOut) gofuse.Status {
	return b.deny(cancel, &in.InHeader, "create", "")
}

func (b *bridge) Mknod(cancel <-chan struct{}, in *gofuse.MknodIn, name string, _ *gofuse.EntryOut) gofuse.Status {
	return b.deny(cancel, &in.InHeader, "mknod", name)
}

func (b *bridge) Link(cancel <-chan struct{}, in *gofuse.LinkIn, name string, _ *gofuse.EntryOut) gofuse.Status {
	return b.deny(cancel, &in.InHeader, "link", name)
}

func (b *bridge) Symlink(cancel <-chan struct{}, h *gofuse.InHeader, _, name string, _ *gofuse.EntryOut) gofuse.Status {
	return b.deny(cancel, h, "symlink", name)
}

func (b *bridge) Open(cancel <-chan struct{}, in *gofuse.OpenIn, out *gofuse.OpenOut) gofuse.Status {
	f, ok := b.inodes.get(in.NodeId).(fs.File)
	if !ok {
		return gofuse.ENOENT
	}
	ctx := newContext(cancel)
	h, err := f.Open(ctx, opener(f, openFlags(in.Flags), &in.Caller), openFlags(in.Flags))
	if err != nil {
		return stale(ctx, f, err)
	}
	// What is read is never the kernel's to keep, and a close has nothing
	// to say: shells close descriptors before they write.
	out.OpenFlags = gofuse.FOPEN_DIRECT_IO | gofuse.FOPEN_NOFLUSH
	if h.Stream() {
		out.OpenFlags |= gofuse.FOPEN_STREAM
	}
	b.notifier.settle() // it may have made something: clone does
	out.Fh = b.files.add(h)
	return gofuse.OK
}

func openFlags(flags uint32) fs.Flags {
	mode := int(flags) & syscall.O_ACCMODE
	return fs.Flags{
		Read:     mode != os.O_WRONLY,
		Write:    mode != os.O_RDONLY,
		NonBlock: flags&syscall.O_NONBLOCK != 0,
	}
}

func (b *bridge) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	h, ok := b.files.get(in.Fh)
	if !ok {
		return nil, gofuse.Status(syscall.EBADF)
	}
	n, err := h.Read(newContext(cancel), buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return gofuse.ReadResultData(buf[:n]), gofuse.OK
}

func (b *bridge) Write(cancel <-chan struct{}, in *gofuse.WriteIn, data []byte) (uint32, gofuse.Status) {
	h, ok := b.files.get(in.Fh)
	if !ok {
		return 0, gofuse.Status(syscall.EBADF)
	}
	if err := h.Write(newContext(cancel), data); err != nil {
		return 0, status(err)
	}
	b.notifier.settle() // it may have removed something
	return uint32(len(data)), gofuse.OK
}

func (b *bridge) Release(_ <-chan struct{}, in *gofuse.ReleaseIn) {
	if h, ok := b.files.remove(in.Fh); ok {
		h.Close()
	}
}

// Flush, Fsync and FsyncDir have nothing left to do: a Node does all when it
// is written to.
func (b *bridge) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status    { return gofuse.OK }
func (b *bridge) Fsync(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status    { return gofuse.OK }
func (b *bridge) FsyncDir(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return gofuse.OK }

// StatFs has nothing to count.
func (b *bridge) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	return gofuse.OK
}
