// Package ctltest is a Host without privileges, guests or machines, for tests
// of what is above it. A guest of it does what the test says and nothing
// else; it outlives a Manager, as real ones do.
package ctltest

import (
	"context"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"vmfs/ctl"
)

// Host is a fake ctl.Host. Its fields are set before use, or under Lock.
type Host struct {
	sync.Mutex
	Missing  bool                      // no QEMU
	KVM      bool                      // KVM works
	Refuse   map[string]error          // by path, what Open says
	Refused  func(step string) error   // what Spawn ("spawn"), Give and Go say; nil for nothing
	Blocking func(ctx context.Context) // called in Go, for starts that last
	Asked    []uint32                  // the uids of each Open
	Gone     map[uint32]bool           // users who are no more
	Member   map[uint32][]uint32       // the groups that a user is in, beside that of his uid
	Wants    []ctl.Want                // of the last Open
	Kernel   string                    // path of what is in a kernel, empty for nothing
	Drained  bool
	Down     chan struct{} // closed by Shutdown

	Network

	guests map[uint32]*Guest
	bounds map[uint32]ctl.Bounds
}

// NewHost makes a Host on which every start succeeds.
func NewHost() *Host {
	return &Host{Down: make(chan struct{}), guests: map[uint32]*Guest{}, Refuse: map[string]error{}}
}

// Guest is the guest process of machine id, nil if there is none.
func (h *Host) Guest(id uint32) *Guest {
	h.Lock()
	defer h.Unlock()
	return h.guests[id]
}

func (h *Host) refused(step string) error {
	h.Lock()
	defer h.Unlock()
	if h.Refused == nil {
		return nil
	}
	return h.Refused(step)
}

// Open opens with the rights of the test. A firmware with CODE in its name has
// variables, and no image has a base.
func (h *Host) Open(_ context.Context, uid uint32, wants []ctl.Want) ([]ctl.Opened, error) {
	h.Lock()
	defer h.Unlock()
	h.Asked, h.Wants = append(h.Asked, uid), wants
	out := make([]ctl.Opened, len(wants))
	for i, w := range wants {
		err := h.open(w.Path, w.Format, w.Write, &out[i])
		if err == nil && w.Format == ctl.FormatFirmware && strings.Contains(w.Path, "CODE") {
			out[i][0].Format = ctl.FormatFlash
			err = h.open(strings.Replace(w.Path, "CODE", "VARS", 1), ctl.FormatVars, false, &out[i])
		}
		if err != nil {
			for _, o := range out {
				o.Close()
			}
			return nil, ctl.Errorf(ctl.Errno(err), "open %s: %v", w.Path, ctl.Errno(err))
		}
	}
	return out, nil
}

// WhoIs knows everybody who is not gone.
func (h *Host) WhoIs(_ context.Context, uid uint32) (ctl.Cred, error) {
	h.Lock()
	defer h.Unlock()
	if h.Gone[uid] {
		return ctl.Cred{}, ctl.Errorf(syscall.EACCES, "user %d: no such user", uid)
	}
	return ctl.Cred{UID: uid, GID: uid, Groups: h.Member[uid]}, nil
}

func (h *Host) open(path, format string, write bool, to *ctl.Opened) error {
	if err := h.Refuse[path]; err != nil {
		return err
	}
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return err
	}
	*to = append(*to, ctl.Image{File: f, Format: settled(format, f)})
	return nil
}

// settled looks at the first bytes if that is wanted.
func settled(format string, f *os.File) string {
	switch format {
	case ctl.FormatFirmware:
		return ctl.FormatROM
	case ctl.FormatAuto:
		var magic [4]byte
		f.ReadAt(magic[:], 0)
		if string(magic[:]) == "QFI\xfb" {
			return ctl.FormatQcow2
		}
		return ctl.FormatRaw
	}
	return format
}

// Abandon cuts every conversation without a word, as a daemon does that is
// killed: its Manager hears nothing more. The process that answers DHCP ends.
func (h *Host) Abandon() {
	h.EndLease()
	h.Lock()
	defer h.Unlock()
	for _, g := range h.guests {
		g.mu.Lock()
		g.conns = nil
		g.mu.Unlock()
	}
}

