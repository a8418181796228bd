package confine

import (
	"fmt"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allThreads makes a system call on every thread of the process. Pointers
// among its arguments are converted in the call.
//
//go:uintptrescapes
func allThreads(op string, trap, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return fmt.Errorf("confine: %s: only in a binary built with CGO_ENABLED=0: %w", op, errno)
	}
	return fmt.Errorf("confine: %s: %w", op, errno)
}

// Keep gives up every capability that is not in caps, on all threads: in the
// bounding, permitted, effective, inheritable and ambient sets. A capability
// of caps that the process does not have stays away without an error. The
// inheritable and ambient sets end empty. Emptying the bounding set needs
// CAP_SETPCAP; without it the bounding set stays, and NoNewPrivs makes that
// harmless.
func Keep(caps []Capability) error {
	have, err := capget()
	if err != nil {
		return err
	}
	var keep uint64
	for _, c := range caps {
		keep |= 1 << c.Bit
	}
	if have.effective&(1<<unix.CAP_SETPCAP) != 0 {
		if err := bound(keep); err != nil {
			return err
		}
	}
	if err := allThreads("ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	return capset(keep & have.permitted)
}

// bound drops from the bounding set what is not in keep.
func bound(keep uint64) error {
	for bit := uintptr(0); bit < 64; bit++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, bit, 0, 0, 0)
		if err != nil {
			return nil // beyond the last that this kernel knows
		}
		if has == 0 || keep&(1<<bit) != 0 {
			continue
		}
		if err := allThreads("bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, bit, 0); err != nil {
			return err
		}
	}
	return nil
}

// capabilities are sets of a thread, a bit each.
type capabilities struct{ effective, permitted, inheritable uint64 }

// capget reads the sets of the calling thread.
func capget() (capabilities, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return capabilities{}, fmt.Errorf("confine: capget: %w", err)
	}
	return capabilities{
		effective:   uint64(data[1].Effective)<<32 | uint64(data[0].Effective),
		permitted:   uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted),
		inheritable: uint64(data[1].Inheritable)<<32 | uint64(data[0].Inheritable),
	}, nil
}

// capset makes the permitted and effective sets of all threads keep, and the
// inheritable one empty.
func capset(keep uint64) error {
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]unix.CapUserData{
		{Effective: uint32(keep), Permitted: uint32(keep)},
		{Effective: uint32(keep >> 32), Permitted: uint32(keep >> 32)},
	}
	return allThreads("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(data)), 0)
}

// Become makes all threads the user uid with gid and exactly groups, for
// good: real, effective and saved ids, and no capability left, also when uid
// is 0. With CAP_SETPCAP it empties the bounding set first. It looks
// afterwards whether all that is so, but for the bounding set.
func Become(uid, gid uint32, groups []uint32) error {
	list := make([]int, len(groups))
	for i, g := range groups {
		list[i] = int(g)
	}
	have, err := capget()
	if err != nil {
		return err
	}
	if have.effective&(1<<unix.CAP_SETPCAP) != 0 {
		if err := bound(0); err != nil {
			return err
		}
	}
	if err := syscall.Setgroups(list); err != nil {
		return fmt.Errorf("confine: setgroups of %d groups: %w", len(groups), err)
	}
	if err := syscall.Setresgid(int(gid), int(gid), int(gid)); err != nil {
		return fmt.Errorf("confine: setresgid %d: %w", gid, err)
	}
	if err := syscall.Setresuid(int(uid), int(uid), int(uid)); err != nil {
		return fmt.Errorf("confine: setresuid %d: %w", uid, err)
	}
	if err := allThreads("ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return err
	}
	if err := capset(0); err != nil {
		return err
	}
	return became(uid, gid, list)
}

// became is the look afterwards, at the calling thread.
func became(uid, gid uint32, groups []int) error {
	ru, eu, su := unix.Getresuid()
	rg, eg, sg := unix.Getresgid()
	want := []int{int(uid), int(uid), int(uid), int(gid), int(gid), int(gid)}
	if got := []int{ru, eu, su, rg, eg, sg}; !slices.Equal(got, want) {
		return fmt.Errorf("confine: ids are %v, want %v", got, want)
	}
	got, err := unix.Getgroups()
	if err != nil {
		return fmt.Errorf("confine: getgroups: %w", err)
	}
	slices.Sort(got)
	wanted := slices.Sorted(slices.Values(groups))
	if !slices.Equal(slices.Compact(got), slices.Compact(wanted)) {
		return fmt.Errorf("confine: groups are %v, want %v", got, groups)
	}
	have, err := capget()
	if err != nil {
		return err
	}
	if have != (capabilities{}) {
		return fmt.Errorf("confine: capabilities are left: %x", have.permitted|have.effective|have.inheritable)
	}
	return nil
}
