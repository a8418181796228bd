package native

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"

	"vmfs/ctl"
	"vmfs/vmm/engine"
	"vmfs/vmm/kvm"
	"vmfs/vmm/ram"
	"vmfs/vmm/serial"
)

// VM is a machine that was started. All methods may be called at the same
// time.
type VM struct {
	spec   hardware
	kvm    *kvm.System
	ram    *ram.RAM
	screen *screen
	tell   func(engine.Event)
	room   chan struct{} // has something when the guest may take input
	wake   chan struct{} // has something when there is a wish
	done   chan struct{} // closed when end is set
	end    engine.End

	board  atomic.Pointer[board] // nil after the end; changed under life and mu
	life   sync.Mutex            // held while the board is stopped, changed or let go
	paused bool

	mu   sync.Mutex
	wish wish
	past ctl.Exits // of boards before this
}

// wish is what is to become of the machine. A greater kind is more urgent.
type wish struct {
	kind wishKind
	text string
}

type wishKind int

const (
	noWish wishKind = iota
	hostReset
	guestReset
	fails
	crashes
	powersOff
	quits
	dies
)

// Start makes the machine s, its CPUs standing still, and raises GOMAXPROCS to
// what it needs. tell is called for each event, from one goroutine, and must not
// wait. On an error, which is a
// *ctl.Error, nothing is left.
func Start(h Host, s *engine.Spec, tell func(engine.Event)) (*VM, error) {
	if err := Check(s); err != nil {
		return nil, err
	}
	vm := &VM{
		spec:   hardware{*s, h},
		screen: newScreen(s.Screen),
		tell:   tell,
		room:   make(chan struct{}, 1),
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
		paused: true,
	}
	if err := vm.setUp(); err != nil {
		vm.release()
		if vm.spec.Rollup != nil {
			vm.spec.Rollup.Close()
		}
		return nil, blame(err)
	}
	go vm.attend()
	return vm, nil
}

func (vm *VM) setUp() (err error) {
	if err := vm.spec.keep(); err != nil {
		return err
	}
	if vm.kvm, err = kvm.New(vm.spec.KVM); err != nil {
		return err
	}
	if vm.ram, err = ram.New(uint64(vm.spec.MemoryMiB) << 20); err != nil {
		return err
	}
	b, err := newBoard(vm.kvm, vm.ram, &vm.spec, vm.wishes())
	if err != nil {
		return err
	}
	vm.board.Store(b)
	raiseProcs(b.threads() + spareProcs)
	return nil
}

// spareProcs are for what is not a CPU and not a queue: who speaks to the
// machine, and the runtime's own.
const spareProcs = 1

// raiseProcs makes GOMAXPROCS at least n. With fewer, a queue that is notified
// waits until the runtime takes a P from a CPU that is in the guest, for up to
// 10 ms.
func raiseProcs(n int) {
	if runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
}

// wishes are what the guest's devices call.
func (vm *VM) wishes() wishes {
	return wishes{
		powerOff: func() { vm.ask(wish{kind: powersOff}) },
		reset:    func() { vm.ask(wish{kind: guestReset}) },
		crashed:  func(c crash) { vm.ask(wish{crashes, c.String()}) },
		printed:  vm.screen,
		listens:  vm.listens,
	}
}

