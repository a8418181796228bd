package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/wire"
	"vmfs/vmm/console"
)

// client is core's end of a conversation with a guest process. It trusts the
// process as far as the machine that it runs: what comes is checked for form,
// and a guest that says nonsense has the conversation ended.
type client struct {
	caller  *wire.Caller
	console *console.Reader
	notices chan ctl.Notice
}

// Dial connects to the guest process of the machine id, whose socket is at
// path. While nobody listens there yet it tries again until ctx ends. An
// error says if who listens is not uid, or not that machine's.
func Dial(ctx context.Context, path string, id, uid uint32) (ctl.Guest, error) {
	conn, err := connect(ctx, path)
	if err != nil {
		return nil, err
	}
	// What follows has limits of its own; ctx may end it sooner.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	c := &client{notices: make(chan ctl.Notice, 64)}
	if err := c.meet(conn, id, uid); err != nil {
		conn.Close()
		return nil, fmt.Errorf("guest %d: %w", id, err)
	}
	c.caller = wire.NewCaller(conn, c.notice)
	go func() {
		<-c.caller.Done()
		close(c.notices)
	}()
	if err := c.openConsole(ctx); err != nil {
		c.caller.Close()
		return nil, fmt.Errorf("guest %d: %w", id, err)
	}
	return c, nil
}

