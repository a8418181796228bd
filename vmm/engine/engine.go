// Package engine says what runs a machine, and what it is told of one. There
// are two: QEMU (package qemu) and the monitor of this program (native). The
// guest process speaks to either in the words of this package.
package engine

import (
	"context"
	"io"
	"net"
	"os"

	"vmfs/ctl"
)

// Spec is a machine. Its files are open for what is done with them, no more
// and no less: a read-only disk is not open for writing. They stay the
// caller's; an engine that was started has its own descriptors of them.
type Spec struct {
	ID        uint32
	Accel     string // "native"; or QEMU's, "kvm" or "tcg"
	CPUs      int    // 1..64
	MemoryMiB int
	Boot      string // what is tried first: "disk", "cdrom" or "net"
	Cmdline   string // the kernel's; any text

	// Kernel, Initrd and Firmware are, for QEMU, memfds of the caller's uid:
	// it opens them again through /proc. Nil is none.
	Kernel, Initrd, Firmware *os.File
	Flash                    *Flash   // in the place of Firmware; nil is none
	Cdrom                    *os.File // nil is an empty drive
	Disks                    []Disk
	NICs                     []NIC

	// Screen is where the guest's console prints. It never waits and never
	// fails.
	Screen io.Writer
}

// Flash is a UEFI firmware and the memory in which it keeps its variables,
// which is written.
type Flash struct{ Code, Vars *os.File }

// Disk is a disk of a machine.
type Disk struct {
	N        int
	ReadOnly bool
	Images   []Image // what is written, and behind it its bases in order
}

// Image is one file of a disk.
type Image struct {
	File   *os.File
	Format string // "raw" or "qcow2"
}

// NIC is a network card of a machine.
type NIC struct {
	N   int // 0..15
	MAC net.HardwareAddr
	Tap *os.File // with vnet_hdr; nil, for QEMU only: its own network
}

// Event is what happened to a machine while it runs.
type Event int

const (
	GuestReset Event = iota // the guest reset itself; one reboot may be several
	HostReset               // Reset was called
	Stopped                 // the CPUs stopped
	Resumed                 // the CPUs go on
)

// Reason is how a machine ended.
type Reason int

const (
	Failed     Reason = iota // the engine cannot go on; End says why
	GuestOff                 // the guest turned itself off
	GuestPanic               // the guest said that it cannot go on
	GuestCrash               // it cannot, and End says why
	Quit                     // Quit was called
)

// End is the end of a machine.
type End struct {
	Reason Reason
	Text   string // one line, for Failed and GuestCrash
	Killed bool   // by Kill, or as if
}

// Engine is a machine that was started, its CPUs at first standing still. All
// methods may be called at the same time.
//
// The buttons do not wait for the guest to take notice, and are an error on a
// machine that has ended.
type Engine interface {
	Name() string     // for info, such as "qemu 7.2.22 tcg"
	Input() io.Writer // what is typed on the console; a Write waits until the guest took it, and fails when the machine ends

	Continue(context.Context) error // lets the CPUs go
	Pause(context.Context) error    // stops them
	Running(context.Context) (bool, error)
	Reset(context.Context) error       // the reset button
	PowerButton(context.Context) error // as ACPI has it
	CtrlAltDel(context.Context) error  // the three keys
	// Insert changes what is in the cdrom drive; nil leaves it empty.
	Insert(context.Context, *os.File) error

	Quit(context.Context) error // ends the machine, its disks written
	Kill()                      // ends it at once
	Done() <-chan struct{}      // closed when it has ended and printed all
	End() End                   // how; waits for Done
	Usage() (ctl.Usage, error)
	Close() // ends it if it has not, and releases the rest
}
