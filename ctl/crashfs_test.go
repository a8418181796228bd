package ctl_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// crashFS is a file system in memory, mounted, that remembers in order every
// call that changed it. From that it can say what a disk may hold after a
// power cut at any of them.
type crashFS struct {
	mu    sync.Mutex
	dir   string // where it is mounted
	last  uint64 // inode
	calls []call

	// fails, if it is set, is asked of each write, truncate and sync
	// whether it fails. Such a write has written half, and what fails to
	// be synced may be on the disk all the same.
	fails func(op, path string) syscall.Errno
}

// call is one system call that changed something, or that made it last. Of
// inodes, 1 is the root and 0 none.
type call struct {
	op      string // link, move, unlink, write, truncate, times, sync
	ino     uint64 // what it is about
	isDir   bool
	from    uint64 // the directory that loses name
	name    string
	to      uint64 // the directory that gains newName
	newName string
	off     int
	data    string
	at      time.Time
}

// mountCrashFS skips the test where nothing can be mounted.
func mountCrashFS(t *testing.T) *crashFS {
	t.Helper()
	c := &crashFS{last: 1, dir: t.TempDir()}
	s, err := fs.Mount(c.dir, &crashNode{c: c, ino: 1}, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true, FsName: "crash"}})
	if err != nil {
		t.Skipf("skipping: a power cut needs a file system of the test's own: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *crashFS) note(k call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k.at = time.Now()
	c.calls = append(c.calls, k)
}

// failing says how a call fails.
func (n *crashNode) failing(op string) syscall.Errno {
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	if n.c.fails == nil {
		return 0
	}
	return n.c.fails(op, n.Path(nil))
}

// fail says which calls fail from now on.
func (c *crashFS) fail(f func(op, path string) syscall.Errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails = f
}

// count is how many calls there were.
func (c *crashFS) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls)
}

// crashNode is a file or directory as the mounted tree shows it now. The
// library keeps the names.
type crashNode struct {
	fs.Inode
	c   *crashFS
	ino uint64

	mu    sync.Mutex
	data  []byte
	mtime time.Time
}

func (n *crashNode) child(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, *crashNode) {
	n.c.mu.Lock()
	n.c.last++
	kid := &crashNode{c: n.c, ino: n.c.last, mtime: time.Now()}
	n.c.mu.Unlock()
	n.c.note(call{op: "link", ino: kid.ino, isDir: mode == syscall.S_IFDIR, to: n.ino, newName: name})
	out.Mode = mode | 0o700
	return n.NewPersistentInode(ctx, kid, fs.StableAttr{Mode: mode, Ino: kid.ino}), kid
}

func (n *crashNode) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	kid, _ := n.child(ctx, name, syscall.S_IFDIR, out)
	return kid, 0
}

func (n *crashNode) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	kid, _ := n.child(ctx, name, syscall.S_IFREG, out)
	return kid, nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *crashNode) Unlink(_ context.Context, name string) syscall.Errno {
	n.c.note(call{op: "unlink", from: n.ino, name: name})
	return 0
}

func (n *crashNode) Rmdir(_ context.Context, name string) syscall.Errno {
	if len(n.GetChild(name).Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	n.c.note(call{op: "unlink", from: n.ino, name: name})
	return 0
}

func (n *crashNode) Rename(_ context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	to := parent.(*crashNode)
	if old := to.GetChild(newName); flags != 0 || old != nil && len(old.Children()) > 0 {
		return syscall.ENOTEMPTY
	}
	kid := n.GetChild(name).Operations().(*crashNode)
	n.c.note(call{op: "move", ino: kid.ino, isDir: kid.IsDir(), from: n.ino, name: name, to: to.ino, newName: newName})
	return 0
}

func (n *crashNode) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.mu.Lock()
	defer n.mu.Unlock()
	out.Mode, out.Size = n.StableAttr().Mode|0o700, uint64(len(n.data))
	out.SetTimes(&n.mtime, &n.mtime, &n.mtime)
	return 0
}

func (n *crashNode) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	size, ok := in.GetSize()
	if errno := n.failing("truncate"); ok && errno != 0 {
		return errno
	}
	n.mu.Lock()
	if ok {
		n.data = sized(n.data, int(size))
		n.c.note(call{op: "truncate", ino: n.ino, off: int(size)})
	}
	if mtime, ok := in.GetMTime(); ok {
		n.mtime = mtime
		n.c.note(call{op: "times", ino: n.ino, data: mtime.Format(time.RFC3339Nano)})
	}
	n.mu.Unlock()
	return n.Getattr(ctx, f, out)
}

