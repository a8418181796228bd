package kvm

import (
	"errors"
	"math"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestABI holds the structures against their sizes and offsets in linux/kvm.h
// and asm/kvm.h for x86-64.
func TestABI(t *testing.T) {
	var s Sregs
	var f FPU
	var e Events
	var d ioEventFD
	var r runPage
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"kvm_regs", unsafe.Sizeof(Regs{}), 144},
		{"kvm_segment", unsafe.Sizeof(Segment{}), 24},
		{"kvm_dtable", unsafe.Sizeof(Table{}), 16},
		{"kvm_sregs", unsafe.Sizeof(s), 312},
		{"kvm_sregs.tr", unsafe.Offsetof(s.TR), 144},
		{"kvm_sregs.gdt", unsafe.Offsetof(s.GDT), 192},
		{"kvm_sregs.cr0", unsafe.Offsetof(s.CR0), 224},
		{"kvm_sregs.efer", unsafe.Offsetof(s.EFER), 264},
		{"kvm_sregs.interrupt_bitmap", unsafe.Offsetof(s.InterruptBitmap), 280},
		{"kvm_fpu", unsafe.Sizeof(f), 416},
		{"kvm_fpu.fcw", unsafe.Offsetof(f.FCW), 128},
		{"kvm_fpu.mxcsr", unsafe.Offsetof(f.MXCSR), 408},
		{"kvm_cpuid_entry2", unsafe.Sizeof(CPUIDEntry{}), 40},
		{"kvm_cpuid2.entries", unsafe.Offsetof(cpuidList{}.entries), 8},
		{"kvm_msr_entry", unsafe.Sizeof(MSR{}), 16},
		{"kvm_msrs.entries", unsafe.Offsetof(msrList{}.entries), 8},
		{"kvm_vcpu_events", unsafe.Sizeof(e), 64},
		{"kvm_vcpu_events.sipi_vector", unsafe.Offsetof(e.SIPIVector), 16},
		{"kvm_vcpu_events.exception_payload", unsafe.Offsetof(e.ExceptionPayload), 56},
		{"kvm_mp_state", unsafe.Sizeof(Runnable), 4},
		{"kvm_userspace_memory_region", unsafe.Sizeof(memoryRegion{}), 32},
		{"kvm_pit_config", unsafe.Sizeof(pitConfig{}), 64},
		{"kvm_irqchip", unsafe.Sizeof(irqChip{}), 520},
		{"kvm_irqchip.pic.imr", unsafe.Offsetof(irqChip{}.mask), 10},
		{"kvm_irqfd", unsafe.Sizeof(irqFD{}), 32},
		{"kvm_ioeventfd", unsafe.Sizeof(d), 64},
		{"kvm_ioeventfd.flags", unsafe.Offsetof(d.flags), 24},
		{"kvm_enable_cap", unsafe.Sizeof(capability{}), 104},
		{"kvm_translation", unsafe.Sizeof(translation{}), 24},
		{"kvm_lapic_state", unsafe.Sizeof(lapic{}), 1024},
		{"kvm_run.exit_reason", unsafe.Offsetof(r.exitReason), 8},
		{"kvm_run.io", unsafe.Offsetof(r.exit), 32},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %d, want %d", c.what, c.got, c.want)
		}
	}
}

