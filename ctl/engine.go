package ctl

import (
	"context"
	"strconv"
	"syscall"
)

// Accels of a Launch: what runs it, and by which means.
const (
	accelNative = "native" // the monitor of this program, with KVM
	accelKVM    = "kvm"    // QEMU with KVM
	accelTCG    = "tcg"    // QEMU with its translator
)

// MaxNativeDevices is how many disks and NICs, together, a machine of the
// native engine has.
const MaxNativeDevices = 17

// engineChoice is how a machine will run, and why so and not better.
type engineChoice struct{ accel, reason string }

// chooser picks the engine of one start. It asks the host once; what the
// files are is known only when they are open, so it is asked twice.
type chooser struct {
	d    *definition
	host Engines
}

// chooser asks what can run a machine here, now.
func (vm *VM) chooser(ctx context.Context, d *definition) (chooser, error) {
	e, err := vm.m.Host.Engines(ctx)
	return chooser{d, e}, err
}

// choose takes the best engine that the definition allows and the host has:
// native, QEMU with KVM, QEMU with TCG. disks are those that are open; nil
// before. ENODEV for what the host has not, EOPNOTSUPP for a definition that
// the engine it names cannot run.
func (c chooser) choose(disks []LaunchDisk) (engineChoice, error) {
	set, misfit := c.d.get("engine"), c.d.notNative(disks)
	switch {
	case set == "native" && !c.host.KVM:
		return engineChoice{}, Errorf(syscall.ENODEV, "engine native: no kvm: %s", oneLine(c.host.KVMReason))
	case set == "native" && misfit != "":
		return engineChoice{}, Errorf(syscall.EOPNOTSUPP, "engine native: %s; auto or qemu runs that", misfit)
	case set == "qemu":
		misfit = "engine is qemu"
	case c.host.KVM && misfit == "":
		return engineChoice{accelNative, "kvm"}, nil
	}
	switch {
	case c.host.QEMU == "" && c.host.KVM && set != "qemu":
		return engineChoice{}, Errorf(syscall.ENODEV, "engine qemu: %s; and not native: %s", noQEMU, misfit)
	case c.host.QEMU == "":
		return engineChoice{}, Errorf(syscall.ENODEV, "engine qemu: %s", noQEMU)
	case c.host.KVM:
		return engineChoice{accelKVM, "kvm, not native: " + misfit}, nil
	}
	return engineChoice{accelTCG, "tcg, no kvm: " + oneLine(c.host.KVMReason)}, nil
}

// settle chooses for a launch whose files are open.
func (c chooser) settle(spec *Launch) error {
	choice, err := c.choose(spec.Disks)
	spec.Accel, spec.Reason = choice.accel, choice.reason
	return err
}

// unpackedKernel takes a kernel that was unpacked, if it is at hand, for a guest
// that then need not do that.
func (vm *VM) unpackedKernel(ctx context.Context, d *definition, spec *Launch) {
	kernel := vm.m.Host.Unpacked(ctx, d.attrs["kernel"].uid, spec.Kernel)
	if kernel == nil {
		return
	}
	spec.Kernel.Close()
	spec.Kernel = kernel
	spec.Reason += "; the kernel is unpacked"
}

const noQEMU = "qemu-system-x86_64 is not installed (package qemu-system-x86)"

// notNative says why the native engine cannot run a definition, "" if it can.
// With disks open, it looks at what they turned out to be. The guest process
// checks what it is given once more.
func (d *definition) notNative(disks []LaunchDisk) string {
	switch {
	case d.get("firmware") != "":
		return "firmware is set"
	case d.get("kernel") == "":
		return "there is no kernel"
	case d.get("cdrom") != "":
		return "cdrom is set"
	case d.get("boot") != "disk":
		return "boot is " + d.get("boot")
	}
	for _, n := range d.numbers("nic") {
		if d.isUser(n) {
			return nicAttr(n, "user") + " is yes"
		}
	}
	if n := len(d.numbers("disk")) + len(d.numbers("nic")); n > MaxNativeDevices {
		return strconv.Itoa(n) + " disks and nics, more than " + strconv.Itoa(MaxNativeDevices)
	}
	for _, n := range d.numbers("disk") {
		if d.get(diskAttr(n, "format")) == FormatQcow2 {
			return diskName(n) + " is qcow2"
		}
	}
	for _, disk := range disks {
		if format := disk.Images[0].Format; format != FormatRaw {
			return diskName(disk.N) + " is " + format
		}
	}
	return ""
}

func diskName(n int) string { return Part{"disk", n}.String() }
