package fstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// Who is a user that the matrix acts as.
type Who struct {
	Name     string
	UID, GID uint32
	Groups   []uint32
}

// Actor tries what a user may do, through one door. Paths are below the root
// of the tree, whose own is "."; what is opened is closed again, and nothing
// waits.
type Actor interface {
	Open(path string, read, write bool) error
	Write(path, text string) error // opens it for writing, and writes once
	Chmod(path string, mode uint32) error
	Mkdir(path string) error
	Rmdir(path string) error
}

// The users of the matrix: what it makes belongs to the owner, and to a group
// of which the member is.
const matrixGroup = 52100

var (
	matrixRoot  = Who{Name: "root"}
	matrixOwner = Who{"the owner", alice, alice, nil}
	matrixOther = Who{"another", 52003, 52003, nil}
	matrixUsers = []Who{matrixRoot, matrixOwner, {"a member", bob, bob, []uint32{matrixGroup}}, matrixOther}
)

// Matrix tries every operation on every file as every sort of user, and wants
// the errno that follows from the modes of the table of files, which it reads
// from help, and nothing else: first with these modes, then with others. dir
// is where the tree is mounted, by which root prepares it; door gives the
// Actors, which may come another way.
func Matrix(t *testing.T, dir string, door func(t *testing.T, w Who) Actor) {
	needRoot(t)
	x := &matrix{t: t, dir: dir, files: matrixFiles(t, dir)}
	machines := list(t, dir+"/vm")
	t.Cleanup(x.remove)
	x.prepare()
	var actors []Actor
	for _, w := range matrixUsers {
		actors = append(actors, door(t, w))
	}
	for pass, change := range []func(){func() {}, x.change} {
		change()
		for i, w := range matrixUsers {
			x.try(fmt.Sprint("pass ", pass+1, ": ", w.Name), w, actors[i])
		}
	}
	if config := read(t, filepath.Join(dir, "vm", matrixName, "config")); strings.Count(config, "\n") != 3 { // begin, a mac, end
		t.Errorf("what was refused changed something:\n%s", config)
	}
	// Those that clone made go when the kernel says that it is closed, which it
	// need not have done yet when close(2) returns.
	want := append(machines, matrixName)
	eventually(t, fmt.Sprintf("the machines are %v", want), func() bool { return len(list(t, dir+"/vm")) == len(want) })
	t.Logf("%d files, %d operations", len(x.files), x.tried)
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// matrixName is the machine and the switch of the matrix; its user's is the
// owner's uid.
const matrixName = "fstest-matrix"

type matrix struct {
	t       *testing.T
	dir     string
	files   []*matrixFile // a directory before what is in it
	changed bool          // by now they are not as in the table
	tried   int
}

// matrixFile is a file of the tree with what decides who may do what with it.
type matrixFile struct {
	path     string
	in       *matrixFile // the directory; nil for the root
	dir      bool
	makes    bool   // directories are made in it
	comes    bool   // it is such a directory
	writes   bool   // somebody can write it
	object   string // the directory of the object that it is of, if one
	mode     uint32
	uid, gid uint32
}

// matrixFiles are those of the table, with its modes. Of those of an object
// that belong to its owner, what is 0644 is root's, as are the limits of a
// user.
func matrixFiles(t *testing.T, dir string) []*matrixFile {
	_, table, ok := strings.Cut(read(t, dir+"/help"), "\n\n")
	if !ok {
		t.Fatal("help has no table")
	}
	root := &matrixFile{path: ".", dir: true, mode: 0o755}
	byPath := map[string]*matrixFile{"": root}
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		mode, err := strconv.ParseUint(f[1], 8, 32)
		if err != nil {
			t.Fatalf("help: %q: %v", line, err)
		}
		path, isDir := strings.CutSuffix(f[0], "/")
		file := &matrixFile{dir: isDir, mode: uint32(mode), writes: mode&0o222 != 0, makes: isDir && slices.Contains(f, "mkdir")}
		file.place(path)
		byPath[path] = file
	}
	files := []*matrixFile{root}
	for path, file := range byPath {
		if path == "" {
			continue
		}
		above, name := "", path
		if i := strings.LastIndexByte(path, '/'); i >= 0 {
			above, name = path[:i], path[i+1:]
		}
		if file.in = byPath[above]; file.in == nil {
			t.Fatalf("help has %s and no %s", path, above)
		}
		file.comes = file.in.makes && (name == "NAME" || name == "N")
		files = append(files, file)
	}
	slices.SortFunc(files[1:], func(a, b *matrixFile) int { return strings.Compare(a.path, b.path) })
	return files
}

// place says where a file of the table is, and whose.
func (f *matrixFile) place(path string) {
	name := matrixName
	kind, _, ofObject := strings.Cut(strings.TrimPrefix(path, "live/"), "/NAME")
	switch {
	case !ofObject:
	case kind == "user":
		name, f.object = strconv.Itoa(alice), kind
	default:
		if f.object = kind; f.mode != 0o644 {
			f.uid, f.gid = alice, matrixGroup
		}
	}
	f.path = strings.Replace(strings.Replace(path, "NAME", name, 1), "/N/", "/0/", 1)
	if above, ok := strings.CutSuffix(f.path, "/N"); ok {
		f.path = above + "/0"
	}
}

