package ctl_test

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestEngine starts machines on hosts of each kind and wants the engine, with
// why it is that one, or the refusal.
func TestEngine(t *testing.T) {
	qcow2 := file(t, "q", "QFI\xfb\x00\x00\x00\x03")
	const bare, kvm, alone = "no kvm", "kvm", "kvm, no qemu"
	for _, c := range []struct {
		what, host string
		config     string // lines, beside a kernel and a raw disk
		want       string // engine and reason; or the error's number and words of it
	}{
		{"the best", kvm, "", "native: kvm"},
		{"asked for", kvm, "engine native", "native: kvm"},
		{"without QEMU", alone, "", "native: kvm"},
		{"without QEMU and KVM", "", "", "ENODEV engine qemu: qemu-system-x86_64 is not installed (package qemu-system-x86)"},
		{"not asked for", kvm, "engine qemu", "qemu 7.2.0 kvm: kvm, not native: engine is qemu"},
		{"asked for what is not there", alone, "engine qemu", "ENODEV engine qemu: qemu-system-x86_64 is not installed"},
		{"no KVM", bare, "", "qemu 7.2.0 tcg: tcg, no kvm: this is a test"},
		{"no KVM for QEMU", bare, "engine qemu", "qemu 7.2.0 tcg: tcg, no kvm: this is a test"},
		{"no KVM for native", bare, "engine native", "ENODEV engine native: no kvm: this is a test"},

		{"no kernel", kvm, "-kernel", "qemu 7.2.0 kvm: kvm, not native: there is no kernel"},
		{"no kernel, native", kvm, "-kernel\nengine native", "EOPNOTSUPP engine native: there is no kernel; auto or qemu runs that"},
		{"no kernel, no QEMU", alone, "-kernel", "ENODEV engine qemu: qemu-system-x86_64 is not installed (package qemu-system-x86); and not native: there is no kernel"},
		{"firmware", kvm, "-kernel\nfirmware " + qcow2, "qemu 7.2.0 kvm: kvm, not native: firmware is set"},
		{"cdrom", kvm, "cdrom " + qcow2, "qemu 7.2.0 kvm: kvm, not native: cdrom is set"},
		{"network boot", kvm, "boot net", "qemu 7.2.0 kvm: kvm, not native: boot is net"},
		{"network boot, native", kvm, "boot net\nengine native", "EOPNOTSUPP engine native: boot is net"},
		{"a qcow2", kvm, "disk/1/path " + qcow2 + "\ndisk/1/format qcow2", "qemu 7.2.0 kvm: kvm, not native: disk/1 is qcow2"},
		{"a qcow2 that is found", kvm, "disk/1/path " + qcow2, "qemu 7.2.0 kvm: kvm, not native: disk/1 is qcow2"},
		{"a qcow2 that is found, native", kvm, "disk/1/path " + qcow2 + "\nengine native", "EOPNOTSUPP engine native: disk/1 is qcow2"},
		{"a qcow2 that is found, no QEMU", alone, "disk/1/path " + qcow2, "ENODEV engine qemu: qemu-system-x86_64 is not installed (package qemu-system-x86); and not native: disk/1 is qcow2"},
		{"a raw one that looks so", kvm, "disk/1/path " + qcow2 + "\ndisk/1/format raw", "native: kvm"},
		{"17 devices", kvm, devices(t, 15, 1), "native: kvm"},
		{"18 devices", kvm, devices(t, 15, 2), "qemu 7.2.0 kvm: kvm, not native: 18 disks and nics, more than 17"},
		{"18 devices, native", kvm, devices(t, 15, 2) + "engine native", "EOPNOTSUPP engine native: 18 disks and nics, more than 17"},
	} {
		_, vm, host := machine(t)
		host.KVM = c.host == kvm || c.host == alone
		host.Missing = c.host == alone || c.host == ""
		if c.config != "" {
			ok(t, vm.Edit(root, strings.TrimSuffix(c.config, "\n")+"\n"))
		}
		check := vm.Check(ctx)
		err := vm.Do(ctx, root, "start", "")
		name, words, refusal := strings.Cut(c.want, " ")
		if errno, known := map[string]syscall.Errno{"ENODEV": syscall.ENODEV, "EOPNOTSUPP": syscall.EOPNOTSUPP}[name]; known && refusal {
			refused(t, err, errno, words)
			if !strings.Contains(check, words) {
				t.Errorf("%s: check says %q, want %q", c.what, check, words)
			}
			if host.Guest(1) != nil {
				t.Errorf("%s: a guest process was started", c.what)
			}
			continue
		}
		if err != nil || check != "ok\n" {
			t.Errorf("%s: %v; check says %q", c.what, err, check)
			continue
		}
		info := vm.Info(ctx)
		native := strings.HasPrefix(c.want, "native")
		if got := strings.Contains(info, "\nexits_pio 4\nexits_mmio 3\nexits_interrupted 2\nexits_stray 1\n"); got != native || strings.Contains(info, "exits_") != native {
			t.Errorf("%s: info\n%s", c.what, info)
		}
		if got := lineOf(info, "engine") + ": " + lineOf(info, "engine_reason"); got != c.want {
			t.Errorf("%s: got %q, want %q", c.what, got, c.want)
		}
	}
}

// lineOf is the value of a key of info.
func lineOf(info, key string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			return strings.TrimSuffix(value, "\n")
		}
	}
	return ""
}

// devices are lines of a definition that add raw disks and NICs.
func devices(t *testing.T, disks, nics int) string {
	path := file(t, "disk.raw", "disk")
	var b strings.Builder
	for n := range disks {
		fmt.Fprintf(&b, "disk/%d/path %s\n", n+1, path)
	}
	for n := range nics {
		fmt.Fprintf(&b, "nic/%d/up yes\n", n)
	}
	return b.String()
}

// TestUnpackedKernel wants a native guest to have the kernel that is at hand,
// and QEMU's the one that was named.
func TestUnpackedKernel(t *testing.T) {
	for engine, want := range map[string]string{"native": "kvm; the kernel is unpacked", "qemu": "kvm, not native: engine is qemu"} {
		_, vm, host := machine(t)
		host.KVM, host.Kernel = true, file(t, "unpacked", "ELF")
		ok(t, vm.Set(root, "engine", engine))
		ok(t, vm.Do(ctx, root, "start", ""))
		if got := lineOf(vm.Info(ctx), "engine_reason"); got != want {
			t.Errorf("%s: reason %q, want %q", engine, got, want)
		}
		kernel := vm.Get("kernel")
		if engine == "native" {
			kernel = host.Kernel
		}
		if got := host.Guest(1).Kernel(); got != kernel {
			t.Errorf("%s: kernel %s, want %s", engine, got, kernel)
		}
	}
}

// TestStartTime wants a start with the native engine to give up sooner than one
// with QEMU.
func TestStartTime(t *testing.T) {
	for kvm, limit := range map[bool]time.Duration{true: 5 * time.Second, false: 15 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			_, vm, host := machine(t)
			host.KVM = kvm
			host.Blocking = func(ctx context.Context) { <-ctx.Done() }
			began := time.Now()
			refused(t, vm.Do(ctx, root, "start", ""), syscall.ETIMEDOUT, "the guest did not run within "+limit.String())
			if took := time.Since(began); took != limit {
				t.Errorf("a start took %v, want %v", took, limit)
			}
		})
	}
}
