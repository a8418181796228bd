package acpi

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const base = 0xe0000

func config(cpus, devices int) Config {
	c := Config{
		CPUs:     cpus,
		Serial:   Port{0x3f8, 4},
		Keyboard: 1,
		Events:   Port{0x601, 5},
		Power:    0x600,
	}
	for i := range devices {
		c.Virtio = append(c.Virtio, Window{0xc0000000 + uint32(i)<<12, 0x1000, Line(6 + i)})
	}
	return c
}

func build(t testing.TB, c Config) map[string][]byte {
	t.Helper()
	b, err := Build(base, c)
	if err != nil {
		t.Fatal(err)
	}
	return tables(t, b)
}

// tables finds the tables as a kernel does, and checks them on the way.
func tables(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	if string(b[:8]) != "RSD PTR " || total(b[:20]) != 0 || total(b[:36]) != 0 || b[15] != 2 {
		t.Fatalf("root pointer % x", b[:36])
	}
	at := func(addr uint64) []byte {
		off := addr - base
		if addr < base || off+headerSize > uint64(len(b)) {
			t.Fatalf("a table at %#x", addr)
		}
		n := uint64(le.Uint32(b[off+4:]))
		if off+n > uint64(len(b)) || off%16 != 0 || total(b[off:off+n]) != 0 {
			t.Fatalf("table %q at %#x: %d bytes, which add up to %d", b[off:off+4], addr, n, total(b[off:off+n]))
		}
		return b[off : off+n]
	}
	found := map[string][]byte{"XSDT": at(le.Uint64(b[24:]))}
	for x := found["XSDT"][headerSize:]; len(x) > 0; x = x[8:] {
		table := at(le.Uint64(x))
		found[string(table[:4])] = table
	}
	found["DSDT"] = at(le.Uint64(found["FACP"][140:]))
	if uint64(le.Uint32(found["FACP"][40:])) != le.Uint64(found["FACP"][140:]) {
		t.Error("the FADT's two pointers to the DSDT differ")
	}
	return found
}

func total(p []byte) (n byte) {
	for _, v := range p {
		n += v
	}
	return n
}

// What Linux asks of a FADT before it turns a machine off or resets it.
func TestFADT(t *testing.T) {
	f := build(t, config(1, 0))["FACP"]
	if len(f) != 276 || f[8] != 6 || f[131] != 3 {
		t.Errorf("%d bytes, revision %d.%d", len(f), f[8], f[131])
	}
	if flags := le.Uint32(f[112:]); flags&(1<<20) == 0 || flags&(1<<10) == 0 {
		t.Errorf("flags %#x", flags)
	}
	for _, off := range []int{116, 244, 256} {
		if want := []byte{1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0}; !bytes.Equal(f[off:off+12], want) {
			t.Errorf("register at %d % x, want % x", off, f[off:off+12], want)
		}
	}
	if f[128] != 1 {
		t.Errorf("reset value %d", f[128])
	}
}

func TestMADT(t *testing.T) {
	for _, cpus := range []int{1, 2, 64, 255, 256, 300} {
		m := build(t, config(cpus, 0))["APIC"]
		if le.Uint32(m[36:]) != 0xfee00000 || le.Uint32(m[40:]) != 0 {
			t.Errorf("%d CPUs: APIC at %#x, flags %#x", cpus, le.Uint32(m[36:]), le.Uint32(m[40:]))
		}
		want := uint32(0)
		for e := m[44:]; len(e) > 0; e = e[e[1]:] {
			var id, uid uint32
			switch {
			case e[0] == 1 && e[1] == 12 && le.Uint32(e[4:]) == 0xfec00000 && le.Uint32(e[8:]) == 0:
				continue
			case e[0] == 0 && e[1] == 8 && e[4] == 1:
				uid, id = uint32(e[2]), uint32(e[3])
			case e[0] == 9 && e[1] == 16 && e[8] == 1 && le.Uint32(e[4:]) > 254:
				id, uid = le.Uint32(e[4:]), le.Uint32(e[12:])
			default:
				t.Fatalf("%d CPUs: entry % x", cpus, e[:e[1]])
			}
			if id != want || uid != want {
				t.Fatalf("%d CPUs: id %d, uid %d, want %d", cpus, id, uid, want)
			}
			want++
		}
		if want != uint32(cpus) {
			t.Errorf("%d CPUs: %d are told", cpus, want)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"0 CPUs":                 func(c *Config) { c.CPUs = 0 },
		"4097 CPUs":              func(c *Config) { c.CPUs = MaxCPUs + 1 },
		"interrupt 24 of 24":     func(c *Config) { c.Virtio[1].GSI = 24 },
		"interrupt 4: two":       func(c *Config) { c.Virtio[0].GSI = 4 },
		"interrupt 1: two":       func(c *Config) { c.Events.GSI = 1 },
		"0 bytes at":             func(c *Config) { c.Virtio[1].Size = 0 },
		"8192 bytes at 0xfffff0": func(c *Config) { c.Virtio[1] = Window{0xfffff000, 0x2000, 9} },
	} {
		c := config(1, 2)
		edit(&c)
		if _, err := Build(base, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	for _, addr := range []uint64{base + 8, 1 << 32} {
		if _, err := Build(addr, config(1, 0)); err == nil {
			t.Errorf("tables at %#x", addr)
		}
	}
}

func TestPkgLength(t *testing.T) {
	for _, c := range []struct {
		n    int
		want string
	}{{0, "01"}, {62, "3f"}, {63, "4104"}, {4093, "4fff"}, {4094, "810001"}, {1<<20 - 4, "8fffff"}, {1<<20 - 3, "c1000001"}} {
		body := make([]byte, c.n)
		got := pkgLength(body)
		if prefix := hex.EncodeToString(got[:len(got)-c.n]); prefix != c.want {
			t.Errorf("%d bytes: %s, want %s", c.n, prefix, c.want)
		}
	}
}

// iasl disassembles the tables without a warning, and makes the same of what
// it wrote.
func TestIASL(t *testing.T) {
	iasl(t, config(1, 0))
	iasl(t, config(2, 3))
	iasl(t, config(300, 18))
}

func TestIASLRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 3))
	for range 8 {
		c := config(1+r.IntN(64), r.IntN(19))
		c.Serial.Port, c.Events.Port, c.Power = uint16(r.Uint32()), uint16(r.Uint32()), uint16(r.Uint32())
		for i := range c.Virtio {
			c.Virtio[i].Addr = r.Uint32() &^ 0xfff >> 1
		}
		iasl(t, c)
	}
}

