package boot

import (
	"strings"
	"testing"
)

// bzImage makes a small image: header, then body.
func bzImage(edit func(table)) []byte {
	b := make(table, 5*sector)
	b[hdrSetupSects] = 1
	b.u32(hdrSyssize, 3*sector/16)
	b.u16(hdrBootFlag, bootFlag)
	b[0x200], b[hdrJumpOffset] = 0xeb, 0x6a
	copy(b[hdrMagic:], headerMagic)
	b.u16(hdrVersion, 0x20f)
	b.u32(hdrInitrdAddrMax, 0x7fffffff)
	b.u32(hdrAlignment, 0x200000)
	b.u16(hdrXloadflags, 0x7f)
	b.u32(hdrCmdlineSize, 2047)
	b.u32(hdrPayloadOffset, 0x20)
	b.u32(hdrPayloadLength, 0x40)
	b.u64(hdrPrefAddress, 0x1000000)
	b.u32(hdrInitSize, 0x800000)
	copy(b[2*sector:], "protected mode")
	if edit != nil {
		edit(b)
	}
	return b
}

func TestLoadBzImage(t *testing.T) {
	m := newRAM(t, 64)
	s, err := Load(m, Spec{Kernel: reader(bzImage(nil)), Initrd: reader([]byte("initrd")), Cmdline: "quiet", RSDP: ACPIStart})
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != Long64 || s.RIP != 0x1000200 || s.RSI != zeroPageAddr {
		t.Errorf("registers %+v", s)
	}
	checkLong(t, m, s)
	if got := string(peek(t, m, 0x1000000, 14)); got != "protected mode" {
		t.Errorf("loaded %q", got)
	}
	z := peek(t, m, s.RSI, 4096)
	if !allZero(z[hdrSetupSects+0x1:hdrSyssize]) || le.Uint16(z[hdrVersion:]) != 0x20f || z[hdrTypeOfLoader] != 0xff || z[hdrLoadflags]&1 == 0 {
		t.Errorf("header % x", z[hdrStart:hdrLeastEnd])
	}
	if got := string(peek(t, m, uint64(le.Uint32(z[hdrCmdLinePtr:])), 6)); got != "quiet\x00" {
		t.Errorf("cmdline %q", got)
	}
	if got := string(peek(t, m, uint64(le.Uint32(z[hdrRamdiskImage:])), uint64(le.Uint32(z[hdrRamdiskSize:])))); got != "initrd" {
		t.Errorf("initrd %q", got)
	}
	if le.Uint64(z[zpRSDP:]) != ACPIStart || z[zpE820Entries] != 3 || le.Uint64(z[zpE820+2*e820Size:]) != 1<<20 {
		t.Errorf("zero page: root pointer %#x, %d ranges", le.Uint64(z[zpRSDP:]), z[zpE820Entries])
	}
	if s.KernelEnd != 0x1800000 {
		t.Errorf("kernel ends at %#x", s.KernelEnd)
	}
}

// An initrd goes above 4 GiB only if there is no room below.
func TestInitrdAbove4G(t *testing.T) {
	lowest := func(b table) { b.u32(hdrInitrdAddrMax, 0x1800fff) } // one page behind the kernel
	big := reader(make([]byte, 20<<20))
	m := newRAM(t, 5<<10)
	s, err := Load(m, Spec{Kernel: reader(bzImage(lowest)), Initrd: big})
	if err != nil {
		t.Fatal(err)
	}
	z := peek(t, m, s.RSI, 4096)
	addr := uint64(le.Uint32(z[hdrRamdiskImage:])) | uint64(le.Uint32(z[zpExtRamdiskImage:]))<<32
	if addr != 6<<30-20<<20 || le.Uint32(z[hdrRamdiskSize:]) != 20<<20 {
		t.Errorf("initrd at %#x, want at the top", addr)
	}
	small := reader(make([]byte, 4096))
	if s, err = Load(m, Spec{Kernel: reader(bzImage(lowest)), Initrd: small}); err != nil || s.InitrdEnd != 0x1801000 {
		t.Errorf("initrd ends at %#x, %v", s.InitrdEnd, err)
	}
	not := func(b table) { lowest(b); b.u16(hdrXloadflags, xlfKernel64) }
	refused(t, m, Spec{Kernel: reader(bzImage(not)), Initrd: big}, "do not fit")
}

func TestBzImageRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(table)
		want string
	}{
		"no flag":           {func(b table) { b[hdrBootFlag] = 0 }, "neither"},
		"no magic":          {func(b table) { b[hdrMagic] = 0 }, "neither"},
		"old":               {func(b table) { b.u16(hdrVersion, 0x20b) }, "boot protocol 2.11"},
		"header too short":  {func(b table) { b[hdrJumpOffset] = 0x50 }, "ends at 0x252"},
		"header too long":   {func(b table) { b[hdrJumpOffset] = 0xff }, "ends at 0x301"},
		"no 64-bit entry":   {func(b table) { b.u16(hdrXloadflags, 0x7e) }, "64-bit entry"},
		"setup past end":    {func(b table) { b[hdrSetupSects] = 4 }, "behind the first 2560"},
		"setup of 0":        {func(b table) { b[hdrSetupSects] = 0 }, "behind the first 2560"},
		"cut off":           {func(b table) { b.u32(hdrSyssize, 98) }, "should have 1568"},
		"no body":           {func(b table) { b.u32(hdrSyssize, 0) }, "should have 0"},
		"init_size small":   {func(b table) { b.u32(hdrInitSize, 100) }, "say that they need 100"},
		"payload offset":    {func(b table) { b.u32(hdrPayloadOffset, 0xffffffff) }, "payload"},
		"payload length":    {func(b table) { b.u32(hdrPayloadLength, 1536-0x20+1) }, "payload"},
		"alignment 0":       {func(b table) { b.u32(hdrAlignment, 0) }, "alignment of 0x0"},
		"alignment 3":       {func(b table) { b.u32(hdrAlignment, 3) }, "alignment of 0x3"},
		"unaligned":         {func(b table) { b.u64(hdrPrefAddress, 0x1000100) }, "alignment"},
		"low":               {func(b table) { b.u64(hdrPrefAddress, 0); b.u32(hdrAlignment, 1) }, "outside 1 MiB"},
		"over the tables":   {func(b table) { b.u64(hdrPrefAddress, 0x9000); b.u32(hdrAlignment, 1) }, "outside 1 MiB"},
		"high":              {func(b table) { b.u64(hdrPrefAddress, 1<<30) }, "to 1 GiB"},
		"wraps":             {func(b table) { b.u64(hdrPrefAddress, 1<<64-0x200000) }, "to 1 GiB"},
		"needs too much":    {func(b table) { b.u32(hdrInitSize, 49<<20) }, "needs memory up to 0x4100000, the machine has 64 MiB"},
		"cmdline of 3 only": {func(b table) { b.u32(hdrCmdlineSize, 3) }, "4 bytes, the kernel takes 3"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, newRAM(t, 64), Spec{Kernel: reader(bzImage(c.edit)), Cmdline: "1234"}, c.want)
		})
	}
	refused(t, newRAM(t, 64), Spec{Kernel: reader([]byte("#!/bin/sh"))}, "neither an ELF file nor a bzImage")
}

// The header may say more for the command line than there is room for.
func TestCmdlineRoom(t *testing.T) {
	huge := func(b table) { b.u32(hdrCmdlineSize, 0xffffffff) }
	m := newRAM(t, 64)
	refused(t, m, Spec{Kernel: reader(bzImage(huge)), Cmdline: strings.Repeat("x", cmdlineMax)}, "takes 65535")
	if _, err := Load(m, Spec{Kernel: reader(bzImage(huge)), Cmdline: strings.Repeat("x", cmdlineMax-1)}); err != nil {
		t.Error(err)
	}
}