// Spawn makes a guest.
func (h *Host) Spawn(_ context.Context, p ctl.Process) (ctl.Guest, int, error) {
	if err := h.refused("spawn"); err != nil {
		return nil, 0, err
	}
	h.Lock()
	defer h.Unlock()
	g := &Guest{host: h, id: p.ID, accel: p.Accel, outward: p.Outward, console: &Console{changed: make(chan struct{})}}
	g.state.State = "new"
	h.guests[p.ID] = g
	return g.connect(), 1000 + int(p.ID), nil
}

// Unpacked is what was set.
func (h *Host) Unpacked(_ context.Context, uid uint32, f *os.File) *os.File {
	h.Lock()
	defer h.Unlock()
	if h.Kernel == "" {
		return nil
	}
	kernel, err := os.Open(h.Kernel)
	if err != nil {
		return nil
	}
	return kernel
}

// Guests lists those that were not ended.
func (h *Host) Guests(context.Context) ([]ctl.GuestProcess, error) {
	h.Lock()
	defer h.Unlock()
	var out []ctl.GuestProcess
	for id := range h.guests {
		out = append(out, ctl.GuestProcess{ID: id, PID: 1000 + int(id)})
	}
	return out, nil
}

// Adopt connects once more.
func (h *Host) Adopt(_ context.Context, id uint32) (ctl.Guest, error) {
	h.Lock()
	defer h.Unlock()
	g := h.guests[id]
	if g == nil {
		return nil, ctl.Errorf(syscall.ENOENT, "no guest process %d", id)
	}
	return g.connect(), nil
}

// End ends a guest.
func (h *Host) End(_ context.Context, id uint32) error {
	h.Lock()
	g := h.guests[id]
	delete(h.guests, id)
	h.Unlock()
	if g != nil {
		g.Die()
	}
	return nil
}

// Engines says what Missing and KVM say.
func (h *Host) Engines(context.Context) (ctl.Engines, error) {
	h.Lock()
	defer h.Unlock()
	e := ctl.Engines{QEMU: "/usr/bin/qemu-system-x86_64", QEMUVersion: "7.2.0", KVM: h.KVM, KVMReason: "this is a test"}
	if h.Missing {
		e.QEMU = ""
	}
	return e, nil
}

// Draining notes that it was called.
func (h *Host) Draining(context.Context) error {
	h.Lock()
	defer h.Unlock()
	h.Drained = true
	return nil
}

// Shutdown closes Down.
func (h *Host) Shutdown(context.Context) error {
	close(h.Down)
	return nil
}

// Guest is a fake guest process. What is connected to it is a ctl.Guest.
type Guest struct {
	host    *Host
	id      uint32
	accel   string
	outward bool
	console *Console

	mu     sync.Mutex
	state  ctl.GuestState
	typed  []byte
	medium string
	kernel string
	vars   string
	conns  map[*conn]bool
	dead   bool
}

// Outward reports whether the guest has the daemon's network.
func (g *Guest) Outward() bool { return g.outward }

// Print is the guest printing on its console.
func (g *Guest) Print(s string) { g.console.print(s) }

// Typed is what the console was given.
func (g *Guest) Typed() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return string(g.typed)
}

// Vars is the path of the file in which its firmware keeps variables.
func (g *Guest) Vars() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.vars
}

// Kernel is the path of its kernel.
func (g *Guest) Kernel() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.kernel
}

// Medium is the path of what is in the cdrom drive.
func (g *Guest) Medium() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.medium
}

// Reboot is the guest resetting itself.
func (g *Guest) Reboot() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.state.Reboots++
	g.tell(ctl.Rebooted)
}

// EndAs is the guest ending.
func (g *Guest) EndAs(e ctl.Exit) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.endAs(e)
}

func (g *Guest) endAs(e ctl.Exit) {
	if g.state.State == "ended" {
		return
	}
	e.At = time.Now()
	g.state.State, g.state.Exit = "ended", &e
	g.tell(ctl.StateChanged)
}

// Die is the guest process vanishing.
func (g *Guest) Die() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dead = true
	for c := range g.conns {
		close(c.notices)
	}
	g.conns = nil
}

// tell sends a notice to who is connected.
func (g *Guest) tell(n ctl.Notice) {
	for c := range g.conns {
		select {
		case c.notices <- n:
		default:
		}
	}
}

