package cgroup

import (
	"fmt"
	"strconv"
)

// Need is a machine as far as limits go.
type Need struct {
	Engine string // "native", "kvm" or "tcg"
	CPUs   int
	Memory int // of the machine, in MiB
	Images int // qcow2 images that are open, bases too
	Files  int // size of kernel, initrd and firmware, in MiB
}

// overheads are what an engine may use beyond its machine's memory, in MiB:
// generously, since who exceeds it is killed. A limit here keeps a host from
// running dry, and no books.
//
//   - fixed: the programs, their tables, the console, buffers in flight, and
//     what of the images' page cache is being written back. With TCG 64 MiB of
//     translated code more, which args.go of vmm/qemu bounds. The native engine
//     has 5, and its unpacking of a kernel as much as that has.
//   - cpu: a thread with its stack, and what KVM keeps of a virtual CPU. With
//     TCG also its table of translated addresses, which has an entry of 56 bytes
//     for each page that the guest has touched lately, in user mode and in the
//     kernel's, and doubles when it fills up.
//   - part: one in so many MiB of the machine's memory, for page tables: 8 bytes
//     for each 4096 of the host's, and as many of the guest's with KVM.
var overheads = map[string]struct{ fixed, cpu, part int }{
	"native": {128, 4, 128},
	"kvm":    {192, 8, 128},
	"tcg":    {320, 8, 128},
}

const (
	// tcgShare is which part of the memory a TCG CPU's table may be as large
	// as, and tcgTable the most that counts, in MiB.
	tcgShare, tcgTable = 32, 128

	imageTables = 34 // MiB: QEMU keeps 32 of the map of a qcow2 image, and some of its counts
	fileCopies  = 2  // of a kernel: the sealed one, and QEMU's to start again from

	// taskBase is for threads that are no CPU: QEMU has 64 for each kind of
	// I/O and a few besides, Go's runtime some for each call that waits.
	taskBase = 256

	weightEach = 100 // the kernel's default
	weightMost = 10000
)

// limits are the values of a guest's cgroup.
type limits struct {
	memory uint64 // bytes
	tasks  int    // processes and threads
	weight int    // share of the processors; 100 is everybody's by default
}

// limits bounds a machine. Its share of the processors goes by its CPUs, as the
// limits of users do: who splits a machine in two has no more, and no less.
func (n Need) limits() (limits, error) {
	o, ok := overheads[n.Engine]
	if !ok || n.CPUs < 1 || n.Memory < 1 || n.Images < 0 || n.Files < 0 {
		return limits{}, fmt.Errorf("%+v: no machine is like that", n)
	}
	each := o.cpu
	if n.Engine == "tcg" {
		each += min(n.Memory/tcgShare, tcgTable)
	}
	more := o.fixed + n.CPUs*each + n.Memory/o.part + n.Images*imageTables + n.Files*fileCopies
	return limits{
		memory: uint64(n.Memory+more) << 20,
		tasks:  taskBase + n.CPUs,
		weight: min(n.CPUs*weightEach, weightMost),
	}, nil
}

// setting is a file of a cgroup and what is written there.
type setting struct{ file, value string }

// settings are the limits that a controller has.
//
// What is not set: memory.oom.group, so that the kernel ends QEMU, the
// largest, and leaves the process that holds the machine's record and console
// to tell of it. cpu.max, since an idle host need not keep anybody waiting.
func (l limits) settings(controller string) []setting {
	switch controller {
	case "memory":
		m := strconv.FormatUint(l.memory, 10)
		// As much swap at most, so that a host may swap out all of an idle
		// machine, and one gone mad fills no more than that.
		return []setting{{"memory.max", m}, {"memory.swap.max", m}}
	case "pids":
		return []setting{{"pids.max", strconv.Itoa(l.tasks)}}
	case "cpu":
		return []setting{{"cpu.weight", strconv.Itoa(l.weight)}}
	}
	return nil
}

// controllers are those that limit guests, in the order in which Describe
// tells of them.
var controllers = []string{"memory", "pids", "cpu"}
