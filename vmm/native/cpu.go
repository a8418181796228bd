package native

import (
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmfs/vmm/kvm"
)

// orders are what the CPUs are to do.
type orders = int32

const (
	hold orders = iota // stand still
	proceed
	quit // end their threads
)

// cpus are the CPUs of a machine, each with a thread of its own. They begin
// standing still.
type cpus struct {
	all     []*cpu
	ports   *bus
	memory  *bus
	ram     io.ReaderAt
	crashed func(crash) // called on a CPU's thread, which then stands still

	mu      sync.Mutex
	changed sync.Cond
	orders  atomic.Int32 // written under mu
	running int          // threads that are not standing still, or not there yet
	threads int          // that have not ended
}

// cpu is one of them.
type cpu struct {
	id   int
	vcpu *kvm.VCPU
	tid  int // of its thread; under cpus.mu, 0 before it is there
	exits
}

// exits counts why a CPU stopped.
type exits struct {
	io, mmio, interrupted, other atomic.Uint64 // other is what crashed
}

// run starts the threads. vcpus are theirs then; quit closes them.
func (c *cpus) run(vcpus []*kvm.VCPU) {
	c.changed.L = &c.mu
	c.running, c.threads = len(vcpus), len(vcpus)
	for id, v := range vcpus {
		c.all = append(c.all, &cpu{id: id, vcpu: v})
	}
	for _, x := range c.all {
		go c.thread(x)
	}
	c.hold()
}

// order tells all CPUs what to do, without waiting for it.
func (c *cpus) order(o orders) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.orders.Load(); now == quit || now == o {
		return
	}
	c.orders.Store(o)
	c.changed.Broadcast()
	if o == proceed {
		return
	}
	// A CPU that stands still sets the flag back itself, when it goes on.
	for _, x := range c.all {
		if x.tid != 0 {
			x.vcpu.Interrupt()
			unix.Tgkill(unix.Getpid(), x.tid, unix.SIGURG)
		}
	}
}

// hold stops all CPUs, and returns when they stand still.
func (c *cpus) hold() {
	c.order(hold)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.running > 0 && c.orders.Load() == hold {
		c.changed.Wait()
	}
}

// proceed lets them go on.
func (c *cpus) proceed() { c.order(proceed) }

// quit ends them, and returns when the threads are gone and the VCPUs closed.
func (c *cpus) quit() {
	c.order(quit)
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.threads > 0 {
		c.changed.Wait()
	}
}

// thread is the life of a CPU. The thread ends with it, since it is never
// unlocked.
func (c *cpus) thread(x *cpu) {
	runtime.LockOSThread()
	c.mu.Lock()
	x.tid = unix.Gettid()
	c.mu.Unlock()
	for c.wait(x) {
		switch err := x.vcpu.Run(); {
		case err == nil:
			c.exit(x)
		case errors.Is(err, unix.EINTR):
			x.interrupted.Add(1)
		case errors.Is(err, unix.EAGAIN): // woken from waiting for its INIT
		default:
			c.crash(x, crash{What: "KVM_RUN: " + err.Error()})
		}
	}
	x.vcpu.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	x.tid = 0
	c.running--
	c.threads--
	c.changed.Broadcast()
}

// wait returns when the CPU shall run: at once, mostly. It is false when it
// shall end. An order that comes after the look at it here interrupts the Run
// that follows.
func (c *cpus) wait(x *cpu) bool {
	if c.orders.Load() == proceed {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.orders.Load() == hold {
		c.running--
		c.changed.Broadcast()
		for c.orders.Load() == hold {
			c.changed.Wait()
		}
		c.running++
		x.vcpu.Proceed()
		x.vcpu.Paused()
	}
	return c.orders.Load() == proceed
}

// exit does what the guest asks for.
func (c *cpus) exit(x *cpu) {
	switch x.vcpu.Reason() {
	case kvm.ExitIO:
		x.io.Add(1)
		c.portIO(x)
	case kvm.ExitMMIO:
		x.mmio.Add(1)
		m, err := x.vcpu.MMIO()
		switch {
		case err != nil:
			c.crash(x, crash{What: err.Error()})
		case m.Write:
			c.memory.write(m.Addr, m.Data)
		default:
			c.memory.read(m.Addr, m.Data)
		}
	default:
		x.other.Add(1)
		c.crash(x, diagnose(x.vcpu))
	}
}

// portIO does an in or out, or a string of them.
func (c *cpus) portIO(x *cpu) {
	access, err := x.vcpu.IO()
	if err != nil {
		c.crash(x, crash{What: err.Error()})
		return
	}
	for p := access.Data; len(p) > 0; p = p[access.Size:] {
		if access.In {
			c.ports.read(uint64(access.Port), p[:access.Size])
		} else {
			c.ports.write(uint64(access.Port), p[:access.Size])
		}
	}
}

// crash stops all CPUs and tells of it. The one that crashed cannot go on.
func (c *cpus) crash(x *cpu, what crash) {
	c.order(hold)
	what.CPU = x.id
	what.locate(x.vcpu, c.ram)
	c.crashed(what)
}
