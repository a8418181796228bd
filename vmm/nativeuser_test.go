package vmm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
)

// ordinaryUser is somebody without any right, whom no host has.
const ordinaryUser = 1899999000

// TestNativeOrdinary starts a native guest as an ordinary user's daemon does:
// with his uid, in a user namespace or, where there is none, without any.
func TestNativeOrdinary(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipping: only root starts processes of others")
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("SKIPPED: needs KVM: %v", err)
	}
	for _, jailed := range []bool{true, false} {
		t.Run(fmt.Sprintf("jailed=%v", jailed), func(t *testing.T) {
			p := spawnOrdinary(t, jailed)
			g := p.dialAs(ordinaryUser)
			begin(t, g, &ctl.Launch{
				ID: p.id, Generation: 3, Name: "asm", Accel: accelNative, Reason: "a test",
				CPUs: 1, MemoryMiB: 2, Boot: "disk", Kernel: echo().ReadOnly(t),
			})
			s := &screen{t: t, c: g.Console()}
			s.expect("hello\n", soon)
			p.held(jailed)
			typed(t, g, "q")
			wantExit(t, awaitState(t, g, stateEnded, soon), false, "guest", "power-off", false)
		})
	}
}

// spawnOrdinary is spawn with the rights of an ordinary user.
func spawnOrdinary(t *testing.T, jailed bool) *process {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	openUp(t, dir)
	p := &process{t: t, id: 1, uid: ordinaryUser, exited: make(chan struct{})}
	binary, dir := filepath.Join(dir, "vmfs-guest"), t.TempDir()
	openUp(t, dir)
	jail := filepath.Join(dir, "jail")
	if err := os.Mkdir(jail, 0o711); err != nil {
		t.Fatal(err)
	}
	p.path = filepath.Join(dir, "guest.sock")
	socket := bindOnly(t, p.path)
	defer socket.Close()
	for _, path := range []string{p.path, jail} {
		if err := os.Chown(path, ordinaryUser, ordinaryUser); err != nil {
			t.Fatal(err)
		}
	}
	uid := strconv.Itoa(ordinaryUser)
	p.cmd = exec.Command(binary, "guest", "1", uid, uid, accelNative, jail)
	p.cmd.ExtraFiles = []*os.File{socket, open(t, "/dev/kvm", os.O_RDWR)}
	p.cmd.Stderr, p.cmd.Env, p.cmd.Dir = &p.log, []string{}, "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: ordinaryUser, Gid: ordinaryUser, NoSetGroups: jailed}}
	if jailed {
		p.intoNamespaces()
	} else {
		p.cmd.Args = append(p.cmd.Args, wordUnjailed+"this is a test")
	}
	p.start(t)
	return p
}

// intoNamespaces is what priv does for a guest of an ordinary user.
func (p *process) intoNamespaces() {
	a := p.cmd.SysProcAttr
	a.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET
	a.Unshareflags = unix.CLONE_NEWNS
	one := []syscall.SysProcIDMap{{ContainerID: ordinaryUser, HostID: ordinaryUser, Size: 1}}
	a.UidMappings, a.GidMappings = one, one
	for _, c := range confine.OrdinaryJail.Capabilities {
		a.AmbientCaps = append(a.AmbientCaps, c.Bit)
	}
}

// dialAs is dial as somebody else, on a thread that is his and ends.
func (p *process) dialAs(uid int) ctl.Guest {
	p.t.Helper()
	type answer struct {
		g   ctl.Guest
		err error
	}
	got := make(chan answer)
	go func() {
		runtime.LockOSThread() // and never unlocked
		ctx, cancel := context.WithTimeout(p.t.Context(), soon)
		defer cancel()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			got <- answer{nil, errno}
			return
		}
		g, err := Dial(ctx, p.path, p.id, p.uid)
		got <- answer{g, err}
	}()
	a := <-got
	if a.err != nil {
		p.t.Fatal(a.err)
	}
	p.t.Cleanup(func() { a.g.Close() })
	return a.g
}

// held looks what the process may still do.
func (p *process) held(jailed bool) {
	p.t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.cmd.Process.Pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", ordinaryUser),
		"CapPrm:\t0000000000000000\n", "CapAmb:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(string(status), want) {
			p.t.Errorf("no %q in\n%s", want, status)
		}
	}
	root, err := os.ReadDir(dir + "/root")
	if jailed && (err != nil || len(root) > 0) {
		p.t.Errorf("its root directory: %v, %v; want nothing in it", root, err)
	}
	for _, ns := range []string{"user", "pid", "net", "ipc", "uts", "mnt"} {
		its, err1 := os.Readlink(dir + "/ns/" + ns)
		ours, err2 := os.Readlink("/proc/self/ns/" + ns)
		if err1 != nil || err2 != nil || (its == ours) == jailed {
			p.t.Errorf("namespace %s: %s, where the test has %s: %v, %v", ns, its, ours, err1, err2)
		}
	}
}
