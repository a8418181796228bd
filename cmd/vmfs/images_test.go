package main_test

import (
	"os"

	"github.com/rogpeppe/go-internal/testscript"
)

// scribeSector prints the first bytes of the sectors 1 to 4 of the disk that
// it comes from, then copies sector 5 over itself and says whether it could.
var scribeSector = []byte("" +
	"\x31\xc0\x8e\xd8\x31\xdb" + //     xor ax, ax; mov ds, ax; xor bx, bx
	"\xbe\x4b\x7c" + //                 mov si, packet
	"\xb4\x42\xcd\x13" + //             mov ah, 42h; int 13h: read
	"\xbf\x00\x7e" + //                 mov di, 7e00h
	"\x8a\x05\xe8\x31\x00" + //   next: mov al, [di]; call print
	"\x81\xc7\x00\x02" + //             add di, 512
	"\x81\xff\x00\x86\x72\xf1" + //     cmp di, 8600h; jb next
	"\xbe\x4b\x7c" + //                 mov si, packet
	"\xc6\x44\x02\x01" + //             mov byte [si+2], 1
	"\x89\x7c\x04\x88\x5c\x08" + //     mov [si+4], di; mov [si+8], bl
	"\xb8\x00\x43\xcd\x13" + //         mov ax, 4300h; int 13h: write
	"\xbe\x66\x7c\x72\x03" + //         mov si, refused; jc say
	"\xbe\x5b\x7c" + //                 mov si, written
	"\xac\x84\xc0\x74\x05" + //    say: lodsb; test al, al; jz stop
	"\xe8\x05\x00\xeb\xf6" + //         call print; jmp say
	"\xf4\xeb\xfd" + //           stop: hlt; jmp stop
	"\xb4\x0e\xcd\x10\xc3" + //  print: mov ah, 0eh; int 10h; ret
	"\x10\x00\x05\x00\x00\x7e\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00" + // packet: 5 sectors from 1 on to 0:7e00h
	" written\r\n\x00" +
	" refused\r\n\x00")

// scribe IMAGE [FILE] makes a raw disk of scribeSector, with abcd in the
// sectors 1 to 4, and the beginning of FILE in sector 5; without FILE that is
// the boot sector once more.
func scribe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: scribe IMAGE [FILE]")
	}
	disk := bootDisk(scribeSector)
	for i, c := range []byte("abcd") {
		disk[(1+i)*512] = c
	}
	over := disk[:512]
	if len(args) == 2 {
		over = []byte(ts.ReadFile(args[1]))
	}
	copy(disk[5*512:6*512], over)
	ts.Check(os.WriteFile(args[0], disk, 0o644))
}

// watcherSector prints the first byte of what is in the cdrom drive, or - for
// nothing, and has the BIOS begin anew when that has changed: only when it
// boots does it ask the drive again. So the drive is to be booted first.
var watcherSector = []byte("" +
	"\x31\xc0\x8e\xd8\x31\xdb" + //        xor ax, ax; mov ds, ax; xor bx, bx
	"\xe8\x28\x00\xb9\x09\x00" + //        call read; mov cx, 9
	"\xa2\x56\x7c\xbf\x56\x7c" + //        mov [line], al; mov di, line
	"\x8a\x05\xb4\x0e\xcd\x10" + //  next: mov al, [di]; mov ah, 0eh; int 10h
	"\x47\x3c\x0a\x75\xf5" + //            inc di; cmp al, 10; jne next
	"\x80\x3e\x56\x7c\x2d\x74\x07" + //    cmp byte [line], '-'; je wait
	"\xfb\xf4" + //                  look: sti; hlt: until the clock ticks
	"\xe8\x08\x00\x73\xf9" + //            call read; jnc look
	"\xfb\xf4\xe2\xfc" + //          wait: sti; hlt; loop wait
	"\xcd\x19" + //                        int 19h: boot
	"\xbe\x46\x7c" + //              read: mov si, packet
	"\xc6\x44\x02\x01" + //                mov byte [si+2], 1
	"\xb2\xe0\xb4\x42\xcd\x13" + //        mov dl, e0h; mov ah, 42h; int 13h: read
	"\xb0\x2d\x72\x03" + //                mov al, '-'; jc done
	"\xa0\x00\x7e" + //                    mov al, [7e00h]
	"\xc3" + //                      done: ret
	"\x10\x00\x01\x00\x00\x7e\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" + // packet: sector 0 to 0:7e00h
	"?\r\n") // line

// watcher IMAGE makes a raw disk of watcherSector.
func watcher(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 1, "watcher IMAGE")
	ts.Check(os.WriteFile(args[0], bootDisk(watcherSector), 0o644))
}

// bootDisk is a disk of 1 MiB that begins with a boot sector.
func bootDisk(sector []byte) []byte {
	disk := make([]byte, 1<<20)
	copy(disk, sector)
	copy(disk[510:], "\x55\xaa")
	return disk
}
