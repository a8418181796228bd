package vmm

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/vmm/engine"
)

// Bounds of a launch.
const (
	maxCPUs      = 64
	maxMemoryMiB = 16 << 20 // 16 TiB
	maxDisks     = 16
	maxImages    = 4 // of a disk: what is written, and three bases
)

// launch gathers what core hands over for the one start of this process.
type launch struct {
	about
	given  bool
	spec   engine.Spec
	images [maxDisks][maxImages]image
	nics   [ctl.MaxNICs]engine.NIC
}

// about is what a launch is called.
type about struct {
	generation uint64
	name       string
	reason     string // why this engine
}

// image is a file of a disk, as it came.
type image struct {
	engine.Image
	write bool
}

// describe takes the words of a launch: pairs of key and value, each key once.
// accel is what this process was made for.
func (l *launch) describe(words []string, accel string) error {
	if l.given {
		return ctl.Errorf(syscall.EEXIST, "launch: given already")
	}
	next := launch{given: true, spec: l.spec, images: l.images, nics: l.nics}
	seen := make(map[string]bool)
	for i := 0; i < len(words); i += 2 {
		if i+1 == len(words) || seen[words[i]] {
			return ctl.Errorf(syscall.EINVAL, "launch: %q: no value, or a second one", words[i])
		}
		seen[words[i]] = true
		if err := next.set(words[i], words[i+1]); err != nil {
			return err
		}
	}
	for _, key := range []string{"generation", "name", "accel", "cpus", "memory", "boot"} {
		if !seen[key] {
			return ctl.Errorf(syscall.EINVAL, "launch: no %s", key)
		}
	}
	if next.spec.Accel != accel {
		return ctl.Errorf(syscall.EINVAL, "launch: accel %q in a process made for %s", next.spec.Accel, accel)
	}
	*l = next
	return nil
}

func (l *launch) set(key, value string) (err error) {
	switch key {
	case "generation":
		l.generation, err = strconv.ParseUint(value, 10, 64)
	case "name":
		l.name, err = oneLine(value)
	case "reason":
		l.reason, err = oneLine(value)
	case "accel":
		l.spec.Accel, err = oneOf(value, "native", "kvm", "tcg")
	case "boot":
		l.spec.Boot, err = oneOf(value, "disk", "cdrom", "net")
	case "cpus":
		l.spec.CPUs, err = number(value, 1, maxCPUs)
	case "memory":
		l.spec.MemoryMiB, err = number(value, 1, maxMemoryMiB)
	case "cmdline":
		l.spec.Cmdline, err = oneLine(value)
	default:
		err = fmt.Errorf("unknown key")
	}
	if err != nil {
		return ctl.Errorf(syscall.EINVAL, "launch: %.40q %.40q: %v", key, value, err)
	}
	return nil
}

func number(s string, least, most int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("not a number from %d to %d", least, most)
	}
	return n, nil
}

func oneOf(s string, words ...string) (string, error) {
	if !slices.Contains(words, s) {
		return "", fmt.Errorf("not one of %s", strings.Join(words, ", "))
	}
	return s, nil
}

// oneLine refuses what would not be one line of text somewhere else.
func oneLine(s string) (string, error) {
	control := func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }
	if strings.ContainsFunc(s, control) {
		return "", fmt.Errorf("control bytes")
	}
	return s, nil
}

// boots are the files of which QEMU, which opens them by name, gets copies, and
// how large each may be.
var boots = map[string]struct {
	max  int64
	slot func(*engine.Spec) **os.File
}{
	"kernel":   {256 << 20, func(s *engine.Spec) **os.File { return &s.Kernel }},
	"initrd":   {2 << 30, func(s *engine.Spec) **os.File { return &s.Initrd }},
	"firmware": {16 << 20, func(s *engine.Spec) **os.File { return &s.Firmware }},
}

// boot takes a kernel, initrd or firmware. If copied, f stays the caller's;
// else it is the launch's on success.
func (l *launch) boot(what string, f *os.File, copied bool) error {
	slot := boots[what].slot(&l.spec)
	if *slot != nil || what == "firmware" && l.spec.Flash != nil {
		return ctl.Errorf(syscall.EEXIST, "%s: given already", what)
	}
	if err := regular(what, f, unix.O_RDONLY); err != nil {
		return err
	}
	if !copied {
		*slot = f
		return nil
	}
	memory, err := sealedCopy(what, f, boots[what].max)
	if err != nil {
		return err
	}
	*slot = memory
	return nil
}

