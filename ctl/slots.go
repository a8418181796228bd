package ctl

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A definition has two slots, files that are written in turn: a new text goes
// over the one before the present one. So a change is one write and one sync
// of a file whose name and, mostly, size stay as they are; it is certain when
// it is answered; and a power cut on the way spoils only what nobody needs.
//
// A slot has the text, a line `sum SEQ HASH`, and newlines up to a multiple of
// slotBlock. The slot with the higher SEQ holds, if HASH says that it is
// whole. That is no CRC, which its writer could aim at: a power cut leaves any
// mixture of the sectors of two texts, users choose most of both, and in a
// mixture that counts one's path could stand beside another's uid.

const slotBlock = 4096

var slotNames = [2]string{"definition.0", "definition.1"}

// slots knows which of the two files in a directory holds.
type slots struct {
	at     int    // the one that holds
	seq    uint64 // its number
	sure   bool   // it will outlast a power cut
	spoilt bool   // the other one has something that is not whole
}

// slotText is the content of a slot.
func slotText(text string, seq uint64) string {
	b := make([]byte, 0, len(text)+slotBlock+64)
	b = append(b, text...)
	b = fmt.Appendf(b, "sum %d ", seq)
	hash := sha256.Sum256(b)
	b = fmt.Appendf(b, "%x\n", hash[:16])
	for len(b)%slotBlock != 0 {
		b = append(b, '\n')
	}
	return string(b)
}

// parseSlot is the other way round. It reports false for what is not whole.
func parseSlot(content string) (text string, seq uint64, ok bool) {
	lines := strings.TrimRight(content, "\n")
	end := strings.LastIndexByte(lines, '\n') + 1
	f := strings.Split(lines[end:], " ")
	if len(f) != 3 || number(&seq, f[1]) != nil {
		return "", 0, false
	}
	text = content[:end]
	return text, seq, content == slotText(text, seq)
}

// readSlots reads the definition in dir. One that cannot be read might be the
// one that holds, so that is an error.
func readSlots(dir string) (text string, s slots, err error) {
	for i, name := range slotNames {
		content, err := os.ReadFile(filepath.Join(dir, name))
		switch t, seq, ok := parseSlot(string(content)); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", slots{}, err
		case ok && seq > s.seq:
			text, s.at, s.seq = t, i, seq
		case !ok && len(content) > 0:
			s.spoilt = true
		}
	}
	if s.seq == 0 {
		return "", s, fmt.Errorf("neither %s nor %s is whole", slotNames[0], slotNames[1])
	}
	return text, s, nil
}

// newSlots begins a definition in a directory that has none.
func newSlots(dir, text string) (slots, error) {
	s := slots{at: 1, sure: true}
	err := s.write(dir, text)
	return s, err
}

// write puts text in the place of the present one. With an error the present
// one still holds.
func (s *slots) write(dir, text string) error {
	if err := s.ensure(dir); err != nil {
		return err
	}
	next := slots{at: 1 - s.at, seq: s.seq + 1, sure: true}
	f, err := os.OpenFile(filepath.Join(dir, slotNames[next.at]), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fillSlot(f, slotText(text, next.seq)); err != nil {
		return voidSlot(f, err)
	}
	*s = next
	return nil
}

// ensure makes the present text outlast a power cut before the other one goes:
// a daemon that was killed may have written it and not synced it.
func (s *slots) ensure(dir string) error {
	if s.sure {
		return nil
	}
	f, err := os.Open(filepath.Join(dir, slotNames[s.at]))
	if err == nil {
		err = f.Sync()
		f.Close()
	}
	if err == nil {
		err = syncDir(dir)
	}
	s.sure = err == nil
	return err
}

// fillSlot gives a slot its content. One that was empty may be a new file,
// whose name is to last as well.
func fillSlot(f *os.File, content string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if info.Size() > int64(len(content)) {
		if err := f.Truncate(int64(len(content))); err != nil {
			return err
		}
	}
	if err := syncData(f); err != nil || info.Size() > 0 {
		return err
	}
	return syncDir(filepath.Dir(f.Name()))
}

// voidSlot empties a slot that could not be written. What was refused may be
// whole there all the same, in memory or on the disk, and a later daemon would
// take it for the definition.
func voidSlot(f *os.File, why error) error {
	err := f.Truncate(0)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("%w; the change may come back when the daemon starts again, since it cannot be taken back either: %v", why, err)
	}
	return why
}

// syncData is fdatasync(2).
func syncData(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