// TestIoctlNumbers holds the size in each number against what is passed.
func TestIoctlNumbers(t *testing.T) {
	for _, c := range []struct {
		name   string
		number uint32
		size   uintptr
	}{
		{"KVM_GET_SUPPORTED_CPUID", getSupportedCPUID, unsafe.Offsetof(cpuidList{}.entries)},
		{"KVM_SET_USER_MEMORY_REGION", setUserMemoryRegion, unsafe.Sizeof(memoryRegion{})},
		{"KVM_SET_IDENTITY_MAP_ADDR", setIdentityMapAddr, 8},
		{"KVM_CREATE_PIT2", createPIT2, unsafe.Sizeof(pitConfig{})},
		{"KVM_GET_IRQCHIP", getIRQChip, unsafe.Sizeof(irqChip{})},
		{"KVM_SET_IRQCHIP", setIRQChip, unsafe.Sizeof(irqChip{})},
		{"KVM_IRQFD", irqfd, unsafe.Sizeof(irqFD{})},
		{"KVM_IOEVENTFD", ioeventfd, unsafe.Sizeof(ioEventFD{})},
		{"KVM_ENABLE_CAP", enableCap, unsafe.Sizeof(capability{})},
		{"KVM_GET_REGS", getRegs, unsafe.Sizeof(Regs{})},
		{"KVM_SET_REGS", setRegs, unsafe.Sizeof(Regs{})},
		{"KVM_GET_SREGS", getSregs, unsafe.Sizeof(Sregs{})},
		{"KVM_SET_SREGS", setSregs, unsafe.Sizeof(Sregs{})},
		{"KVM_TRANSLATE", translate, unsafe.Sizeof(translation{})},
		{"KVM_SET_MSRS", setMSRs, unsafe.Offsetof(msrList{}.entries)},
		{"KVM_SET_FPU", setFPU, unsafe.Sizeof(FPU{})},
		{"KVM_GET_LAPIC", getLAPIC, unsafe.Sizeof(lapic{})},
		{"KVM_SET_LAPIC", setLAPIC, unsafe.Sizeof(lapic{})},
		{"KVM_SET_CPUID2", setCPUID2, unsafe.Offsetof(cpuidList{}.entries)},
		{"KVM_GET_MP_STATE", getMPState, 4},
		{"KVM_SET_MP_STATE", setMPState, 4},
		{"KVM_GET_VCPU_EVENTS", getVCPUEvents, unsafe.Sizeof(Events{})},
		{"KVM_SET_VCPU_EVENTS", setVCPUEvents, unsafe.Sizeof(Events{})},
	} {
		if got := uintptr(c.number >> 16 & 0x3fff); got != c.size {
			t.Errorf("%s: its number says %d bytes, it is given %d", c.name, got, c.size)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := New(f); !errors.Is(err, ErrNotKVM) {
		t.Errorf("New(/dev/null) = %v, want %v", err, ErrNotKVM)
	}
}

// open is this host's KVM.
func open(t testing.TB) *System {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED: needs KVM: %v", err)
	}
	s, err := New(f)
	if err != nil {
		f.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// newVCPU is CPU 0 of a VM whose memory is a page of code at 0x1000, in real
// mode, and where that code begins.
func newVCPU(t *testing.T, code ...byte) *VCPU {
	t.Helper()
	vm, err := open(t).CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(page) })
	copy(page, code)
	if err := vm.SetMemory(0, 0x1000, page); err != nil {
		t.Fatal(err)
	}
	c, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := c.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CS.Base, s.CS.Selector = 0, 0
	if err := c.SetSregs(&s); err != nil {
		t.Fatal(err)
	}
	if err := c.SetRegs(&Regs{RIP: 0x1000, RFLAGS: 2}); err != nil {
		t.Fatal(err)
	}
	return c
}

// next runs until an exit.
func next(t *testing.T, c *VCPU) Reason {
	t.Helper()
	for {
		err := c.Run()
		if err == nil {
			return c.Reason()
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// TestExits runs an out, a rep outsb and an in, at ports that nothing in the
// kernel has, and a store and a load where there is no memory.
func TestExits(t *testing.T) {
	c := newVCPU(t,
		0xb8, 0x34, 0x12, // mov ax, 0x1234
		0xe7, 0xe2, // out 0xe2, ax
		0xe4, 0xe3, // in al, 0xe3
		0xbe, 0x00, 0x10, // mov si, 0x1000
		0xba, 0xe4, 0x00, // mov dx, 0xe4
		0xb9, 0x03, 0x00, // mov cx, 3
		0xf3, 0x6e, // rep outsb
		0xa2, 0x00, 0x80, // mov [0x8000], al
		0x8b, 0x1e, 0x02, 0x80, // mov bx, [0x8002]
		0xe6, 0xe2, // out 0xe2, al
	)
	if r := next(t, c); r != ExitIO {
		t.Fatalf("got %v, want port I/O", r)
	}
	io, err := c.IO()
	if err != nil || io.In || io.Port != 0xe2 || io.Size != 2 || string(io.Data) != "\x34\x12" {
		t.Errorf("out: %+v, %v", io, err)
	}
	next(t, c)
	io, err = c.IO()
	if err != nil || !io.In || io.Port != 0xe3 || io.Size != 1 || len(io.Data) != 1 {
		t.Fatalf("in: %+v, %v", io, err)
	}
	io.Data[0] = 0x77
	var sent []byte
	for len(sent) < 3 {
		next(t, c)
		io, err = c.IO()
		if err != nil || io.In || io.Port != 0xe4 || io.Size != 1 || len(io.Data) == 0 {
			t.Fatalf("rep outsb: %+v, %v", io, err)
		}
		sent = append(sent, io.Data...)
	}
	if string(sent) != "\xb8\x34\x12" {
		t.Errorf("rep outsb sent % x", sent)
	}
	if r := next(t, c); r != ExitMMIO {
		t.Fatalf("got %v, want memory-mapped I/O", r)
	}
	m, err := c.MMIO()
	if err != nil || !m.Write || m.Addr != 0x8000 || string(m.Data) != "\x77" {
		t.Errorf("store: %+v, %v", m, err)
	}
	next(t, c)
	m, err = c.MMIO()
	if err != nil || m.Write || m.Addr != 0x8002 || len(m.Data) != 2 {
		t.Fatalf("load: %+v, %v", m, err)
	}
	copy(m.Data, "\xcd\xab")
	next(t, c)
	regs, err := c.Regs()
	if err != nil || regs.RBX&0xffff != 0xabcd {
		t.Errorf("bx is %#x, %v; want 0xabcd", regs.RBX, err)
	}
}

// TestTripleFault runs an instruction that is none, in protected mode and
// with no table of what to do about that.
func TestTripleFault(t *testing.T) {
	c := newVCPU(t, 0x0f, 0x0b) // ud2
	s, err := c.Sregs()
	if err != nil {
		t.Fatal(err)
	}
	s.CR0 |= 1
	s.IDT = Table{}
	s.CS = Segment{Limit: math.MaxUint32, Selector: 8, Type: 11, Present: 1, DB: 1, S: 1, G: 1}
	data := Segment{Limit: math.MaxUint32, Selector: 16, Type: 3, Present: 1, DB: 1, S: 1, G: 1}
	s.DS, s.ES, s.SS = data, data, data
	if err := c.SetSregs(&s); err != nil {
		t.Fatal(err)
	}
	if r := next(t, c); r != ExitShutdown {
		t.Fatalf("got %v, want a triple fault", r)
	}
	if at, ok := c.Translate(0x1000); !ok || at != 0x1000 {
		t.Errorf("Translate without paging: %#x, %v", at, ok)
	}
}

// TestInterrupt stops a loop that never exits, and lets it go on.
func TestInterrupt(t *testing.T) {
	c := newVCPU(t, 0x40, 0x75, 0xfd, 0xe6, 0xe2, 0xeb, 0xf9) // inc ax; jnz -1; out 0xe2, al; jmp
	c.Interrupt()
	for range 3 {
		if err := c.Run(); err != unix.EINTR {
			t.Fatalf("Run = %v, want EINTR", err)
		}
	}
	if r, err := c.Regs(); err != nil || r.RIP != 0x1000 {
		t.Errorf("interrupted, it is at %#x, %v", r.RIP, err)
	}
	c.Proceed()
	if r := next(t, c); r != ExitIO {
		t.Errorf("got %v, want port I/O", r)
	}
}

// TestState writes what a boot writes, and reads it back.
func TestState(t *testing.T) {
	c := newVCPU(t, 0xf4)
	if err := c.SetMSRs(BootMSRs()); err != nil {
		t.Error(err)
	}
	if err := c.SetFPU(&FPU{FCW: 0x37f, MXCSR: 0x1f80}); err != nil {
		t.Error(err)
	}
	if err := c.WireLAPIC(); err != nil {
		t.Error(err)
	}
	if err := c.Paused(); err != nil {
		t.Error(err)
	}
	if err := c.SetMSRs([]MSR{{Index: 0xdeadbeef}}); err == nil {
		t.Error("a register that does not exist was written")
	}
	if err := c.SetMPState(Halted); err != nil {
		t.Error(err)
	}
	if s, err := c.MPState(); err != nil || s != Halted {
		t.Errorf("MPState = %v, %v, want halted", s, err)
	}
	e, err := c.Events()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetEvents(&e); err != nil {
		t.Error(err)
	}
}

// TestBadShapes gives exits of sizes that no kernel makes.
func TestBadShapes(t *testing.T) {
	page := make([]byte, 8192)
	c := &VCPU{run: (*runPage)(unsafe.Pointer(&page[0])), page: page}
	for _, x := range []struct {
		size   byte
		count  uint32
		offset uint64
		ok     bool
	}{
		{1, 1, 4096, true}, {4, 1024, 4096, true}, {4, 1025, 4096, false}, {3, 1, 4096, false},
		{1, 1, 8192, false}, {1, 0, 8192, true}, {4, math.MaxUint32, 4096, false}, {1, 1, math.MaxUint64, false},
	} {
		c.run.exit[1] = x.size
		*(*uint32)(unsafe.Pointer(&c.run.exit[4])) = x.count
		*(*uint64)(unsafe.Pointer(&c.run.exit[8])) = x.offset
		if io, err := c.IO(); (err == nil) != x.ok || err == nil && len(io.Data) != int(x.count)*int(x.size) {
			t.Errorf("IO of %+v: %d bytes, %v", x, len(io.Data), err)
		}
	}
	for n, ok := range map[uint32]bool{0: false, 1: true, 8: true, 9: false, math.MaxUint32: false} {
		*(*uint32)(unsafe.Pointer(&c.run.exit[16])) = n
		if _, err := c.MMIO(); (err == nil) != ok {
			t.Errorf("MMIO of %d bytes: %v", n, err)
		}
	}
	*(*uint32)(unsafe.Pointer(&c.run.exit[4])) = math.MaxUint32
	if e := c.InternalError(); len(e.Data) != 16 {
		t.Errorf("InternalError has %d words", len(e.Data))
	}
}