// regular refuses a file that is none, or that is not open for exactly mode.
func regular(what string, f *os.File, mode int) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	st, err := f.Stat()
	if err != nil {
		return ctl.Errorf(ctl.Errno(err), "%s: %v", what, err)
	}
	if !st.Mode().IsRegular() || flags&unix.O_PATH != 0 {
		return ctl.Errorf(syscall.EINVAL, "%s: not a regular file", what)
	}
	if flags&unix.O_ACCMODE != mode {
		return ctl.Errorf(syscall.EINVAL, "%s: open for something else", what)
	}
	return nil
}

// sealedCopy reads all of f, from 1 to max bytes, into memory that nobody can
// change any more.
func sealedCopy(what string, f *os.File, max int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(what, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("%s: memfd: %w", what, err)
	}
	memory := os.NewFile(uintptr(fd), what)
	n, err := io.CopyBuffer(onlyWriter{memory}, io.NewSectionReader(f, 0, max+1), make([]byte, 128<<10))
	switch {
	case err != nil:
		err = ctl.Errorf(ctl.Errno(err), "%s: %v", what, err)
	case n == 0:
		err = ctl.Errorf(syscall.EINVAL, "%s: empty", what)
	case n > max:
		err = ctl.Errorf(syscall.EINVAL, "%s: more than %d MiB", what, max>>20)
	default:
		const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, all)
	}
	if err != nil {
		memory.Close()
		return nil, err
	}
	return memory, nil
}

// onlyWriter hides that a file could read by itself: io.CopyBuffer would not
// use its buffer.
type onlyWriter struct{ io.Writer }

// maxFlash is what the board has of flash memory, in bytes, and flashSector
// what it is made of.
const (
	maxFlash    = 8 << 20
	flashSector = 4 << 10
)

// uefi takes a firmware's code and the file of its variables; on success both
// are the launch's. QEMU reads them once and writes what changes.
func (l *launch) uefi(code, vars *os.File) error {
	if l.spec.Flash != nil || l.spec.Firmware != nil {
		return ctl.Errorf(syscall.EEXIST, "firmware: given already")
	}
	if err := regular("firmware", code, unix.O_RDONLY); err != nil {
		return err
	}
	if err := regular("variables", vars, unix.O_RDWR); err != nil {
		return err
	}
	all := int64(0)
	for _, f := range []*os.File{code, vars} {
		st, err := f.Stat()
		if err != nil {
			return ctl.Errorf(ctl.Errno(err), "firmware: %v", err)
		}
		if all += st.Size(); st.Size() == 0 || st.Size()%flashSector != 0 || st.Size() > maxFlash || all > maxFlash {
			return ctl.Errorf(syscall.EINVAL, "firmware: code or variables of %d bytes; flash memory has sectors of %d bytes and %d in all", st.Size(), flashSector, maxFlash)
		}
	}
	l.spec.Flash = &engine.Flash{Code: code, Vars: vars}
	return nil
}

// cdrom takes the image of the drive; on success f is the launch's.
func (l *launch) cdrom(f *os.File) error {
	if l.spec.Cdrom != nil {
		return ctl.Errorf(syscall.EEXIST, "cdrom: given already")
	}
	if err := lockMedium(f); err != nil {
		return err
	}
	l.spec.Cdrom = f
	return nil
}

// lockMedium makes sure that f can be put into the drive.
func lockMedium(f *os.File) error {
	if err := regular("cdrom", f, unix.O_RDONLY); err != nil {
		return err
	}
	return lock(f, "cdrom", false)
}

// disk takes one file of a disk, and locks it; on success f is the launch's.
// words are N INDEX FORMAT and rw or ro.
func (l *launch) disk(words []string, f *os.File) error {
	n, err := number(words[0], 0, maxDisks-1)
	if err != nil {
		return ctl.Errorf(syscall.EINVAL, "disk %.20q: %v", words[0], err)
	}
	index, err := number(words[1], 0, maxImages-1)
	if err != nil {
		return ctl.Errorf(syscall.EINVAL, "disk/%d: image %.20q: %v", n, words[1], err)
	}
	what := fmt.Sprintf("disk/%d", n)
	if index > 0 {
		what = fmt.Sprintf("disk/%d base %d", n, index)
	}
	format, err := oneOf(words[2], "raw", "qcow2")
	if err == nil {
		_, err = oneOf(words[3], "rw", "ro")
	}
	write := words[3] == "rw"
	if err != nil || write && index > 0 {
		return ctl.Errorf(syscall.EINVAL, "%s: %.20q %.20q: not raw or qcow2 with rw or ro, a base ro", what, words[2], words[3])
	}
	slot := &l.images[n][index]
	if slot.File != nil {
		return ctl.Errorf(syscall.EEXIST, "%s: given already", what)
	}
	mode := unix.O_RDONLY
	if write {
		mode = unix.O_RDWR
	}
	if err := regular(what, f, mode); err != nil {
		return err
	}
	if err := lock(f, what, write); err != nil {
		return err
	}
	*slot = image{engine.Image{File: f, Format: format}, write}
	return nil
}

