// Package native is a monitor of its own: it runs a machine with KVM in this
// process, and needs no other program. It joins the CPUs (package kvm), the
// memory (ram), what a kernel finds at its start (boot, acpi) and the devices
// (virtio, serial).
//
// A machine here has what a Linux kernel needs to boot by itself and no more:
// up to 64 CPUs, a serial port that is the console, disks, network cards, a
// source of entropy and, for a command line that names it, a second console by
// virtio over MMIO, ACPI tables that name all of it, and ways to turn it off.
// There is no PCI, no firmware, no screen. The interrupt controllers and the
// timer are the kernel's KVM's.
//
// It trusts its caller's files to be what they are given as, and nothing that
// the guest does: the devices check, and what a CPU cannot do ends the machine
// with the place where it stood. Once Start has returned, it opens nothing and
// starts nothing; a filter with the ioctls of kvm.Ioctls and of
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
	"vmfs/vmm/engine"
	"vmfs/vmm/kvm"
)

// MaxDevices is how many disks and NICs a machine has, together: each has an
// interrupt line of its own.
const MaxDevices = ctl.MaxNativeDevices

// MaxCPUs is how many CPUs a machine has at most.
const MaxCPUs = 64

// Host is what a machine needs of this host. Start copies the descriptors; the
// files stay the caller's.
type Host struct {
	KVM    *os.File  // /dev/kvm
	Quirk  kvm.Quirk // of its KVM
	Rollup *os.File  // /proc/self/smaps_rollup, for Usage; nil is none
}

// Check refuses a machine that this engine cannot run: EOPNOTSUPP for what
// QEMU could, EINVAL for what nothing could.
func Check(s *engine.Spec) error {
	switch {
	case s.CPUs < 1 || s.CPUs > MaxCPUs:
		return bad("cpus: %d, not 1 to %d", s.CPUs, MaxCPUs)
	case s.MemoryMiB < 1:
		return bad("memory: %d MiB", s.MemoryMiB)
	case s.Kernel == nil:
		return cannot("kernel: there is none, and the native engine has no firmware")
	case s.Firmware != nil || s.Flash != nil:
		return cannot("firmware: the native engine has none")
	case s.Cdrom != nil:
		return errNoDrive
	case len(s.Disks)+len(s.NICs) > MaxDevices:
		return cannot("%d disks and %d nics: the native engine has %d of them together", len(s.Disks), len(s.NICs), MaxDevices)
	}
	for _, d := range s.Disks {
		if len(d.Images) != 1 || d.Images[0].Format != "raw" {
			return cannot("disk/%d: the native engine takes raw images", d.N)
		}
	}
	for _, n := range s.NICs {
		if n.Tap == nil {
			return cannot("nic/%d: the native engine has no network of its own", n.N)
		}
		if len(n.MAC) != 6 {
			return bad("nic/%d: %q is no address of a network card", n.N, n.MAC)
		}
	}
	return nil
}

var errNoDrive = cannot("cdrom: the native engine has no drive")

func cannot(format string, args ...any) error {
	return ctl.Errorf(syscall.EOPNOTSUPP, format, args...)
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

// hardware is a machine with descriptors of its own.
type hardware struct {
	engine.Spec
	Host
}

// files are the places of h's files.
func (h *hardware) files() []**os.File {
	all := []**os.File{&h.KVM, &h.Kernel, &h.Initrd, &h.Rollup}
	for i := range h.Disks {
		all = append(all, &h.Disks[i].Images[0].File)
	}
	for i := range h.NICs {
		all = append(all, &h.NICs[i].Tap)
	}
	return all
}

// keep replaces each file by a copy of its descriptor, which close closes.
func (h *hardware) keep() error {
	h.Disks, h.NICs = slices.Clone(h.Disks), slices.Clone(h.NICs)
	for i := range h.Disks {
		h.Disks[i].Images = slices.Clone(h.Disks[i].Images)
	}
	var err error
	for _, f := range h.files() {
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
func (h *hardware) close() {
	for _, f := range h.files() {
		if f != &h.Rollup && *f != nil {
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
