package qemu

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"vmfs/vmm/engine"
)

// command is a command line in the making, with the files that it names by
// number: the first is number 3.
type command struct {
	args  []string
	files []*os.File
}

// commandLine is QEMU's for s without the program's name, and the
// files that belong to it. The words are ours but for the kernel's command
// line, which is one argument and of no syntax.
func commandLine(s *engine.Spec, monitor, console *os.File) (args []string, files []*os.File) {
	var c command
	c.base(s)
	c.add("-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", c.fd(monitor)), "-mon", "chardev=monitor,mode=control")
	c.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", c.fd(console)), "-serial", "chardev:console")
	if s.Firmware != nil {
		c.add("-bios", c.procPath(s.Firmware))
	}
	if s.Flash != nil {
		c.image("code", engine.Image{File: s.Flash.Code, Format: "raw"}, true, nil)
		c.image("vars", engine.Image{File: s.Flash.Vars, Format: "raw"}, false, nil)
		c.add("-machine", "pflash0=code,pflash1=vars")
	}
	if s.Kernel != nil {
		c.add("-kernel", c.procPath(s.Kernel), "-append", s.Cmdline)
		if s.Initrd != nil {
			c.add("-initrd", c.procPath(s.Initrd))
		}
	}
	index := bootIndex(s)
	for i, d := range s.Disks {
		c.disk(d, i, index, min(s.CPUs, maxQueues))
	}
	for _, n := range s.NICs {
		c.nic(n, index(nicName(n.N)))
	}
	c.cdrom(s.Cdrom, index("cdrom"))
	return c.args, c.files
}

// cdrom adds the drive, which is always there so that a medium can come
// later.
func (c *command) cdrom(f *os.File, index int) {
	device := fmt.Sprintf("ide-cd,bus=ide.0,id=%s,bootindex=%d", drive, index)
	if f != nil {
		m := medium(0)
		c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", c.fd(f), m.set()))
		for _, n := range m.nodes() {
			c.node(n)
		}
		device += ",drive=" + m.name()
	}
	c.add("-device", device)
}

func (c *command) add(args ...string) { c.args = append(c.args, args...) }

// fd hands f over and says its number there.
func (c *command) fd(f *os.File) int {
	c.files = append(c.files, f)
	return 2 + len(c.files)
}

func (c *command) procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(c.fd(f)) }

// base is the board and what every machine has.
func (c *command) base(s *engine.Spec) {
	c.add("-name", fmt.Sprintf("vm%d", s.ID))
	c.add("-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-S")
	// QEMU does none of these after it has started: no old system calls,
	// no new rights, no child, no change of priority.
	c.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	// The BIOS speaks on the serial line. Memory is neither merged with
	// other machines', which tells them what is in it, nor dumped.
	c.add("-machine", "q35,graphics=off,mem-merge=off,dump-guest-core=off")
	c.add("-accel", accels[s.Accel].accel, "-cpu", accels[s.Accel].cpu)
	c.add("-smp", strconv.Itoa(s.CPUs), "-m", fmt.Sprintf("%dM", s.MemoryMiB))
	c.add("-boot", "strict=on")
	// A guest that suspends to memory could not be woken.
	c.add("-global", "ICH9-LPC.disable_s3=1")
	c.add("-object", "rng-builtin,id=rng", "-device", "virtio-rng-pci,rng=rng")
	c.add("-device", "pvpanic", "-action", "panic=shutdown")
}

// accels are what QEMU is told of a way to run a CPU. Translated code is kept
// in 64 MiB a machine; left alone, QEMU takes an eighth of the host's memory.
var accels = map[string]struct{ accel, cpu string }{
	"kvm": {"kvm", "host"},
	"tcg": {"tcg,thread=multi,tb-size=64", "max"},
}

