package confine

import "golang.org/x/sys/unix"

// Roles lists every role: the daemon's in the order in which they come to be.
var Roles = []Role{Priv, Whois, Opener, Core, Lease, Unpack, Jail, Guest, Native, Mount, OrdinaryPriv, OrdinaryJail}

// Priv is the daemon's privileged half.
var Priv = Role{
	Name: "priv",
	User: "root",
	Capabilities: []Capability{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, "mounts the tree, makes a guest's namespaces"},
		{"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT, "for a guest: enters its jail"},
		{"CAP_MKNOD", unix.CAP_MKNOD, "for a guest: a /dev/kvm node of its own"},
		{"CAP_SETUID", unix.CAP_SETUID, "openers, core, lease and guests become somebody else"},
		{"CAP_SETGID", unix.CAP_SETGID, "the same, for groups"},
		{"CAP_SETPCAP", unix.CAP_SETPCAP, "the roles empty their bounding sets"},
		{"CAP_CHOWN", unix.CAP_CHOWN, "gives core its state directory and the guests' sockets"},
		{"CAP_KILL", unix.CAP_KILL, "ends openers, core, lease and guests, which are not root's"},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, "taps, bridges, VRFs, addresses, nftables"},
		{"CAP_NET_BIND_SERVICE", unix.CAP_NET_BIND_SERVICE, "listens for 9P on ports below 1024"},
		{"CAP_NET_RAW", unix.CAP_NET_RAW, "the packet sockets that lease answers on"},
	},
	Default: Allow,
	Calls: lines(keepTap, []Calls{
		{"kexec_load kexec_file_load reboot", Deny, nil, "the host is not ours to replace or to stop"},
		{"init_module finit_module delete_module", Deny, nil, "no code goes into the kernel; modprobe is the administrator's"},
		{"bpf perf_event_open", Deny, nil, "programs and probes in the kernel: nobody here loads any"},
		{"ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise", Deny, nil, "the roles speak by messages; nobody reaches into another's memory or files"},
		{"userfaultfd", Deny, nil, "stops the kernel in the middle of a copy: a tool of exploits, used by none"},
		{"io_uring_setup io_uring_enter io_uring_register", Deny, nil, "a second way to make calls that this filter would not see; QEMU does without"},
		{"swapon swapoff acct quotactl quotactl_fd", Deny, nil, "the host's storage and accounting are not ours"},
		{"settimeofday clock_settime clock_adjtime adjtimex", Deny, nil, "nor is its clock"},
		{"iopl ioperm", Deny, nil, "I/O ports: devices of guests are emulated"},
		{"keyctl add_key request_key", Deny, nil, "keyrings are not divided by namespaces"},
		{"open_by_handle_at name_to_handle_at", Deny, nil, "opens files past every directory above them"},
		{"syslog vhangup sethostname setdomainname", Deny, nil, "the host's log, terminals and names"},
		{"fanotify_init lookup_dcookie", Deny, nil, "watching the whole host's files"},
		{"mount_setattr", Deny, nil, "id-mapped mounts make files change owners"},
	}),
	NoLandlock: "a process under Landlock may not mount, and mounting is priv's work; its children would inherit it",
}

// Whois is a process that becomes the host's id(1), whose modules (NSS) read
// files, speak to daemons, or to servers in the network. Its capabilities are
// those before Become; its paths and system calls hold for id too.
var Whois = Role{
	Name: "whois",
	User: "1899999996",
	Capabilities: []Capability{
		{"CAP_SETUID", unix.CAP_SETUID, "becomes a uid that nobody has"},
		{"CAP_SETGID", unix.CAP_SETGID, "and gid, with no groups"},
	},
	Default: Allow, // what its modules do, the host's administrator says
	Calls: []Calls{
		{"clone", Allow, []Arg{{0, unix.CLONE_THREAD, unix.CLONE_THREAD}}, "threads"},
		{"clone fork vfork", Deny, nil, "no process that would outlive it, with the uid of those that come after"},
		{"clone3", Absent, nil, "its flags cannot be looked at; the C library then calls clone"},
		{"tgkill", Allow, []Arg{{0, ^uint32(0), Self}}, "a signal to a thread of its own, as abort sends"},
		{"kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal", Deny, nil, "none to another that is asked at the same time"},
		{"prlimit64", Allow, []Arg{{0, ^uint32(0), 0}}, "its own limits"},
		{"prlimit64", Deny, nil, "nor the limits of another"},
		{"prctl", Deny, []Arg{{0, ^uint32(0), unix.PR_SET_PDEATHSIG}}, "it ends with who asked"},
		{"unshare setns mount umount2 chroot pivot_root", Deny, nil, "no namespace in which it has rights"},
	},
	Paths: []Path{
		{"/", Read, false, "whatever modules read, as far as anybody may"},
		{"/", Connect, false, "the daemons that know users"},
		{"/usr", Exec, false, "id"},
		{"/lib", Exec, true, "the dynamic loader, where /lib is not a link into /usr"},
		{"/lib64", Exec, true, "the same"},
	},
}

