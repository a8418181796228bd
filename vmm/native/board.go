package native

import (
	"fmt"
	"io"
	"strings"

	"vmfs/vmm/acpi"
	"vmfs/vmm/boot"
	"vmfs/vmm/kvm"
	"vmfs/vmm/ram"
	"vmfs/vmm/serial"
	"vmfs/vmm/virtio"
)

// board is what a reset makes anew: the CPUs, the devices, and what the
// kernel's KVM has of them. It begins with its CPUs standing still.
type board struct {
	vm     *kvm.VM
	ram    *ram.RAM
	cpus   cpus
	ports  bus
	memory bus
	lines  []*line
	virtio []*virtio.MMIO
	acpi   acpi.Config

	uart     *serial.UART
	keyboard *serial.Keyboard
	events   *serial.Events
	console  *virtio.Console // nil if there is none
}

// wishes are what a guest may cause. They are called on a CPU's thread with a
// device's lock held, and do not wait.
type wishes struct {
	powerOff, reset func()
	crashed         func(crash)
	printed         io.Writer
	listens         func() // the serial port has room again
}

// newBoard puts a machine together in memory that is all zero, with the
// kernel in it.
func newBoard(sys *kvm.System, m *ram.RAM, s *hardware, w wishes) (*board, error) {
	b := &board{ram: m}
	if err := b.assemble(sys, s, w); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *board) assemble(sys *kvm.System, s *hardware, w wishes) (err error) {
	if b.vm, err = sys.CreateVM(); err != nil {
		return err
	}
	for i, r := range b.ram.Regions() {
		if err := b.vm.SetMemory(uint32(i), r.Addr, r.Bytes); err != nil {
			return err
		}
	}
	if err := b.legacyDevices(w); err != nil {
		return err
	}
	if err := b.virtioDevices(s, w); err != nil {
		return err
	}
	state, err := b.load(s)
	if err != nil {
		return err
	}
	vcpus, err := b.createCPUs(sys, s)
	if err == nil {
		err = setUp(vcpus[0], state)
	}
	if err != nil {
		closeAll(vcpus)
		return err
	}
	b.cpus.ports, b.cpus.memory, b.cpus.ram, b.cpus.crashed = &b.ports, &b.memory, b.ram, w.crashed
	b.cpus.run(vcpus)
	return nil
}

// createCPUs makes them as a reset leaves them. On an error the caller closes
// those that are there.
func (b *board) createCPUs(sys *kvm.System, s *hardware) (vcpus []*kvm.VCPU, err error) {
	supported, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	for id := range s.CPUs {
		v, err := b.vm.CreateVCPU(id)
		if err != nil {
			return vcpus, err
		}
		vcpus = append(vcpus, v)
		if err := v.SetCPUID(kvm.Filter(supported, kvm.CPU{ID: id, Count: s.CPUs, Quirk: s.Quirk})); err != nil {
			return vcpus, err
		}
		if err := v.SetMSRs(kvm.BootMSRs()); err != nil {
			return vcpus, err
		}
		if err := v.WireLAPIC(); err != nil {
			return vcpus, err
		}
	}
	return vcpus, nil
}

func closeAll(vcpus []*kvm.VCPU) {
	for _, v := range vcpus {
		v.Close()
	}
}

// line makes the interrupt line gsi.
func (b *board) line(gsi uint32) (*line, error) {
	l, err := newLine(b.vm, gsi)
	if err == nil {
		b.lines = append(b.lines, l)
	}
	return l, err
}

// legacyDevices are those at I/O ports.
func (b *board) legacyDevices(w wishes) error {
	var lines [3]*line
	for i, gsi := range []uint32{serialGSI, keyboardGSI, eventsGSI} {
		l, err := b.line(gsi)
		if err != nil {
			return err
		}
		lines[i] = l
	}
	b.uart = serial.NewUART(w.printed, lines[0].level, w.listens)
	b.keyboard = serial.NewKeyboard(lines[1].level, w.reset)
	b.events = serial.NewEvents(lines[2].raise)
	for _, d := range []struct {
		port, size uint64
		dev        device
	}{
		{keyboardPort, keyboardSize, b.keyboard},
		{serialPort, serial.UARTSize, b.uart},
		{powerPort, serial.PowerSize, serial.NewPowerRegister(w.powerOff, w.reset)},
		{eventsPort, serial.EventsSize, b.events},
		{serial.ResetPortAddr, 1, serial.NewResetPort(w.reset)},
	} {
		if err := b.ports.add(d.port, d.size, d.dev); err != nil {
			return err
		}
	}
	b.acpi.Serial = acpi.Port{Port: serialPort, GSI: serialGSI}
	b.acpi.Keyboard = keyboardGSI
	b.acpi.Events = acpi.Port{Port: eventsPort, GSI: eventsGSI}
	b.acpi.Power = powerPort
	return nil
}

