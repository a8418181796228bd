package main_test

import (
	"context"
	"fmt"
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// hangfs DIR serves a directory with two files that look like any other and
// whose open is not answered: somebody's own file system, meant to hold up
// whoever opens files for him. A process that waits for hang ignores even
// SIGKILL, until this one ends; one that waits for slow ends when it is killed.
func hangfs() {
	root := &fs.Inode{}
	server, err := fs.Mount(os.Args[1], root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMountStrict: true, AllowOther: true, FsName: "hangfs"},
		OnAdd: func(ctx context.Context) {
			root.AddChild("hang", root.NewPersistentInode(ctx, &hanging{}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
			root.AddChild("slow", root.NewPersistentInode(ctx, &hanging{killable: true}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "hangfs:", err)
		os.Exit(1)
	}
	server.Wait()
}

type hanging struct {
	fs.Inode
	killable bool
}

func (*hanging) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFREG | 0o666
	out.Size = 1 << 20
	return 0
}

func (h *hanging) Open(ctx context.Context, _ uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if !h.killable {
		select {}
	}
	<-ctx.Done()
	return nil, 0, syscall.EINTR
}
