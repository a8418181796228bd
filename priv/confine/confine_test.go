package confine

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTables reads the tables: every line has a reason, every name exists,
// every filter assembles, and what a role lacks is said.
func TestTables(t *testing.T) {
	for _, r := range Roles {
		if r.Name == "" || r.User == "" || r.Default == 0 {
			t.Errorf("%+v: no name, user or default", r)
		}
		for _, c := range r.Capabilities {
			if c.Why == "" || !strings.HasPrefix(c.Name, "CAP_") || c.Bit > unix.CAP_LAST_CAP {
				t.Errorf("%s: capability %+v", r.Name, c)
			}
		}
		for _, line := range r.Calls {
			if line.Why == "" || line.Names == "" {
				t.Errorf("%s: line %+v has no reason", r.Name, line)
			}
		}
		for _, do := range []Action{Allow, Deny, Kill, Absent} {
			if _, err := r.Syscalls(do); err != nil {
				t.Error(err)
			}
		}
		for _, p := range r.Paths {
			if _, err := p.rule(); err != nil || p.Why == "" {
				t.Errorf("%s: path %+v: %v", r.Name, p, err)
			}
		}
		if _, err := r.Filter(); err != nil {
			t.Error(err)
		}
		if (len(r.Calls) == 0) != (r.NoSeccomp != "") {
			t.Errorf("%s: %d lines of calls, NoSeccomp %q", r.Name, len(r.Calls), r.NoSeccomp)
		}
		if (len(r.Paths) == 0) != (r.NoLandlock != "" || r.NoPaths != "") {
			t.Errorf("%s: %d paths, NoLandlock %q, NoPaths %q", r.Name, len(r.Paths), r.NoLandlock, r.NoPaths)
		}
	}
}

func TestBind(t *testing.T) {
	got, err := Bind([]Path{{Path: "STATE"}, {Path: "RUN/guest"}, {Path: "/proc"}}, map[string]string{"STATE": "/s", "RUN": "/r"})
	want := "[/s /r/guest /proc]"
	var paths []string
	for _, p := range got {
		paths = append(paths, p.Path)
	}
	if fmt.Sprint(paths) != want || err != nil {
		t.Errorf("Bind = %v, %v; want %s", paths, err, want)
	}
	if _, err := Bind([]Path{{Path: "RUN/guest"}}, nil); err == nil {
		t.Error("Bind took a word that nobody explained")
	}
}

