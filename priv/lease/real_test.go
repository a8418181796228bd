package lease

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/confine/held"
	"vmfs/priv/wire"
)

// This file plays priv, core and guests around the real process, in a network
// namespace of the test's own.

// network is that namespace, which ends with the test.
type network struct {
	t    *testing.T
	work chan func()
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipping: only root makes network namespaces")
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("skipping: no busybox here (package busybox-static)")
	}
	n := &network{t: t, work: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this
		made <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.work {
			f()
		}
	}()
	if err := <-made; err != nil {
		t.Skipf("skipping: no network namespace: %v", err)
	}
	t.Cleanup(func() { close(n.work) })
	return n
}

// do does f in the namespace.
func (n *network) do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

// try runs a line of busybox in the namespace.
func (n *network) try(line string) (out string, err error) {
	n.do(func() {
		b, e := exec.Command("busybox", strings.Fields(line)...).CombinedOutput()
		out, err = string(b), e
	})
	return out, err
}

func (n *network) run(line string) string {
	n.t.Helper()
	out, err := n.try(line)
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// pair makes a link: the host's end, and the guest's with its MAC.
func (n *network) pair(host, guest string) {
	n.t.Helper()
	n.run("ip link add " + host + " type veth") // the other end has the kernel's name
	n.run("ip link set veth0 name " + guest)
	n.run("ip link set " + guest + " address " + net.HardwareAddr(guestMAC[:]).String())
	n.run("ip link set " + host + " address " + net.HardwareAddr(hostMAC[:]).String())
	n.run("ip link set " + host + " up")
	n.run("ip link set " + guest + " up")
}

// listen opens a link's socket as priv does, but for the filter, which lets
// everything through: this process does not count on it.
func (n *network) listen(name string, lock int) *os.File {
	n.t.Helper()
	var f *os.File
	n.do(func() {
		i, err := net.InterfaceByName(name)
		if err != nil {
			n.t.Error(err)
			return
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			n.t.Error(err)
			return
		}
		f = os.NewFile(uintptr(fd), name)
		all := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff}}
		for _, err := range []error{
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &all[0]}),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, lock),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: i.Index}),
		} {
			if err != nil {
				n.t.Error(err)
			}
		}
	})
	if f == nil || n.t.Failed() {
		n.t.FailNow()
	}
	n.t.Cleanup(func() { f.Close() })
	return f
}

// program is the role as one of its own, built once without cgo.
var (
	program    = sync.OnceValues(build)
	programDir string
)

func build() (string, error) {
	var err error
	if programDir, err = os.MkdirTemp("", "vmfs-lease-test"); err != nil {
		return "", err
	}
	if err := os.Chmod(programDir, 0o711); err != nil {
		return "", err
	}
	path := filepath.Join(programDir, "lease")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/role")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %v\n%s", err, out)
	}
	return path, nil
}

func TestMain(m *testing.M) {
	status := m.Run()
	if programDir != "" {
		os.RemoveAll(programDir)
	}
	os.Exit(status)
}

// role is a running lease, and the conversation with it.
type role struct {
	ctl.Lease
	cmd    *exec.Cmd
	exited chan struct{}
}

