// Package vmm is the guest process, one for each machine that runs, and
// core's end of the conversation with it.
//
// The process holds the open files of one launch and nothing else. It starts
// as root, as the first process of namespaces of its own. Where QEMU is the
// engine it builds a jail with QEMU in it and no way out; becomes a user that
// nobody else is; executes QEMU; and then executes nothing any more. Where the
// engine is native it gives up every path, becomes that user, and takes the
// last of its rights before it has heard of a machine. In the daemon of an
// ordinary user it is that user from the beginning, and builds its jail in a
// user namespace, or has Landlock alone. From what core sends it takes open
// files, never a name. It locks the disks itself, so that they are free
// when it is gone; it is the only witness of how its machine ended, and keeps
// that record, the console and the deadline of a stop whether core is there
// or not.
//
// It trusts whoever is core's uid, or root, to have the machine's best in
// mind, and checks every message all the same: none of them ends it. It does
// not trust QEMU. It cannot see the network, unless QEMU's own is a NIC's, nor
// other processes, nor any file that can be written.
package vmm

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
	"vmfs/vmm/engine"
)

// How long a process stays that nobody speaks to.
const (
	firstPeerTime = 10 * time.Second // before it was told go
	lastPeerTime  = 10 * time.Minute // with a record that nobody took
)

// termTime is what a guest gets to stop when somebody sends SIGTERM to its
// process, as a host does that goes down.
const termTime = 60 * time.Second

// listenFD is the socket that priv bound. Who calls listen is who the other
// side sees, so that is done here, after the privileges are gone. kvmFD is
// /dev/kvm, for the native engine.
const (
	listenFD = 3
	kvmFD    = 4
)

// QEMU is what package qemu does. A program without it knows the native engine
// only, and is smaller.
type QEMU struct {
	Jail         func(dir string, uid uint32, kvm bool) error
	OrdinaryJail func(dir string, kvm, outward bool) error
	Start        func(context.Context, *engine.Spec, func(engine.Event)) (engine.Engine, error)
}

// Main is the role guest: args are ID UID COREUID ACCEL JAILDIR. It returns
// the status to exit with.
func Main(args []string, q *QEMU) int {
	if err := run(args, q); err != nil {
		fmt.Fprintf(os.Stderr, "vmfs guest: %v\n", err)
		return 1
	}
	return 0
}

// role is what the arguments say.
type role struct {
	id, uid, coreUID uint32
	accel            string
	jail             string
	outward          bool   // it has the daemon's network
	unjailed         string // why it has no namespaces, if it has none
}

func run(args []string, q *QEMU) error {
	if len(args) > 0 && args[0] == wordProbe && q != nil {
		return probe(args[1:], q)
	}
	r, err := parseRole(args)
	if err != nil {
		return err
	}
	if r.accel != accelNative && q == nil {
		return fmt.Errorf("%s: this program has the native engine only", r.accel)
	}
	// QEMU gets what it is given, and nothing that happened to be open.
	if err := unix.CloseRange(listenFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close-on-exec: %w", err)
	}
	// A collection is cheap: there is little. What there is stays small.
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(16 << 20)
	m, err := newMachine(r.id, r.accel)
	if err != nil {
		return err
	}
	defer m.close()
	m.outward, m.unjailed = r.outward, r.unjailed
	if r.accel == accelNative {
		err = r.dropNative(m)
	} else {
		m.boot = q.Start
		m.seal = func() error { return confine.Seccomp(confine.Guest) }
		err = r.drop(q)
	}
	if err != nil {
		return err
	}
	if err := unix.Listen(listenFD, 4); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	f := os.NewFile(listenFD, "listen")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return err
	}
	defer l.Close()
	socket, ok := l.(*net.UnixListener)
	if !ok {
		return fmt.Errorf("descriptor %d: not a unix socket", listenFD)
	}
	return newGuest(r, m).serve(socket)
}

func parseRole(args []string) (role, error) {
	if len(args) < 5 {
		return role{}, fmt.Errorf("%d arguments, not ID UID COREUID ACCEL JAILDIR and words", len(args))
	}
	var n [3]uint32
	for i := range n {
		v, err := strconv.ParseUint(args[i], 10, 32)
		if err != nil || v == 0 && i < 2 || v >= 1<<32-1 {
			return role{}, fmt.Errorf("%q: not an id", args[i])
		}
		n[i] = uint32(v)
	}
	if _, err := oneOf(args[3], accelNative, "kvm", "tcg"); err != nil {
		return role{}, fmt.Errorf("%q: %w", args[3], err)
	}
	if !filepath.IsAbs(args[4]) {
		return role{}, fmt.Errorf("%q: not an absolute path", args[4])
	}
	r := role{id: n[0], uid: n[1], coreUID: n[2], accel: args[3], jail: args[4]}
	return r, r.further(args[5:])
}

// limits of the process and of QEMU. The uid is the machine's own, so that
// the count of processes is too.
var limits = []struct {
	what  int
	limit uint64
	why   string
}{
	{unix.RLIMIT_CORE, 0, "a core file would have the guest's memory in it"},
	{unix.RLIMIT_NOFILE, 1024, "16 disks of 4 images, twice; sockets, memfds"},
	{unix.RLIMIT_NPROC, 512, "64 CPUs, 64 threads of I/O, ours"},
}

// drop builds the jail and gives up what that took.
func (r role) drop(q *QEMU) error {
	if ordinary() {
		return r.dropOrdinary(q)
	}
	unix.Umask(0o022) // the jail's directories are for the guest's uid
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Jail.Capabilities); err != nil {
		return err
	}
	if err := q.Jail(r.jail, r.uid, r.accel == "kvm"); err != nil {
		return err
	}
	return r.become(confine.Guest.Paths)
}