// Opener opens files for one user. Its capabilities are those before Become;
// its system calls those after.
var Opener = Role{
	Name: "opener",
	User: "the user who set the path",
	Capabilities: []Capability{
		{"CAP_SETUID", unix.CAP_SETUID, "becomes the user"},
		{"CAP_SETGID", unix.CAP_SETGID, "takes his groups"},
	},
	Default: Deny,
	Calls: lines(never, goRuntime, []Calls{
		{"openat openat2", Allow, nil, "the user's files: the first with O_PATH, again through /proc/self/fd"},
		{"fstat newfstatat readlinkat readlink", Allow, nil, "looks what was opened, and where it lies"},
		{"pread64", Allow, nil, "the first bytes say the format, and of a qcow2 image what is behind it"},
		{"sendmsg recvmsg", Allow, nil, "the answer with its files; the request came before"},
		{"getsockname getpeername getsockopt shutdown", Allow, nil, "the runtime's handling of the one socket"},
	}),
	NoLandlock: "the paths are the user's, anywhere; his own rights and the kernel's permission checks are the bound",
}

// Core serves users and decides.
var Core = Role{
	Name:    "core",
	User:    "_vmfs, or 1899999999 where there is no such user",
	Default: Deny,
	Calls: lines(never, goRuntime, messages, []Calls{
		{"connect", Allow, nil, "to the sockets of guests"},
		{"accept4", Allow, nil, "9P clients, on the sockets that priv listens on"},
		{"readv writev preadv pwritev pwrite64 splice tee vmsplice", Allow, nil, "requests of the FUSE descriptor, and their data"},
		{"openat openat2 readlinkat newfstatat statx getdents64 lseek faccessat faccessat2 statfs fstatfs", Allow, nil, "reads its state and what /proc says of a caller"},
		{"mkdirat unlinkat renameat renameat2 ftruncate fallocate fchmod fchmodat fchmodat2 utimensat flock fsync fdatasync copy_file_range sendfile", Allow, nil, "writes its state so that a crash leaves the old or the new"},
		{"open stat lstat access readlink getdents mkdir rmdir unlink rename truncate chmod", Allow, nil, "the older names of these; the library uses some"},
		{"umask getuid geteuid getgid getegid getgroups getresuid getresgid getppid getcwd", Allow, nil, "who and where it is"},
	}),
	Paths: []Path{
		{"STATE", Write, false, "definitions, policy, console logs"},
		{"RUN/guest", Connect, false, "the guests' sockets"},
		{"/proc", Read, false, "groups of a caller, of whose thread FUSE tells"},
		{"/etc", Read, false, "passwd and group; they are replaced, so a rule on the files would not hold"},
		{"/run/systemd/resolve", Read, true, "the resolvers that guests are told of: /etc/resolv.conf may lead there, and has only the host's own"},
		{"/run/resolvconf", Read, true, "the same, of hosts where another program writes resolv.conf"},
		{"/usr/share/zoneinfo", Read, true, "the local time, for what people read"},
	},
}

// Lease answers DHCP and sends router advertisements.
var Lease = Role{
	Name:    "lease",
	User:    "1899999998",
	Default: Deny,
	Calls: lines(never, goRuntime, []Calls{
		{"recvmsg sendmsg", Allow, nil, "core's requests with the links' sockets beside them; the guests' frames"},
		{"sendto", Allow, nil, "answers to guests"},
		{"getsockname getsockopt setsockopt", Allow, nil, "whether a socket is a link's, and the MAC of its interface"},
		{"getpeername shutdown", Allow, nil, "the runtime's handling of the conversation"},
	}),
	NoLandlock: "there is no rule to list: it is under Landlock without any, and opens nothing",
}

