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
	"time"

	"vmfs/ctl"
	"vmfs/vmm/unpack"
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
	if err := b.unpackKernel(); err != nil {
		fmt.Printf("not measured: the box: %v\n", err)
		return false
	}
	args := []string{"-t", strconv.Itoa(boxSeconds)}
	for _, f := range []string{"measure", "inside", "vmfs", "vmfs-guest", "vmlinuz", "vmlinux", "initrd"} {
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

// unpackKernel makes vmlinux of vmlinuz.
func (b *bench) unpackKernel() error {
	from, err := os.Open(b.dir + "/vmlinuz")
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	to, err := os.Create(b.dir + "/vmlinux")
	if err != nil {
		return err
	}
	_, err = unpack.Unpack(from, st.Size(), to, unpack.Limit)
	return errors.Join(err, to.Close())
}

// userland holds a guest process, from its start until the guest's own programs
// print, against microvm with the same kernel, as the distribution packs it, and
// the same initrd. The daemon is not in it: an emulated one on a busy machine may
// take longer than it grants a start.
func (b *bench) userland() (line, error) {
	l, err := b.toUserland(b.dir + "/vmlinuz")
	l.what = "start until userland prints, to microvm"
	return l, err
}

// userlandUnpacked is the same with the kernel unpacked for both, as the daemon
// has it from the second start on.
func (b *bench) userlandUnpacked() (line, error) {
	l, err := b.toUserland(b.dir + "/vmlinux")
	l.what = "the same, the kernel unpacked"
	return l, err
}

func (b *bench) toUserland(kernel string) (line, error) {
	args := append(microvmLinux[:len(microvmLinux):len(microvmLinux)],
		"-kernel", kernel, "-initrd", b.dir+"/initrd", "-append", linuxCmdline)
	l, err := compare(min(b.pairs, maxBoots),
		func() (time.Duration, error) { return b.bootNative(kernel) },
		func() (time.Duration, error) { return bootQEMU(args) })
	l.aim = 0.9
	return l, err
}

// bootNative runs a guest process until the marker comes, and kills it.
func (b *bench) bootNative(kernel string) (time.Duration, error) {
	begin := time.Now()
	t, err := b.newTiny()
	if err != nil {
		return 0, err
	}
	defer t.end()
	if err := t.launchLinux(kernel, b.dir+"/initrd", &ctl.Launch{Cmdline: linuxCmdline}); err != nil {
		return 0, err
	}
	err = waitFor(t)
	return time.Since(begin), err
}

// launchLinux is launch with files by their names.
func (t *tiny) launchLinux(kernel, initrd string, l *ctl.Launch) error {
	l.Name, l.CPUs, l.MemoryMiB = "linux", 1, linuxMiB
	for name, slot := range map[string]**os.File{kernel: &l.Kernel, initrd: &l.Initrd} {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		*slot = f
	}
	return t.launch(l)
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
