// Package qemu runs a machine under QEMU, as a child process that can name
// nothing: Jail builds a root directory with QEMU and its libraries and no
// more, and every resource is an open file whose number is on the command
// line.
//
// It trusts its caller's files to be what they are given as. It does not
// trust QEMU, which runs what a guest made of it: what QEMU says on its
// monitor and standard error is bounded, decoded with care and never waited
// for without a limit.
//
// It cannot keep a guest from using up the processor or its disks' space, and
// it does not lock disks: QEMU's own locking is off, the caller holds the
// locks.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/vmm/engine"
)

// VM is a QEMU process.
type VM struct {
	console *net.UnixConn
	control *net.UnixConn // monitor's, once that is there
	monitor *monitor
	version string
	accel   string
	printed chan struct{} // closed when what the guest printed is on the screen
	cmd     *exec.Cmd
	thread  *thread // that started QEMU
	log     *tail
	meter   *meter
	done    chan struct{} // closed when end is set
	end     end

	media  medium // how many there were
	medium medium // that is in the drive

	mu       sync.Mutex
	shutdown *event // the guest's, or the first
}

// end is how a QEMU process ended.
type end struct {
	Reason string // of the monitor's SHUTDOWN event, empty if there was none
	Status string // of the process, in words
	Line   string // the last line on its standard error, may be empty
	Killed bool   // by SIGKILL
}

// paths are where QEMU may be, as in priv.
var paths = []string{"/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64"}

