// Package native is a monitor of its own: it runs a machine with KVM in this
// process, and needs no other program. It joins the CPUs (package kvm), the
// memory (ram), what a kernel finds at its start (boot, acpi) and the devices
// (virtio, serial).
//
// A machine here has what a Linux kernel needs to boot by itself and no more:
// up to 64 CPUs, a serial port that is the console, disks, network cards and
// a source of entropy by virtio over MMIO, ACPI tables that name all of it,
// and ways to turn it off. There is no PCI, no firmware, no screen. The
// interrupt controllers and the timer are the kernel's KVM's.
//
// It trusts its caller's files to be what they are given as, and nothing that
// the guest does: the devices check, and what a CPU cannot do ends the machine
// with the place where it stood. Once Start has returned, it opens nothing and
// starts nothing; a filter with the ioctls of kvm.Ioctls, tunOffload and
// package virtio may hold the process.
//
// It cannot keep a guest from using up a processor or its disks' space, and it
// does not lock disks. A disk that hangs on the host makes a pause, a reset
// and the end of its machine wait.
package native

import (
	"errors"
	"io"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/vmm/kvm"
)

// MaxDevices is how many disks and NICs a machine has, together: each has an
// interrupt line of its own.
const MaxDevices = 17

// MaxCPUs is how many CPUs a machine has at most.
const MaxCPUs = 64

// Spec is a machine. Start copies the descriptors it keeps; the files stay the
// caller's.
type Spec struct {
	KVM       *os.File  // /dev/kvm
	Quirk     kvm.Quirk // of this host's KVM
	CPUs      int       // 1..MaxCPUs
	MemoryMiB int

	Kernel  *os.File // an ELF file or a bzImage
	Initrd  *os.File // nil is none
	Cmdline string

	Disks []Disk // in the order in which the guest finds them
	NICs  []NIC  // the same, after the disks

	Screen io.Writer // what the guest prints; it must not wait
	Memory *os.File  // /proc/self/smaps_rollup, for Usage; nil is none
}

// Disk is a raw disk of a machine.
type Disk struct {
	N        int // for its serial number, diskN
	ReadOnly bool
	File     *os.File
}

// NIC is a network card of a machine.
type NIC struct {
	MAC [6]byte
	Tap *os.File // with vnet_hdr
}

// Reason is how a machine ended.
type Reason int

// The reasons.
const (
	PowerOff Reason = iota // the guest's own
	Quit                   // Quit was called
	Killed                 // Kill was
	Crashed                // the guest cannot go on, or the monitor cannot
)

// End is the end of a machine.
type End struct {
	Reason Reason
	Text   string // of a crash: what happened, on which CPU, where
}

// check refuses a Spec that is no machine.
func (s *Spec) check() error {
	switch {
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return bad("cpus: %d, not 1 to %d", s.CPUs, MaxCPUs)
	case s.MemoryMiB < 1:
		return bad("memory: %d MiB", s.MemoryMiB)
	case s.Kernel == nil:
		return bad("kernel: the native engine needs one")
	case len(s.Disks)+len(s.NICs) > MaxDevices:
		return bad("%d disks and %d nics: the native engine has %d of them together", len(s.Disks), len(s.NICs), MaxDevices)
	}
	return nil
}

func bad(format string, args ...any) error { return ctl.Errorf(syscall.EINVAL, format, args...) }

// blame makes an error of the monitor's start one that a user can read, with
// the number of what the kernel said.
func blame(err error) error {
	var known *ctl.Error
	var errno syscall.Errno
	switch {
	case errors.As(err, &known):
		return err
	case !errors.As(err, &errno):
		errno = syscall.EIO
	}
	return ctl.Errorf(errno, "native: %v", err)
}

// files are the places of s's files.
func (s *Spec) files() []**os.File {
	all := []**os.File{&s.KVM, &s.Kernel, &s.Initrd, &s.Memory}
	for i := range s.Disks {
		all = append(all, &s.Disks[i].File)
	}
	for i := range s.NICs {
		all = append(all, &s.NICs[i].Tap)
	}
	return all
}

// keep replaces each file of s by a copy of its descriptor, which close
// closes.
func (s *Spec) keep() error {
	s.Disks, s.NICs = slices.Clone(s.Disks), slices.Clone(s.NICs)
	var err error
	for _, f := range s.files() {
		if *f == nil {
			continue
		}
		name := (*f).Name()
		fd := -1
		if err == nil {
			fd, err = unix.FcntlInt((*f).Fd(), unix.F_DUPFD_CLOEXEC, 0)
		}
		*f = nil
		if err == nil {
			*f = os.NewFile(uintptr(fd), name)
		}
	}
	return err
}

// close closes the copies, but for what Usage reads.
func (s *Spec) close() {
	for _, f := range s.files() {
		if f != &s.Memory && *f != nil {
			(*f).Close()
			*f = nil
		}
	}
}

// section is all of a file, to read from; nil of nil.
func section(f *os.File) (*io.SectionReader, error) {
	if f == nil {
		return nil, nil
	}
	st, err := f.Stat()
	if err != nil {
		return nil, ctl.Errorf(ctl.Errno(err), "%v", err)
	}
	return io.NewSectionReader(f, 0, st.Size()), nil
}
