package ctl

import (
	"context"
	"fmt"
	"os"
)

// Process is what a guest process is started for, as far as its host has to
// know that.
type Process struct {
	ID        uint32
	Accel     string // "native", "kvm" or "tcg"
	Outward   bool   // it has the daemon's network, for a NIC without a tap
	CPUs      int
	MemoryMiB int
	Images    int // qcow2 images, bases too
	FilesMiB  int // size of kernel, initrd and firmware
}

// Bounds are the limits that the host has for a guest process, beside those
// that users have for their machines.
type Bounds struct {
	// Text is its cgroup and the limits in there, or "none: " and why.
	Text string
	// Killed is how often the kernel killed there, because the process and
	// what it started had used all their memory.
	Killed uint64
}

// process is what a launch asks for.
func (l *Launch) process() Process {
	p := Process{ID: l.ID, Accel: l.Accel, Outward: l.outward(), CPUs: l.CPUs, MemoryMiB: l.MemoryMiB}
	for _, d := range l.Disks {
		for _, image := range d.Images {
			if image.Format == FormatQcow2 {
				p.Images++
			}
		}
	}
	for _, f := range []struct {
		file *os.File
		most int // MiB that a guest process copies of it; package vmm refuses more
	}{{l.Kernel, 256}, {l.Initrd, 2 << 10}, {l.Firmware, 16}, {l.Vars, 16}} {
		p.FilesMiB += mebibytes(f.file, f.most)
	}
	return p
}

// mebibytes is the size of a file, rounded up, and no more than most: a user
// can make a file as long as he likes that has no bytes.
func mebibytes(f *os.File, most int) int {
	if f == nil {
		return 0
	}
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return int(min((st.Size()+1<<20-1)>>20, int64(most)))
}

// learnBounds asks what limits a launch has, once.
func (vm *VM) learnBounds(ctx context.Context, l *launch) {
	b, err := vm.m.Host.Bounds(ctx, vm.id)
	if err != nil {
		b.Text = "unknown: " + err.Error()
	}
	vm.mu.Lock()
	l.bounds = oneLine(b.Text)
	vm.mu.Unlock()
}

// overBounds says so in the record of a launch that ended because it had used
// all its memory.
func (vm *VM) overBounds(exit *Exit) {
	if !exit.Failed {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	if b, err := vm.m.Host.Bounds(ctx, vm.id); err == nil && b.Killed > 0 {
		exit.How = fmt.Sprintf("out of memory, at the limit of its cgroup: %s", exit.How)
	}
}
