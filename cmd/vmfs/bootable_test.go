package main_test

import (
	"encoding/binary"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"vmfs/vmm/native/nativetest"
)

// bootSector says "booted from X" through the BIOS, X being the first hex
// digit of the drive that the BIOS says it comes from: 8 for a disk, E or F
// for a cdrom.
var bootSector = []byte("" +
	"\x31\xc0" + //         xor ax, ax
	"\x8e\xd8" + //         mov ds, ax
	"\xbe\x28\x7c" + //     mov si, message
	"\xac" + //       next: lodsb
	"\x84\xc0" + //         test al, al
	"\x74\x06" + //         jz drive
	"\xb4\x0e\xcd\x10" + // mov ah, 0eh; int 10h
	"\xeb\xf5" + //         jmp next
	"\x88\xd0" + //  drive: mov al, dl
	"\xc0\xe8\x04" + //     shr al, 4
	"\x3c\x0a\x1c\x69" + // cmp al, 10; sbb al, 69h
	"\x2f" + //             das: al is a hex digit now
	"\xb4\x0e\xcd\x10" + // mov ah, 0eh; int 10h
	"\xb8\x0a\x0e" + //     mov ax, 0e0ah
	"\xcd\x10" + //         int 10h
	"\xf4\xeb\xfd" + //     hlt, for ever
	"booted from \x00")

// bootable DISK CDROM makes the two smallest images that a BIOS boots.
func bootable(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, "bootable DISK CDROM")
	disk := make([]byte, 1<<20)
	copy(disk, bootSector)
	copy(disk[510:], "\x55\xaa")
	ts.Check(os.WriteFile(args[0], disk, 0o644))

	const sector = 2048
	cd := make([]byte, 400*sector)
	copy(cd[16*sector:], "\x01CD001\x01")
	copy(cd[17*sector:], "\x00CD001\x01EL TORITO SPECIFICATION")
	binary.LittleEndian.PutUint32(cd[17*sector+0x47:], 19)
	copy(cd[18*sector:], "\xffCD001\x01")
	catalog := cd[19*sector:]
	catalog[0] = 1
	copy(catalog[0x1c:], "\xaa\x55\x55\xaa") // the checksum, and the mark
	catalog[0x20] = 0x88                     // bootable, no emulation
	binary.LittleEndian.PutUint16(catalog[0x26:], 4)
	binary.LittleEndian.PutUint32(catalog[0x28:], 20)
	copy(cd[20*sector:], bootSector)
	ts.Check(os.WriteFile(args[1], cd, 0o644))
}

// halting FILE writes a kernel for the native engine that does nothing, which
// takes no time.
func halting(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, "halting FILE")
	image, err := nativetest.New().Bytes(0xfa).Hlt().Image() // cli
	ts.Check(err)
	ts.Check(os.WriteFile(args[0], image, 0o644))
}