func find() (string, error) {
	for _, p := range paths {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", ctl.Errorf(syscall.ENODEV, "qemu-system-x86_64: not installed (package qemu-system-x86)")
}

// Start runs QEMU with the machine s, its CPUs not yet going, and returns
// when QEMU answers on its monitor. tell is called for each event, from one
// goroutine, and must not wait. The files of s stay the caller's. When ctx
// ends first, or QEMU does, no process is left; the error then says the last
// that QEMU wrote.
func Start(ctx context.Context, s *engine.Spec, tell func(engine.Event)) (engine.Engine, error) {
	path, err := find()
	if err != nil {
		return nil, err
	}
	vm := &VM{accel: s.Accel, thread: newThread(), printed: make(chan struct{}), done: make(chan struct{}), medium: empty}
	if s.Cdrom != nil {
		vm.media, vm.medium = 1, 0
	}
	theirs, err := vm.connect()
	if err != nil {
		vm.release()
		return nil, err
	}
	err = vm.exec(path, s, theirs)
	theirs.close()
	if err != nil {
		vm.release()
		return nil, ctl.Errorf(ctl.Errno(err), "%s: %v", path, err)
	}
	go func() { defer close(vm.printed); pump(s.Screen, vm.console) }()
	vm.monitor = newMonitor(vm.control, func(e event) { vm.event(e, tell) })
	go vm.wait()
	if vm.version, err = vm.monitor.greet(ctx); err != nil {
		return nil, vm.failed(err)
	}
	return vm, nil
}

// ends are QEMU's of what connects it with this process.
type ends struct{ monitor, console, stderr *os.File }

func (e ends) close() {
	for _, f := range []*os.File{e.monitor, e.console, e.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// sendBuffer bounds what is on the way to the guest's serial line, beyond
// what the caller knows of: as little as the kernel allows or a bit more.
const sendBuffer = 4096

// connect makes vm's ends of the connections, and QEMU's.
func (vm *VM) connect() (theirs ends, err error) {
	defer func() {
		if err != nil {
			theirs.close()
		}
	}()
	if vm.console, theirs.console, err = pair(); err != nil {
		return theirs, err
	}
	if vm.control, theirs.monitor, err = pair(); err != nil {
		return theirs, err
	}
	if vm.log, theirs.stderr, err = newTail(); err != nil {
		return theirs, err
	}
	return theirs, vm.console.SetWriteBuffer(sendBuffer)
}

// pair makes a socket for QEMU: our end, and QEMU's.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(fds[0]), "socketpair"), os.NewFile(uintptr(fds[1]), "socketpair")
	defer mine.Close()
	conn, err := net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}

// exec starts the process.
func (vm *VM) exec(path string, s *engine.Spec, theirs ends) (err error) {
	args, files := commandLine(s, theirs.monitor, theirs.console)
	vm.cmd = &exec.Cmd{
		Path:       path,
		Args:       append([]string{path}, args...),
		Env:        []string{},
		Dir:        "/",
		Stdin:      os.Stdin, // /dev/null: the jail has no such node to open
		Stdout:     theirs.stderr,
		Stderr:     theirs.stderr,
		ExtraFiles: files,
	}
	if os.Getpid() != 1 { // of no pid namespace, whose end would be QEMU's
		vm.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	vm.thread.do(func() {
		if err = vm.cmd.Start(); err == nil {
			vm.meter = newMeter(vm.cmd.Process.Pid, uint64(s.MemoryMiB)<<20)
		}
	})
	return err
}

// failed ends a QEMU that did not come up, and says why.
func (vm *VM) failed(err error) error {
	err = vm.why(err)
	vm.Kill()
	<-vm.done
	vm.Close()
	return err
}

// endsSoon gives a QEMU that hung up a moment to end by itself, so that its
// status and its last words are its own.
func (vm *VM) endsSoon() bool {
	select {
	case <-vm.done:
		return true
	case <-time.After(time.Second):
		return false
	}
}

func killed(s *os.ProcessState) bool {
	ws, ok := s.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

// endError finds the number for what QEMU said when it gave up.
func endError(e end) error {
	errno := syscall.EINVAL
	for _, known := range []struct {
		words string
		errno syscall.Errno
	}{
		{"Cannot allocate memory", syscall.ENOMEM},
		{"KVM", syscall.ENODEV},
		{"Permission denied", syscall.EACCES},
		{"Input/output error", syscall.EIO},
	} {
		if strings.Contains(e.Line, known.words) {
			errno = known.errno
			break
		}
	}
	return ctl.Errorf(errno, "%s", e)
}

// String says in one line how QEMU ended.
func (e end) String() string {
	text := "qemu exited: " + e.Status
	if e.Line != "" {
		text += ": " + e.Line
	}
	return text
}

// wait reaps QEMU.
func (vm *VM) wait() {
	vm.cmd.Wait()
	// The last words are in the sockets; they end with the process.
	vm.monitor.drain()
	vm.log.drain()
	select {
	case <-vm.printed:
	case <-time.After(time.Second):
	}
	vm.mu.Lock()
	vm.end = end{Status: vm.cmd.ProcessState.String(), Line: vm.log.last(), Killed: killed(vm.cmd.ProcessState)}
	if vm.shutdown != nil {
		vm.end.Reason = vm.shutdown.Reason
	}
	vm.mu.Unlock()
	vm.meter.ended(vm.cmd.ProcessState)
	close(vm.done)
}

// pump copies what the guest prints. A guest prints byte by byte; after a
// little, a little more is waited for, so that not every byte wakes readers.
func pump(screen io.Writer, line io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := line.Read(buf)
		screen.Write(buf[:n])
		if err != nil {
			return
		}
		if n < len(buf)/4 {
			time.Sleep(time.Millisecond)
		}
	}
}

// event takes note of how the machine shuts down, and passes on the rest.
func (vm *VM) event(e event, tell func(engine.Event)) {
	switch e.Name {
	case "SHUTDOWN":
		vm.mu.Lock()
		if vm.shutdown == nil {
			vm.shutdown = &e
		}
		vm.mu.Unlock()
	case "RESET":
		if e.Guest {
			tell(engine.GuestReset)
		} else {
			tell(engine.HostReset)
		}
	case "STOP":
		tell(engine.Stopped)
	case "RESUME":
		tell(engine.Resumed)
	}
}

// Input is the serial line: what is written there the guest can read.
func (vm *VM) Input() io.Writer { return vm.console }

// Name is QEMU's, its version and what executes the guest's code.
func (vm *VM) Name() string { return "qemu " + vm.version + " " + vm.accel }

// Done is closed when QEMU has ended and is reaped.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// End is how it ended, once Done is closed.
func (vm *VM) End() engine.End {
	<-vm.done
	e := engine.End{Reason: engine.Failed, Text: vm.end.String(), Killed: vm.end.Killed}
	if reason, ok := reasons[vm.end.Reason]; ok {
		e.Reason = reason
	}
	return e
}

// reasons are what QEMU calls its ends, but for failures.
var reasons = map[string]engine.Reason{
	"guest-panic":    engine.GuestPanic,
	"guest-shutdown": engine.GuestOff,
	"host-qmp-quit":  engine.Quit,
}

// Kill ends QEMU at once, without waiting for it.
func (vm *VM) Kill() { vm.thread.do(func() { vm.cmd.Process.Kill() }) }

// Close releases what is left of a QEMU that has ended, and kills one that
// has not.
func (vm *VM) Close() {
	vm.Kill()
	vm.release()
	<-vm.monitor.done
	vm.meter.close()
}

// release closes our ends of the connections.
func (vm *VM) release() {
	vm.thread.end()
	for _, c := range []*net.UnixConn{vm.console, vm.control} {
		if c != nil {
			c.Close()
		}
	}
	if vm.log != nil {
		vm.log.Close()
	}
}

// Usage is what QEMU has used, of processor time and of memory beyond the
// guest's own.
func (vm *VM) Usage() (ctl.Usage, error) { return vm.meter.usage() }

// The buttons of the machine. Each waits for QEMU's answer, at most 5
// seconds: ETIMEDOUT. None of the answers says that the guest took notice.

// Continue lets the CPUs go.
func (vm *VM) Continue(ctx context.Context) error { return vm.do(ctx, "cont", nil) }

// Pause stops the CPUs.
func (vm *VM) Pause(ctx context.Context) error { return vm.do(ctx, "stop", nil) }

// Reset is the reset button.
func (vm *VM) Reset(ctx context.Context) error { return vm.do(ctx, "system_reset", nil) }

// PowerButton is what ACPI calls the power button.
func (vm *VM) PowerButton(ctx context.Context) error {
	return vm.do(ctx, "system_powerdown", nil)
}

// Quit ends QEMU as soon as it has written what it has of the disks.
func (vm *VM) Quit(ctx context.Context) error { return vm.do(ctx, "quit", nil) }

// CtrlAltDel holds down the three keys for a moment.
func (vm *VM) CtrlAltDel(ctx context.Context) error {
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	return vm.do(ctx, "send-key", map[string][]key{
		"keys": {{"qcode", "ctrl"}, {"qcode", "alt"}, {"qcode", "delete"}},
	})
}

// Running asks whether the CPUs run.
func (vm *VM) Running(ctx context.Context) (bool, error) {
	var status struct{ Running bool }
	err := vm.why(vm.monitor.query(ctx, "query-status", nil, &status))
	return status.Running, err
}

func (vm *VM) do(ctx context.Context, command string, args any) error {
	return vm.why(vm.monitor.execute(ctx, command, args))
}

// why makes of an error that QEMU hung up one that says how it ended.
func (vm *VM) why(err error) error {
	if errors.Is(err, errHungUp) && vm.endsSoon() {
		return endError(vm.end)
	}
	return err
}
