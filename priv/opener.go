package priv

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
)

// The opener is a process for one request: it becomes a user and opens files
// with that user's rights. What it reads of them is the first cluster of a
// qcow2 image and the first bytes of a firmware. A file system that never
// answers holds the opener up, and nobody else: priv waits for it for
// openTime.
//
// priv says
//
//	open UID GROUPS N DIRECTORY... (ro|rw FORMAT PATH)...
//
// with the groups that the user has, his own first, and the N directories below
// which root's own files must lie, and is answered "ok (N FORMAT...)..." with N
// files for each that was asked for, or "error ERRNO reason".

// openRequest is the one request of an opener.
type openRequest struct {
	uid    uint32
	groups []uint32
	dirs   []string // for uid 0, and in an ordinary user's daemon
	wants  []ctl.Want
}

func (r openRequest) fields() []string {
	f := []string{"open", decimal(r.uid), groupsText(r.groups), strconv.Itoa(len(r.dirs))}
	return append(append(f, r.dirs...), wantArgs(r.wants)...)
}

func parseOpenRequest(fields []string) (openRequest, error) {
	if len(fields) < 4 || fields[0] != "open" {
		return openRequest{}, errors.New("not a request to open")
	}
	uid, err := parseUID(fields[1])
	if err != nil {
		return openRequest{}, err
	}
	groups, err := parseGroups(fields[2])
	if err != nil {
		return openRequest{}, err
	}
	n, err := strconv.Atoi(fields[3])
	if err != nil || n < 0 || n > len(fields)-4 {
		return openRequest{}, fmt.Errorf("%.40q directories", fields[3])
	}
	dirs, rest := fields[4:4+n], fields[4+n:]
	for _, d := range dirs {
		if !filepath.IsAbs(d) {
			return openRequest{}, fmt.Errorf("%.80q is no absolute path", d)
		}
	}
	wants, err := parseWants(rest)
	return openRequest{uid, groups, dirs, wants}, err
}

// Opener is the main of the role opener; its socket is descriptor 3. It
// returns the exit status.
func Opener() int {
	conn, err := wire.NewConn(os.NewFile(3, "priv"))
	if err != nil {
		return 1
	}
	defer conn.Close()
	files, fields, err := answerOnce(conn)
	if err != nil {
		conn.Send(nil, "error", unix.ErrnoName(ctl.Errno(err)), clip(err.Error()))
		return 1
	}
	if err := conn.Send(files, append([]string{"ok"}, fields...)...); err != nil {
		return 1
	}
	return 0
}

func answerOnce(conn *wire.Conn) (files []*os.File, fields []string, err error) {
	if err := confine.NoNewPrivs(); err != nil {
		return nil, nil, err
	}
	if err := confine.Keep(confine.Opener.Capabilities); err != nil {
		return nil, nil, err
	}
	m, err := conn.Recv()
	if err != nil {
		return nil, nil, err
	}
	m.Close()
	req, err := parseOpenRequest(m.Fields)
	if err != nil {
		return nil, nil, ctl.Errorf(syscall.EINVAL, "open: %v", err)
	}
	o, err := newOpener(req)
	if err != nil {
		return nil, nil, err
	}
	opened, err := o.all(req.wants)
	files, fields = openedMessage(opened)
	return files, fields, err
}

// opener is the process after it became the user.
type opener struct {
	who    string   // for messages
	within []string // resolved directories that bound the paths; nil: no bound
	uid    uint32
}

func newOpener(req openRequest) (*opener, error) {
	o := &opener{uid: req.uid, who: userName(req.uid)}
	if req.uid == 0 || ordinary() && len(req.dirs) > 0 {
		o.within = resolve(req.dirs)
	}
	if ordinary() {
		return o, o.remain()
	}
	if err := confine.Become(req.uid, req.groups[0], req.groups); err != nil {
		return nil, err
	}
	return o, confine.Seccomp(confine.Opener)
}

// userName is a name for messages; a number where /etc/passwd has none.
func userName(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return "user " + number
}

// resolve finds where the directories really lie; one that is not there, or
// that lies behind a link which is not root's, bounds nothing.
func resolve(dirs []string) []string {
	resolved := []string{} // not nil: no directory allows no path
	for _, d := range dirs {
		if real, err := filepath.EvalSymlinks(d); err == nil && rootsLinks(d) {
			resolved = append(resolved, real)
		}
	}
	return resolved
}

