package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A bench has daemons by name, each with a directory of its own.
type bench struct {
	dir     string // has the programs
	diskDir string
	memDir  string // on a tmpfs
	pairs   int
	daemons map[string]*daemon
	peer    *exec.Cmd
	servers []*exec.Cmd   // of 9P, to compare with
	blocked float64       // KiB that a read costs that waits
	guests  atomic.Uint32 // that were started without a daemon
}

type daemon struct {
	bench    *bench
	dir, mnt string
	cmd      *exec.Cmd
	attr     *syscall.SysProcAttr // of its process; nil for none
}

// serve gives the daemon of that name, started with so many VMs defined the
// first time that it is asked for.
func (b *bench) serve(name string, vms int) (*daemon, error) {
	return b.serveBelow(b.dir, name, vms)
}

// serveBelow is serve with the daemon's directory below another.
func (b *bench) serveBelow(dir, name string, vms int) (*daemon, error) {
	return b.serveAs(&daemon{bench: b, dir: filepath.Join(dir, name)}, vms)
}

// serveIn is serve with the attributes of the daemon's process.
func (b *bench) serveIn(name string, vms int, attr *syscall.SysProcAttr) (*daemon, error) {
	return b.serveAs(&daemon{bench: b, dir: filepath.Join(b.dir, name), attr: attr}, vms)
}

func (b *bench) serveAs(d *daemon, vms int) (*daemon, error) {
	name := filepath.Base(d.dir)
	if d := b.daemons[name]; d != nil {
		return d, nil
	}
	d.mnt = d.dir + "/m"
	if err := os.MkdirAll(d.mnt, 0o755); err != nil {
		return nil, err
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	if b.daemons == nil {
		b.daemons = map[string]*daemon{}
	}
	b.daemons[name] = d
	for i := range vms {
		if err := os.Mkdir(fmt.Sprintf("%s/vm/vm%d", d.mnt, i), 0o755); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// start runs the daemon until its tree is there.
func (d *daemon) start() error {
	d.cmd = exec.Command(d.bench.dir+"/vmfs", "serve", "-m", d.mnt,
		"-state", d.dir+"/state", "-run", d.dir+"/run", "-images", d.bench.dir)
	d.cmd.Stderr, d.cmd.SysProcAttr = os.Stderr, d.attr
	return started(d.cmd, "vmfs: serving ")
}

// started starts a server and waits for its first line.
func started(cmd *exec.Cmd, want string) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	said, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(said, want) {
		cmd.Process.Kill()
		cmd.Wait()
		return fmt.Errorf("%s: said %q, not %q", cmd.Path, said, want)
	}
	return nil
}

// restart ends the daemon as a service manager would, and starts it again.
// It gives the time that the start took.
func (d *daemon) restart() (time.Duration, error) {
	d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		return 0, err
	}
	begin := time.Now()
	err := d.start()
	return time.Since(begin), err
}

// pss sums up what the daemon and its children cost, in KiB.
func (d *daemon) pss() (sum int, err error) {
	for _, pid := range append(children(d.cmd.Process.Pid), d.cmd.Process.Pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(b), "\nPss:")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			return 0, fmt.Errorf("/proc/%d/smaps_rollup: no Pss", pid)
		}
		kib, err := strconv.Atoi(fields[0])
		if err != nil {
			return 0, err
		}
		sum += kib
	}
	return sum, nil
}

func children(pid int) []int {
	var all []int
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				all = append(all, n)
			}
		}
	}
	return all
}

// close ends all servers, their guests first, and detaches what they mounted.
func (b *bench) close() {
	for _, d := range b.daemons {
		os.WriteFile(d.mnt+"/ctl", []byte("reset vms\n"), 0)
		os.WriteFile(d.mnt+"/ctl", []byte("shutdown\n"), 0)
		force := time.AfterFunc(20*time.Second, func() { d.cmd.Process.Kill() })
		d.cmd.Wait()
		force.Stop()
		for syscall.Unmount(d.mnt, syscall.MNT_DETACH) == nil {
		}
	}
	for _, cmd := range b.servers {
		cmd.Process.Kill()
		cmd.Wait()
	}
	if b.peer != nil {
		syscall.Unmount(b.dir+"/peer", syscall.MNT_DETACH)
		b.peer.Wait()
	}
}

// reads gives the median time of an open, read and close of a file.
func reads(path string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		var buf [64]byte
		times := make([]time.Duration, 1000)
		for i := range times {
			begin := time.Now()
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return 0, fmt.Errorf("open %s: %w", path, err)
			}
			n, err := unix.Read(fd, buf[:])
			unix.Close(fd)
			if err != nil || n == 0 {
				return 0, fmt.Errorf("read %s: %d bytes, %v", path, n, err)
			}
			times[i] = time.Since(begin)
		}
		return median(times), nil
	}
}

// runs gives the time of a whole command.
func runs(name string, args ...string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		cmd := exec.Command(name, args...)
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		begin := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, fmt.Errorf("%s: %v: %s", name, err, complaint.Bytes())
		}
		return time.Since(begin), nil
	}
}

// servePeer of a bench starts this program again as the peer of a read.
func (b *bench) servePeer() (string, error) {
	mnt := b.dir + "/peer"
	if err := os.Mkdir(mnt, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	b.peer = exec.Command("/proc/self/exe", "peer", mnt)
	b.peer.Stderr = os.Stderr
	return mnt, started(b.peer, "serving")
}

// servePeer serves vm/vm0/status, and nothing else, as plainly as the library
// allows, with the timeouts that vmfs has.
func servePeer(mnt string) {
	root := &fs.Inode{}
	second, none := time.Second, time.Duration(0)
	server, err := fs.Mount(mnt, root, &fs.Options{
		MountOptions: fuse.MountOptions{
			DirectMountStrict: true, AllowOther: true, DisableXAttrs: true,
			Options: []string{"default_permissions"}, FsName: "peer",
		},
		EntryTimeout: &second, AttrTimeout: &second, NegativeTimeout: &none,
		OnAdd: func(ctx context.Context) {
			vm := root.NewPersistentInode(ctx, &fs.Inode{}, fs.StableAttr{Mode: syscall.S_IFDIR})
			vm0 := root.NewPersistentInode(ctx, &fs.Inode{}, fs.StableAttr{Mode: syscall.S_IFDIR})
			root.AddChild("vm", vm, false)
			vm.AddChild("vm0", vm0, false)
			vm0.AddChild("status", root.NewPersistentInode(ctx, &status{}, fs.StableAttr{}), false)
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
	fmt.Println("serving")
	server.Wait()
}

type status struct{ fs.Inode }

func (*status) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, 8
	return 0
}

func (*status) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return text("stopped\n"), fuse.FOPEN_DIRECT_IO, 0
}

type text []byte

func (t text) Read(_ context.Context, _ []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(t[min(off, int64(len(t))):]), 0
}

// descendants are a process's children, theirs, and so on.
func descendants(pid int) []int {
	all := children(pid)
	for _, c := range slices.Clone(all) {
		all = append(all, descendants(c)...)
	}
	return all
}
