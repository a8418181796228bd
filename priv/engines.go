package priv

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
)

// qemuPaths are where QEMU may be. A guest's jail has nothing but /usr.
var qemuPaths = []string{"/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64"}

const (
	versionTime = 5 * time.Second // that qemu --version gets
	versionSize = 4 << 10         // bytes of it that are read

	kvmGetAPIVersion = 0xae00 // _IO(KVMIO, 0) of linux/kvm.h
	kvmAPIVersion    = 12     // the only one since Linux 2.6.22
)

// engines finds what can run a machine here. QEMU is asked for its version
// once for each file that it is.
type engines struct {
	mu      sync.Mutex
	known   fs.FileInfo // the QEMU of which version is, nil if none is known
	version string
}

// find looks at the host as it is now.
func (e *engines) find() ctl.Engines {
	var found ctl.Engines
	found.QEMU, found.QEMUVersion = e.qemu()
	found.KVMReason = noKVM("/dev/kvm", "/sys/module/kvm_pvm")
	found.KVM = found.KVMReason == ""
	return found
}

// qemu returns the first QEMU that says its version.
func (e *engines) qemu() (path, version string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, path := range qemuPaths {
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		if e.known == nil || !os.SameFile(e.known, info) || !e.known.ModTime().Equal(info.ModTime()) {
			version, err := askVersion(path)
			if err != nil {
				e.known = nil
				continue
			}
			e.known, e.version = info, version
		}
		return path, e.version
	}
	return "", ""
}

// askVersion runs QEMU, if this is root as a uid that nobody has: another
// process of the same could say something else in its place.
func askVersion(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env, cmd.Dir, cmd.WaitDelay = []string{"LC_ALL=C"}, "/", time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: confine.WhoisUID, Gid: confine.WhoisUID}
	}
	out := &head{room: versionSize}
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	return parseVersion(string(out.text))
}

// parseVersion takes "7.2.22" out of "QEMU emulator version 7.2.22 (...)".
func parseVersion(text string) (string, error) {
	_, rest, ok := strings.Cut(text, "version ")
	version, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	version, _, _ = strings.Cut(version, "\n")
	if !ok || version == "" || len(version) > 32 || strings.Trim(version, "0123456789.+-abcdefghijklmnopqrstuvwxyz~") != "" {
		return "", fmt.Errorf("qemu: no version in %.80q", text)
	}
	return version, nil
}

// noKVM says why KVM cannot run an ordinary kernel here, "" if it can.
func noKVM(device, pvm string) string {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "no " + device
	}
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	version, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil {
		return fmt.Sprintf("%s: not KVM: %v", device, err)
	}
	if version != kvmAPIVersion {
		return fmt.Sprintf("%s: API version %d, want %d", device, version, kvmAPIVersion)
	}
	if _, err := os.Stat(pvm); err == nil {
		return "kvm_pvm interprets the guest's code: no ordinary kernel runs"
	}
	return ""
}

// head keeps the first bytes written to it and drops the rest.
type head struct {
	text []byte
	room int
}

func (h *head) Write(p []byte) (int, error) {
	h.text = append(h.text, p[:min(len(p), h.room-len(h.text))]...)
	return len(p), nil
}