// ask makes w what is to become of the machine, if nothing more urgent is. No
// CPU goes on to its next instruction before that is done.
func (vm *VM) ask(w wish) {
	vm.mu.Lock()
	if w.kind > vm.wish.kind {
		vm.wish = w
	}
	vm.mu.Unlock()
	if b := vm.board.Load(); b != nil && w.kind != hostReset {
		b.cpus.order(hold)
	}
	signal(vm.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take is what is to become of the machine now. An end stays.
func (vm *VM) take() wish {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	w := vm.wish
	if w.kind <= guestReset {
		vm.wish = wish{}
	}
	return w
}

// attend does what is wished, until that is the end.
func (vm *VM) attend() {
	for range vm.wake {
		switch w := vm.take(); w.kind {
		case noWish:
		case hostReset, guestReset:
			if err := vm.reset(w.kind); err != nil {
				vm.finish(wish{fails, "reset: " + err.Error()})
				return
			}
		default:
			vm.finish(w)
			return
		}
	}
}

// reset puts the machine together anew, with the same files. One that was
// paused stays so.
func (vm *VM) reset(kind wishKind) error {
	if kind == guestReset {
		vm.tell(engine.GuestReset)
	} else {
		vm.tell(engine.HostReset)
	}
	vm.life.Lock()
	defer vm.life.Unlock()
	old := vm.board.Load()
	old.close()
	b, err := vm.again()
	if err != nil {
		return err
	}
	vm.mu.Lock()
	add(&vm.past, old.exits())
	vm.board.Store(b)
	ends := vm.wish.kind > guestReset
	vm.mu.Unlock()
	if !vm.paused && !ends {
		b.proceed()
	}
	vm.listens()
	return nil
}

// again makes the next board.
func (vm *VM) again() (*board, error) {
	if err := vm.ram.Zero(); err != nil {
		return nil, err
	}
	return newBoard(vm.kvm, vm.ram, &vm.spec, vm.wishes())
}

// finish ends the machine and lets go of what it had.
func (vm *VM) finish(w wish) {
	vm.life.Lock()
	defer vm.life.Unlock()
	b := vm.board.Load()
	b.close()
	vm.mu.Lock()
	add(&vm.past, b.exits())
	vm.board.Store(nil)
	vm.mu.Unlock()
	vm.screen.flush()
	switch w.kind {
	case powersOff:
		vm.end = engine.End{Reason: engine.GuestOff}
	case quits:
		vm.end = engine.End{Reason: engine.Quit}
	case dies:
		vm.end = engine.End{Text: "killed", Killed: true}
	case crashes:
		vm.end = engine.End{Reason: engine.GuestCrash, Text: w.text}
	default:
		vm.end = engine.End{Text: w.text}
	}
	vm.release()
	close(vm.done)
}

// release closes what Start opened, but for what Usage reads.
func (vm *VM) release() {
	if vm.ram != nil {
		vm.ram.Close()
	}
	vm.spec.close()
}

// errEnded is what a button does on a machine that has ended.
var errEnded = ctl.Errorf(syscall.EINVAL, "the machine is ended")

// running does f with the board, while nothing else changes it.
func (vm *VM) running(f func(*board)) error {
	vm.life.Lock()
	defer vm.life.Unlock()
	b := vm.board.Load()
	if b == nil {
		return errEnded
	}
	f(b)
	return nil
}

// Continue lets the CPUs go.
func (vm *VM) Continue(context.Context) error {
	return vm.running(func(b *board) {
		vm.paused = false
		b.proceed()
	})
}

// Pause stops the CPUs and the devices, and returns when they stand still.
func (vm *VM) Pause(context.Context) error {
	return vm.running(func(b *board) {
		vm.paused = true
		b.hold()
	})
}

// Running asks whether the CPUs run.
func (vm *VM) Running(context.Context) (runs bool, err error) {
	err = vm.running(func(*board) { runs = !vm.paused })
	return runs, err
}

// Reset is the reset button. It does not wait for what it does.
func (vm *VM) Reset(context.Context) error {
	vm.ask(wish{kind: hostReset})
	return nil
}

// PowerButton is what ACPI calls the power button.
func (vm *VM) PowerButton(context.Context) error {
	return vm.running(func(b *board) { b.events.Raise(serial.PowerButton) })
}

// CtrlAltDel presses the three keys, if the guest has a driver for them.
func (vm *VM) CtrlAltDel(context.Context) error {
	return vm.running(func(b *board) { b.keyboard.CtrlAltDel() })
}

// Insert is for a drive that is not there.
func (vm *VM) Insert(context.Context, *os.File) error {
	return errNoDrive
}

// Quit ends the machine. What the guest was told is on its disks, the host's
// kernel has.
func (vm *VM) Quit(context.Context) error {
	vm.ask(wish{kind: quits})
	return nil
}

// Kill ends the machine, and does not wait for that.
func (vm *VM) Kill() { vm.ask(wish{kind: dies}) }

// Close kills a machine that has not ended, waits for its end, and releases
// what is left of it.
func (vm *VM) Close() {
	vm.Kill()
	<-vm.done
	if vm.spec.Rollup != nil {
		vm.spec.Rollup.Close()
	}
}

// Done is closed when the machine has ended, and has closed its files.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// End is how it ended, once Done is closed.
func (vm *VM) End() engine.End {
	<-vm.done
	return vm.end
}

// listens says that there may be room for input.
func (vm *VM) listens() { signal(vm.room) }

// Name is what this engine is called.
func (vm *VM) Name() string { return "native" }

// Input is the console: the serial port, or the virtio console where there is
// one.
func (vm *VM) Input() io.Writer { return keys{vm} }

type keys struct{ vm *VM }

// Write types p. It waits until the guest takes all of it, and returns
// io.ErrClosedPipe when the machine ends before.
func (k keys) Write(p []byte) (n int, err error) {
	vm := k.vm
	for {
		b := vm.board.Load()
		if b == nil {
			return n, io.ErrClosedPipe
		}
		took, err := b.input(p[n:])
		n += took
		if n == len(p) {
			return n, nil
		}
		if err != nil && !errors.Is(err, errConsoleClosed) {
			return n, err
		}
		select {
		case <-vm.room:
		case <-vm.done:
		}
	}
}
