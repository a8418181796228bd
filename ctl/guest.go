package ctl

import (
	"context"
	"net"
	"os"
	"slices"
	"time"
)

// The interfaces of this file say what ctl needs done and cannot do: it
// holds no privilege. The daemon fills them from priv and vmm; unit tests
// fill them with fakes.

// Host is the privileged half. Every method is answered, in words when it
// refuses, and gives up when ctx does.
type Host interface {
	Network

	// Open opens files with the rights of the user uid as they are now:
	// his uid, gid and groups. The answer has one Opened for each Want, in
	// order; the caller closes the files. On an error no file is open.
	// ENOENT, EACCES, EINVAL (not a regular file, or not in the format that
	// is wanted), EOPNOTSUPP (an image that asks for too much), ELOOP (too
	// many bases), ETIMEDOUT.
	Open(ctx context.Context, uid uint32, wants []Want) ([]Opened, error)

	// WhoIs tells the uid, gid and groups of a user as they are now. EACCES
	// for one who is no more, ETIMEDOUT.
	WhoIs(ctx context.Context, uid uint32) (Cred, error)

	// Spawn starts a guest process and connects to it; pid is what the host
	// calls it. The process ends by itself if it is left before it was told
	// Go. EOPNOTSUPP for one that is outward, of a daemon of root's.
	Spawn(ctx context.Context, p Process) (g Guest, pid int, err error)

	// Bounds says what limits the guest process of id has, and whether it
	// exceeded them, until the next Spawn for id.
	Bounds(ctx context.Context, id uint32) (Bounds, error)

	// Unpacked returns the kernel that is in f, open for reading, where f
	// unpacks itself and what is in it is at hand; the caller closes it. Else
	// nil, which is no error: f can be started, and may be at hand the next
	// time. f stays the caller's; uid is who named it.
	Unpacked(ctx context.Context, uid uint32, f *os.File) *os.File

	// Guests lists the guest processes that run, as priv recorded them.
	Guests(ctx context.Context) ([]GuestProcess, error)

	// Adopt connects to a guest process that is already there.
	Adopt(ctx context.Context, id uint32) (Guest, error)

	// End kills the guest process of id, whatever state it is in, and
	// removes its socket and record. Nil when there is none.
	End(ctx context.Context, id uint32) error

	// Engines says what can run a machine here. It is asked at each start,
	// so that a package installed meanwhile counts.
	Engines(ctx context.Context) (Engines, error)

	// Draining says that guests are being stopped before a shutdown: a
	// SIGTERM now waits for Shutdown.
	Draining(ctx context.Context) error

	// Shutdown ends the daemon.
	Shutdown(ctx context.Context) error
}

// Want is a file to open.
type Want struct {
	Path   string // absolute, on this host
	Write  bool
	Format string // FormatRaw, FormatQcow2, FormatAuto or FormatFirmware
}

// Formats of files. Nothing is looked at in one that is wanted as raw.
const (
	FormatRaw   = "raw"   // its bytes are what they are
	FormatQcow2 = "qcow2" // behind it are its bases
	FormatAuto  = "auto"  // wanted: raw or qcow2, whatever its first bytes say

	FormatFirmware = "firmware" // wanted: a ROM or flash, whatever its first bytes say
	FormatROM      = "rom"      // a BIOS, or a UEFI with its variables inside
	FormatFlash    = "flash"    // a UEFI's code; behind it the template of its variables
	FormatVars     = "vars"     // such a template
)

// Opened is a file that was opened, and behind it those that belong to it, in
// order. Only the first is open for writing, if it was wanted so.
type Opened []Image

// Image is one file of an Opened.
type Image struct {
	File   *os.File
	Format string
}

// Close closes all files.
func (o Opened) Close() {
	for _, image := range o {
		image.File.Close()
	}
}

// GuestProcess is a guest process that runs.
type GuestProcess struct {
	ID  uint32 // of the machine
	PID int    // as the host sees it
}

// Engines is what can run a machine on this host.
type Engines struct {
	QEMU        string // path of the program, empty if there is none
	QEMUVersion string
	KVM         bool   // KVM runs an ordinary kernel here
	KVMReason   string // why not, if not
}