// run is the filter for one call, as the kernel would run it.
func run(t *testing.T, prog []unix.SockFilter, arch, nr uint32, args ...uint32) Action {
	t.Helper()
	data := map[uint32]uint32{dataNr: nr, dataArch: arch}
	for i, a := range args {
		data[dataArgs+8*uint32(i)] = a
	}
	var acc uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		yes := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = data[in.K]
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
			continue
		case unix.BPF_RET | unix.BPF_K:
			return Action(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			yes = acc == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			yes = acc >= in.K
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
		if yes {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	t.Fatal("the program has no end")
	return 0
}

func TestFilter(t *testing.T) {
	prog, err := Core.Filter()
	if err != nil {
		t.Fatal(err)
	}
	const x86, i386 = unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386
	for _, c := range []struct {
		what string
		arch uint32
		nr   uint32
		args []uint32
		want Action
	}{
		{"read", x86, unix.SYS_READ, nil, Allow},
		{"read of i386", i386, 3, nil, Kill},
		{"read of x32", x86, x32, nil, Kill},
		{"number -1", x86, ^uint32(0), nil, Kill},
		{"execve", x86, unix.SYS_EXECVE, nil, Kill},
		{"a call nobody listed", x86, unix.SYS_SYSINFO, nil, Deny},
		{"a call that does not exist", x86, 9999, nil, Deny},
		{"a thread", x86, unix.SYS_CLONE, []uint32{unix.CLONE_THREAD | unix.CLONE_VM}, Allow},
		{"a process", x86, unix.SYS_CLONE, []uint32{uint32(unix.SIGCHLD)}, Kill},
		{"a thread of other memory", x86, unix.SYS_CLONE, []uint32{unix.CLONE_THREAD}, Deny},
		{"memory", x86, unix.SYS_MMAP, []uint32{0, 4096, unix.PROT_READ | unix.PROT_WRITE}, Allow},
		{"code", x86, unix.SYS_MMAP, []uint32{0, 4096, unix.PROT_READ | unix.PROT_EXEC}, Deny},
		{"a unix socket", x86, unix.SYS_SOCKET, []uint32{unix.AF_UNIX}, Allow},
		{"an inet socket", x86, unix.SYS_SOCKET, []uint32{unix.AF_INET}, Deny},
		{"a signal to itself", x86, unix.SYS_TGKILL, []uint32{uint32(os.Getpid()), 1, 1}, Allow},
		{"a signal to another", x86, unix.SYS_TGKILL, []uint32{uint32(os.Getppid()), 1, 1}, Deny},
		{"a name for memory", x86, unix.SYS_PRCTL, []uint32{unix.PR_SET_VMA}, Allow},
		{"a name for a thread", x86, unix.SYS_PRCTL, []uint32{unix.PR_SET_NAME}, Allow},
		{"seccomp by prctl", x86, unix.SYS_PRCTL, []uint32{unix.PR_SET_SECCOMP}, Deny},
	} {
		if got := run(t, prog, c.arch, c.nr, c.args...); got != c.want {
			t.Errorf("%s: got %#x, want %#x", c.what, got, c.want)
		}
	}
}

// A tap's open file is for frames; what is open is the same for QEMU, which
// inherits the filter.
func TestTapFilter(t *testing.T) {
	prog, err := Priv.Filter()
	if err != nil {
		t.Fatal(err)
	}
	for request, want := range map[uint32]Action{
		unix.TUNSETIFF: Allow, unix.TUNGETIFF: Allow, unix.TUNSETOFFLOAD: Allow, unix.TUNSETVNETHDRSZ: Allow, unix.TUNSETSNDBUF: Allow,
		unix.SIOCSIFHWADDR: Deny, unix.TUNSETPERSIST: Deny, unix.TUNSETOWNER: Deny, unix.TUNSETGROUP: Deny, unix.TUNSETLINK: Deny,
	} {
		if got := run(t, prog, unix.AUDIT_ARCH_X86_64, unix.SYS_IOCTL, 3, request); got != want {
			t.Errorf("ioctl %#x: got %#x, want %#x", request, got, want)
		}
	}
}

var helper = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "confine")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return dir, err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "apply"), "./testdata/apply")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return dir, fmt.Errorf("%v\n%s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := helper(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// apply runs the helper and returns what it printed and how it ended.
func apply(t *testing.T, steps ...string) (string, error) {
	t.Helper()
	dir, err := helper()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(dir, "apply"), steps...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root, to have something to give up")
	}
}

func has(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if !strings.Contains("\n"+out, "\n"+want+"\n") {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
}

func TestKeep(t *testing.T) {
	needRoot(t)
	out, err := apply(t, "nnp", "keep:opener", "status")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "NoNewPrivs 1", "CapInh 0000000000000000", "CapPrm 00000000000000c0",
		"CapEff 00000000000000c0", "CapBnd 00000000000000c0", "CapAmb 0000000000000000")
	if n := strings.Count(out, "CapEff"); n != 1 {
		t.Errorf("threads differ:\n%s", out)
	}
}

func TestBecome(t *testing.T) {
	needRoot(t)
	out, err := apply(t, "nnp", "keep:opener", "become:1234", "status")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "Uid 1234 1234 1234 1234", "Gid 1234 1234 1234 1234", "Groups 1235",
		"CapEff 0000000000000000", "CapPrm 0000000000000000", "CapBnd 00000000000000c0")
	out, err = apply(t, "nnp", "keep:opener", "become:0", "status")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "Uid 0 0 0 0", "CapEff 0000000000000000", "CapPrm 0000000000000000")
	out, err = apply(t, "nnp", "keep:jail", "become:1234", "status")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "CapEff 0000000000000000", "CapBnd 0000000000000000")
	if out, err := apply(t, "keep:guest", "become:1234"); err == nil || !strings.Contains(out, "setgroups") {
		t.Errorf("without CAP_SETGID: %v\n%s", err, out)
	}
}

