package priv

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"syscall"

	"vmfs/ctl"
	"vmfs/priv/wire"
)

// Client is core's end of the conversation with priv. Its methods may be
// called from several goroutines; once priv is gone they return EPIPE.
type Client struct {
	caller *wire.Caller

	mu    sync.Mutex
	turns map[uint32]*turns // by user

	leasing sync.Mutex
	lease   ctl.Lease // nil until it is asked for
}

// opensEach is how many openers one user has at a time: priv works on 64
// requests at once, and an opener is his to stop for as long as openTime.
const opensEach = 8

// turns are one user's places, and how many have one or wait for one.
type turns struct {
	places chan struct{}
	users  int
}

// turn waits for one of uid's places.
func (c *Client) turn(ctx context.Context, uid uint32) (leave func(), err error) {
	c.mu.Lock()
	t := c.turns[uid]
	if t == nil {
		t = &turns{places: make(chan struct{}, opensEach)}
		c.turns[uid] = t
	}
	t.users++
	c.mu.Unlock()
	done := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(c.turns, uid)
		}
	}
	select {
	case t.places <- struct{}{}:
		return func() { <-t.places; done() }, nil
	case <-ctx.Done():
		done()
		return nil, context.Cause(ctx)
	}
}

// NewClient says hello over conn, which it takes over. exited is called, from
// one goroutine, when a guest process has ended that this priv started; it
// must not wait for an answer of priv's.
func NewClient(conn *wire.Conn, exited func(id uint32, status string)) (*Client, error) {
	peer, err := conn.Hello("core")
	if err == nil && (len(peer) != 1 || peer[0] != "priv") {
		err = fmt.Errorf("%.80q is not priv", peer)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	notice := func(m wire.Message) {
		m.Close()
		if len(m.Fields) != 3 || m.Fields[0] != "exited" {
			return // of a later protocol
		}
		if id, err := parseID(m.Fields[1]); err == nil {
			exited(id, m.Fields[2])
		}
	}
	return &Client{caller: wire.NewCaller(conn, notice), turns: map[uint32]*turns{}}, nil
}

// Done is closed when priv is gone. Core ends then.
func (c *Client) Done() <-chan struct{} { return c.caller.Done() }

// Close hangs up, whereupon priv ends core.
func (c *Client) Close() error { return c.caller.Close() }

// Open opens files with the rights of a user, and the files behind them, all
// or none; the caller closes them. ENOENT, EACCES, EINVAL for what is no
// regular file, lies on a user's own FUSE, or is not in the format that it is
// wanted in, EOPNOTSUPP for an image that asks for too much, ELOOP for too
// many bases, ETIMEDOUT after 2 s, EAGAIN when too many of the user's file
// systems do not answer.
func (c *Client) Open(ctx context.Context, uid uint32, wants []ctl.Want) ([]ctl.Opened, error) {
	if len(wants) == 0 {
		return nil, nil
	}
	args := append([]string{strconv.FormatUint(uint64(uid), 10)}, wantArgs(wants)...)
	// What priv would end core for is the user's mistake, not core's.
	if _, err := parseRequest("open", args); err != nil {
		return nil, ctl.Errorf(syscall.EINVAL, "%v", err)
	}
	if _, err := wire.Encode(args...); err != nil {
		return nil, ctl.Errorf(syscall.EINVAL, "open: %v", err)
	}
	leave, err := c.turn(ctx, uid)
	if err != nil {
		return nil, err
	}
	defer leave()
	m, err := c.caller.Call(ctx, nil, "open", args...)
	if err != nil {
		return nil, err
	}
	formats, err := parseOpened(m.Fields, len(m.Files), len(wants))
	if err != nil {
		m.Close()
		return nil, err
	}
	opened := make([]ctl.Opened, len(wants))
	next := 0
	for i := range formats {
		for _, format := range formats[i] {
			opened[i] = append(opened[i], ctl.Image{File: m.Take(next), Format: format})
			next++
		}
	}
	return opened, nil
}

// WhoIs tells the uid, gid and groups of a user as id(1) does now. EACCES for
// one who is no more, ETIMEDOUT after 2 s.
func (c *Client) WhoIs(ctx context.Context, uid uint32) (ctl.Cred, error) {
	// No user of the host has a uid of the daemon's own.
	if _, err := parseRequest("whois", []string{decimal(uid)}); err != nil {
		return ctl.Cred{}, ctl.Errorf(syscall.EACCES, "%v", err)
	}
	leave, err := c.turn(ctx, uid)
	if err != nil {
		return ctl.Cred{}, err
	}
	defer leave()
	fields, err := c.call(ctx, "whois", decimal(uid))
	if err != nil {
		return ctl.Cred{}, err
	}
	if len(fields) != 1 {
		return ctl.Cred{}, errAnswer("whois")
	}
	groups, err := parseGroups(fields[0])
	if err != nil {
		return ctl.Cred{}, errAnswer("whois")
	}
	return ctl.Cred{UID: uid, GID: groups[0], Groups: groups[1:]}, nil
}

// Spawn starts the guest process of a machine and returns its pid. The
// process then listens at its socket in the run directory. EOPNOTSUPP if it is
// to be outward and the daemon is root's, EBUSY if there is one already.
func (c *Client) Spawn(ctx context.Context, p ctl.Process) (pid int, err error) {
	fields, err := c.call(ctx, "spawn", spawnArgs(p)...)
	if err != nil {
		return 0, err
	}
	if len(fields) != 1 {
		return 0, errAnswer("spawn")
	}
	return parsePID(fields[0])
}

// Guests lists the guest processes that run, by id.
func (c *Client) Guests(ctx context.Context) ([]ctl.GuestProcess, error) {
	var all []ctl.GuestProcess
	for after := uint32(0); ; after = all[len(all)-1].ID {
		fields, err := c.call(ctx, "guests", decimal(after))
		if err != nil {
			return nil, err
		}
		page, err := parsePage(fields, after)
		if err != nil {
			return nil, err
		}
		if all = append(all, page...); len(page) < guestsPage {
			return all, nil
		}
	}
}

// parsePage reads "ID PID ID PID ...", with ids that ascend from after.
func parsePage(fields []string, after uint32) ([]ctl.GuestProcess, error) {
	if len(fields)%2 != 0 {
		return nil, errAnswer("guests")
	}
	var page []ctl.GuestProcess
	for i := 0; i < len(fields); i += 2 {
		id, err1 := parseID(fields[i])
		pid, err2 := parsePID(fields[i+1])
		if err1 != nil || err2 != nil || id <= after {
			return nil, errAnswer("guests")
		}
		page = append(page, ctl.GuestProcess{ID: id, PID: pid})
		after = id
	}
	return page, nil
}

// End kills the guest process of a machine and removes its socket and record.
// Nil when there is none; ETIMEDOUT when it is not gone after 5 s.
func (c *Client) End(ctx context.Context, id uint32) error {
	_, err := c.call(ctx, "end", decimal(id))
	return err
}

// Bounds says what limits the guest process of a machine has.
func (c *Client) Bounds(ctx context.Context, id uint32) (ctl.Bounds, error) {
	f, err := c.call(ctx, "bounds", decimal(id))
	if err != nil {
		return ctl.Bounds{}, err
	}
	if len(f) != 2 {
		return ctl.Bounds{}, errAnswer("bounds")
	}
	killed, err := strconv.ParseUint(f[1], 10, 64)
	if err != nil {
		return ctl.Bounds{}, errAnswer("bounds")
	}
	return ctl.Bounds{Text: f[0], Killed: killed}, nil
}

// Engines says what can run a machine here, as the host is now.
func (c *Client) Engines(ctx context.Context) (ctl.Engines, error) {
	f, err := c.call(ctx, "engines")
	if err != nil {
		return ctl.Engines{}, err
	}
	if len(f) != 4 || f[2] != "yes" && f[2] != "no" {
		return ctl.Engines{}, errAnswer("engines")
	}
	return ctl.Engines{QEMU: f[0], QEMUVersion: f[1], KVM: f[2] == "yes", KVMReason: f[3]}, nil
}

// Alive is to be called every 2 s, from where it shows that core works: priv
// replaces a core from which it heard nothing for 10 s.
func (c *Client) Alive(ctx context.Context) error { return c.plain(ctx, "alive") }

// Serving says that the tree is there.
func (c *Client) Serving(ctx context.Context) error { return c.plain(ctx, "serving") }

// Draining says that guests are being stopped: a SIGTERM now waits for
// Shutdown, for 150 s at most.
func (c *Client) Draining(ctx context.Context) error { return c.plain(ctx, "draining") }

// Shutdown ends the daemon: core is hung up on next.
func (c *Client) Shutdown(ctx context.Context) error { return c.plain(ctx, "shutdown") }

func (c *Client) plain(ctx context.Context, verb string) error {
	_, err := c.call(ctx, verb)
	return err
}

// call asks what is answered without files.
func (c *Client) call(ctx context.Context, verb string, args ...string) ([]string, error) {
	m, err := c.caller.Call(ctx, nil, verb, args...)
	if err != nil {
		return nil, err
	}
	m.Close()
	return m.Fields, nil
}

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func parsePID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n < 2 {
		return 0, ctl.Errorf(syscall.EPROTO, "%.40q is no pid", s)
	}
	return int(n), nil
}

func errAnswer(verb string) error {
	return ctl.Errorf(syscall.EPROTO, "%s: the answer is not one", verb)
}