func startRole(t *testing.T) *role {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	r := &role{cmd: exec.Command(path), exited: make(chan struct{})}
	r.cmd.ExtraFiles = []*os.File{theirs}
	r.cmd.Env, r.cmd.Dir, r.cmd.Stderr = []string{}, "/", os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, Cloneflags: unix.CLONE_NEWNET,
		Credential: &syscall.Credential{Uid: confine.LeaseUID, Gid: confine.LeaseUID},
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	go func() { r.cmd.Wait(); close(r.exited) }()
	t.Cleanup(func() { r.cmd.Process.Kill(); <-r.exited })
	if r.Lease, err = Meet(mine); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func (r *role) serve(t *testing.T, l ctl.Link, socket *os.File, s ctl.LeaseService) {
	t.Helper()
	if err := r.Serve(t.Context(), l, socket, s); err != nil {
		t.Fatal(err)
	}
}

// udhcpc asks for an address and says what it got, or why not. It asks for half
// a minute, since on a busy machine a second may not do; unless more says -t 3.
func (n *network) udhcpc(ifname, more string) (string, error) {
	n.t.Helper()
	script := filepath.Join(n.t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho $1 $ip/$mask router=$router dns=$dns name=$hostname lease=$lease\n"), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return n.try("udhcpc -f -q -n -t 30 -T 1 -i " + ifname + " -s " + script + " " + more)
}

// A client of another make gets its lease, and nobody else does.
func TestUdhcpc(t *testing.T) {
	n := newNetwork(t)
	n.pair("h0", "c0")
	r := startRole(t)
	link := ctl.NICLink(1, 0)
	socket := n.listen("h0", 1)
	r.serve(t, link, socket, local())
	socket.Close()
	want := "bound 100.64.1.3/31 router=100.64.1.2 dns=9.9.9.9 name=web lease=4294967295\n"
	if out, err := n.udhcpc("c0", ""); err != nil || !strings.Contains(out, want) {
		t.Errorf("%v: got %s\nwant %s", err, out, want)
	}
	if out, err := n.udhcpc("c0", "-r 10.9.9.9 -B"); err != nil || !strings.Contains(out, want) {
		t.Errorf("asking for another: %v: got %s\nwant %s", err, out, want)
	}
	// The bounding set is priv's, which this test is not.
	if err := held.Check(r.cmd.Process.Pid, confine.Lease, confine.LeaseUID); err != nil {
		for line := range strings.Lines(err.Error()) {
			if !strings.Contains(line, "CapBnd") {
				t.Error(line)
			}
		}
	}

	s := lan(true)
	r.serve(t, link, nil, s)
	want = "bound 10.1.7.8/16 router=10.1.0.1 dns=9.9.9.9 name=web lease=4294967295\n"
	if out, err := n.udhcpc("c0", ""); err != nil || !strings.Contains(out, want) {
		t.Errorf("after a change: %v: got %s\nwant %s", err, out, want)
	}
	n.run("ip link set h0 down")
	n.run("ip link set h0 up")
	if out, err := n.udhcpc("c0", ""); err != nil {
		t.Errorf("down and up: %v: got %s", err, out)
	}

	n.run("ip link set c0 address fe:e1:bb:d1:99:99")
	if out, err := n.udhcpc("c0", "-t 3"); err == nil {
		t.Errorf("another MAC got %s", out)
	}
	n.run("ip link set c0 address " + net.HardwareAddr(guestMAC[:]).String())
	if err := r.Stop(t.Context(), link); err != nil {
		t.Error(err)
	}
	if out, err := n.udhcpc("c0", "-t 3"); err == nil {
		t.Errorf("after stop: %s", out)
	}
}

// A kernel takes its router and network from the advertisements, and DHCPv6
// works over its own sockets, whose checksums nobody computes on such a link.
func TestIPv6(t *testing.T) {
	n := newNetwork(t)
	n.do(func() { os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("0"), 0) })
	n.pair("h0", "c0")
	n.do(func() { os.WriteFile("/proc/sys/net/ipv6/conf/h0/accept_ra", []byte("0"), 0) })
	r := startRole(t)
	r.serve(t, ctl.SwitchLink(1), n.listen("h0", 1), lan(true))
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		routes := n.run("ip -6 route show dev c0")
		if strings.Contains(routes, "default via "+ctl.LinkLocal(hostMAC[:]).String()) && strings.Contains(routes, "fd00::/64") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no router, but %s\n%s", routes, n.run("ip -6 addr"))
		}
	}
	var conn *net.UDPConn
	var c0 *net.Interface
	n.do(func() {
		var err error
		if c0, err = net.InterfaceByName("c0"); err != nil {
			t.Error(err)
			return
		}
		at := &net.UDPAddr{IP: ctl.LinkLocal(guestMAC[:]).AsSlice(), Port: clientPort6, Zone: strconv.Itoa(c0.Index)}
		for range 600 { // until the address is not tentative any more
			if conn, err = net.ListenUDP("udp6", at); err == nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error(err)
	})
	if t.Failed() {
		t.FailNow()
	}
	defer conn.Close()
	ask := func(m *dhcpv6.Message) *dhcpv6.Message {
		to := &net.UDPAddr{IP: allServers.AsSlice(), Port: serverPort6, Zone: strconv.Itoa(c0.Index)}
		if _, err := conn.WriteToUDP(m.ToBytes(), to); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 1500)
		size, err := conn.Read(b)
		if err != nil {
			t.Fatalf("%v: %v", m.MessageType, err)
		}
		reply, err := dhcpv6.MessageFromBytes(b[:size])
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	solicit, err := dhcpv6.NewSolicit(guestMAC[:])
	if err != nil {
		t.Fatal(err)
	}
	request, err := dhcpv6.NewRequestFromAdvertise(ask(solicit))
	if err != nil {
		t.Fatal(err)
	}
	got := ask(request)
	if a := got.Options.OneIANA().Options.OneAddress(); a == nil || a.IPv6Addr.String() != "fd00::78" || got.MessageType != dhcpv6.MessageTypeReply {
		t.Errorf("got %v", got.Summary())
	}
}