// rootsLinks reports whether every symbolic link that d names is root's, or of
// who runs the daemon.
func rootsLinks(d string) bool {
	for d = filepath.Clean(d); d != "/"; d = filepath.Dir(d) {
		var st unix.Stat_t
		if err := unix.Lstat(d, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
			return false
		}
	}
	return true
}

// all opens every want or none.
func (o *opener) all(wants []ctl.Want) (opened []ctl.Opened, err error) {
	files := 0
	for _, w := range wants {
		var one ctl.Opened
		if one, err = o.one(w); err == nil {
			opened = append(opened, one)
			if files += len(one); files > wire.MaxFiles {
				err = ctl.Errorf(syscall.EINVAL, "open %s: more than %d files at once, with those behind them", w.Path, wire.MaxFiles)
			}
		}
		if err != nil {
			for _, done := range opened {
				done.Close()
			}
			return nil, err
		}
	}
	return opened, nil
}

// one opens a want, and what belongs to it.
func (o *opener) one(w ctl.Want) (opened ctl.Opened, err error) {
	defer func() {
		if err != nil {
			opened.Close()
			opened = nil
		}
	}()
	f, err := o.open(w)
	if err != nil {
		return nil, err
	}
	opened = ctl.Opened{{File: f, Format: w.Format}}
	switch w.Format {
	case ctl.FormatAuto:
		err = o.probe(w, &opened[0])
	case ctl.FormatFirmware:
		return o.firmware(w, opened)
	}
	if err == nil && opened[0].Format == ctl.FormatQcow2 {
		return o.chain(w, opened)
	}
	return opened, err
}

// probe settles a format by the first bytes.
func (o *opener) probe(w ctl.Want, image *ctl.Image) error {
	var head [8]byte
	n, err := image.File.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return o.refused(w, err)
	}
	switch kindOfQcow(head[:n]) {
	case "":
		image.Format = ctl.FormatRaw
	case "qcow2":
		image.Format = ctl.FormatQcow2
	default:
		return ctl.Errorf(syscall.EOPNOTSUPP, "open %s: a qcow image of another version than 2 and 3; format raw takes its bytes as they are", w.Path)
	}
	return nil
}

// maxBases is how many files may be behind an image.
const maxBases = 3

// chain follows the bases of the qcow2 image that is opened. They are only
// read, and their names resolved with the same rights and bounds as the first.
func (o *opener) chain(w ctl.Want, opened ctl.Opened) (ctl.Opened, error) {
	top := w.Path
	for opened[len(opened)-1].Format == ctl.FormatQcow2 {
		b, err := o.behind(w, opened[len(opened)-1].File)
		if err != nil || b == (base{}) {
			return opened, err
		}
		if len(opened) > maxBases {
			return opened, ctl.Errorf(syscall.ELOOP, "open %s: more than %d bases behind it: %s has one more", top, maxBases, w.Path)
		}
		from := w.Path
		w = ctl.Want{Path: b.from(from), Format: b.format}
		f, err := o.open(w)
		if err != nil {
			return opened, ctl.Errorf(ctl.Errno(err), "%v (the base of %s)", err, from)
		}
		opened = append(opened, ctl.Image{File: f, Format: b.format})
		if err := o.notTwice(w, opened); err != nil {
			return opened, err
		}
	}
	return opened, nil
}

// behind reads the header of a qcow2 image.
func (o *opener) behind(w ctl.Want, f *os.File) (base, error) {
	st, err := f.Stat()
	if err != nil {
		return base{}, o.refused(w, err)
	}
	b, err := readQcow2(f, st.Size())
	var said *ctl.Error
	switch {
	case errors.As(err, &said):
		return base{}, ctl.Errorf(said.Errno, "open %s: %s", w.Path, said.Reason)
	case err != nil:
		return base{}, o.refused(w, err)
	}
	return b, nil
}

// notTwice refuses a last image that is behind itself.
func (o *opener) notTwice(w ctl.Want, opened ctl.Opened) error {
	infos := make([]os.FileInfo, len(opened))
	for i, image := range opened {
		var err error
		if infos[i], err = image.File.Stat(); err != nil {
			return o.refused(w, err)
		}
	}
	last := infos[len(infos)-1]
	for _, before := range infos[:len(infos)-1] {
		if os.SameFile(before, last) {
			return ctl.Errorf(syscall.ELOOP, "open %s: it is behind itself", w.Path)
		}
	}
	return nil
}