func (g *Guest) connect() *conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := &conn{g: g, notices: make(chan ctl.Notice, 64)}
	if g.conns == nil {
		g.conns = map[*conn]bool{}
	}
	if g.dead {
		close(c.notices)
	} else {
		g.conns[c] = true
	}
	return c
}

// conn is one conversation with a Guest.
type conn struct {
	g       *Guest
	notices chan ctl.Notice
}

func (c *conn) to(state string, tell bool) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.g.dead {
		return ctl.Errorf(syscall.EPIPE, "conversation ended")
	}
	c.g.state.State = state
	if tell {
		c.g.tell(ctl.StateChanged)
	}
	return nil
}

func (c *conn) Give(_ context.Context, l *ctl.Launch) error {
	if err := c.g.host.refused("give"); err != nil {
		return err
	}
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if l.Vars != nil {
		c.g.vars = l.Vars.Name()
	}
	if l.Kernel != nil {
		c.g.kernel = l.Kernel.Name()
	}
	if l.Cdrom != nil {
		c.g.medium = l.Cdrom.Name()
	}
	c.g.state.Generation, c.g.state.Name, c.g.state.Engine, c.g.state.Reason = l.Generation, l.Name, "qemu 7.2.0 "+l.Accel, l.Reason
	if l.Accel == "native" {
		c.g.state.Engine = "native"
	}
	return nil
}

func (c *conn) Go(ctx context.Context) error {
	if f := c.g.host.Blocking; f != nil {
		f(ctx)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.g.host.refused("go"); err != nil {
		return err
	}
	c.g.mu.Lock()
	c.g.state.Started = time.Now()
	c.g.mu.Unlock()
	return c.to("running", false)
}

func (c *conn) Stop(_ context.Context, wait time.Duration, by string, restart bool) error {
	if err := c.to("stopping", true); err != nil || wait > 0 {
		return err
	}
	c.g.EndAs(ctl.Exit{Who: by, How: "stop: no answer, killed", Restart: restart})
	return nil
}

func (c *conn) Kill(_ context.Context, by, how string, failed bool) error {
	c.g.EndAs(ctl.Exit{Who: by, How: how, Failed: failed})
	return nil
}

// Cdrom notes the name of what is in the drive.
func (c *conn) Cdrom(_ context.Context, f *os.File) error {
	if err := c.g.host.refused("cdrom"); err != nil {
		return err
	}
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.g.medium = ""; f != nil {
		c.g.medium = f.Name()
	}
	return nil
}

func (c *conn) Reset(context.Context) error  { return nil }
func (c *conn) Pause(context.Context) error  { return c.to("paused", true) }
func (c *conn) Resume(context.Context) error { return c.to("running", true) }

func (c *conn) State(context.Context) (ctl.GuestState, error) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if !c.g.conns[c] {
		return ctl.GuestState{}, ctl.Errorf(syscall.EPIPE, "conversation ended")
	}
	return c.g.state, nil
}

func (c *conn) Usage(context.Context) (ctl.Usage, error) {
	u := ctl.Usage{CPU: time.Second, Overhead: 40 << 20}
	if c.g.accel == "native" {
		u.Exits = &ctl.Exits{PIO: 4, MMIO: 3, Interrupted: 2, Stray: 1}
	}
	return u, nil
}

func (c *conn) Input(_ context.Context, p []byte) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.g.typed = append(c.g.typed, p...)
	return nil
}

func (c *conn) Console() ctl.Console         { return c.g.console }
func (c *conn) Notices() <-chan ctl.Notice   { return c.notices }
func (c *conn) Forget(context.Context) error { return nil }
func (c *conn) Close() error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	delete(c.g.conns, c)
	return nil
}

// Console is a ctl.Console that keeps everything.
type Console struct {
	mu      sync.Mutex
	text    []byte
	changed chan struct{}
}

func (c *Console) print(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, s...)
	close(c.changed)
	c.changed = make(chan struct{})
}

// ReadAt copies from the text.
func (c *Console) ReadAt(p []byte, pos uint64) (int, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if pos >= uint64(len(c.text)) {
		return 0, pos
	}
	return copy(p, c.text[pos:]), pos
}

// End is the length of the text.
func (c *Console) End() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return uint64(len(c.text))
}

// Changed is closed at the next print.
func (c *Console) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}
