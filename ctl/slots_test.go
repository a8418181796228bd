package ctl_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
)

// TestFailedWrites fails each call of a change. What was refused is not there,
// not for this daemon, not for the next, and not after a power cut; even where
// it did get to the disk.
func TestFailedWrites(t *testing.T) {
	c := newCrash(t)
	var web *ctl.VM
	c.step("serve", 3, func() { c.open() })
	c.step("mkdir", 1, func() { web = c.create("web") })
	fails := func(name string, texts int, op, file string, n int, errno syscall.Errno) {
		c.step(name, texts, func() {
			c.fs.fail(failNth(n, op, "vm/web"+file, errno))
			refused(t, web.Set(alice, "note", name), errno, "web: the state directory: ")
			c.fs.fail(nil)
		})
		c.step("a new daemon after "+name, 0, func() {
			c.open()
			if web = c.m.VM("web"); web.Get("note") == name {
				t.Errorf("%s: the change is there", name)
			}
		})
	}
	// A text that was whole for a moment counts as one, and so does the
	// one before it, which holds again.
	fails("no space for a new file", 0, "write", "/definition.1", 1, syscall.ENOSPC)
	fails("a present text that is not synced", 0, "sync", "/definition.0", 1, syscall.EIO)
	fails("a new file that is not synced", 2, "sync", "/definition.1", 1, syscall.EIO)
	fails("a new name that is not synced", 2, "sync", "", 2, syscall.EIO)
	c.step("a change", 1, func() { ok(t, web.Set(alice, "note", "one")) })
	fails("no space", 2, "write", "/definition.0", 1, syscall.ENOSPC)
	fails("a sync", 2, "sync", "/definition.0", 1, syscall.EIO)
	c.step("a change after that", 1, func() { ok(t, web.Set(alice, "note", "two")) })
	c.step("and another", 1, func() { ok(t, web.Set(alice, "note", "three")) })
	c.check()
}

// failNth fails the nth call of an operation on a file.
func failNth(n int, op, path string, errno syscall.Errno) func(op, path string) syscall.Errno {
	return func(o, p string) syscall.Errno {
		if o == op && p == path {
			n--
		}
		if n == 0 && o == op && p == path {
			return errno
		}
		return 0
	}
}

// TestKilledInAChange has a daemon that was killed between the write and the
// sync. What the next one serves outlasts the change after it, however torn.
func TestKilledInAChange(t *testing.T) {
	c := newCrash(t)
	c.step("serve", 3, func() { c.open() })
	c.step("mkdir", 1, func() { c.create("web") })
	for seq := uint64(2); seq < 10; seq += 3 { // each slot in turn
		c.late("a change that is cut short", 1, func() {
			text := strings.Replace(c.m.VM("web").Saved(), "edition ", "edition 1", 1)
			overwrite(t, filepath.Join(c.fs.dir, "vm/web", slots[(seq+1)%2]), ctl.SlotText(text, seq))
		})
		c.late("a new daemon", 0, func() { c.open() })
		c.step("two changes", 2, func() {
			ok(t, c.m.VM("web").Set(alice, "note", strings.Repeat("x", 1000)))
			ok(t, c.m.VM("web").Set(alice, "note", "short"))
		})
	}
	c.check()
}

// overwrite writes over a file, or a new one, and does not sync it.
func overwrite(t *testing.T, path, text string) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	ok(t, err)
	defer f.Close()
	_, err = f.WriteString(text)
	ok(t, err)
}

// A change that can neither be made nor be taken back is refused with just
// that said, and the next one stands.
func TestWriteThatCannotBeTakenBack(t *testing.T) {
	c := newCrash(t)
	c.open()
	web := c.create("web")
	c.fs.fail(func(op, path string) syscall.Errno {
		if op == "write" {
			return 0
		}
		return syscall.EIO
	})
	refused(t, web.Set(alice, "note", "one"), syscall.EIO, "the change may come back when the daemon starts again")
	c.fs.fail(nil)
	if got := web.Get("note"); got != "" {
		t.Errorf("the note is %q", got)
	}
	ok(t, web.Set(alice, "note", "two"))
	c.open()
	if got := c.m.VM("web").Get("note"); got != "two" {
		t.Errorf("the note is %q, want two", got)
	}
}

func TestSlotText(t *testing.T) {
	for _, size := range []int{1, 100, 4000, 4041, 4042, 4043, 4096, 70000} {
		text := strings.Repeat("x", size-1) + "\n"
		slot := ctl.SlotText(text, 17)
		got, seq, whole := ctl.ParseSlot(slot)
		if got != text || seq != 17 || !whole || len(slot)%4096 != 0 || len(slot)-len(text) >= 4096+64 {
			t.Errorf("%d bytes: slot of %d, read as %d bytes, %d, %v", size, len(slot), len(got), seq, whole)
		}
	}
}

func FuzzParseSlot(f *testing.F) {
	slot := ctl.SlotText("id 1\nserial 2\n", 3)
	for _, s := range []string{"", "\n", "sum", "sum 1 ", slot, slot[:40], strings.Replace(slot, "sum 3", "sum 4", 1),
		strings.Replace(slot, "sum 3", "sum 03", 1), strings.Replace(slot, "\n\n", "\n\x00", 1), "id 9\n" + slot} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, content string) {
		text, seq, whole := ctl.ParseSlot(content)
		if whole && ctl.SlotText(text, seq) != content {
			t.Errorf("%q was read as %q, %d", content, text, seq)
		}
	})
}
