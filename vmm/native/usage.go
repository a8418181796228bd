package native

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/vmm/virtio"
)

// add adds exits to a sum.
func add(sum *ctl.Exits, e ctl.Exits) {
	sum.PIO += e.PIO
	sum.MMIO += e.MMIO
	sum.Interrupted += e.Interrupted
	sum.Stray += e.Stray
}

func (b *board) exits() (sum ctl.Exits) {
	for _, x := range b.cpus.all {
		add(&sum, ctl.Exits{PIO: x.io.Load(), MMIO: x.mmio.Load(), Interrupted: x.interrupted.Load()})
	}
	sum.Stray = b.ports.strays.Load() + b.memory.strays.Load()
	return sum
}

// Exits are those since the machine was started.
func (vm *VM) Exits() ctl.Exits {
	vm.mu.Lock()
	sum := vm.past
	b := vm.board.Load()
	vm.mu.Unlock()
	if b != nil {
		add(&sum, b.exits())
	}
	return sum
}

// errConsoleClosed is a console whose board is gone.
var errConsoleClosed = virtio.ErrClosed

// input types p as far as the guest takes it.
func (b *board) input(p []byte) (int, error) {
	if b.console != nil {
		return b.console.Write(p)
	}
	return b.uart.Input(p), nil
}

// Usage is what this process has used, of processor time and of memory beyond
// the guest's own, with the exits.
func (vm *VM) Usage() (ctl.Usage, error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return ctl.Usage{}, fmt.Errorf("usage: %w", err)
	}
	exits := vm.Exits()
	u := ctl.Usage{CPU: time.Duration(r.Utime.Nano() + r.Stime.Nano()), Exits: &exits}
	if vm.spec.Rollup == nil {
		return u, nil
	}
	rollup := make([]byte, 4096)
	n, err := vm.spec.Rollup.ReadAt(rollup, 0)
	if err != nil && err != io.EOF {
		return ctl.Usage{}, fmt.Errorf("usage: %w", err)
	}
	if u.Overhead, err = parsePss(rollup[:n]); err != nil {
		return ctl.Usage{}, err
	}
	if guest, err := vm.ram.Resident(); err == nil { // not after the end
		u.Overhead -= min(u.Overhead, guest)
	}
	return u, nil
}

// parsePss finds the line Pss of a smaps_rollup, in KiB, and returns bytes.
func parsePss(rollup []byte) (uint64, error) {
	for line := range bytes.Lines(rollup) {
		value, ok := bytes.CutPrefix(line, []byte("Pss:"))
		if !ok {
			continue
		}
		value = bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB")))
		kib, err := strconv.ParseUint(string(value), 10, 48)
		if err != nil {
			break
		}
		return kib << 10, nil
	}
	return 0, fmt.Errorf("usage: smaps_rollup: %w", syscall.EPROTO)
}
