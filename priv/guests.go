package priv

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/cgroup"
	"vmfs/priv/confine"
)

// endTime is how long the end of a killed process may take.
const endTime = 5 * time.Second

// accelNative is the accel of a guest that runs its machine itself. It can
// open nothing, so it gets /dev/kvm beside its socket.
const accelNative = "native"

// maxGuests is how many guests run at a time: net/prefix, as it is by default,
// has places for as many machines.
const maxGuests = 16384

// guests starts guest processes and finds them again. What it knows is in
// RUN/priv and RUN/guest, so that the daemon after this one knows it too.
type guests struct {
	records records
	dir     string // RUN/guest, where their sockets are
	coreUID uint32
	most    int                            // that run at a time
	small   *os.File                       // the program of native guests; nil: this one
	exited  func(id uint32, status string) // of a guest that this daemon started

	unjailed string // why guests can have no namespaces, if they cannot
	cgroups  *cgroup.Tree

	mu   sync.Mutex
	free sync.Cond       // a change of held
	held map[uint32]bool // ids that somebody works on
}

func newGuests(run string, coreUID uint32, exited func(uint32, string)) *guests {
	g := &guests{records: records{run + "/priv"}, dir: run + "/guest", coreUID: coreUID, most: maxGuests, small: smallGuest(), exited: exited, held: make(map[uint32]bool)}
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

// forget removes what is left of a guest that has ended. It fails where that
// is a cgroup that cannot be emptied, which stays on record.
func (g *guests) forget(id uint32) error {
	os.Remove(g.socket(id))
	g.records.remove(guestRecord(id))
	return g.cgroups.End(id, endTime)
}

// forgetAloud is forget where nobody is to be told.
func (g *guests) forgetAloud(id uint32) {
	if err := g.forget(id); err != nil {
		fmt.Fprintf(os.Stderr, "vmfs: guest %d: %v\n", id, err)
	}
}

// bounds says what limits a guest.
func (g *guests) bounds(id uint32) (text string, killed uint64) {
	defer g.hold(id)()
	return g.cgroups.State(id)
}

// sweep removes what dead guests of earlier daemons left: records of
// processes that are no more, and sockets and half-written files that have no
// record.
func (g *guests) sweep() error {
	live, err := g.list(0, maxID)
	if err != nil {
		return err
	}
	lives := func(id uint32) bool {
		return slices.ContainsFunc(live, func(p ctl.GuestProcess) bool { return p.ID == id })
	}
	if err := g.cgroups.Sweep(lives, endTime); err != nil {
		fmt.Fprintf(os.Stderr, "vmfs: cgroups of guests that ended: %v\n", err)
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
		g.forgetAloud(id)
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
	if err := g.forget(id); err != nil {
		return fmt.Errorf("end guest %d: %w", id, err)
	}
	return nil
}

// room refuses one more guest than may run. Those that are being started do not
// count yet: there may be as many more.
func (g *guests) room() error {
	ids, err := g.records.guests()
	if err != nil || len(ids) < g.most {
		return err
	}
	live, err := g.list(0, g.most)
	if err != nil || len(live) < g.most {
		return err
	}
	return ctl.Errorf(syscall.ENOSPC, "%d guests run, and no more are started", g.most)
}

// spawn starts the guest of a machine and returns its pid. EBUSY if it runs,
// ENOSPC if too many do.
func (g *guests) spawn(p ctl.Process) (int, error) {
	id := p.ID
	if err := g.fence(p.Outward); err != nil {
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	if err := g.room(); err != nil {
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	defer g.hold(id)()
	if r, err := g.records.read(guestRecord(id)); err == nil && r.live() {
		return 0, ctl.Errorf(syscall.EBUSY, "spawn guest %d: process %d is one", id, r.pid)
	}
	if err := g.forget(id); err != nil {
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	pid, err := g.launch(p)
	if err != nil {
		g.forgetAloud(id)
		return 0, fmt.Errorf("spawn guest %d: %w", id, err)
	}
	return pid, nil
}

// launch makes what the guest's process gets, and starts it in its cgroup.
// What it leaves of a failure, forget removes.
func (g *guests) launch(p ctl.Process) (int, error) {
	socket, err := g.bind(p.ID)
	if err != nil {
		return 0, err
	}
	defer socket.Close()
	files := []*os.File{socket}
	if p.Accel == accelNative {
		kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		defer kvm.Close()
		files = append(files, kvm)
	}
	group, err := g.cgroups.Make(p.ID, cgroup.Need{Engine: p.Accel, CPUs: p.CPUs, Memory: p.MemoryMiB, Images: p.Images, Files: p.FilesMiB})
	if err != nil {
		return 0, err
	}
	cmd := g.command(p, files)
	if group != nil {
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	err = g.start(p.ID, cmd)
	if err != nil && group != nil && cmd.Process == nil && !full(err) {
		// A host can have cgroups and let nobody be born in them.
		if err := g.cgroups.Without(p.ID, "no process can be started in it: "+err.Error()); err != nil {
			return 0, err
		}
		cmd = g.command(p, files)
		err = g.start(p.ID, cmd)
	}
	if err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// full reports whether a process was not started because there are too many, or
// too little memory: those are limits, and no reason to go past them.
func full(err error) bool { return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) }

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
		g.forgetAloud(id) // the next guest of the same id has another record
	}
}

// command is the guest's: pid 1 of its own world, without a terminal.
func (g *guests) command(p ctl.Process, files []*os.File) *exec.Cmd {
	args := []string{decimal(p.ID), decimal(g.guestUID(p.ID)), decimal(g.coreUID), p.Accel, g.dir}
	cmd := role("guest", append(args, g.words(p.Outward)...)...)
	cmd.SysProcAttr = g.namespaces(p.Outward)
	cmd.ExtraFiles = files
	if p.Accel == accelNative && g.small != nil {
		as(cmd, g.small)
	}
	return cmd
}

// guestUID is whose the guest of a machine is.
func (g *guests) guestUID(id uint32) uint32 {
	if ordinary() {
		return uint32(os.Geteuid())
	}
	return confine.GuestUID + id
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
