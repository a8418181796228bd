package native

import (
	"vmfs/vmm/acpi"
	"vmfs/vmm/ram"
	"vmfs/vmm/virtio"
)

// The I/O ports. Those of PIC and PIT never come here.
const (
	keyboardPort = 0x60
	keyboardSize = 5 // to 0x64, with nothing between
	serialPort   = 0x3f8
	powerPort    = 0x600
	eventsPort   = 0x601
)

// The interrupt lines, of the 24 that an IOAPIC has. The PIT has 0 (and 2,
// where a PC has it), the rest are the virtio devices'.
const (
	keyboardGSI = 1
	serialGSI   = 4
	eventsGSI   = 9
)

// virtioGSIs are the lines of virtio devices: MaxDevices, a source of entropy
// and a console.
var virtioGSIs = [MaxDevices + 2]uint32{5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 3, 8}

// virtioBase is where the first virtio device is; the next follow, each
// virtio.Size bytes.
const virtioBase = ram.HoleStart

// virtioWindow is where virtio device n is.
func virtioWindow(n int) acpi.Window {
	return acpi.Window{Addr: uint32(virtioBase + n*virtio.Size), Size: virtio.Size, GSI: acpi.Line(virtioGSIs[n])}
}

// resetVector is where a PC's firmware begins, and resetCode what is there in
// the place of one. Linux jumps there when it resets a machine of reduced
// hardware without EFI (arch/x86/kernel/reboot.c: BOOT_EFI, then BOOT_BIOS),
// before it tries anything else. It is 16-bit code:
//
//	mov dx, 0xcf9
//	mov al, 6
//	out dx, al
//	hlt
const resetVector = 0xffff0

var resetCode = []byte{0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4}