// Unpack takes the kernel out of one bzImage. Its capabilities are those before
// Become; its system calls those after.
var Unpack = Role{
	Name: "unpack",
	User: "1899999997",
	Capabilities: []Capability{
		{"CAP_SETUID", unix.CAP_SETUID, "becomes a uid that nobody has"},
		{"CAP_SETGID", unix.CAP_SETGID, "and gid, with no groups"},
	},
	Default: Deny,
	Calls: lines(never, goRuntime, []Calls{
		{"sendmsg recvmsg", Allow, nil, "the request with its file, the answer with that kernel"},
		{"getsockname getpeername getsockopt shutdown", Allow, nil, "the runtime's handling of the one socket"},
	}),
	NoPaths: "its one file comes open; Landlock has no rule",
}

// Jail is a guest from its exec until it has built its jail.
var Jail = Role{
	Name: "jail",
	User: "root, for as long as it takes",
	Capabilities: []Capability{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, "mounts the jail in its own mount namespace"},
		{"CAP_SYS_CHROOT", unix.CAP_SYS_CHROOT, "makes it the root directory"},
		{"CAP_MKNOD", unix.CAP_MKNOD, "a /dev/kvm node, where KVM is used"},
		{"CAP_CHOWN", unix.CAP_CHOWN, "which belongs to the guest's uid"},
		{"CAP_SETUID", unix.CAP_SETUID, "becomes the guest's uid"},
		{"CAP_SETGID", unix.CAP_SETGID, "and gid, with no groups"},
		{"CAP_SETPCAP", unix.CAP_SETPCAP, "empties the bounding set"},
	},
	Default:    Allow,
	NoSeccomp:  "it executes QEMU, which would inherit a list; priv's deny-list holds, and QEMU has its own -sandbox",
	NoLandlock: "a process under Landlock may not mount",
}

// Guest is a guest that has built its jail. Its paths hold from then on, for
// QEMU too; its system calls from when it has started QEMU, for itself.
var Guest = Role{
	Name:    "guest",
	User:    "1900000000 + id",
	Default: Deny,
	Calls: lines(never, goRuntime, messages, []Calls{
		{"listen accept4", Allow, nil, "core connects to the socket that priv bound"},
		{"kill pidfd_send_signal", Allow, nil, "ends QEMU; its own pid namespace has nobody else"},
		{"wait4 waitid pidfd_open getrusage", Allow, nil, "how QEMU ended, and what it cost"},
		{"ftruncate fallocate", Allow, nil, "memfds: the console's ring"},
		{"flock", Allow, nil, "locks the disks it was given"},
		{"lseek readv writev pwrite64", Allow, nil, "the rings and the descriptors of QEMU"},
		{"openat newfstatat readlinkat getdents64", Allow, nil, "its own /proc: what QEMU uses"},
		{"getuid geteuid getgid getegid getppid", Allow, nil, "who it is"},
	}),
	Paths: []Path{
		{"/usr", Exec, false, "QEMU, its libraries and firmware"},
		{"/lib", Exec, true, "libraries, where /lib is not a link into /usr"},
		{"/lib64", Exec, true, "the dynamic loader, the same"},
		{"/etc", Read, true, "what the jail has of it: the loader's cache"},
		{"/proc", Read, false, "/proc/self/fd for QEMU's kernel and initrd, and what QEMU uses"},
		{"/dev/kvm", Device, true, "virtual CPUs, where KVM is used"},
	},
}

// CoreUID is core's uid and gid where there is no user _vmfs.
const CoreUID = 1899999999

// LeaseUID is the uid and gid of the process that answers DHCP.
const LeaseUID = 1899999998

// UnpackUID is the uid and gid of the processes that unpack kernels.
const UnpackUID = 1899999997

// WhoisUID is the uid and gid of programs of the host that are only asked
// something: id, and QEMU for its version. No role has a lower one.
const WhoisUID = 1899999996

// GuestUID is what the id of a machine is added to for the uid and gid of its
// guest process.
const GuestUID = 1900000000

