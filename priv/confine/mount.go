package confine

import "golang.org/x/sys/unix"

// Mount serves a tree that lies on another host, once that is mounted.
var Mount = Role{
	Name: "mount",
	User: "whoever started it",
	Capabilities: []Capability{
		{"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE, "where it is root's: connects again to a socket that its owner keeps for himself"},
	},
	Default: Deny,
	Calls: lines(never, goRuntime, []Calls{
		{"readv writev", Allow, nil, "requests of the FUSE descriptor, and their data"},
		{"socket", Allow, []Arg{{0, ^uint32(0), unix.AF_UNIX}}, "the server, when it is back"},
		{"socket", Allow, []Arg{{0, ^uint32(0), unix.AF_INET}}, "the same, and who knows its address"},
		{"socket", Allow, []Arg{{0, ^uint32(0), unix.AF_INET6}}, "the same"},
		{"connect sendto recvfrom sendmsg recvmsg shutdown", Allow, nil, "speaks with them"},
		{"getsockopt setsockopt getsockname getpeername", Allow, nil, "the runtime's handling of connections"},
		{"openat", Allow, []Arg{{2, unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC, 0}}, "hosts, resolv.conf, passwd, group; reads and writes no other file"},
		{"newfstatat getdents64 readlinkat lseek", Allow, nil, "the same"},
		{"waitid wait4", Allow, nil, "for the process that unmounts"},
		{"getuid geteuid getgid getegid", Allow, nil, "who it is"},
	}),
	NoLandlock: "it has to find the server again, by names that are looked up anew: a rule for a socket would end with the directory that it was in",
}
