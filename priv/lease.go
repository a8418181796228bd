package priv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
)

// leaser keeps the one process that answers DHCP. It has no network of its
// own: the sockets that it answers on come from core, which it speaks to.
type leaser struct {
	mu   sync.Mutex
	cmd  *exec.Cmd // nil if there is none
	gone chan struct{}
}

// start starts the process in the place of another, and returns the end of
// its conversation, which is the caller's.
func (p *leaser) start() (*os.File, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lease: socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lease"), os.NewFile(uintptr(fds[1]), "lease")
	defer theirs.Close()
	cmd := role("lease")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Uid: confine.LeaseUID, Gid: confine.LeaseUID},
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("lease: %w", err)
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	p.cmd, p.gone = cmd, gone
	return ours, nil
}

// end ends the process, if there is one.
func (p *leaser) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill()
}

// kill ends the process and waits until it is gone. It holds nothing that
// could be lost.
func (p *leaser) kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill()
	<-p.gone
	p.cmd = nil
}

func startLease(_ context.Context, s *server) (reply, error) {
	if s.network == nil {
		return reply{}, noNetwork()
	}
	f, err := s.lease.start()
	if err != nil {
		return reply{}, err
	}
	return reply{files: []*os.File{f}}, nil
}
