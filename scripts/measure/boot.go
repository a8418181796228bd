package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const marker = "userland is up"

// bootTimeout bounds one boot: an emulated CPU needs some seconds, one that is
// emulated by an emulated CPU some minutes.
const bootTimeout = 5 * time.Minute

// start holds `echo start > ctl` against the same QEMU command line by hand,
// from the write or the exec until the guest's own programs print.
func (b *bench) start() (line, error) {
	d, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	vm := d.mnt + "/vm/vm0"
	conf := fmt.Sprintf("kernel %s/vmlinuz\ninitrd %s/initrd\nmemory 192M\ncmdline console=ttyS0 quiet no_timer_check\n", b.dir, b.dir)
	if err := os.WriteFile(vm+"/config", []byte(conf), 0); err != nil {
		return line{}, err
	}
	console := d.mnt + "/live/vm/vm0/console"
	ours := func() (time.Duration, error) { return startVM(vm, console) }
	if _, err := ours(); err != nil { // warms the caches, and shows the command line
		return line{}, err
	}
	hand, err := newByHand(d)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, ours, hand.boot)
	l.what, l.aim = "start until userland prints, to QEMU by hand", 1.10
	kill(vm)
	return l, err
}

func kill(vm string) {
	os.WriteFile(vm+"/ctl", []byte("kill\n"), 0)
	os.WriteFile(vm+"/ctl", []byte("clear-failed\n"), 0)
}

// startVM starts the machine anew and leaves it running.
func startVM(vm, console string) (time.Duration, error) {
	kill(vm)
	begin := time.Now()
	if err := os.WriteFile(vm+"/ctl", []byte("start\n"), 0); err != nil {
		return 0, err
	}
	f, err := os.Open(console)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	defer time.AfterFunc(bootTimeout, func() { kill(vm) }).Stop() // ends the read
	err = waitFor(f)
	return time.Since(begin), err
}

// waitFor reads until the marker.
func waitFor(r io.Reader) error {
	var seen []byte
	buf := make([]byte, 4096)
	for deadline := time.Now().Add(bootTimeout); time.Now().Before(deadline); {
		n, err := r.Read(buf)
		seen = append(seen, buf[:n]...)
		if bytes.Contains(seen, []byte(marker)) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("console: %v before %q", err, marker)
		}
	}
	return errors.New("console: no " + marker + " in time")
}

// byHand is our QEMU's command line with the same files behind the same
// descriptors, opened by name.
type byHand struct {
	args  []string
	files map[int]string // descriptor: path, or "" for a socket
}

// newByHand reads the command line off the running guest and kills it.
func newByHand(d *daemon) (*byHand, error) {
	defer kill(d.mnt + "/vm/vm0")
	for _, pid := range descendants(d.cmd.Process.Pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || !bytes.Contains(b, []byte("qemu-system")) {
			continue
		}
		h := &byHand{files: map[int]string{}}
		for _, a := range strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00") {
			if a != "-S" { // nobody is there to say cont
				h.args = append(h.args, a)
			}
		}
		return h, h.descriptors(pid, d.bench.dir)
	}
	return nil, errors.New("no QEMU below the daemon")
}

// descriptors finds what the arguments' numbers stand for.
func (h *byHand) descriptors(pid int, dir string) error {
	line := strings.Join(h.args, " ")
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, link := range links {
		var fd int
		fmt.Sscan(filepath.Base(link), &fd)
		target, _ := os.Readlink(link)
		switch {
		case strings.HasPrefix(target, "socket:") && strings.Contains(line, fmt.Sprintf("fd=%d", fd)):
			h.files[fd] = ""
		case strings.Contains(line, fmt.Sprintf("-kernel /proc/self/fd/%d", fd)):
			h.files[fd] = dir + "/vmlinuz"
		case strings.Contains(line, fmt.Sprintf("-initrd /proc/self/fd/%d", fd)):
			h.files[fd] = dir + "/initrd"
		}
	}
	if len(h.files) < 3 {
		return fmt.Errorf("QEMU's command line has changed: %s", line)
	}
	return nil
}

// boot runs it until the marker comes on one of its sockets, and kills it.
func (h *byHand) boot() (time.Duration, error) {
	begin := time.Now()
	cmd := exec.Command(h.args[0], h.args[1:]...)
	done := make(chan error, len(h.files))
	for fd, path := range h.files {
		f, err := h.open(path, done)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		for len(cmd.ExtraFiles) < fd-2 {
			cmd.ExtraFiles = append(cmd.ExtraFiles, nil)
		}
		cmd.ExtraFiles[fd-3] = f
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	select {
	case err := <-done:
		return time.Since(begin), err
	case <-time.After(bootTimeout):
		return 0, errors.New("QEMU by hand: no " + marker + " in time")
	}
}

// open opens a file, or makes a socket that is watched for the marker.
func (h *byHand) open(path string, done chan<- error) (*os.File, error) {
	if path != "" {
		return os.Open(path)
	}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	mine := os.NewFile(uintptr(fds[0]), "console")
	go func() {
		defer mine.Close()
		if err := waitFor(mine); err == nil {
			done <- nil
		}
	}()
	return os.NewFile(uintptr(fds[1]), "qemu's end"), nil
}