func (n *crashNode) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (n *crashNode) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n.mu.Lock()
	defer n.mu.Unlock()
	from := min(int(off), len(n.data))
	return fuse.ReadResultData(append([]byte(nil), n.data[from:min(from+len(p), len(n.data))]...)), 0
}

func (n *crashNode) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	errno := n.failing("write")
	if errno != 0 {
		p = p[:len(p)/2]
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.data = written(n.data, int(off), string(p))
	n.mtime = time.Now()
	n.c.note(call{op: "write", ino: n.ino, off: int(off), data: string(p)})
	return uint32(len(p)), errno
}

func (n *crashNode) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	if errno := n.failing("sync"); errno != 0 {
		return errno
	}
	n.c.note(call{op: "sync", ino: n.ino})
	return 0
}

func sized(b []byte, size int) []byte {
	if size <= len(b) {
		return b[:size]
	}
	return append(b, make([]byte, size-len(b))...)
}

func written(b []byte, off int, p string) []byte {
	b = sized(b, max(len(b), off+len(p)))
	copy(b[off:], p)
	return b
}

// disk is what is on a disk: inodes, by number.
type disk map[uint64]*inode

type inode struct {
	names map[string]uint64 // of a directory
	data  []byte
	mtime time.Time
}

// does applies a call. A call whose forerunners were lost still does its own
// part: what is left of a directory is its last entries.
func (d disk) does(k call) {
	switch k.op {
	case "link":
		d.enter(k)
	case "move":
		if from := d.names(k.from, k.at); from[k.name] == k.ino {
			delete(from, k.name)
		}
		d.enter(k)
	case "unlink":
		delete(d.names(k.from, k.at), k.name)
	case "write":
		f := d.inode(k.ino)
		f.data, f.mtime = written(f.data, k.off, k.data), k.at
	case "truncate":
		f := d.inode(k.ino)
		f.data, f.mtime = sized(f.data, k.off), k.at
	case "times":
		d.inode(k.ino).mtime, _ = time.Parse(time.RFC3339Nano, k.data)
	}
}

func (d disk) inode(ino uint64) *inode {
	if d[ino] == nil {
		d[ino] = new(inode)
	}
	return d[ino]
}

// names are those in a directory, to be changed.
func (d disk) names(ino uint64, at time.Time) map[string]uint64 {
	dir := d.inode(ino)
	dir.mtime = at
	if dir.names == nil {
		dir.names = map[string]uint64{}
	}
	return dir.names
}

func (d disk) enter(k call) {
	d.names(k.to, k.at)[k.newName] = k.ino
	if d[k.ino] == nil {
		d.inode(k.ino).mtime = k.at
	}
	if k.isDir && d[k.ino].names == nil {
		d[k.ino].names = map[string]uint64{}
	}
}

func (k *call) ofNames() bool { return k.op == "link" || k.op == "move" || k.op == "unlink" }

// lasting reports which calls are certain to be on the disk after the last:
// of data, what a sync of the inode followed; of names, what a sync of each
// directory did.
func lasting(calls []call) []bool {
	synced := map[uint64]bool{}
	certain := make([]bool, len(calls))
	for i := len(calls) - 1; i >= 0; i-- {
		switch k := &calls[i]; {
		case k.op == "sync":
			synced[k.ino], certain[i] = true, true
		case k.ofNames():
			certain[i] = (k.from == 0 || synced[k.from]) && (k.to == 0 || synced[k.to])
		default:
			certain[i] = synced[k.ino]
		}
	}
	return certain
}

// disks are what a disk may hold after calls and a power cut. The first has
// all that was done. The others have lost of what was not synced: all; all
// data; all names; one change of names, or all but that; of one file all
// data, or that of the first call; some sectors of the last write of a file.
func disks(calls []call) []disk {
	certain := lasting(calls)
	list := []disk{
		replay(calls, func(int) bool { return true }),
		replay(calls, func(i int) bool { return certain[i] }),
		replay(calls, func(i int) bool { return certain[i] || calls[i].ofNames() }),
		replay(calls, func(i int) bool { return certain[i] || !calls[i].ofNames() }),
	}
	files, last := map[uint64]bool{}, map[uint64]int{}
	for lost := range calls {
		switch k := &calls[lost]; {
		case certain[lost]:
		case k.ofNames():
			list = append(list,
				replay(calls, func(i int) bool { return i != lost }),
				replay(calls, func(i int) bool { return certain[i] || i == lost }))
		case !files[k.ino]: // the first that is not certain
			files[k.ino] = true
			list = append(list,
				replay(calls, func(i int) bool { return i != lost }),
				replay(calls, func(i int) bool { return i < lost || calls[i].ino != k.ino || calls[i].ofNames() }))
		}
		if calls[lost].op == "write" && !certain[lost] {
			last[calls[lost].ino] = lost
		}
	}
	for _, cut := range last {
		list = append(list, torn(calls, cut)...)
	}
	return list
}

