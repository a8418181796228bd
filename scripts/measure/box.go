package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vmfs/vmm/kvm"
)

// The lines that need a KVM that runs an ordinary kernel, which is to say
// scripts/testbed. All is emulated there: only what runs side by side in one
// box can be compared.

// In the box, a line has so many pairs at most: a boot takes half a minute and
// more.
const maxBoots = 3

// boxSeconds bounds the box.
const boxSeconds = 3000

// measureBox runs this program again in the box. It is false if something could
// not be measured.
func (b *bench) measureBox(only *regexp.Regexp) bool {
	args := []string{"-t", strconv.Itoa(boxSeconds)}
	for _, f := range []string{"measure", "inside", "vmfs", "vmfs-guest", "vmlinuz", "initrd"} {
		args = append(args, "-f", filepath.Join(b.dir, f))
	}
	cmd := exec.Command("scripts/testbed", append(args, "./measure", "-box", "/box", "/box", "/dev/shm", strconv.Itoa(b.pairs), only.String())...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	var status *exec.ExitError
	switch {
	case errors.As(err, &status) && status.ExitCode() == 77:
		fmt.Println("SKIPPED: the lines of the box: there is none on this machine; the reason is above")
		return true
	case err != nil:
		fmt.Printf("not measured: the box: %v\n", err)
		return false
	}
	return true
}

// idleCPU keeps a CPU that never runs, until the process ends: docs/testbed.md
// says why.
func idleCPU() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	sys, err := kvm.New(f)
	if err != nil {
		return err
	}
	vm, err := sys.CreateVM()
	if err != nil {
		return err
	}
	_, err = vm.CreateVCPU(0)
	return err
}

// What both sides of the box's lines boot.
const (
	linuxMiB     = 192
	linuxCmdline = "console=ttyS0 quiet panic=-1 no_timer_check"
)

// microvmLinux is microvm as a stock kernel needs it: it has its interrupts and
// its virtio devices from ACPI.
var microvmLinux = []string{
	"-M", "microvm,acpi=on,pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off", "-bios", "qboot.rom",
	"-accel", "kvm", "-cpu", "host", "-m", strconv.Itoa(linuxMiB),
	"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
	"-global", "virtio-mmio.force-legacy=false",
}

// userland holds `echo start > ctl`, until the guest's own programs print,
// against microvm with the same kernel and initrd.
func (b *bench) userland() (line, error) {
	d, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	vm, console := d.mnt+"/vm/vm0", d.mnt+"/live/vm/vm0/console"
	conf := fmt.Sprintf("kernel %s/vmlinuz\ninitrd %s/initrd\nmemory %dM\ncmdline %s\nengine native\n", b.dir, b.dir, linuxMiB, linuxCmdline)
	if err := write(vm+"/config", conf, false); err != nil {
		return line{}, err
	}
	args := append(microvmLinux[:len(microvmLinux):len(microvmLinux)],
		"-kernel", b.dir+"/vmlinuz", "-initrd", b.dir+"/initrd", "-append", linuxCmdline)
	l, err := compare(min(b.pairs, maxBoots),
		func() (time.Duration, error) { return startAgain(vm, console) },
		func() (time.Duration, error) { return bootQEMU(args) })
	l.what, l.aim = "start until userland prints, to microvm", 0.9
	return l, err
}

// startAgain starts a machine until a start has not been too slow for the daemon,
// which bounds it, as an emulated one on a busy machine may be.
func startAgain(vm, console string) (took time.Duration, err error) {
	defer kill(vm)
	for range 5 {
		if took, err = startVM(vm, console); !errors.Is(err, syscall.ETIMEDOUT) {
			break
		}
	}
	return took, err
}

// bootQEMU runs QEMU until the marker comes, and kills it.
func bootQEMU(args []string) (time.Duration, error) {
	begin := time.Now()
	cmd := exec.Command("qemu-system-x86_64", args...)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	defer time.AfterFunc(bootTimeout, func() { cmd.Process.Kill() }).Stop()
	if err := waitFor(out); err != nil {
		return 0, fmt.Errorf("QEMU: %w: %s", err, complaint.String())
	}
	return time.Since(begin), nil
}

// insideInitrd is the initrd with the program inside behind it: the kernel
// takes several archives in a row.
func (b *bench) insideInitrd() (string, error) {
	program, err := os.ReadFile(b.dir + "/inside")
	if err != nil {
		return "", err
	}
	first, err := os.Open(b.dir + "/initrd")
	if err != nil {
		return "", err
	}
	defer first.Close()
	path := filepath.Join(b.dir, "initrd-inside")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.Copy(f, first); err != nil {
		return "", err
	}
	for _, part := range []string{"inside", "TRAILER!!!"} {
		if _, err := f.Write(cpio(part, program)); err != nil {
			return "", err
		}
		program = nil
	}
	return path, f.Close()
}

// cpio is one entry of an archive in the newc format (cpio(5)): an executable
// file.
func cpio(name string, data []byte) []byte {
	mode := 0o100755
	if data == nil {
		mode = 0
	}
	p := []byte("070701")
	for _, v := range []int{1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		p = fmt.Appendf(p, "%08X", v)
	}
	p = append(p, name...)
	p = append(p, 0)
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	p = append(p, data...)
	for len(p)%4 != 0 {
		p = append(p, 0)
	}
	return p
}
