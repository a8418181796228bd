package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmfs/vmm/engine"
)

var update = flag.Bool("update", false, "write the golden files anew")

// specs are machines whose command lines are in testdata.
func specs() map[string]*engine.Spec {
	f := func() *os.File { return new(os.File) } // only its place counts
	return map[string]*engine.Spec{
		"kernel": {
			ID: 3, Accel: "tcg", CPUs: 2, MemoryMiB: 512, Boot: "disk",
			Cmdline: `console=ttyS0 a="b,c" -sandbox off`, Kernel: f(), Initrd: f(),
		},
		"disks": {
			ID: 4, Accel: "kvm", CPUs: 64, MemoryMiB: 1, Boot: "cdrom", Cdrom: f(),
			Disks: []engine.Disk{
				{N: 0, Images: []engine.Image{{File: f(), Format: "raw"}}},
				{N: 15, ReadOnly: true, Images: []engine.Image{{File: f(), Format: "qcow2"}, {File: f(), Format: "qcow2"}, {File: f(), Format: "raw"}}},
			},
		},
		"nics": {
			ID: 7, Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: "disk",
			Disks: []engine.Disk{{N: 0, Images: []engine.Image{{File: f(), Format: "raw"}}}},
			NICs:  []engine.NIC{{N: 0, MAC: mac(1), Tap: f()}, {N: 15, MAC: mac(0xff), Tap: f()}},
		},
		"netboot": {
			ID: 8, Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: "net", Cdrom: f(),
			Disks: []engine.Disk{{N: 3, Images: []engine.Image{{File: f(), Format: "raw"}}}},
			NICs:  []engine.NIC{{N: 1, MAC: mac(2), Tap: f()}, {N: 2, MAC: mac(3), Tap: f()}},
		},
		"uefi":     {ID: 6, Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: "disk", Flash: &engine.Flash{Code: f(), Vars: f()}},
		"firmware": {ID: 5, Accel: "tcg", CPUs: 1, MemoryMiB: 64, Boot: "net", Firmware: f(), Cmdline: "not used"},
	}
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd1, 0, last} }

func TestCommand(t *testing.T) {
	for name, s := range specs() {
		args, files := commandLine(s, new(os.File), new(os.File))
		got := strings.Join(args, "\n") + "\n"
		path := filepath.Join("testdata", name+".args")
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
		if n := strings.Count(got, "fd=") + strings.Count(got, "/proc/self/fd/"); n != len(files) {
			t.Errorf("%s: %d files for %d numbers", name, len(files), n)
		}
	}
}

// What a user can write never becomes more than the one argument that it is.
func TestCmdlineIsOneArgument(t *testing.T) {
	for _, cmdline := range []string{"", "a,b=c", "-drive file=/etc/passwd", "a\tb", `"}`, "\xff"} {
		s := specs()["kernel"]
		s.Cmdline = cmdline
		args, _ := commandLine(s, new(os.File), new(os.File))
		for i, a := range args {
			if a == "-append" && args[i+1] != cmdline {
				t.Errorf("-append %q, want %q", args[i+1], cmdline)
			}
		}
		s.Cmdline = "other"
		others, _ := commandLine(s, new(os.File), new(os.File))
		if len(args) != len(others) {
			t.Errorf("%q makes %d arguments, not %d", cmdline, len(args), len(others))
		}
	}
}