func iasl(t *testing.T, c Config) {
	t.Helper()
	if _, err := exec.LookPath("iasl"); err != nil {
		t.Skip("no iasl here: package acpica-tools")
	}
	dir := t.TempDir()
	for name, table := range build(t, c) {
		file := filepath.Join(dir, strings.ToLower(name)+".dat")
		if err := os.WriteFile(file, table, 0o600); err != nil {
			t.Fatal(err)
		}
		clean(t, dir, "-d", file)
		dsl := strings.TrimSuffix(file, ".dat") + ".dsl"
		clean(t, dir, "-p", filepath.Join(dir, "again"), dsl)
		again, err := os.ReadFile(filepath.Join(dir, "again.aml"))
		if err != nil {
			t.Fatal(err)
		}
		// The compiler's own name is in bytes 28 to 35, the sum in 9.
		for _, p := range [][]byte{table, again} {
			clear(p[28:36])
			p[9] = 0
		}
		if !bytes.Equal(table, again) {
			t.Errorf("%s with %d CPUs, %d devices: iasl makes something else of it", name, c.CPUs, len(c.Virtio))
		}
	}
}

// The interpreter that kernels have runs _EVT: the button is pressed if the
// register says so, and only then.
func TestPowerButton(t *testing.T) {
	if _, err := exec.LookPath("acpiexec"); err != nil {
		t.Skip("no acpiexec here: package acpica-tools")
	}
	dir := t.TempDir()
	all := build(t, config(1, 2))
	for _, name := range []string{"FACP", "DSDT"} {
		if err := os.WriteFile(filepath.Join(dir, name), all[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for register, pressed := range map[string]bool{"0": false, "1": true, "254": false, "255": true} {
		cmd := exec.Command("acpiexec", "-fv", register, "-b", `execute \_SB_.GED_._EVT 5`, "FACP", "DSDT")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), `Evaluating \_SB_.GED_._EVT`) {
			t.Fatalf("acpiexec: %v\n%s", err, out)
		}
		notice := strings.Contains(string(out), "Device Notify on [PWRB]") && strings.Contains(string(out), "Value 0x80")
		if notice != pressed {
			t.Errorf("register %s: pressed %v, want %v\n%s", register, notice, pressed, out)
		}
	}
}

// clean runs iasl and wants nothing to be said of errors, warnings, remarks.
func clean(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("iasl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil || says(text) {
		t.Fatalf("iasl %s: %v\n%s", strings.Join(args, " "), err, text)
	}
}

// says finds a complaint: "0 Errors, 0 Warnings" is none.
func says(text string) bool {
	for _, word := range []string{"Error", "Warning", "Remark"} {
		for _, line := range strings.Split(text, "\n") {
			if strings.Contains(line, word) && !strings.Contains(line, fmt.Sprintf(" 0 %ss", word)) {
				return true
			}
		}
	}
	return false
}

// FuzzBuild holds the tables together for any machine.
func FuzzBuild(f *testing.F) {
	f.Add(uint16(1), uint8(0), uint16(0x3f8), uint16(0x600))
	f.Add(uint16(300), uint8(18), uint16(0), uint16(0xffff))
	f.Fuzz(func(t *testing.T, cpus uint16, devices uint8, port, power uint16) {
		c := config(int(cpus), int(devices))
		c.Serial.Port, c.Power = port, power
		b, err := Build(base, c)
		if (err == nil) != (c.CPUs >= 1 && c.CPUs <= MaxCPUs && len(c.Virtio) <= 18) {
			t.Fatalf("%d CPUs, %d devices: %v", cpus, devices, err)
		}
		if err == nil {
			tables(t, b)
		}
	})
}
