package priv

import (
	"os"
	"strings"
	"testing"
)

func TestNoKVM(t *testing.T) {
	for _, c := range []struct{ device, want string }{
		{"/nowhere/kvm", "no /nowhere/kvm"},
		{"/dev/null", "/dev/null: not KVM: "},
	} {
		if got := noKVM(c.device, "/nowhere"); !strings.HasPrefix(got, c.want) {
			t.Errorf("noKVM(%s) = %q, want %q", c.device, got, c.want)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: the rest needs root, for /dev/kvm")
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	if got := noKVM("/dev/kvm", "/nowhere"); got != "" {
		t.Errorf("noKVM = %q, want KVM", got)
	}
	if got := noKVM("/dev/kvm", "/dev"); !strings.Contains(got, "kvm_pvm") {
		t.Errorf("noKVM = %q under kvm_pvm", got)
	}
}

func TestEngines(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to run QEMU as nobody")
	}
	if _, err := os.Stat(qemuPaths[0]); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	var e engines
	first := e.find()
	if first.QEMU != qemuPaths[0] || first.QEMUVersion == "" {
		t.Errorf("found %+v", first)
	}
	e.version = "cached"
	if again := e.find(); again.QEMUVersion != "cached" {
		t.Errorf("QEMU was asked again: %+v", again)
	}
}
