package main_test

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// hangfs DIR serves a directory with one file, hang, that looks like any
// other and whose open is never answered: somebody's own file system, meant
// to hold up whoever opens files for him. A process that waits for it
// ignores even SIGKILL, until this one ends.
func hangfs() {
	root := &fs.Inode{}
	server, err := fs.Mount(os.Args[1], root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, AllowOther: true, FsName: "hangfs"},
		OnAdd: func(ctx context.Context) {
			root.AddChild("hang", root.NewPersistentInode(ctx, &hanging{}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "hangfs:", err)
		os.Exit(1)
	}
	server.Wait()
}

type hanging struct{ fs.Inode }

func (*hanging) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o666
	out.Size = 1 << 20
	return 0
}

func (*hanging) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	select {}
}
