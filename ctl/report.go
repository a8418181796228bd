package ctl

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// infoTime bounds what info waits for a guest process.
const infoTime = 500 * time.Millisecond

// Info is the text of info: a key and a value a line; what is not known is
// not there.
func (vm *VM) Info(ctx context.Context) string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "%s %v\n", key, value) }
	d := vm.def.Load()
	line("id", vm.id)

	vm.mu.Lock()
	l := vm.launch
	allowed := vm.startAllowed()
	generation := d.generation
	var g Guest
	var st GuestState
	var pid int
	var bounds string
	if l != nil {
		g, st, pid, bounds = l.guest, l.state, l.pid, l.bounds
		generation = max(generation, l.generation)
	}
	vm.mu.Unlock()

	line("generation", generation)
	if st.Engine != "" {
		line("engine", oneLine(st.Engine))
		line("engine_reason", oneLine(st.Reason))
	}
	if pid != 0 {
		line("pid", pid)
	}
	if bounds != "" {
		line("cgroup", bounds)
	}
	if !st.Started.IsZero() {
		line("started", stamp(st.Started))
		line("restarts", st.Reboots)
	}
	if d.exit != nil {
		line("exit", fmt.Sprintf("%s %s %s", oneWord(d.exit.Who), stamp(d.exit.At), d.exit.How))
	}
	if g != nil && st.Engine != "" {
		ctx, cancel := context.WithTimeout(ctx, infoTime)
		defer cancel()
		if u, err := g.Usage(ctx); err == nil {
			line("cpu_usec", u.CPU.Microseconds())
			line("overhead_bytes", u.Overhead)
			if e := u.Exits; e != nil {
				line("exits_pio", e.PIO)
				line("exits_mmio", e.MMIO)
				line("exits_interrupted", e.Interrupted)
				line("exits_stray", e.Stray)
			}
		}
	}
	line("start_allowed_in_ms", max(0, allowed.Milliseconds()))
	return b.String()
}

// Pending is the text of pending: `path now next` for each value that waits
// for the next start; `-` stands for nothing, and a value with blanks is
// quoted.
func (vm *VM) Pending() string {
	d := vm.def.Load()
	if d.launched == nil || !vm.Active() {
		return ""
	}
	next := d.values()
	paths := make(map[string]bool)
	for p := range next {
		paths[p] = true
	}
	for p := range d.launched {
		paths[p] = true
	}
	var b strings.Builder
	for _, p := range sortedKeys(paths) {
		if d.launched[p] != next[p] {
			fmt.Fprintf(&b, "%s %s %s\n", p, column(d.launched[p]), column(next[p]))
		}
	}
	return b.String()
}

func column(s string) string {
	if s == "" {
		return "-"
	}
	if strings.ContainsAny(s, ` "`) {
		return strconv.Quote(s)
	}
	return s
}

// Check is the text of check: what a start would say now, a line a finding,
// or ok. It opens what a start would open, and closes it again.
func (vm *VM) Check(ctx context.Context) string {
	d := vm.def.Load()
	var found []string
	say := func(err error) {
		if err != nil {
			found = append(found, oneLine(err.Error()))
		}
	}
	vm.mu.Lock()
	if vm.startAllowed() > 0 {
		say(Errorf(syscall.EAGAIN, "start: too fast; allowed again in %v", vm.startAllowed().Round(time.Millisecond)))
	}
	vm.mu.Unlock()
	if !vm.Active() {
		say(vm.m.allows(vm.owner(), d.charge()))
	}
	engines, err := vm.chooser(ctx, d)
	if err == nil {
		_, err = engines.choose(nil)
	}
	say(err)
	say(d.complete())
	spec := &Launch{}
	for _, w := range d.wants(spec) {
		say(vm.checkFile(ctx, w))
	}
	if err == nil { // else it was said
		say(engines.settle(spec))
	}
	for _, n := range d.numbers("nic") {
		found = append(found, vm.checkNIC(ctx, d, n)...)
	}
	if len(found) == 0 {
		return "ok\n"
	}
	return strings.Join(found, "\n") + "\n"
}

// checkFile opens one file of a launch, with those behind it, and looks who
// holds a disk. What the launch takes of them are the formats: they are closed.
func (vm *VM) checkFile(ctx context.Context, w want) error {
	opened, err := vm.m.Host.Open(ctx, w.uid, []Want{w.Want})
	if err != nil {
		return Errorf(Errno(err), "%s: %v", w.attr, err)
	}
	defer opened[0].Close()
	w.take(opened[0])
	if !strings.HasPrefix(w.attr, "disk/") || vm.Active() {
		return nil
	}
	for i, image := range opened[0] {
		if h := vm.m.holder(image.File, w.Write && i == 0); h != "somebody" {
			return Errorf(syscall.EBUSY, "%s %s: locked by %s", imageName(w.attr, i), w.Path, h)
		}
	}
	return nil
}

// imageName says which image of a disk is meant: the disk's own, or one that
// is behind it.
func imageName(disk string, i int) string {
	if i == 0 {
		return disk
	}
	return disk + " base " + strconv.Itoa(i)
}

// holder names who holds a lock on f that keeps others from writing it, or
// from reading it: a machine of ours, else the pid that the kernel shows, else
// somebody.
func (m *Manager) holder(f *os.File, write bool) string {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "somebody"
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return "somebody"
	}
	pids := lockPIDs(string(locks), unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino, write)
	for _, vm := range m.VMs() {
		vm.mu.Lock()
		l := vm.launch
		mine := l != nil && l.pid != 0 && pids[l.pid]
		vm.mu.Unlock()
		if mine {
			return "machine " + vm.Name()
		}
	}
	list := sortedKeys(pids)
	if len(list) == 0 {
		return "somebody"
	}
	if last := list[len(list)-1]; last > 0 {
		return "process " + strconv.Itoa(last)
	}
	return "a process that the kernel does not name"
}

// lockPIDs finds in /proc/locks who holds a lock on a file, of readers only if
// they count; -1 stands for the holder of an OFD lock.
func lockPIDs(locks string, major, minor uint32, ino uint64, readers bool) map[int]bool {
	id := fmt.Sprintf("%02x:%02x:%d", major, minor, ino)
	pids := make(map[int]bool)
	for _, line := range strings.Split(locks, "\n") {
		f := strings.Fields(line)
		if len(f) < 8 || f[1] == "->" || f[5] != id || f[3] != "WRITE" && !readers {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil {
			pids[pid] = true
		}
	}
	return pids
}