// bootIndex says at which place each drive is tried, and each NIC if the
// machine boots from the network; 0 is never.
func bootIndex(s *engine.Spec) func(name string) int {
	var order []string
	for _, d := range s.Disks {
		order = append(order, diskName(d.N))
	}
	if s.Boot == "cdrom" {
		order = append([]string{"cdrom"}, order...)
	} else {
		order = append(order, "cdrom")
	}
	if s.Boot == "net" {
		order = append(nicNames(s.NICs), order...)
	}
	index := make(map[string]int)
	for i, name := range order {
		index[name] = i + 1
	}
	return func(name string) int { return index[name] }
}

func diskName(n int) string { return fmt.Sprintf("disk%d", n) }

// maxQueues is how many queues a disk has at most. Left alone, QEMU makes one
// for each CPU, and 16 disks of 64 queues have more descriptors than we allow.
const maxQueues = 4

func nicName(n int) string { return fmt.Sprintf("nic%d", n) }

func nicNames(nics []engine.NIC) []string {
	names := make([]string, len(nics))
	for i, n := range nics {
		names[i] = nicName(n.N)
	}
	return names
}

// The board has 30 slots for devices. The i-th disk is a function of one of
// two; NIC n has a slot of its own, so that a guest that names its interfaces
// by their place names the others as before when one comes or goes.
const (
	diskSlot = 2
	nicSlot  = 15
)

// nic adds a network card. Only one that is booted from has a boot ROM, which
// is QEMU's own for the device.
func (c *command) nic(n engine.NIC, index int) {
	name := nicName(n.N)
	if n.Tap != nil {
		c.add("-netdev", fmt.Sprintf("tap,id=%s,fd=%d,vhost=off", name, c.fd(n.Tap)))
	} else {
		c.add("-netdev", "user,id="+name)
	}
	device := fmt.Sprintf("virtio-net-pci,id=%s-dev,netdev=%s,mac=%s,addr=%#x", name, name, n.MAC, nicSlot+n.N)
	if index > 0 {
		device += fmt.Sprintf(",bootindex=%d", index)
	} else {
		device += ",romfile="
	}
	c.add("-device", device)
}

// disk adds the i-th disk, its last base first: a node is there before its
// user.
func (c *command) disk(d engine.Disk, i int, index func(string) int, queues int) {
	name := diskName(d.N)
	var behind any // null: QEMU never follows the name in a header
	for n := len(d.Images) - 1; n > 0; n-- {
		base := fmt.Sprintf("%s-base%d", name, n)
		c.image(base, d.Images[n], true, behind)
		behind = base
	}
	c.image(name, d.Images[0], d.ReadOnly, behind)
	c.add("-device", fmt.Sprintf("virtio-blk-pci,id=%s-dev,drive=%s,num-queues=%d,addr=%#x.%d,multifunction=on,bootindex=%d",
		name, name, queues, diskSlot+i/8, i%8, index(name)))
}

// file and format are the two nodes of an image. The order of their fields is
// that of the command line.
type file struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	Filename string `json:"filename"`
	Locking  string `json:"locking"`
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard"`
}

type format struct {
	Driver   string `json:"driver"`
	NodeName string `json:"node-name"`
	File     string `json:"file"`
	ReadOnly bool   `json:"read-only"`
	Discard  string `json:"discard"`
}

type qcow2 struct {
	format
	Backing any `json:"backing"`
}

// image adds the nodes of one image; behind is the node of its base.
func (c *command) image(name string, im engine.Image, readOnly bool, behind any) {
	set := len(c.files)
	c.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", c.fd(im.File), set))
	c.node(fileNode(name, set, readOnly))
	f := format{im.Format, name, name + "-file", readOnly, "unmap"}
	if im.Format == "qcow2" {
		c.node(qcow2{f, behind})
	} else {
		c.node(f)
	}
}

// fileNode is the lower node of the image that is called name.
func fileNode(name string, set int, readOnly bool) file {
	return file{"file", name + "-file", fmt.Sprintf("/dev/fdset/%d", set), "off", readOnly, "unmap"}
}

func (c *command) node(n any) {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // only strings and booleans are in there
	}
	c.add("-blockdev", string(b))
}
