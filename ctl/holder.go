package ctl

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// somebody is who holds a lock if nothing shows it, or if it was let go.
const somebody = "somebody"

// holder names who holds a lock on f that keeps others from writing it, or
// from reading it: a machine of ours, else the pid that the kernel shows, else
// somebody.
func (m *Manager) holder(f *os.File, write bool) string {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return somebody
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return somebody
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
		return somebody
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

// nameHolder adds to the refusal of a locked disk who holds it.
func (vm *VM) nameHolder(err error, spec *Launch) error {
	if Errno(err) != syscall.EBUSY {
		return err
	}
	for _, disk := range spec.Disks {
		attr := diskAttr(disk.N, "path")
		for i, image := range disk.Images {
			if strings.HasPrefix(err.Error(), imageName(path.Dir(attr), i)+":") {
				return Errorf(syscall.EBUSY, "%s %s: locked by %s", imageName(attr, i), vm.def.Load().get(attr), vm.m.holder(image.File, true))
			}
		}
	}
	return err
}

// imageName says which image of a disk is meant: the disk's own, or one that
// is behind it.
func imageName(disk string, i int) string {
	if i == 0 {
		return disk
	}
	return disk + " base " + strconv.Itoa(i)
}