// A guest that floods its link is not answered more often, makes nothing
// grow, and does not keep another from his lease.
func TestFlood(t *testing.T) {
	n := newNetwork(t)
	n.pair("h0", "c0")
	n.pair("h1", "c1")
	r := startRole(t)
	r.serve(t, ctl.NICLink(1, 0), n.listen("h0", 1), local())
	r.serve(t, ctl.NICLink(2, 0), n.listen("h1", 1), local())
	n.pair("h2", "c2")
	n.run("ip link set h2 mtu 4000")
	n.run("ip link set c2 mtu 4000")
	r.serve(t, ctl.NICLink(3, 0), n.listen("h2", 1), local())
	n.udhcpc("c1", "")

	discover := ask4("0.0.0.0", "255.255.255.255", message4(dhcpv4.MessageTypeDiscover, dhcpv4.WithBroadcast(true))).body
	broken := bytes.Clone(discover)
	broken[40]++
	long := append(bytes.Clone(discover), make([]byte, maxFrame)...)
	t.Run("requests", func(t *testing.T) {
		if flood(t, n, r, "c0", discover, broken) == 0 {
			t.Error("it had no answer at all")
		}
	})
	t.Run("too long", func(t *testing.T) { flood(t, n, r, "c2", long) })
}

// flood sends frames from one guest while another, c1, has a lease to get, and
// counts what came back.
func flood(t *testing.T, n *network, r *role, from string, frames ...[]byte) (answers int) {
	before, used := resident(t, r.cmd.Process.Pid), cpu(t, r.cmd.Process.Pid)
	guest := n.listen(from, 0)
	defer guest.Close()
	stop, sent := make(chan struct{}), make(chan int)
	go func() {
		to := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_IP), Ifindex: index(n, from), Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
		count := 0
		for ; ; count++ {
			select {
			case <-stop:
				sent <- count
				return
			default:
			}
			unix.Sendto(int(guest.Fd()), frames[count%len(frames)], unix.MSG_DONTWAIT, to)
		}
	}()
	began := time.Now()
	for range 3 {
		asked := time.Now()
		if out, err := n.udhcpc("c1", ""); err != nil {
			t.Errorf("the other link: %v: %s", err, out)
		}
		t.Logf("the other link had its lease after %v", time.Since(asked))
		time.Sleep(300 * time.Millisecond)
	}
	close(stop)
	count, took := <-sent, time.Since(began)
	answers = drain(guest)
	cost := cpu(t, r.cmd.Process.Pid) - used
	after := resident(t, r.cmd.Process.Pid)
	t.Logf("%d frames in %v: %d answers, %v of processor time, %d KiB resident, %d before", count, took, answers, cost, after>>10, before>>10)
	if most := answerBurst + int(took/answerEvery) + 2; answers > most {
		t.Errorf("%d answers in %v, want at most %d", answers, took, most)
	}
	if cost > took/5 {
		t.Errorf("it cost %v of %v", cost, took)
	}
	if after > before+2<<20 {
		t.Errorf("it grew from %d to %d bytes", before, after)
	}
	return answers
}

func index(n *network, name string) (i int) {
	n.do(func() {
		if f, err := net.InterfaceByName(name); err == nil {
			i = f.Index
		}
	})
	return i
}

// drain counts what waits in a packet socket.
func drain(f *os.File) (n int) {
	for buf := make([]byte, maxFrame); ; n++ {
		if _, _, err := unix.Recvfrom(int(f.Fd()), buf, unix.MSG_DONTWAIT); err != nil {
			return n
		}
	}
}

// resident is the memory of a process that is its own, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "RssAnon:")
	var kib int
	fmt.Sscan(rest, &kib)
	return kib << 10
}