// open finds the file without opening it, looks what it is, and opens what it
// looked at.
func (o *opener) open(w ctl.Want) (*os.File, error) {
	found, err := unix.Openat2(unix.AT_FDCWD, w.Path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, o.refused(w, err)
	}
	defer unix.Close(found)
	before, err := o.look(w, found)
	if err != nil {
		return nil, err
	}
	mode := os.O_RDONLY
	if w.Write {
		mode = os.O_RDWR
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", found), mode|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, o.refused(w, err)
	}
	f := os.NewFile(uintptr(fd), w.Path)
	if err := o.settle(w, fd, before); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// look decides about a file that is found but not open.
func (o *opener) look(w ctl.Want, found int) (st unix.Stat_t, err error) {
	if err := o.notFUSE(w, found); err != nil { // first: fstat would ask it
		return st, err
	}
	if err := o.bounded(w, found); err != nil {
		return st, err
	}
	if err := unix.Fstat(found, &st); err != nil {
		return st, o.refused(w, err)
	}
	if what := kind(st.Mode); what != "" {
		return st, ctl.Errorf(syscall.EINVAL, "open %s: is %s, not a regular file", w.Path, what)
	}
	return st, nil
}

// kind says in words what is not a regular file.
func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return ""
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFLNK:
		return "a symbolic link"
	}
	return "a device"
}

// notFUSE refuses a file that an ordinary user serves: even to close it asks
// him, and whoever holds it then waits for as long as he likes. What it asks
// is the kernel alone.
func (o *opener) notFUSE(w ctl.Want, found int) error {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", found))
	if err != nil {
		return o.refused(w, err)
	}
	mounts, err := readMounts()
	if err != nil {
		return o.refused(w, err)
	}
	id := mountID(string(info))
	for i := range mounts {
		if mounts[i].id != id {
			continue
		}
		if uid, fuse := mounts[i].owner(); fuse && uid != "0" {
			return ctl.Errorf(syscall.EINVAL, "open %s: lies on a FUSE file system of user %s, who could hold up whoever has it open", w.Path, uid)
		}
		return nil
	}
	return ctl.Errorf(syscall.EINVAL, "open %s: lies on no mount that can be seen", w.Path)
}

// mountID takes the mount's number out of an fdinfo file, 0 if it has none.
func mountID(fdinfo string) int {
	for line := range strings.Lines(fdinfo) {
		if rest, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id, err := strconv.Atoi(strings.TrimSpace(rest))
			if err != nil {
				return 0
			}
			return id
		}
	}
	return 0
}

// bounded refuses a path of root's that really lies elsewhere than below the
// directories that root listed.
func (o *opener) bounded(w ctl.Want, found int) error {
	if o.within == nil {
		return nil
	}
	real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", found))
	if err != nil {
		return o.refused(w, err)
	}
	for _, dir := range o.within {
		if strings.HasPrefix(real, strings.TrimSuffix(dir, "/")+"/") {
			return nil
		}
	}
	return ctl.Errorf(syscall.EACCES, "open %s: %s's own files only below -images: %s", w.Path, o.who, strings.Join(o.within, " "))
}

// settle makes an open file ready to be handed over.
func (o *opener) settle(w ctl.Want, fd int, before unix.Stat_t) error {
	var after unix.Stat_t
	if err := unix.Fstat(fd, &after); err != nil {
		return o.refused(w, err)
	}
	if after.Dev != before.Dev || after.Ino != before.Ino || kind(after.Mode) != "" {
		return ctl.Errorf(syscall.EINVAL, "open %s: became another file meanwhile", w.Path)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags&^unix.O_NONBLOCK)
	}
	if err != nil {
		return o.refused(w, err)
	}
	return nil
}

// refused puts a system call's error into the contract's numbers and words.
func (o *opener) refused(w ctl.Want, err error) error {
	errno := ctl.Errno(err)
	reason := errno.Error()
	switch errno {
	case syscall.ENOTDIR:
		errno = syscall.ENOENT
	case syscall.EPERM, syscall.EROFS:
		errno = syscall.EACCES
	case syscall.ELOOP:
		errno, reason = syscall.EINVAL, "too many symbolic links, or one of /proc's"
	case syscall.ENAMETOOLONG, syscall.ENXIO, syscall.EISDIR:
		errno = syscall.EINVAL
	case syscall.ETXTBSY:
		errno = syscall.EBUSY
	}
	return ctl.Errorf(errno, "open %s as %s: %s", w.Path, o.who, reason)
}