// blkQueues is how many requests of a disk are worked on at a time, at most:
// each takes a thread.
const blkQueues = 4

// virtioDevices are the disks, the NICs, a source of entropy and, if the
// kernel is told to use one, a console.
func (b *board) virtioDevices(s *hardware, w wishes) error {
	for _, d := range s.Disks {
		blk, err := virtio.NewBlk(virtio.BlkConfig{
			FD: int(d.Images[0].File.Fd()), ReadOnly: d.ReadOnly,
			ID: fmt.Sprintf("disk%d", d.N), Queues: min(s.CPUs, blkQueues),
		})
		if err != nil {
			return fmt.Errorf("disk/%d: %w", d.N, err)
		}
		if err := b.plug(blk); err != nil {
			return err
		}
	}
	for _, n := range s.NICs {
		net, err := virtio.NewNet(virtio.NetConfig{FD: int(n.Tap.Fd()), MAC: [6]byte(n.MAC)})
		if err != nil {
			return fmt.Errorf("nic/%d: %w", n.N, err)
		}
		if err := b.plug(net); err != nil {
			return err
		}
	}
	if err := b.plug(virtio.NewRNG()); err != nil {
		return err
	}
	if !wantsConsole(s.Cmdline) {
		return nil
	}
	b.console = virtio.NewConsole(w.printed)
	return b.plug(b.console)
}

// wantsConsole is whether a command line makes a virtio console one of the
// kernel's. There is none otherwise: a guest that finds two consoles asks for
// a login on both.
func wantsConsole(cmdline string) bool {
	for _, word := range strings.Fields(cmdline) {
		if strings.HasPrefix(word, "console=hvc") {
			return true
		}
	}
	return false
}

// plug gives a virtio device its place and its interrupt. What the guest
// stores to notify it does not leave the kernel.
func (b *board) plug(dev virtio.Device) error {
	at := virtioWindow(len(b.virtio))
	l, err := b.line(uint32(at.GSI))
	if err != nil {
		return err
	}
	m, err := virtio.New(dev, b.ram, l.raise)
	if err != nil {
		return err
	}
	b.virtio = append(b.virtio, m)
	b.acpi.Virtio = append(b.acpi.Virtio, at)
	for q := range m.Queues() {
		bell := kvm.Doorbell{Addr: uint64(at.Addr) + virtio.RegQueueNotify, Len: 4, Match: true, Value: uint64(q)}
		if err := b.vm.IOEventFD(m.NotifyFD(q), bell); err != nil {
			return err
		}
	}
	return b.memory.add(uint64(at.Addr), uint64(at.Size), m)
}

// load writes the tables and the kernel, and returns how the first CPU
// begins.
func (b *board) load(s *hardware) (state boot.State, err error) {
	b.acpi.CPUs = s.CPUs
	tables, err := acpi.Build(boot.ACPIStart, b.acpi)
	if err != nil {
		return state, err
	}
	if len(tables) > resetVector-boot.ACPIStart {
		return state, fmt.Errorf("acpi: %d bytes of tables", len(tables))
	}
	_, err = b.ram.WriteAt(tables, boot.ACPIStart)
	if err == nil {
		_, err = b.ram.WriteAt(resetCode, resetVector)
	}
	if err != nil {
		return state, bad("memory: %d MiB are too few to boot anything", s.MemoryMiB)
	}
	spec := boot.Spec{Cmdline: s.Cmdline, RSDP: boot.ACPIStart}
	if spec.Kernel, err = section(s.Kernel); err != nil {
		return state, err
	}
	if spec.Initrd, err = section(s.Initrd); err != nil {
		return state, err
	}
	return boot.Load(b.ram, spec)
}

// threads is how many of them, CPUs and queues, may be at work at the same time.
func (b *board) threads() int {
	n := len(b.cpus.all)
	for _, m := range b.virtio {
		n += m.Queues()
	}
	return n
}

// hold stops the CPUs, then the devices: when it returns, nothing of the
// guest moves.
func (b *board) hold() {
	b.cpus.hold()
	for _, m := range b.virtio {
		m.Pause()
	}
}

// proceed lets the devices go on, then the CPUs.
func (b *board) proceed() {
	for _, m := range b.virtio {
		m.Resume()
	}
	b.cpus.proceed()
}

// close ends everything, the CPUs first.
func (b *board) close() {
	b.cpus.quit()
	for _, m := range b.virtio {
		m.Close()
	}
	if b.console != nil {
		b.console.Close()
	}
	for _, l := range b.lines {
		l.close()
	}
	if b.vm != nil {
		b.vm.Close()
	}
}