// prepare makes what is not there, and wants all to be as the files say. Until
// they were changed, that takes no more than to give the objects to the owner.
func (x *matrix) prepare() {
	x.t.Helper()
	for _, f := range x.files {
		if !f.comes {
			continue
		}
		if err := syscall.Mkdir(filepath.Join(x.dir, f.path), 0o755); err != nil && err != syscall.EEXIST {
			x.t.Fatalf("mkdir %s: %v", f.path, err)
		}
		x.put(f)
	}
	// A change of owner may meet the name of what was removed before; an
	// open returns when the kernel was told.
	read(x.t, filepath.Join(x.dir, "version"))
	for _, f := range x.files {
		if x.changed && f.in != nil {
			x.put(f)
		}
		st := stat(x.t, filepath.Join(x.dir, f.path))
		if st.Mode&0o7777 != f.mode || st.Uid != f.uid || st.Gid != f.gid {
			x.t.Fatalf("%s: mode %o, owner %d, group %d, want %o %d %d", f.path, st.Mode&0o7777, st.Uid, st.Gid, f.mode, f.uid, f.gid)
		}
	}
}

// put gives a file the owner, the group and the mode that it is to have.
func (x *matrix) put(f *matrixFile) {
	x.t.Helper()
	path := filepath.Join(x.dir, f.path)
	if err := syscall.Chown(path, int(f.uid), int(f.gid)); err != nil {
		x.t.Fatalf("chown %s: %v", f.path, err)
	}
	if err := syscall.Chmod(path, f.mode); err != nil {
		x.t.Fatalf("chmod %s: %v", f.path, err)
	}
}

// The modes of the second pass, in turn. Directories let most people pass, or
// nobody would come to a file.
var (
	otherModes    = []uint32{0o640, 0o604, 0o460, 0o246, 0o666, 0o000, 0o062, 0o006, 0o440}
	otherDirModes = []uint32{0o755, 0o775, 0o751, 0o1777, 0o711, 0o705}
)

// change gives the files other modes, and some to another user.
func (x *matrix) change() {
	for i, f := range x.files[1:] {
		if f.object == "" {
			was := *f
			x.t.Cleanup(func() { x.put(&was) })
		}
		modes := otherModes
		if f.dir {
			modes = otherDirModes
		}
		f.mode = modes[i%len(modes)]
		// A NIC with an attribute of another's could not be removed.
		if i%5 == 0 && !f.comes && filepath.Base(f.path) != "mac" {
			f.uid, f.gid = matrixOther.UID, matrixOther.GID
		}
		switch f.path {
		case "vm":
			f.mode, f.gid = 0o1777, matrixGroup
		case "switch":
			f.mode, f.gid = 0o775, matrixGroup
		}
	}
	x.changed = true
	x.prepare()
}

// remove takes away what was made.
func (x *matrix) remove() {
	for _, f := range slices.Backward(x.files) {
		if f.comes {
			if err := syscall.Rmdir(filepath.Join(x.dir, f.path)); err != nil {
				x.t.Errorf("rmdir %s: %v", f.path, err)
			}
		}
	}
}

// What can be asked of a mode.
const (
	maySearch = 1 << iota
	mayWrite
	mayRead
)

// may is what open(2) and access(2) go by.
func (f *matrixFile) may(w Who, want uint32) bool {
	bits := f.mode
	switch {
	case w.UID == 0:
		return true
	case w.UID == f.uid:
		bits >>= 6
	case w.GID == f.gid || slices.Contains(w.Groups, f.gid):
		bits >>= 3
	}
	return bits&want == want
}

// reaches reports whether all directories above a file let somebody pass.
func (f *matrixFile) reaches(w Who) bool {
	return f.in == nil || f.in.may(w, maySearch) && f.in.reaches(w)
}

// opens is what an open of a file answers.
func (x *matrix) opens(f *matrixFile, w Who, want uint32) syscall.Errno {
	switch {
	case !f.reaches(w):
		return syscall.EACCES
	case f.dir && want&mayWrite != 0:
		return syscall.EISDIR
	case !f.may(w, want):
		return syscall.EACCES
	case want&mayWrite != 0 && !f.writes:
		return syscall.EPERM
	case f.path == "clone" && want == mayRead|mayWrite && !x.file("vm").may(w, mayWrite|maySearch):
		return syscall.EACCES
	}
	return 0
}

func (x *matrix) file(path string) *matrixFile {
	return x.files[slices.IndexFunc(x.files, func(f *matrixFile) bool { return f.path == path })]
}

// senseless is written to files: none takes it.
const senseless = "\x01"

// written is what a file answers to that from one who may open it.
func (f *matrixFile) written() syscall.Errno {
	switch {
	case f.path == "clone":
		return syscall.EPERM
	case filepath.Base(f.path) == "console": // nobody is there whom it could be told
		return syscall.EAGAIN
	}
	return syscall.EINVAL
}