// Guest is the conversation with one guest process. Its methods may be
// called from several goroutines. After the process or the conversation
// ended, they return EPIPE.
type Guest interface {
	// Give hands over the whole launch. The files are dup'ed: the caller
	// closes its own. EBUSY names a disk whose image is locked by others.
	Give(ctx context.Context, l *Launch) error
	// Go starts the CPUs and returns when they run.
	Go(ctx context.Context) error

	// Stop asks the guest to power off and kills it after wait. The
	// guest process keeps the deadline, also without a daemon; a second
	// Stop may only shorten it. by and restart come back in the Exit.
	Stop(ctx context.Context, wait time.Duration, by string, restart bool) error
	// Kill ends the guest at once; how is what the Exit will say, and
	// failed whether that end is a failure.
	Kill(ctx context.Context, by, how string, failed bool) error
	Reset(ctx context.Context) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Cdrom puts f into the drive of a machine that was told Go, in the
	// place of what is there; nil leaves it empty. f stays the caller's.
	// EBUSY if its image is locked by others. On an error what was there is
	// there; on a machine that has ended nothing happens.
	Cdrom(ctx context.Context, f *os.File) error

	// State is what the guest process knows about its launch.
	State(ctx context.Context) (GuestState, error)
	// Usage is measured when asked.
	Usage(ctx context.Context) (Usage, error)

	// Input gives bytes to the console, all or none: EAGAIN if the guest
	// did not make room within a second. At most 64 KiB.
	Input(ctx context.Context, p []byte) error
	// Console is what this launch printed. It stays readable after the
	// process ended, until Close.
	Console() Console

	// Notices tells of changes, and is closed when the conversation
	// ended. A notice says only that State should be asked again, but for
	// Reboot.
	Notices() <-chan Notice

	// Forget says that the exit record was taken: the process may end.
	Forget(ctx context.Context) error
	// Close ends the conversation and releases the console. A guest that
	// was told Go runs on.
	Close() error
}

// Launch is one start of one machine, complete: everything that a guest
// process will ever have. Files are open; there is no name in it that
// anybody opens.
type Launch struct {
	ID         uint32
	Generation uint64
	Name       string
	Accel      string // "native", "kvm" or "tcg"
	Reason     string // why this engine, for info
	CPUs       int
	MemoryMiB  int
	Boot       string // "disk", "cdrom", "net"
	Cmdline    string

	Kernel, Initrd, Firmware, Cdrom *os.File // nil if not given
	Vars                            *os.File // a UEFI firmware's variables; nil for a ROM
	Disks                           []LaunchDisk
	NICs                            []LaunchNIC
}

// LaunchDisk is a disk of a launch.
type LaunchDisk struct {
	N        int // 0..15
	ReadOnly bool
	Images   Opened // the image; behind it, its bases, in order
}

// LaunchNIC is a NIC of a launch.
type LaunchNIC struct {
	N   int // 0..15
	MAC net.HardwareAddr
	Tap *os.File // with vnet_hdr; nil for a NIC on the engine's own network
}

// Close closes the files of a launch that nobody needs any more.
func (l *Launch) Close() {
	for _, f := range []*os.File{l.Kernel, l.Initrd, l.Firmware, l.Vars, l.Cdrom} {
		if f != nil {
			f.Close()
		}
	}
	for _, d := range l.Disks {
		d.Images.Close()
	}
	for _, nic := range l.NICs {
		if nic.Tap != nil {
			nic.Tap.Close()
		}
	}
}

// outward reports whether a NIC is on the engine's own network.
func (l *Launch) outward() bool {
	return slices.ContainsFunc(l.NICs, func(n LaunchNIC) bool { return n.Tap == nil })
}

// GuestState is what a guest process knows about its launch.
type GuestState struct {
	Generation uint64
	Name       string
	State      string // "new", "running", "paused", "stopping", "ended"
	Started    time.Time
	Reboots    int    // the guest's own
	Engine     string // "qemu 7.2.22 tcg"
	Reason     string // why this engine
	Exit       *Exit  // set when State is "ended"
}

// Exit is how a launch ended.
type Exit struct {
	Failed  bool   // an end nobody asked for
	Who     string // "guest", "host", or the user who asked
	How     string // "power-off", "stop", "kill", ...: no newline
	At      time.Time
	Restart bool // a start was asked for with the stop
}

// Usage is what a launch costs the host.
type Usage struct {
	CPU      time.Duration // user and system
	Overhead uint64        // bytes resident beyond the guest's own memory
	Exits    *Exits        // nil if the engine does not count them
}

// Exits count why the CPUs of a launch left the guest for the process that
// runs it. What the kernel does for a guest, it does without an exit.
type Exits struct {
	PIO, MMIO   uint64 // for a device, by a port or by memory
	Interrupted uint64 // by a signal, as for a pause
	Stray       uint64 // of PIO and MMIO, those where no device is
}

// Notice is news from a guest process.
type Notice int

const (
	StateChanged Notice = iota // ask State
	Rebooted                   // the guest reset itself
)

// Console is the output of one launch: a ring that the guest process fills.
// Positions count bytes since the launch.
type Console interface {
	// ReadAt copies what was printed from pos on into p without waiting.
	// If bytes at pos are already overwritten it begins at the oldest
	// byte there is: at says where it began. n is 0 at the end.
	ReadAt(p []byte, pos uint64) (n int, at uint64)
	// End is the position after the last byte.
	End() uint64
	// Changed is closed when there is more than there was at the call.
	Changed() <-chan struct{}
}

// ConsoleSize is how much of a console is kept at least, in bytes.
const ConsoleSize = 256 << 10