// become sets the limits, and leaves the guest's uid and the paths.
func (r role) become(paths []confine.Path) error {
	for _, l := range limits {
		if !r.counts(l.what) {
			continue
		}
		if err := lower(l.what, l.limit); err != nil {
			return fmt.Errorf("limit %d: %w", l.what, err)
		}
	}
	if err := r.becomeUser(); err != nil {
		return err
	}
	if r.outward {
		return confine.LandlockOutward(paths)
	}
	return confine.Landlock(paths)
}

// lower sets both limits, but raises neither.
func lower(what int, limit uint64) error {
	var have unix.Rlimit
	if err := unix.Getrlimit(what, &have); err != nil {
		return err
	}
	limit = min(limit, have.Max)
	return unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit})
}

// guest is the process as its peers see it.
type guest struct {
	role    role
	machine *machine
	changed chan struct{} // has something when patience may have changed
	stop    chan struct{} // closed when the process ends

	mu        sync.Mutex
	peer      *peer // nil while there is none
	met       bool  // there was one
	forgotten bool
}

func newGuest(r role, m *machine) *guest {
	g := &guest{role: r, machine: m, changed: make(chan struct{}, 1), stop: make(chan struct{})}
	m.tell = g.tell
	m.forget = func() {
		g.mu.Lock()
		g.forgotten = true
		g.mu.Unlock()
		g.wake()
	}
	return g
}

func (g *guest) wake() {
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// serve speaks to whoever connects until the process has no purpose any more.
func (g *guest) serve(l *net.UnixListener) error {
	signal.Ignore(unix.SIGHUP, unix.SIGINT)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	failed := make(chan error, 1)
	go func() { failed <- g.accept(l) }()
	defer g.hangUp()
	for {
		patience := g.patience()
		if patience == 0 {
			return nil
		}
		select {
		case <-g.changed:
		case <-time.After(patience):
			return nil
		case <-term:
			g.machine.stopIn(termTime, "host", false)
		case err := <-failed:
			return err
		}
	}
}

// patience is how long to go on if nothing changes; 0 is no longer.
func (g *guest) patience() time.Duration {
	const forever = 1<<63 - 1
	state, told := g.machine.phase()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.forgotten:
		return 0
	case g.peer != nil:
		return forever
	case !told && g.met:
		return 0
	case !told:
		return firstPeerTime
	case state == stateEnded:
		return lastPeerTime
	}
	return forever
}

// hangUp ends the conversation, if there is one.
func (g *guest) hangUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.peer != nil {
		g.peer.conn.Close()
		g.peer = nil
	}
}

// accept lets peers in until the listener fails.
func (g *guest) accept(l *net.UnixListener) error {
	for {
		conn, err := wire.Accept(l)
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if g.admit(conn) {
				g.converse(conn)
			}
		}()
	}
}

// admit asks the kernel who that is, and the peer what he is.
func (g *guest) admit(conn *wire.Conn) bool {
	cred, err := conn.Peer()
	if err != nil || cred.Uid != g.role.coreUID && cred.Uid != 0 {
		return false
	}
	peer, err := conn.Hello("guest", strconv.FormatUint(uint64(g.role.id), 10))
	return err == nil && len(peer) > 0 && peer[0] == "core"
}

// maxRequests is how many requests are worked on at a time; with more, the
// peer waits. A start takes one, and so does each console write.
const maxRequests = 16

// converse is a conversation, the only one: it ends the one before.
func (g *guest) converse(conn *wire.Conn) {
	p := newPeer(conn)
	g.mu.Lock()
	if g.peer != nil {
		g.peer.conn.Close()
	}
	g.peer, g.met = p, true
	g.mu.Unlock()
	g.wake()

	go p.announce()
	slots := make(chan struct{}, maxRequests)
	conn.Serve(func(r *wire.Request) {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			g.machine.handle(r)
		}()
	})
	conn.Close()
	close(p.gone)
	g.mu.Lock()
	if g.peer == p {
		g.peer = nil
	}
	g.mu.Unlock()
	g.wake()
}

// tell passes news on to whoever is there. It does not wait.
func (g *guest) tell(n ctl.Notice) {
	g.wake()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.peer != nil {
		g.peer.note(n)
	}
}

// peer is core, as long as it is there.
type peer struct {
	conn *wire.Conn
	gone chan struct{}
	news chan struct{} // has something when there are news

	mu      sync.Mutex
	state   bool // it changed
	reboots int  // that core was not told of
}

// maxReboots is how many reboots are told one by one to a peer that is slow.
const maxReboots = 100

func newPeer(conn *wire.Conn) *peer {
	return &peer{conn: conn, gone: make(chan struct{}), news: make(chan struct{}, 1)}
}

func (p *peer) note(n ctl.Notice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch n {
	case ctl.Rebooted:
		p.reboots = min(p.reboots+1, maxReboots)
	default:
		p.state = true
	}
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// announce sends the news, as fast as the peer takes them, until it is gone.
func (p *peer) announce() {
	for {
		select {
		case <-p.gone:
			return
		case <-p.news:
		}
		p.mu.Lock()
		state, reboots := p.state, p.reboots
		p.state, p.reboots = false, 0
		p.mu.Unlock()
		for range reboots {
			p.conn.Notify(nil, "rebooted")
		}
		if state {
			p.conn.Notify(nil, "state")
		}
	}
}