// connect tries until somebody listens at path.
func connect(ctx context.Context, path string) (*wire.Conn, error) {
	for pause := time.Millisecond; ; pause = min(pause+time.Millisecond, 10*time.Millisecond) {
		conn, err := wire.Dial(path)
		if err == nil {
			return conn, nil
		}
		// EAGAIN is a full queue of those who wait to be accepted.
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

func (c *client) meet(conn *wire.Conn, id, uid uint32) error {
	cred, err := conn.Peer()
	if err != nil {
		return err
	}
	if cred.Uid != uid {
		return ctl.Errorf(syscall.EPROTO, "its socket is uid %d's, not %d's", cred.Uid, uid)
	}
	peer, err := conn.Hello("core")
	if err != nil {
		return err
	}
	if len(peer) < 2 || peer[0] != "guest" || peer[1] != strconv.FormatUint(uint64(id), 10) {
		return ctl.Errorf(syscall.EPROTO, "it says it is %.60q", peer)
	}
	return nil
}

func (c *client) openConsole(ctx context.Context) error {
	m, err := c.caller.Call(ctx, nil, "console")
	if err != nil {
		return err
	}
	defer m.Close()
	if len(m.Files) != 2 {
		return ctl.Errorf(syscall.EPROTO, "console: %d files, not 2", len(m.Files))
	}
	c.console, err = console.NewReader(m.Take(0), m.Take(1))
	return err
}

// notice is news from the guest. Who does not read them in time finds what he
// missed in State.
func (c *client) notice(m wire.Message) {
	defer m.Close()
	var n ctl.Notice
	switch m.Fields[0] {
	case "state":
		n = ctl.StateChanged
	case "rebooted":
		n = ctl.Rebooted
	default:
		return // of a newer guest
	}
	select {
	case c.notices <- n:
	default:
	}
}

// call asks for what has no answer but that it was done.
func (c *client) call(ctx context.Context, files []*os.File, verb string, args ...string) error {
	m, err := c.caller.Call(ctx, files, verb, args...)
	m.Close()
	return err
}

func (c *client) Give(ctx context.Context, l *ctl.Launch) error {
	err := c.call(ctx, nil, "launch",
		"generation", strconv.FormatUint(l.Generation, 10),
		"name", l.Name,
		"accel", l.Accel,
		"reason", l.Reason,
		"cpus", strconv.Itoa(l.CPUs),
		"memory", strconv.Itoa(l.MemoryMiB),
		"boot", l.Boot,
		"cmdline", l.Cmdline)
	if err != nil {
		return err
	}
	for _, given := range []struct {
		verb string
		file *os.File
	}{{"kernel", l.Kernel}, {"initrd", l.Initrd}, {"firmware", l.Firmware}, {"cdrom", l.Cdrom}} {
		files := []*os.File{given.file}
		if given.verb == "firmware" && l.Vars != nil {
			given.verb, files = "uefi", append(files, l.Vars)
		}
		if given.file == nil {
			continue
		}
		if err := c.call(ctx, files, given.verb); err != nil {
			return err
		}
	}
	for _, d := range l.Disks {
		if err := c.giveDisk(ctx, d); err != nil {
			return err
		}
	}
	for _, n := range l.NICs {
		verb, files := "nic", []*os.File{n.Tap}
		if n.Tap == nil {
			verb, files = "usernic", nil
		}
		if err := c.call(ctx, files, verb, strconv.Itoa(n.N), n.MAC.String()); err != nil {
			return err
		}
	}
	return nil
}

// giveDisk hands over a disk, with the bases behind it.
func (c *client) giveDisk(ctx context.Context, d ctl.LaunchDisk) error {
	for i, image := range d.Images {
		mode := "rw"
		if d.ReadOnly || i > 0 {
			mode = "ro"
		}
		if err := c.call(ctx, []*os.File{image.File}, "disk", strconv.Itoa(d.N), strconv.Itoa(i), image.Format, mode); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) Go(ctx context.Context) error { return c.call(ctx, nil, "go") }

func (c *client) Stop(ctx context.Context, wait time.Duration, by string, restart bool) error {
	seconds := max(0, (wait+time.Second-1)/time.Second)
	return c.call(ctx, nil, "stop", strconv.FormatInt(int64(seconds), 10), sayYesNo(restart), by)
}

func (c *client) Kill(ctx context.Context, by, how string, failed bool) error {
	return c.call(ctx, nil, "kill", by, how, sayYesNo(failed))
}

func (c *client) Reset(ctx context.Context) error  { return c.call(ctx, nil, "reset") }
func (c *client) Pause(ctx context.Context) error  { return c.call(ctx, nil, "pause") }
func (c *client) Resume(ctx context.Context) error { return c.call(ctx, nil, "resume") }
func (c *client) Forget(ctx context.Context) error { return c.call(ctx, nil, "forget") }

func (c *client) Cdrom(ctx context.Context, f *os.File) error {
	if f == nil {
		return c.call(ctx, nil, "eject")
	}
	return c.call(ctx, []*os.File{f}, "cdrom")
}

func (c *client) State(ctx context.Context) (ctl.GuestState, error) {
	m, err := c.caller.Call(ctx, nil, "state")
	if err != nil {
		return ctl.GuestState{}, err
	}
	defer m.Close()
	s, err := decodeState(m.Fields)
	if err != nil {
		return ctl.GuestState{}, c.nonsense("state", err)
	}
	return s, nil
}

// nonsense ends a conversation that makes no sense.
func (c *client) nonsense(verb string, err error) error {
	c.caller.Close()
	return ctl.Errorf(syscall.EPIPE, "%s: the answer is not one: %v", verb, err)
}

func (c *client) Usage(ctx context.Context) (ctl.Usage, error) {
	m, err := c.caller.Call(ctx, nil, "usage")
	if err != nil {
		return ctl.Usage{}, err
	}
	defer m.Close()
	u, err := decodeUsage(m.Fields)
	if err != nil {
		return ctl.Usage{}, c.nonsense("usage", err)
	}
	return u, nil
}

func decodeUsage(fields []string) (ctl.Usage, error) {
	if len(fields) < 2 {
		return ctl.Usage{}, fmt.Errorf("%d fields", len(fields))
	}
	const most = 1<<63/1000 - 1 // microseconds that a Duration holds
	usec, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil || usec > most {
		return ctl.Usage{}, fmt.Errorf("%.20q: not a time", fields[0])
	}
	bytes, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return ctl.Usage{}, fmt.Errorf("%.20q: not a size", fields[1])
	}
	u := ctl.Usage{CPU: time.Duration(usec) * time.Microsecond, Overhead: bytes}
	u.Exits, err = decodeExits(fields[2:])
	return u, err
}

// decodeExits reads pairs of a kind and a number; nil of none. A kind that is
// not known is a newer guest's.
func decodeExits(fields []string) (*ctl.Exits, error) {
	if len(fields) == 0 {
		return nil, nil
	}
	if len(fields)%2 != 0 {
		return nil, fmt.Errorf("%d fields of exits", len(fields))
	}
	exits := new(ctl.Exits)
	for i := 0; i < len(fields); i += 2 {
		n, err := strconv.ParseUint(fields[i+1], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%.20q: not a number of exits", fields[i+1])
		}
		for _, kind := range exitKinds {
			if kind.name == fields[i] {
				*kind.of(exits) = n
			}
		}
	}
	return exits, nil
}

func (c *client) Input(ctx context.Context, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if len(p) > maxInput {
		return ctl.Errorf(syscall.EFBIG, "console: %d bytes at once, at most %d", len(p), maxInput)
	}
	fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("console: memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "input")
	defer f.Close()
	if _, err := f.Write(p); err != nil {
		return fmt.Errorf("console: memfd: %w", err)
	}
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, all); err != nil {
		return fmt.Errorf("console: memfd: %w", err)
	}
	return c.call(ctx, []*os.File{f}, "input")
}

func (c *client) Console() ctl.Console { return c.console }

func (c *client) Notices() <-chan ctl.Notice { return c.notices }

func (c *client) Close() error {
	err := c.caller.Close()
	c.console.Close()
	return err
}