// mkdirs is what a mkdir in a directory answers, of a name that cannot be.
func (f *matrixFile) mkdirs(w Who) syscall.Errno {
	switch {
	case !f.reaches(w) || !f.may(w, mayWrite|maySearch):
		return syscall.EACCES
	case f.makes:
		return syscall.EINVAL
	}
	return syscall.EPERM
}

// rmdirs is what an rmdir of a directory answers.
func (f *matrixFile) rmdirs(w Who) syscall.Errno {
	switch {
	case !f.reaches(w) || !f.in.may(w, mayWrite|maySearch):
		return syscall.EACCES
	case f.in.mode&syscall.S_ISVTX != 0 && w.UID != 0 && w.UID != f.uid && w.UID != f.in.uid:
		return syscall.EPERM
	case f.comes:
		return 0
	}
	return syscall.EPERM
}

// try does everything once as one user.
func (x *matrix) try(as string, w Who, a Actor) {
	for _, f := range x.files {
		want := func(what string, err error, want syscall.Errno) {
			x.t.Helper()
			x.tried++
			if want == 0 && err != nil || want != 0 && !errors.Is(err, want) {
				x.t.Errorf("%s: %s %s, which is %04o of %d and group %d: got %v, want errno %d (%v)",
					as, what, f.path, f.mode, f.uid, f.gid, err, int(want), want)
			}
		}
		want("open for reading", a.Open(f.path, true, false), x.opens(f, w, mayRead))
		want("open for both", a.Open(f.path, true, true), x.opens(f, w, mayRead|mayWrite))
		answer := x.opens(f, w, mayWrite)
		if answer == 0 {
			answer = f.written()
		}
		want("write", a.Write(f.path, senseless), answer)
		if f.dir {
			want("mkdir in", a.Mkdir(f.path+"/.x"), f.mkdirs(w))
		}
		if f.in == nil {
			continue
		}
		switch {
		case !f.reaches(w):
			answer = syscall.EACCES
		case w.UID != 0 && w.UID != f.uid:
			answer = syscall.EPERM
		default:
			answer = 0
		}
		want("chmod", a.Chmod(f.path, f.mode), answer)
		if f.dir {
			err := a.Rmdir(f.path)
			want("rmdir", err, f.rmdirs(w))
			if err == nil {
				x.prepare()
			}
		}
	}
}

// Syscalls is the door of a mounted tree.
func Syscalls(dir string) func(t *testing.T, w Who) Actor {
	return func(t *testing.T, w Who) Actor {
		a := &caller{dir: dir, calls: make(chan func())}
		began := make(chan error)
		go a.run(w, began)
		if err := <-began; err != nil {
			t.Fatalf("act as %s: %v", w.Name, err)
		}
		t.Cleanup(func() { close(a.calls) })
		return a
	}
}

// caller is a thread with another user's rights, and so with his only.
type caller struct {
	dir   string
	calls chan func()
}

func (a *caller) run(w Who, began chan<- error) {
	runtime.LockOSThread() // for good: it ends with the goroutine
	began <- become(w)
	for call := range a.calls {
		call()
	}
}

// become changes the credentials of one thread.
func become(w Who) error {
	groups := append([]uint32{w.GID}, w.Groups...)
	for _, c := range []struct{ call, a, b, c uintptr }{
		{syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0},
		{syscall.SYS_SETRESGID, uintptr(w.GID), uintptr(w.GID), uintptr(w.GID)},
		{syscall.SYS_SETRESUID, uintptr(w.UID), uintptr(w.UID), uintptr(w.UID)},
	} {
		if _, _, errno := syscall.RawSyscall(c.call, c.a, c.b, c.c); errno != 0 {
			return errno
		}
	}
	return nil
}

func (a *caller) do(path string, f func(path string) error) (err error) {
	done := make(chan struct{})
	a.calls <- func() {
		defer close(done)
		err = f(filepath.Join(a.dir, path))
	}
	<-done
	return err
}

func (a *caller) Open(path string, read, write bool) error {
	flags := syscall.O_RDONLY
	switch {
	case read && write:
		flags = syscall.O_RDWR
	case write:
		flags = syscall.O_WRONLY
	}
	return a.do(path, func(path string) error {
		fd, err := Insist(func() (int, error) { return syscall.Open(path, flags|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0) })
		if err != nil {
			return err
		}
		return syscall.Close(fd)
	})
}

func (a *caller) Write(path, text string) error {
	return a.do(path, func(path string) error {
		fd, err := Insist(func() (int, error) { return syscall.Open(path, syscall.O_WRONLY|syscall.O_CLOEXEC, 0) })
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		_, err = Insist(func() (int, error) { return syscall.Write(fd, []byte(text)) })
		return err
	})
}

func (a *caller) Chmod(path string, mode uint32) error {
	return a.do(path, func(path string) error { return syscall.Chmod(path, mode) })
}

func (a *caller) Mkdir(path string) error {
	return a.do(path, func(path string) error { return syscall.Mkdir(path, 0o755) })
}

func (a *caller) Rmdir(path string) error { return a.do(path, syscall.Rmdir) }
