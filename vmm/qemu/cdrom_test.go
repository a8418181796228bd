package qemu

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// recorder is a QEMU that notes what it is asked, and refuses one command.
type recorder struct {
	mu      sync.Mutex
	asked   []string
	refuses string
}

func (r *recorder) answer(command string, id int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, command)
	if command == r.refuses {
		r.refuses = ""
		return fmt.Sprintf(`{"id": %d, "error": {"class": "GenericError", "desc": "no"}}`+"\n", id)
	}
	return done(command, id)
}

// taken is what was asked since it was last called.
func (r *recorder) taken() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := strings.Join(r.asked, " ") + " "
	r.asked = nil
	return text
}

// inserted is a machine with a medium in its drive, whose QEMU refuses a
// command from then on.
func inserted(t *testing.T, refuses string) (*VM, *recorder) {
	t.Helper()
	r := new(recorder)
	m, _ := script(t, "", r.answer)
	vm := &VM{monitor: m, medium: empty}
	if err := vm.Insert(t.Context(), devNull(t)); err != nil {
		t.Fatal(err)
	}
	if got := r.taken(); got != offers+exchanges {
		t.Errorf("asked %q, want %q", got, offers+exchanges)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuses = refuses
	return vm, r
}

func devNull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

const (
	offers    = "add-fd blockdev-add blockdev-add "
	takesOut  = "blockdev-open-tray blockdev-remove-medium "
	exchanges = takesOut + "blockdev-insert-medium blockdev-close-tray "
	withdraws = "blockdev-del blockdev-del remove-fd "
)

func TestInsert(t *testing.T) {
	vm, r := inserted(t, "")
	for _, step := range []struct {
		f    *os.File
		want string
		now  medium
	}{
		{devNull(t), offers + exchanges + withdraws, 1},
		{nil, takesOut + "blockdev-close-tray " + withdraws, empty},
		{nil, takesOut + "blockdev-close-tray ", empty},
		{devNull(t), offers + exchanges, 2},
	} {
		if err := vm.Insert(t.Context(), step.f); err != nil {
			t.Fatal(err)
		}
		if got := r.taken(); got != step.want || vm.medium != step.now {
			t.Errorf("asked %q, medium %d, want %q, %d", got, vm.medium, step.want, step.now)
		}
	}
}

// What goes wrong leaves the old medium in the drive, and nothing of the new.
func TestInsertRefused(t *testing.T) {
	for command, want := range map[string]string{
		"add-fd":                 "add-fd " + withdraws,
		"blockdev-add":           "add-fd blockdev-add " + withdraws,
		"blockdev-open-tray":     offers + "blockdev-open-tray " + exchanges + withdraws,
		"blockdev-insert-medium": offers + takesOut + "blockdev-insert-medium " + exchanges + withdraws,
		"blockdev-close-tray":    offers + exchanges + exchanges + withdraws,
	} {
		vm, r := inserted(t, command)
		if err := vm.Insert(t.Context(), devNull(t)); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v, want EIO", command, err)
		}
		if got := r.taken(); got != want || vm.medium != 0 {
			t.Errorf("%s: asked %q, medium %d, want %q and 0", command, got, vm.medium, want)
		}
	}
}