// nic takes a tap; on success f is the launch's. words are N and MAC.
func (l *launch) nic(words []string, f *os.File) error {
	n, mac, err := l.newNIC(words)
	if err != nil {
		return err
	}
	if err := tap(f); err != nil {
		return ctl.Errorf(syscall.EINVAL, "nic/%d: %v", n, err)
	}
	l.nics[n] = engine.NIC{N: n, MAC: mac, Tap: f}
	return nil
}

// newNIC reads N and MAC of a NIC that was not given yet.
func (l *launch) newNIC(words []string) (int, net.HardwareAddr, error) {
	n, err := number(words[0], 0, ctl.MaxNICs-1)
	if err != nil {
		return 0, nil, ctl.Errorf(syscall.EINVAL, "nic %.20q: %v", words[0], err)
	}
	mac, err := parseMAC(words[1])
	if err != nil {
		return 0, nil, ctl.Errorf(syscall.EINVAL, "nic/%d: %.40q: %v", n, words[1], err)
	}
	if l.nics[n].MAC != nil {
		return 0, nil, ctl.Errorf(syscall.EEXIST, "nic/%d: given already", n)
	}
	return n, mac, nil
}

// parseMAC takes the address of one network card, as it is written by
// net.HardwareAddr and in no other way.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac.String() != s {
		return nil, errors.New("not six bytes in hexadecimal with colons")
	}
	if mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6)) {
		return nil, errors.New("not an address of one card")
	}
	return mac, nil
}

// tap refuses a file that is no tap of one queue with the header of virtio.
// Whether packets have another one before it, the kernel does not tell: the
// flag that comes back for that means something else.
func tap(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	ifr, _ := unix.NewIfreq("")
	var gerr error
	if err := raw.Control(func(fd uintptr) { gerr = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) }); err != nil {
		return err
	}
	const want = unix.IFF_TAP | unix.IFF_VNET_HDR
	if gerr != nil {
		return fmt.Errorf("not a tap: %w", gerr)
	}
	if got := ifr.Uint16(); got&(want|unix.IFF_TUN|unix.IFF_MULTI_QUEUE) != want {
		return fmt.Errorf("a tap with flags %#x, want %#x", got, want)
	}
	return nil
}

// complete says what to start, or what is missing for that.
func (l *launch) complete() (*engine.Spec, error) {
	if !l.given {
		return nil, ctl.Errorf(syscall.EINVAL, "go: nothing to launch")
	}
	if l.spec.Kernel == nil && l.spec.Initrd != nil {
		return nil, ctl.Errorf(syscall.EINVAL, "go: an initrd without a kernel")
	}
	spec := l.spec
	for n := range l.images {
		d := engine.Disk{N: n, ReadOnly: !l.images[n][0].write}
		for i, im := range l.images[n] {
			if im.File == nil {
				continue
			}
			if i != len(d.Images) {
				return nil, ctl.Errorf(syscall.EINVAL, "disk/%d: image %d is missing", n, len(d.Images))
			}
			d.Images = append(d.Images, im.Image)
		}
		if len(d.Images) > 0 {
			spec.Disks = append(spec.Disks, d)
		}
	}
	for _, n := range l.nics {
		if n.MAC != nil {
			spec.NICs = append(spec.NICs, n)
		}
	}
	return &spec, nil
}

// release closes every file. What the engine has got stays open, and
// locked, there.
func (l *launch) release() {
	for _, f := range []**os.File{&l.spec.Kernel, &l.spec.Initrd, &l.spec.Firmware, &l.spec.Cdrom} {
		if *f != nil {
			(*f).Close()
			*f = nil
		}
	}
	if l.spec.Flash != nil {
		l.spec.Flash.Code.Close()
		l.spec.Flash.Vars.Close()
		l.spec.Flash = nil
	}
	for n := range l.images {
		for i := range l.images[n] {
			if f := l.images[n][i].File; f != nil {
				f.Close()
			}
			l.images[n][i] = image{}
		}
	}
	for n := range l.nics {
		if f := l.nics[n].Tap; f != nil {
			f.Close()
		}
		l.nics[n] = engine.NIC{}
	}
}

// printable makes a line of text of what another process says: control bytes
// become question marks. An empty one becomes none.
func printable(s, none string) string {
	return cmp.Or(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s), none)
}
