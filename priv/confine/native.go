package confine

import "golang.org/x/sys/unix"

// Native is a guest that runs its machine itself. Its capabilities are those
// before Become; its system calls, and that no path is left, hold from before
// it hears of its machine.
var Native = Role{
	Name: "native",
	User: "1900000000 + id",
	Capabilities: []Capability{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, "makes an empty directory its root, in its own mount namespace"},
		{"CAP_SETUID", unix.CAP_SETUID, "becomes the guest's uid"},
		{"CAP_SETGID", unix.CAP_SETGID, "and gid, with no groups"},
		{"CAP_SETPCAP", unix.CAP_SETPCAP, "empties the bounding set"},
	},
	Default: Deny,
	Calls: lines(ioctls, never, goRuntime, messages, []Calls{
		{"listen accept4", Allow, nil, "core connects to the socket that priv bound"},
		{"ftruncate fallocate", Allow, nil, "memfds, the guest's memory and the console's ring; holes in disks"},
		{"flock", Allow, nil, "locks the disks it was given"},
		{"lseek readv writev preadv pwritev preadv2 pwritev2 pwrite64 fdatasync fsync", Allow, nil, "disks and taps"},
		{"getrusage", Allow, nil, "what it cost"},
		{"getuid geteuid getgid getegid getppid", Allow, nil, "who it is"},
	}),
	NoPaths: "every file comes open; Landlock has no rule, and the root directory is empty",
}

// ioctls are all that a native guest makes, the most frequent first: the
// filter is run from its beginning at each.
var ioctls = lines(
	ioctl(0xae80, "KVM_RUN: the guest's code"),
	ioctl(0xaead, "KVM_KVMCLOCK_CTRL: after a pause"),
	ioctl(0x8090ae81, "KVM_GET_REGS: where a CPU crashed"),
	ioctl(0x8138ae83, "KVM_GET_SREGS: the same"),
	ioctl(0xc018ae85, "KVM_TRANSLATE: and the code there"),
	ioctl(0xae00, "KVM_GET_API_VERSION: what KVM this is"),
	ioctl(0xae03, "KVM_CHECK_EXTENSION: what it can do"),
	ioctl(0xae04, "KVM_GET_VCPU_MMAP_SIZE: the same"),
	ioctl(0xc008ae05, "KVM_GET_SUPPORTED_CPUID: the same"),
	ioctl(0xae01, "KVM_CREATE_VM: again at each of the guest's reboots, like all that follow"),
	ioctl(0xae47, "KVM_SET_TSS_ADDR: Intel's virtualization needs a place"),
	ioctl(0x4008ae48, "KVM_SET_IDENTITY_MAP_ADDR: and another"),
	ioctl(0x4068aea3, "KVM_ENABLE_CAP: no performance counters"),
	ioctl(0x4020ae46, "KVM_SET_USER_MEMORY_REGION: the guest's memory"),
	ioctl(0xae60, "KVM_CREATE_IRQCHIP: interrupt controllers"),
	ioctl(0xc208ae62, "KVM_GET_IRQCHIP: with the old ones masked"),
	ioctl(0x8208ae63, "KVM_SET_IRQCHIP: the same"),
	ioctl(0x4040ae77, "KVM_CREATE_PIT2: a timer"),
	ioctl(0x4020ae76, "KVM_IRQFD: a device's interrupt"),
	ioctl(0x4040ae79, "KVM_IOEVENTFD: a device's doorbell"),
	ioctl(0xae41, "KVM_CREATE_VCPU: a CPU"),
	ioctl(0x4008ae90, "KVM_SET_CPUID2: what it says it is"),
	ioctl(0x4008ae89, "KVM_SET_MSRS: how it begins"),
	ioctl(0x8400ae8e, "KVM_GET_LAPIC: the same"),
	ioctl(0x4400ae8f, "KVM_SET_LAPIC: the same"),
	ioctl(0x4138ae84, "KVM_SET_SREGS: the same"),
	ioctl(0x41a0ae8d, "KVM_SET_FPU: the same"),
	ioctl(0x4090ae82, "KVM_SET_REGS: the same"),
	ioctl(unix.TUNGETIFF, "what a tap is"),
	ioctl(unix.TUNSETVNETHDRSZ, "the size of its headers"),
	ioctl(unix.TUNSETOFFLOAD, "what the guest takes unfinished"),
)

// ioctl is one ioctl, by its number.
func ioctl(number uint32, why string) []Calls {
	return []Calls{{"ioctl", Allow, []Arg{{1, ^uint32(0), number}}, why}}
}
