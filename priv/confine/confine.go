// Package confine is what each role of vmfs may do, as tables with a reason a
// line, and the calls that hold a process to its line of the table.
//
// A role applies its pieces in this order, and each can only take away:
// NoNewPrivs, Keep, Become, Landlock, Seccomp. Every one acts on all threads
// of the process at once; a binary built with cgo cannot do that and is
// refused with ENOTSUP.
//
// It trusts the kernel it runs on and its caller's order of calls. It cannot
// give a privilege back, cannot bound what an open file allows, and says
// nothing about processes that were started before.
package confine

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Capability is one capability that a role keeps.
type Capability struct {
	Name string
	Bit  uintptr // its number, CAP_* of capability.h
	Why  string
}

// Path is a place that a role reaches by name once Landlock holds.
type Path struct {
	Path     string // absolute, or begins with a word that Bind replaces
	Access   Access
	Optional bool // no error if it is not there
	Why      string
}

// Access is what may be done below a Path.
type Access string

// The ways of access. All but File and Device are for directories.
const (
	Read    Access = "read"    // open and list
	File    Access = "file"    // open one file
	Exec    Access = "exec"    // the same, and execute
	Write   Access = "write"   // read, write, make, rename and remove below it
	Device  Access = "device"  // read, write and ioctl one file
	Connect Access = "connect" // connect to sockets below it
)

// Calls is a line of a seccomp table: system calls that share a reason.
type Calls struct {
	Names string // separated by blanks, as the kernel spells them
	Do    Action
	When  []Arg // all must hold; a call that fails them goes on to the next line
	Why   string
}

// Arg is a condition on an argument that the kernel takes as a 32-bit int:
// its low half, masked, is Is. The high half is not looked at.
type Arg struct {
	N        int // 0..5
	Mask, Is uint32
}

// Self, in Is, is the pid of the process that the filter is made in. No pid and
// no other argument in the tables is so great.
const Self = ^uint32(0)

// Action is what happens to a system call.
type Action uint32

// The actions. An allow-list's default is Deny, not Kill: a call that its
// authors forgot must cost an error, not a machine.
const (
	Allow Action = unix.SECCOMP_RET_ALLOW
	Deny  Action = unix.SECCOMP_RET_ERRNO | Action(unix.EPERM)
	Kill  Action = unix.SECCOMP_RET_KILL_PROCESS

	// Absent is as if the kernel did not have the call: there is an older one.
	Absent Action = unix.SECCOMP_RET_ERRNO | Action(unix.ENOSYS)
)

// Role is all that one role may do.
type Role struct {
	Name         string
	User         string // in words
	Capabilities []Capability
	Calls        []Calls
	Default      Action // for a call that no line of Calls decides
	Paths        []Path
	NoSeccomp    string // why there is no seccomp filter, if there is none
	NoLandlock   string // why there is no Landlock, if there is none
	NoPaths      string // why Landlock leaves no path, if it leaves none
	NewPrivs     string // why it may gain privileges by executing, if it may
	Bounding     string // why its bounding set is as it was, if it is
}

// Syscall is one system call of a table, for who reads or tests it.
type Syscall struct {
	Name string
	Nr   uintptr
	Why  string
}

// Syscalls lists the calls of r for which its table says do, whatever their
// arguments. An error names a word that is no system call.
func (r Role) Syscalls(do Action) ([]Syscall, error) {
	var all []Syscall
	for _, line := range r.Calls {
		if line.Do != do {
			continue
		}
		for _, name := range strings.Fields(line.Names) {
			nr, ok := numbers[name]
			if !ok {
				return nil, fmt.Errorf("confine %s: %s: no such system call", r.Name, name)
			}
			all = append(all, Syscall{name, nr, line.Why})
		}
	}
	return all, nil
}

// Bind replaces the first word of relative paths, such as STATE, by the
// directory that it stands for. An error names one that dirs does not have.
func Bind(paths []Path, dirs map[string]string) ([]Path, error) {
	bound := make([]Path, len(paths))
	for i, p := range paths {
		word, rest, _ := strings.Cut(p.Path, "/")
		if word != "" {
			dir, ok := dirs[word]
			if !ok {
				return nil, fmt.Errorf("confine: path %s: nobody said where %s is", p.Path, word)
			}
			p.Path = strings.TrimSuffix(dir+"/"+rest, "/")
		}
		bound[i] = p
	}
	return bound, nil
}

// NoNewPrivs makes every later exec give no privilege that the process does
// not have: no setuid bit and no file capability counts.
func NoNewPrivs() error {
	return allThreads("no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0)
}
