package priv

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// endTime is how long the end of a killed process may take.
const endTime = 5 * time.Second

// accelNative is the accel of a guest that runs its machine itself. It can
// open nothing, so it gets /dev/kvm beside its socket.
const accelNative = "native"

// guests starts guest processes and finds them again. What it knows is in
// RUN/priv and RUN/guest, so that the daemon after this one knows it too.
type guests struct {
	records records
	dir     string // RUN/guest, where their sockets are
	coreUID uint32
	small   *os.File                       // the program of native guests; nil: this one
	exited  func(id uint32, status string) // of a guest that this daemon started

	unjailed string // why guests can have no namespaces, if they cannot

	mu   sync.Mutex
	free sync.Cond       // a change of held
	held map[uint32]bool // ids that somebody works on
}

func newGuests(run string, coreUID uint32, exited func(uint32, string)) *guests {
	g := &guests{records: records{run + "/priv"}, dir: run + "/guest", coreUID: coreUID, small: smallGuest(), exited: exited, held: make(map[uint32]bool)}
	g.free.L = &g.mu
	return g
}

// hold waits until nobody else works on id; the caller lets go.
func (g *guests) hold(id uint32) (letGo func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.held[id] {
		g.free.Wait()
	}
	g.held[id] = true
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.held, id)
		g.free.Broadcast()
	}
}

func (g *guests) socket(id uint32) string {
	return g.dir + "/" + strconv.FormatUint(uint64(id), 10)
}

// forget removes what is left of a guest that has ended.
func (g *guests) forget(id uint32) {
	os.Remove(g.socket(id))
	g.records.remove(guestRecord(id))
}

// sweep removes what dead guests of earlier daemons left: records of
// processes that are no more, and sockets and half-written files that have no
// record.
func (g *guests) sweep() error {
	if _, err := g.list(0, maxID); err != nil {
		return err
	}
	for _, dir := range []string{g.dir, g.records.dir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if dir == g.dir && !g.recorded(e.Name()) || e.Name()[0] == '.' {
				os.Remove(dir + "/" + e.Name())
			}
		}
	}
	return nil
}

// recorded reports whether a file of RUN/guest belongs to a known guest.
func (g *guests) recorded(name string) bool {
	id, err := parseID(name)
	if err != nil {
		return false
	}
	_, err = g.records.read(guestRecord(id))
	return err == nil
}

// list finds the live guests with ids above after, in order, at most n, and
// forgets the dead ones that it meets.
func (g *guests) list(after uint32, n int) ([]ctl.GuestProcess, error) {
	ids, err := g.records.guests()
	if err != nil {
		return nil, err
	}
	var live []ctl.GuestProcess
	for _, id := range ids {
		if id <= after || len(live) == n {
			continue
		}
		if pid := g.alive(id); pid != 0 {
			live = append(live, ctl.GuestProcess{ID: id, PID: pid})
		}
	}
	return live, nil
}

// alive is the pid of a guest, 0 if it has ended.
func (g *guests) alive(id uint32) int {
	defer g.hold(id)()
	r, err := g.records.read(guestRecord(id))
	if err != nil || !r.live() {
		g.forget(id)
		return 0
	}
	return r.pid
}

// end kills a guest, if there is one, and removes what it leaves.
func (g *guests) end(id uint32) error {
	defer g.hold(id)()
	r, err := g.records.read(guestRecord(id))
	if err == nil {
		err = r.kill(endTime)
	} else if notThere(err) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("end guest %d: %w", id, err)
	}
	g.forget(id)
	return nil
}

// spawn starts the guest of a machine and returns its pid; with outward it has
// the daemon's network. EBUSY if it runs.
func (g *guests) spawn(id uint32, accel string, outward bool) (int, error) {
	if err := g.fence(outward); err != nil {
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	defer g.hold(id)()
	if r, err := g.records.read(guestRecord(id)); err == nil && r.live() {
		return 0, ctl.Errorf(syscall.EBUSY, "spawn guest %d: process %d is one", id, r.pid)
	}
	g.forget(id)
	socket, err := g.bind(id)
	if err != nil {
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	defer socket.Close()
	cmd := g.command(id, accel, outward)
	cmd.ExtraFiles = []*os.File{socket}
	if accel == accelNative {
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			g.forget(id)
			return 0, ctl.Errorf(ctl.Errno(err), "spawn guest %d: %v", id, err)
		}
		defer kvm.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, kvm)
		if g.small != nil {
			as(cmd, g.small)
		}
	}
	if err := g.start(id, cmd); err != nil {
		g.forget(id)
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	return cmd.Process.Pid, nil
}

// start starts the process and records it, or neither.
func (g *guests) start(id uint32, cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	r, err := recordOf(cmd.Process.Pid, g.guestUID(id))
	if err == nil {
		err = g.records.write(guestRecord(id), r)
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return err
	}
	go g.reap(id, cmd)
	return nil
}

// reap waits for a guest's end and tells of it.
func (g *guests) reap(id uint32, cmd *exec.Cmd) {
	cmd.Wait()
	defer g.exited(id, cmd.ProcessState.String())
	defer g.hold(id)()
	if r, err := g.records.read(guestRecord(id)); err == nil && r.pid == cmd.Process.Pid && !r.live() {
		g.forget(id) // the next guest of the same id has another record
	}
}

// command is the guest's: pid 1 of its own world, without a terminal.
func (g *guests) command(id uint32, accel string, outward bool) *exec.Cmd {
	args := []string{decimal(id), decimal(g.guestUID(id)), decimal(g.coreUID), accel, g.dir}
	cmd := role("guest", append(args, g.words(outward)...)...)
	cmd.SysProcAttr = g.namespaces(outward)
	return cmd
}

// bind makes the socket at which core finds the guest. The guest calls
// listen, so that core sees the guest's uid and not ours.
func (g *guests) bind(id uint32) (*os.File, error) {
	path := g.socket(id)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		f.Close()
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := cmp.Or(os.Chmod(path, 0o600), os.Lchown(path, int(g.coreUID), -1)); err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return f, nil
}
