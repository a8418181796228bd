package fs_test

import (
	"errors"
	"syscall"
	"testing"

	"vmfs/ctl"
	"vmfs/fs"
)

// Who restores a copy writes every file as it was read and sets every mode
// and owner. Where that is what is there, nothing changes; what cannot be
// written is EPERM, at which a copying program goes on to the next file.
func TestWritingBackChangesNothing(t *testing.T) {
	tr, m, _ := tree(t)
	ok(t, write(t, tr, alice, "vm/web/config", "disk/0/path /d"))
	mode := uint32(0o600)
	ok(t, walk(t, tr, "vm/web/note").SetAttr(bg, alice, ctl.AccessChange{Mode: &mode}))
	events, written := m.EventsText(), 0
	var back func(path string)
	back = func(path string) {
		n := walk(t, tr, path)
		attr, err := n.Attr(bg)
		ok(t, err)
		ok(t, n.SetAttr(bg, root, ctl.AccessChange{Mode: &attr.Mode, UID: &attr.UID, GID: &attr.GID}))
		if d, isDir := n.(fs.Dir); isDir {
			list, err := d.List(bg)
			ok(t, err)
			for _, e := range list {
				back(path + "/" + e.Name)
			}
			return
		}
		read := text(t, open(t, tr, root, path, reading))
		switch err := write(t, tr, root, path, read); {
		case err == nil:
			written++
		case !errors.Is(err, syscall.EPERM):
			t.Errorf("writing %q back to %s: %v", read, path, err)
		}
	}
	for _, file := range []string{"ctl", "config", "config.old", "modes", "status", "info", "events.log", "disk", "cpus", "note", "kernel"} {
		back("vm/web/" + file)
	}
	if got := m.EventsText(); got != events || written < 9 {
		t.Errorf("%d files were written; events:\n%swant:\n%s", written, got, events)
	}
	if err := write(t, tr, root, "vm/web/ctl", "webb\n"); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("another name: %v, want EINVAL", err)
	}
}
