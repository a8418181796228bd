// Package fusermount mounts a FUSE file system for somebody who is not root,
// by the program fusermount3, which is root's and setuid. The kernel lets
// nobody but that user in.
//
// It trusts that program, as it finds it in PATH, and the caller's mount
// point. It needs a process that may still gain privileges by executing.
package fusermount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const helper = "fusermount3"

// limit is what a mount or an unmount may take: neither asks whoever serves.
const limit = 10 * time.Second

// Mount mounts on point, an absolute path of a directory that the caller owns
// and may write, what /proc/mounts then shows as source and as of the type
// fuse.SUBTYPE. It is nosuid, nodev and noexec. The options are the kernel's.
// Requests come from the file, which is the caller's to close.
func Mount(point, source, subtype string, options ...string) (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(ends[0])
	theirs := os.NewFile(uintptr(ends[1]), helper)
	defer theirs.Close()
	name := strings.NewReplacer(`\`, `\\`, ",", `\,`).Replace(source)
	all := append([]string{"nosuid", "nodev", "noexec", "subtype=" + subtype, "fsname=" + name}, options...)
	if err := run([]*os.File{theirs}, "-o", strings.Join(all, ","), "--", point); err != nil {
		return nil, fmt.Errorf("mount %s: %w", point, err)
	}
	dev, err := receive(ends[0])
	if err != nil {
		return nil, fmt.Errorf("mount %s: %s: %w", point, helper, err)
	}
	return dev, nil
}

// Unmount takes away what Mount mounted last on point, in use or not, and
// whether somebody serves it or not.
func Unmount(point string) error {
	if err := run(nil, "-u", "-z", "--", point); err != nil {
		return fmt.Errorf("unmount %s: %w", point, err)
	}
	return nil
}

// run runs the program with a file as descriptor 3, by which it hands over
// what it mounted.
func run(files []*os.File, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, helper, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "_FUSE_COMMFD=3"}
	cmd.Dir, cmd.ExtraFiles, cmd.WaitDelay = "/", files, time.Second
	out, err := cmd.CombinedOutput()
	switch said := bytes.TrimSpace(out); {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w (package fuse3)", err)
	case err != nil && len(said) > 0:
		return errors.New(string(said)) // it says its own name, and why
	case err != nil:
		return fmt.Errorf("%s: %w", helper, err)
	}
	return nil
}

// receive takes the one descriptor that the program sent before it ended.
func receive(socket int) (*os.File, error) {
	p, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, p, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
		}
	}
	return nil, errors.New("no descriptor came")
}
