package nativetest

import (
	"io"
	"os"

	"vmfs/vmm/kvm"
)

// KeepCPU makes one CPU that never runs, and keeps it until it is closed. KVM
// patches the kernel's code when the first VCPU comes and when the last goes;
// an emulated host (docs/testbed.md) that does so machine after machine is too
// much for QEMU 7.2, whose CPUs then go on running what was there before.
func KeepCPU() (io.Closer, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sys, err := kvm.New(f)
	if err != nil {
		return nil, err
	}
	vm, err := sys.CreateVM()
	if err != nil {
		return nil, err
	}
	defer vm.Close()
	return vm.CreateVCPU(0)
}
