// Apply does to itself what its arguments say, with package confine, then
// prints what the kernel says of it. The test executes it.
//
//	apply STEP...   nnp, keep:ROLE, become:UID, landlock:DIR, seccomp:ROLE,
//	                status, try:CALL, read:PATH, write:PATH, busy
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
)

func main() {
	for range 4 { // more threads than one, so that "all threads" is tested
		go func() { runtime.LockOSThread(); select {} }()
	}
	runtime.Gosched()
	for _, arg := range os.Args[1:] {
		verb, value, _ := strings.Cut(arg, ":")
		if err := do(verb, value); err != nil {
			fmt.Printf("%s: %v\n", arg, err)
			os.Exit(1)
		}
	}
}

func role(name string) confine.Role {
	for _, r := range confine.Roles {
		if r.Name == name {
			return r
		}
	}
	panic("no role " + name)
}

func do(verb, value string) error {
	switch verb {
	case "nnp":
		return confine.NoNewPrivs()
	case "keep":
		return confine.Keep(role(value).Capabilities)
	case "become":
		id, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return err
		}
		return confine.Become(uint32(id), uint32(id), []uint32{uint32(id) + 1})
	case "landlock":
		return confine.Landlock([]confine.Path{
			{Path: value, Access: confine.Write},
			{Path: "/proc", Access: confine.Read},
			{Path: "/nowhere/at/all", Access: confine.Exec, Optional: true},
		})
	case "outward":
		return confine.LandlockOutward([]confine.Path{{Path: value, Access: confine.File}})
	case "seccomp":
		return confine.Seccomp(role(value))
	case "status":
		return status()
	case "try":
		return try(value)
	case "read":
		_, err := os.ReadDir(value)
		fmt.Printf("read %s: %v\n", value, err)
		return nil
	case "write":
		fmt.Printf("write %s: %v\n", value, os.WriteFile(value, nil, 0o600))
		return nil
	case "load":
		_, err := os.ReadFile(value)
		fmt.Printf("load %s: %v\n", value, err)
		return nil
	case "busy":
		busy()
		return nil
	}
	return fmt.Errorf("no such step")
}

// status prints the lines of every thread, so that one left behind shows.
func status() error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, t := range threads {
		text, err := os.ReadFile("/proc/self/task/" + t.Name() + "/status")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			key, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
			switch key {
			case "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp":
				if s := key + " " + strings.Join(strings.Fields(rest), " "); !seen[s] {
					seen[s] = true
					fmt.Println(s)
				}
			}
		}
	}
	return nil
}

// try makes one system call that fails harmlessly where it is allowed.
func try(name string) error {
	var errno syscall.Errno
	switch name {
	case "execve":
		errno = syscall.Exec("/nowhere", nil, nil).(syscall.Errno)
	case "ptrace":
		_, _, errno = unix.RawSyscall(unix.SYS_PTRACE, 0xffff, 0, 0)
	case "fork":
		_, _, errno = unix.RawSyscall(unix.SYS_CLONE, unix.CLONE_THREAD, 0, 0)
		fmt.Printf("thread %v\n", errno)
		_, _, errno = unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
	case "kexec":
		_, _, errno = unix.RawSyscall6(unix.SYS_KEXEC_FILE_LOAD, ^uintptr(0), ^uintptr(0), 0, 0, 0, 0)
	case "inet":
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		errno, _ = err.(syscall.Errno)
	case "unix":
		_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		errno, _ = err.(syscall.Errno)
	case "bind", "connect": // a TCP port that nobody has
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err == nil && name == "bind" {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		} else if err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}})
		}
		errno, _ = err.(syscall.Errno)
	case "code":
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		errno, _ = err.(syscall.Errno)
	case "sysinfo":
		errno, _ = unix.Sysinfo(new(unix.Sysinfo_t)).(syscall.Errno)
	case "x32":
		_, _, errno = unix.RawSyscall(0x40000000|unix.SYS_GETPID, 0, 0, 0)
	}
	fmt.Printf("%s %d\n", name, int(errno))
	return nil
}

// busy works the runtime: threads, memory, the collector, timers, pipes.
func busy() {
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if i%2 == 0 {
				runtime.LockOSThread()
			}
			r, w, err := os.Pipe()
			if err != nil {
				panic(err)
			}
			go w.Write(make([]byte, 1<<20))
			b := make([]byte, 1<<20)
			for n := 0; n < len(b); {
				k, err := r.Read(b)
				if err != nil {
					panic(err)
				}
				n += k
			}
			r.Close()
			runtime.GC()
		})
	}
	wg.Wait()
	fmt.Println("busy done")
}