func lines(groups ...[]Calls) []Calls {
	var all []Calls
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// never is what kills a role that has no reason to try, rather than denying:
// only code that is not ours makes these calls.
var never = []Calls{
	{"execve execveat", Kill, nil, "becomes no other program"},
	{"clone", Kill, []Arg{{0, unix.CLONE_THREAD, 0}}, "makes threads, not processes"},
	{"fork vfork", Kill, nil, "the same, by other names"},
	{"unshare setns", Kill, nil, "changes no namespace"},
	{"ptrace process_vm_readv process_vm_writev pidfd_getfd", Kill, nil, "reaches into no other process"},
	{"mount umount2 move_mount open_tree fsopen fsmount fsconfig fspick mount_setattr pivot_root chroot", Kill, nil, "changes no file system's place"},
	{"bpf perf_event_open userfaultfd io_uring_setup", Kill, nil, "ways into the kernel that it does not need"},
	{"init_module finit_module delete_module kexec_load kexec_file_load reboot", Kill, nil, "nor into another kernel"},
	{"open_by_handle_at swapon swapoff acct iopl ioperm keyctl add_key request_key", Kill, nil, "root's tools"},
}

// keepTap is what the open file of a tap would let a guest, or who took over its
// QEMU, do to the host's end: the kernel asks for no capability. Whatever priv
// starts inherits it.
var keepTap = []Calls{
	{"ioctl", Deny, request(unix.SIOCSIFHWADDR), "another machine's MAC there would take its frames; priv sets MACs by netlink"},
	{"ioctl", Deny, request(unix.TUNSETPERSIST), "a tap goes with its guest"},
	{"ioctl", Deny, request(unix.TUNSETOWNER), "and is nobody's to open again"},
	{"ioctl", Deny, request(unix.TUNSETGROUP), "nor any group's"},
	{"ioctl", Deny, request(unix.TUNSETLINK), "and stays an Ethernet"},
	{"ioctl", Deny, request(unix.TUNSETDEBUG), "the kernel's log is the host's"},
}

// request is the condition that an ioctl is one.
func request(number uint32) []Arg { return []Arg{{1, ^uint32(0), number}} }

// noExec is the condition that memory is not made executable.
var noExec = []Arg{{2, unix.PROT_EXEC, 0}}

// goRuntime is what a Go program calls by itself.
var goRuntime = []Calls{
	{"read write close", Allow, nil, "open files"},
	{"futex nanosleep clock_nanosleep sched_yield restart_syscall", Allow, nil, "goroutines wait for each other"},
	{"epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 eventfd2 poll ppoll pipe2", Allow, nil, "and for files"},
	{"clock_gettime clock_getres gettimeofday time", Allow, nil, "the time, where the kernel's page has none"},
	{"mmap mprotect", Allow, noExec, "memory, never code"},
	{"munmap madvise mincore mremap brk", Allow, nil, "memory"},
	{"clone", Allow, []Arg{{0, unix.CLONE_THREAD | unix.CLONE_VM, unix.CLONE_THREAD | unix.CLONE_VM}}, "threads"},
	{"rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack", Allow, nil, "signals: stops goroutines for the collector"},
	{"tgkill", Allow, []Arg{{0, ^uint32(0), Self}}, "a signal to a thread of its own"},
	{"timer_create timer_settime timer_delete setitimer", Allow, nil, "profiles, when a developer asks"},
	{"getpid gettid sched_getaffinity uname getrandom", Allow, nil, "what it runs on"},
	{"prctl", Allow, []Arg{{0, ^uint32(0), unix.PR_SET_VMA}}, "names of its memory, for /proc/PID/maps"},
	{"prctl", Allow, []Arg{{0, ^uint32(0), unix.PR_SET_NAME}}, "names of its threads"},
	{"fcntl", Allow, nil, "non-blocking, close-on-exec, copies, locks, seals"},
	{"dup dup3", Allow, nil, "copies"},
	{"fstat pread64", Allow, nil, "files of a known offset; the runtime's CPU limit"},
	{"getrlimit prlimit64", Allow, nil, "how many files"},
	{"exit exit_group", Allow, nil, "ends"},
}

// messages is what package wire needs.
var messages = []Calls{
	{"socket", Allow, []Arg{{0, ^uint32(0), unix.AF_UNIX}}, "unix sockets and no others"},
	{"socketpair", Allow, []Arg{{0, ^uint32(0), unix.AF_UNIX}}, "the same"},
	{"sendmsg recvmsg sendto recvfrom shutdown", Allow, nil, "messages and the files beside them"},
	{"getsockopt setsockopt getsockname getpeername", Allow, nil, "who is at the other end"},
	{"memfd_create", Allow, nil, "bytes too many for a message"},
}
