package fuse

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/fs"
)

// mortal is a directory that can be gone, with all that is in it.
type mortal struct {
	*memDir
	gone    atomic.Bool
	changed atomic.Int32 // how often attributes were
}

func (d *mortal) alive() error {
	if d.gone.Load() {
		return syscall.ENOENT
	}
	return nil
}

func (d *mortal) Attr(ctx context.Context) (fs.Attr, error) {
	a, _ := d.memDir.Attr(ctx)
	return a, d.alive()
}

func (d *mortal) SetAttr(context.Context, ctl.Cred, ctl.AccessChange) error {
	if err := d.alive(); err != nil {
		return err
	}
	d.changed.Add(1)
	return nil
}

func (d *mortal) Lookup(ctx context.Context, name string) (fs.Node, error) {
	if err := d.alive(); err != nil {
		return nil, err
	}
	return d.memDir.Lookup(ctx, name)
}

// mortalFile is a file of a mortal.
type mortalFile struct {
	*memFile
	of *mortal
}

func (f mortalFile) Attr(ctx context.Context) (fs.Attr, error) {
	a, _ := f.memFile.Attr(ctx)
	return a, f.of.alive()
}

func (f mortalFile) SetAttr(ctx context.Context, c ctl.Cred, a ctl.AccessChange) error {
	return f.of.SetAttr(ctx, c, a)
}

func (f mortalFile) Open(ctx context.Context, c ctl.Cred, flags fs.Flags) (fs.Handle, error) {
	if err := f.of.alive(); err != nil {
		return nil, err
	}
	return f.memFile.Open(ctx, c, flags)
}

// newMortal makes one with two files, that are read as text.
func newMortal(ino uint64, text string) *mortal {
	d := &mortal{memDir: newMemDir()}
	d.ino = ino
	for i, name := range []string{"seen", "unseen"} {
		d.files[name] = mortalFile{&memFile{ino: ino + 1 + uint64(i), read: func(_ context.Context, p []byte) (int, error) {
			return copy(p, text), nil
		}}, d}
	}
	return d
}

// Who comes by a name of which the kernel was not told yet that it leads to
// something new is led there.
func TestStaleNames(t *testing.T) {
	reads := func(path string) func(dir string) error {
		return func(dir string) error {
			got, err := readFile(dir + path)
			if err == nil && got != "new" {
				t.Errorf("%s reads %q", path, got)
			}
			return err
		}
	}
	chmod := func(path string) func(dir string) error {
		return func(dir string) error { return unix.Chmod(dir+path, 0o700) }
	}
	for name, do := range map[string]func(dir string) error{
		"open":               reads("/d/seen"),
		"open, unknown yet":  reads("/d/unseen"),
		"chmod":              chmod("/d/seen"),
		"chmod of directory": chmod("/d"),
		"chown":              func(dir string) error { return unix.Chown(dir+"/d", 0, 0) },
		"utimes":             func(dir string) error { return unix.Utimes(dir+"/d/seen", nil) },
		"truncate":           func(dir string) error { return unix.Truncate(dir+"/d/seen", 0) },
	} {
		t.Run(name, func(t *testing.T) {
			Believe(t, time.Hour)
			root, was, is := newMemDir(), newMortal(10, "old"), newMortal(20, "new")
			root.files["d"] = was
			dir, _ := mount(t, root, Options{Log: t.Logf})
			know := func() {
				t.Helper()
				var st unix.Stat_t
				if err := unix.Stat(dir+"/d/seen", &st); err != nil {
					t.Fatal(err)
				}
			}
			know()
			was.gone.Store(true)
			root.mu.Lock()
			root.files["d"] = is
			root.mu.Unlock()
			if err := do(dir); err != nil {
				t.Errorf("with another in its place: %v", err)
			}
			know()
			is.gone.Store(true)
			root.mu.Lock()
			delete(root.files, "d")
			root.mu.Unlock()
			if err := do(dir); err != unix.ENOENT {
				t.Errorf("with none in its place: got %v, want %v", err, unix.ENOENT)
			}
		})
	}
}
