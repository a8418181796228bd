package confine

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

//go:generate go run mknumbers.go

// Offsets in struct seccomp_data.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16 // six of 8 bytes, the low half first on x86-64
)

// x32 numbers have this bit: the same calls once more, under other numbers.
const x32 = 0x40000000

// Seccomp puts all threads under r's table, for good. The process must have
// called NoNewPrivs.
func Seccomp(r Role) error {
	filter, err := r.Filter()
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	stuck, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return fmt.Errorf("confine: seccomp: %w", errno)
	}
	if stuck != 0 {
		return fmt.Errorf("confine: seccomp: thread %d has another filter", stuck)
	}
	return nil
}

// Filter is r's table as the program that the kernel runs at each call.
func (r Role) Filter() ([]unix.SockFilter, error) {
	prog := []unix.SockFilter{
		stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArch),
		jump(unix.BPF_JEQ, unix.AUDIT_ARCH_X86_64, 1, 0),
		ret(Kill),
		stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNr),
		jump(unix.BPF_JGE, x32, 0, 1),
		ret(Kill),
	}
	for _, line := range r.Calls {
		for _, name := range strings.Fields(line.Names) {
			nr, ok := numbers[name]
			if !ok {
				return nil, fmt.Errorf("confine %s: %s: no such system call", r.Name, name)
			}
			prog = append(prog, rule(uint32(nr), line)...)
		}
	}
	prog = append(prog, ret(r.Default))
	if len(prog) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("confine %s: filter of %d instructions", r.Name, len(prog))
	}
	return prog, nil
}

// rule is the part for one call. It is entered and left with the number of
// the call in the accumulator.
func rule(nr uint32, line Calls) []unix.SockFilter {
	if len(line.When) == 0 {
		return []unix.SockFilter{jump(unix.BPF_JEQ, nr, 0, 1), ret(line.Do)}
	}
	// Each condition is three instructions; behind them one for the action
	// and one that loads the number again.
	n := 3 * len(line.When)
	prog := []unix.SockFilter{jump(unix.BPF_JEQ, nr, 0, uint8(n+2))}
	for i, arg := range line.When {
		prog = append(prog,
			stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataArgs+8*uint32(arg.N)),
			stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, arg.Mask),
			jump(unix.BPF_JEQ, arg.is(), 0, uint8(n-3*(i+1)+1)))
	}
	return append(prog, ret(line.Do), stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, dataNr))
}

func (a Arg) is() uint32 {
	if a.Is == Self {
		return uint32(os.Getpid())
	}
	return a.Is
}

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func ret(do Action) unix.SockFilter { return stmt(unix.BPF_RET|unix.BPF_K, uint32(do)) }

func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, K: k, Jt: yes, Jf: no}
}
