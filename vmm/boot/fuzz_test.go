package boot

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// FuzzLoad holds Load to its word on any kernel and initrd: an error, or a
// state whose pointers lie in memory.
func FuzzLoad(f *testing.F) {
	f.Add(small().bytes(), []byte("initrd"))
	noNote := small()
	noNote.notes = nil
	f.Add(noNote.bytes(), []byte(nil))
	f.Add(bzImage(nil), []byte("initrd"))
	f.Add(bzImage(func(b table) { b.u32(hdrInitrdAddrMax, 0x1800000) }), []byte("initrd"))
	m := newRAM(f, 64)
	f.Fuzz(func(t *testing.T, kernel, initrd []byte) {
		s, err := Load(m, Spec{Kernel: reader(kernel), Initrd: reader(initrd), Cmdline: "quiet", RSDP: ACPIStart})
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a sentence")
			}
			return
		}
		if _, err := m.Slice(s.RIP, 1); err != nil || s.RIP < highStart {
			t.Errorf("enters at %#x", s.RIP)
		}
		if _, err := m.Slice(s.RBX|s.RSI, 4096); err != nil {
			t.Errorf("structures at %#x %#x", s.RBX, s.RSI)
		}
		if s.KernelEnd > m.Size() || s.InitrdEnd > m.Size() {
			t.Errorf("ends %#x %#x", s.KernelEnd, s.InitrdEnd)
		}
	})
}

// The kernels of this machine's guests, as they are shipped.
func TestRealBzImage(t *testing.T) {
	for _, path := range realKernels(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, _ := f.Stat()
			m := newRAM(t, 192)
			s, err := Load(m, Spec{Kernel: io.NewSectionReader(f, 0, st.Size()), Cmdline: "quiet"})
			if err != nil {
				t.Fatal(err)
			}
			if s.Mode != Long64 {
				t.Errorf("mode %v", s.Mode)
			}
		})
	}
}

// realKernels are the files that scripts/guest and scripts/testbed keep.
func realKernels(t *testing.T) []string {
	home, err := os.UserHomeDir()
	if err != nil {
		t.Skip(err)
	}
	var all []string
	for _, name := range []string{".cache/vmfs/vmlinuz", ".cache/vmfs/box/vmlinuz"} {
		if path, err := filepath.EvalSymlinks(filepath.Join(home, name)); err == nil {
			all = append(all, path)
		}
	}
	if all == nil {
		t.Skip("no kernel in ~/.cache/vmfs: scripts/guest puts one there")
	}
	return all
}