const sectorSize = 512

// torn are the disks that have of one write some of the sectors that it
// changed: every mixture of the first four and all the others.
func torn(calls []call, cut int) (list []disk) {
	k := calls[cut]
	before := []byte(nil)
	if f := replay(calls[:cut], func(int) bool { return true })[k.ino]; f != nil {
		before = f.data
	}
	changed := k.changed(before)
	most := min(len(changed), 5) // the last stands for the rest
	calls = slices.Clone(calls)
	for set := range 1 << most {
		calls[cut].data = k.mixed(before, func(sector int) bool {
			i := min(slices.Index(changed, sector), most-1)
			return i >= 0 && set>>i&1 != 0
		})
		list = append(list, replay(calls, func(int) bool { return true }))
	}
	return list
}

// changed are the sectors of a file that a write makes unlike before.
func (k *call) changed(before []byte) (sectors []int) {
	after := written(slices.Clone(before), k.off, k.data)
	for s := k.off / sectorSize; s*sectorSize < k.off+len(k.data); s++ {
		from := s * sectorSize
		if string(sector(before, from)) != string(sector(after, from)) {
			sectors = append(sectors, s)
		}
	}
	return sectors
}

func sector(b []byte, from int) []byte {
	return b[min(from, len(b)):min(from+sectorSize, len(b))]
}

// mixed is what a write wrote if only some sectors got to the disk. Behind
// the old end of the file, those before another that did are zeros.
func (k *call) mixed(before []byte, reached func(sector int) bool) string {
	data, end := []byte(k.data), 0
	for i := range data {
		switch at := k.off + i; {
		case reached(at / sectorSize):
			end = i + 1
		case at < len(before):
			data[i], end = before[at], i+1
		default:
			data[i] = 0
		}
	}
	return string(data[:end])
}

func replay(calls []call, reached func(i int) bool) disk {
	d := disk{1: {names: map[string]uint64{}}}
	for i := range calls {
		if reached(i) {
			d.does(calls[i])
		}
	}
	return d
}

// find is the inode at a path below the root; nil if there is none.
func (d disk) find(path string) *inode {
	n := d[1]
	for name := range strings.SplitSeq(path, "/") {
		if n = d[n.names[name]]; n == nil {
			return nil
		}
	}
	return n
}

// list has the names in a directory, in order.
func (d disk) list(path string) []string {
	n := d.find(path)
	if n == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(n.names))
}

// text is a file's content; empty if there is none.
func (d disk) text(path string) string {
	if n := d.find(path); n != nil {
		return string(n.data)
	}
	return ""
}

// key is the same for disks that nothing tells apart but times, as long as
// those are on the same side of old.
func (d disk) key(old time.Time) string {
	var b strings.Builder
	d.walk(1, "", func(path string, n *inode) {
		b.WriteString(path)
		if n.names != nil && n.mtime.Before(old) {
			b.WriteString(" old")
		}
		b.WriteString("\x00" + string(n.data) + "\x00")
	})
	return b.String()
}

func (d disk) walk(ino uint64, path string, f func(path string, n *inode)) {
	n := d[ino]
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		f(path+"/"+name, d[n.names[name]])
		d.walk(n.names[name], path+"/"+name, f)
	}
}

// write makes the disk's content anew in dir.
func (d disk) write(t *testing.T, dir string) {
	t.Helper()
	ok(t, os.RemoveAll(dir))
	ok(t, os.Mkdir(dir, 0o700))
	times := map[string]time.Time{}
	d.walk(1, dir, func(path string, n *inode) {
		if n.names != nil {
			ok(t, os.Mkdir(path, 0o700))
		} else {
			ok(t, os.WriteFile(path, n.data, 0o600))
		}
		times[path] = n.mtime
	})
	for _, path := range slices.Backward(slices.Sorted(maps.Keys(times))) {
		ok(t, os.Chtimes(path, times[path], times[path]))
	}
}

// fastDir is a directory of the test's, in memory where the host has that.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "vmfs-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "state")
}
