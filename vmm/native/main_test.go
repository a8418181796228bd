package native

import (
	"os"
	"testing"

	"vmfs/vmm/kvm"
)

// TestMain keeps one CPU that never runs, beside those of the tests. KVM
// patches the kernel's code when the first VCPU comes and when the last goes;
// an emulated host (docs/testbed.md) that does so every few milliseconds is
// too much for QEMU 7.2, whose CPUs then go on running what was there before.
func TestMain(m *testing.M) {
	idle := keepCPU()
	code := m.Run()
	if idle != nil {
		idle.Close()
	}
	os.Exit(code)
}

func keepCPU() *kvm.VCPU {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	sys, err := kvm.New(f)
	if err != nil {
		return nil
	}
	vm, err := sys.CreateVM()
	if err != nil {
		return nil
	}
	defer vm.Close()
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return nil
	}
	return cpu
}