// cpu is the processor time that a process has had.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// A real guest on a tap comes up with its lease and reaches the host.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("skipping: boots a guest, and -short")
	}
	n := newNetwork(t)
	cache, _ := os.UserCacheDir()
	kernel := cmp.Or(os.Getenv("VMFS_TEST_KERNEL"), filepath.Join(cache, "vmfs", "vmlinuz"))
	initrd := cmp.Or(os.Getenv("VMFS_TEST_INITRD"), filepath.Join(cache, "vmfs", "initrd"))
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if _, kerr := os.Stat(kernel); err != nil || kerr != nil {
		t.Skipf("skipping: no QEMU or no guest (scripts/guest): %v, %v", err, kerr)
	}
	n.run("tunctl -t tap0")
	n.run("ip addr add 100.64.1.2/31 dev tap0")
	n.run("ip link set tap0 up")
	r := startRole(t)
	r.serve(t, ctl.NICLink(1, 0), n.listen("tap0", 1), local())
	var cmd *exec.Cmd
	var screen io.ReadCloser
	var keys io.WriteCloser
	n.do(func() {
		cmd = exec.Command(qemu, "-nodefaults", "-display", "none", "-machine", "q35", "-m", "256M", "-cpu", "max",
			"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet net=dhcp", "-serial", "stdio",
			"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,romfile=,mac="+net.HardwareAddr(guestMAC[:]).String())
		screen, _ = cmd.StdoutPipe()
		keys, _ = cmd.StdinPipe()
		err = cmd.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	late := time.AfterFunc(5*time.Minute, func() { cmd.Process.Kill() })
	defer late.Stop()
	expect := expecter(t, screen)
	expect("vmfs-guest: eth0 has 100.64.1.3/31, router 100.64.1.2, dns 9.9.9.9, name web")
	expect("guest# ")
	fmt.Fprintln(keys, "ping -c 3 -w 20 100.64.1.2")
	expect(" 0% packet loss")
}

// expecter reads until a text comes.
func expecter(t *testing.T, from io.Reader) func(string) {
	var all []byte
	buf := make([]byte, 4096)
	return func(want string) {
		t.Helper()
		for !bytes.Contains(all, []byte(want)) {
			n, err := from.Read(buf)
			all = append(all, buf[:n]...)
			if err != nil {
				t.Fatalf("no %q, but %s", want, all)
			}
		}
		_, all, _ = bytes.Cut(all, []byte(want))
	}
}

// The process ends with its conversation, whatever it serves.
func TestEnds(t *testing.T) {
	n := newNetwork(t)
	n.pair("h0", "c0")
	r := startRole(t)
	r.serve(t, ctl.NICLink(1, 0), n.listen("h0", 1), local())
	r.Close()
	select {
	case <-r.exited:
	case <-time.After(time.Minute):
		t.Fatal("it is still there")
	}
	<-r.Done()
}

// What is no link's socket is refused, and so is what makes no sense; a link
// whose interface is gone is no harm.
func TestRefused(t *testing.T) {
	n := newNetwork(t)
	n.pair("h0", "c0")
	r := startRole(t)
	link, ctx := ctl.NICLink(1, 0), t.Context()
	want := func(what string, err error, errno syscall.Errno) {
		t.Helper()
		if ctl.Errno(err) != errno {
			t.Errorf("%s: %v, want %v", what, err, errno)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	want("no socket", r.Serve(ctx, link, nil, local()), syscall.ENOENT)
	want("a file", r.Serve(ctx, link, null, local()), syscall.EINVAL)
	want("an open filter", r.Serve(ctx, link, n.listen("h0", 0), local()), syscall.EINVAL)
	want("the loopback", r.Serve(ctx, link, n.listen("lo", 1), local()), syscall.EINVAL)
	bad := local()
	bad.Bindings[0].Addr = netip.MustParseAddr("8.8.8.8")
	want("another network", r.Serve(ctx, link, n.listen("h0", 1), bad), syscall.EINVAL)
	want("stop of nothing", r.Stop(ctx, link), 0)
	r.serve(t, link, n.listen("h0", 1), local())
	r.serve(t, link, n.listen("h0", 1), local()) // in its place
	n.run("ip link del c0")
	r.serve(t, link, nil, local())
	want("stop of one that is gone", r.Stop(ctx, link), 0)
}

// A switch with many machines takes more than a message.
func TestManyBindings(t *testing.T) {
	n := newNetwork(t)
	n.pair("h0", "c0")
	r := startRole(t)
	s := lan(false)
	for i := range 1000 {
		b := ctl.LeaseBinding{MAC: net.HardwareAddr{2, 0, 0, 1, byte(i >> 8), byte(i)}, Addr: netip.AddrFrom4([4]byte{10, 1, 100 + byte(i>>8), byte(i)}), Hostname: "many"}
		s.Bindings = append([]ctl.LeaseBinding{b}, s.Bindings...)
	}
	r.serve(t, ctl.SwitchLink(7), n.listen("h0", 1), s)
	if out, err := n.udhcpc("c0", ""); err != nil || !strings.Contains(out, "10.1.7.8/16") {
		t.Errorf("the last: %v: %s", err, out)
	}
	s.Bindings = nil
	r.serve(t, ctl.SwitchLink(7), nil, s)
	if out, err := n.udhcpc("c0", "-t 3"); err == nil {
		t.Errorf("bound to nothing: %s", out)
	}
}

// A stranger at the other end is not taken for lease.
func TestMeetStranger(t *testing.T) {
	mine, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := wire.NewConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go conn.Hello("guest", "3")
	if l, err := Meet(mine); err == nil {
		l.Close()
		t.Error("a guest was taken for lease")
	}
}