func TestSeccomp(t *testing.T) {
	for _, c := range []struct{ role, call, want string }{
		{"priv", "kexec", "kexec 1"},
		{"priv", "ptrace", "ptrace 1"},
		{"priv", "execve", "execve 2"},
		{"priv", "inet", "inet 0"},
		{"priv", "x32", "signal: bad system call"},
		{"core", "sysinfo", "sysinfo 1"},
		{"core", "inet", "inet 1"},
		{"core", "unix", "unix 0"},
		{"core", "code", "code 1"},
		{"core", "execve", "signal: bad system call"},
		{"core", "ptrace", "signal: bad system call"},
		{"core", "fork", "signal: bad system call"},
		{"guest", "execve", "signal: bad system call"},
		{"guest", "sysinfo", "sysinfo 1"},
		{"opener", "unix", "unix 1"},
		{"opener", "execve", "signal: bad system call"},
	} {
		out, err := apply(t, "nnp", "seccomp:"+c.role, "try:"+c.call)
		if err != nil {
			out += err.Error() + "\n"
		}
		if !strings.Contains(out, c.want) {
			t.Errorf("%s of %s: got %q, want %q", c.call, c.role, out, c.want)
		}
	}
}

func TestSeccompAllThreads(t *testing.T) {
	out, err := apply(t, "nnp", "seccomp:core", "status")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "NoNewPrivs 1", "Seccomp 2")
	if strings.Contains(out, "Seccomp 0") {
		t.Errorf("a thread was left behind:\n%s", out)
	}
}

// TestRuntime works the Go runtime under each allow-list.
func TestRuntime(t *testing.T) {
	for _, role := range []string{"core", "guest", "opener"} {
		if out, err := apply(t, "nnp", "seccomp:"+role, "busy"); err != nil || !strings.Contains(out, "busy done") {
			t.Errorf("%s: %v\n%s", role, err, out)
		}
	}
}

func TestLandlock(t *testing.T) {
	if abi, _, _ := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); int(abi) < 2 {
		t.Skip("SKIPPED: this kernel has no Landlock of ABI 2")
	}
	dir := t.TempDir()
	out, err := apply(t, "landlock:"+dir, "write:"+dir+"/a", "write:"+dir+"/../b", "read:/etc", "read:/proc", "try:inet")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "write "+dir+"/a: <nil>", "read /etc: open /etc: permission denied", "read /proc: <nil>")
	if !strings.Contains(out, "/../b: permission denied") {
		t.Errorf("wrote outside:\n%s", out)
	}
	if out, err := apply(t, "landlock:/nowhere"); err == nil {
		t.Errorf("a path that is not there was taken:\n%s", out)
	}
}

// TestLandlockOutward wants ways out and none in, and a file that is allowed by
// itself.
func TestLandlockOutward(t *testing.T) {
	if abi, _, _ := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION); int(abi) < 4 {
		t.Skip("SKIPPED: this kernel has no Landlock of ABI 4, which knows of TCP")
	}
	out, err := apply(t, "outward:/etc/passwd", "load:/etc/passwd", "load:/etc/group", "try:bind", "try:connect")
	if err != nil {
		t.Fatal(err, out)
	}
	has(t, out, "load /etc/passwd: <nil>", "load /etc/group: open /etc/group: permission denied",
		fmt.Sprintf("bind %d", unix.EACCES), fmt.Sprintf("connect %d", unix.ECONNREFUSED))
}

// TestUnjailed wants nothing of the host that a jail does not show.
func TestUnjailed(t *testing.T) {
	for _, p := range Unjailed(Guest.Paths) {
		if p.Path == "/etc" || p.Access == Write || p.Access == Connect {
			t.Errorf("%+v is left to a guest without a jail", p)
		}
	}
	if len(Unjailed(Guest.Paths)) != len(Guest.Paths) || Guest.Paths[3].Path != "/etc" {
		t.Errorf("%+v", Guest.Paths)
	}
}
