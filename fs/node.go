// Package fs is the file tree: virtual machines as directories, their verbs
// and values as files, over package ctl.
//
// A tree is made of Nodes. Doors serve them: fs/fuse to the kernel, others to
// the network. A door knows requests and nothing of machines; package ctl
// knows machines and nothing of requests; the one table of files in this
// package is all that joins them.
//
// It trusts a door to say who asks, and to have let him: over FUSE the kernel
// checks the mode bits that Attr shows. Bytes that are read or written are
// not trusted: a write is one message of at most MaxWrite bytes, taken whole
// or refused whole. What open files hold in memory is bounded for each user.
//
// It has no privilege, opens no file of the host and starts nothing.
package fs

import (
	"context"
	"time"

	"vmfs/ctl"
)

// MaxWrite is how long a write message can be, in bytes.
const MaxWrite = 64 << 10

// Node is a file or a directory of a tree: a Dir or a File. It stands for
// the object, not for its name: a machine that is renamed keeps its Nodes.
// Methods may be called from any goroutine. What is refused is a *ctl.Error;
// an interrupted call returns the error of its ctx and has done nothing.
// The node of something that was removed answers ENOENT. What was changed is
// certain to outlast a power cut when the call returns.
type Node interface {
	Attr(ctx context.Context) (Attr, error)

	// SetAttr changes the policy, at once and for good. Whether by may is
	// the door's to check. EPERM for bits that no file here can have.
	SetAttr(ctx context.Context, by ctl.Cred, c ctl.AccessChange) error
}

// Attr is what stat shows of a Node.
type Attr struct {
	Ino   uint64 // names the object for ever, also as a 9P qid; the root is 1
	Dir   bool
	Mode  uint32 // permission bits, and the sticky bit
	UID   uint32
	GID   uint32
	Size  int64     // 0 of a text that is made at each read, and of a stream
	Mtime time.Time // of the last change
}

// Dir is a directory.
type Dir interface {
	Node

	// Lookup finds an entry. ENOENT.
	Lookup(ctx context.Context, name string) (Node, error)

	// List gives all entries, in order. The slice is not to be changed.
	List(ctx context.Context) ([]Entry, error)

	// Mkdir makes a directory that belongs to by. mode has the permission
	// bits that he asked for, less his umask. EEXIST, EINVAL for a name
	// that cannot be, EPERM where none can be made.
	Mkdir(ctx context.Context, by ctl.Cred, name string, mode uint32) (Node, error)

	// Rmdir removes a directory and all that is in it. EBUSY, EPERM.
	Rmdir(ctx context.Context, by ctl.Cred, name string) error

	// Rename gives an entry another name, in the directory to of the same
	// tree. It never replaces: EEXIST. EBUSY, EPERM.
	Rename(ctx context.Context, by ctl.Cred, name string, to Dir, newName string) error

	// Deny says why an entry cannot be made or removed in one of the ways
	// that no tree here has: op is "create", "unlink", "link", "symlink"
	// or "mknod". It never returns nil.
	Deny(ctx context.Context, by ctl.Cred, op, name string) error
}

// Entry is a name in a directory.
type Entry struct {
	Name string
	Node Node
}

// File is anything but a directory.
type File interface {
	Node

	// Open opens it for by, who stays the one who asks for whatever is
	// done through the Handle, whoever does it. Whether by may is the
	// door's to check.
	Open(ctx context.Context, by ctl.Cred, f Flags) (Handle, error)
}

// Grouper is a File of which it matters what other groups the one has who
// opens it: where WantsGroups says so, a door puts them into his Cred.
type Grouper interface {
	File
	WantsGroups(f Flags) bool
}

// Flags say how a File is opened.
type Flags struct {
	Read, Write bool
	NonBlock    bool // where a read would wait, it gives end of file
}

// Handle is an open file. Whoever opened it closes it, once.
type Handle interface {
	// Read reads into p at off; 0 bytes are the end of the file. Of a
	// stream off means nothing. A text is the same until Close, whatever
	// happens to the file. It may wait, until there is something or ctx
	// ends; then nothing was taken.
	Read(ctx context.Context, p []byte, off int64) (int, error)

	// Write takes p as one message and acts on it before it returns.
	// EFBIG for more than MaxWrite bytes.
	Write(ctx context.Context, p []byte) error

	// Stream reports whether reads go on from each other and not by
	// offset.
	Stream() bool

	// Close ends the Handle. It does nothing that a user asked for: an
	// unfinished text is dropped.
	Close()
}

// Change tells a door what it may have told its clients, and is no longer
// so. Name is empty: the attributes of Ino changed. Otherwise the entry Name
// of the directory Dir is not Ino any more.
type Change struct {
	Ino  uint64
	Dir  uint64
	Name string
}
