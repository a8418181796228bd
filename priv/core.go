package priv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vmfs/priv/confine"
	"vmfs/priv/wire"
)

const (
	aliveTime = 10 * time.Second // a core that is silent for so long hangs
	coreTime  = 5 * time.Second  // that core has to end when told to
	inFlight  = 64               // requests that are worked on at once

	coreRecord = "core"
)

// core is one life of the process core.
type core struct {
	server *server
	cmd    *exec.Cmd
	conn   *wire.Conn
	heard  atomic.Int64 // when it last asked for anything, unix nanoseconds
	gone   chan struct{}

	mu  sync.Mutex
	why error // why priv ended it, nil if it went by itself
}

// startCore starts core with the descriptor of a tree's requests, and with
// the doors.
func (s *server) startCore(dev *os.File) (*core, error) {
	args := []string{s.tree.point, s.options.State, s.options.Run, s.options.Version}
	cmd := role("core", append(args, s.doors.words...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true, // a ^C is for us; core ends when we say so
	}
	if !ordinary() {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: s.tree.uid, Gid: s.tree.gid}
	}
	conn, err := startRole(cmd, append([]*os.File{dev}, s.doors.files...)...)
	if err != nil {
		return nil, fmt.Errorf("start core: %w", err)
	}
	c := &core{server: s, cmd: cmd, conn: conn, gone: make(chan struct{})}
	c.heard.Store(time.Now().UnixNano())
	r, err := recordOf(cmd.Process.Pid, s.tree.uid)
	if err == nil {
		err = s.guests.records.write(coreRecord, r)
	}
	if err != nil {
		c.end(fmt.Errorf("record core: %w", err))
	}
	ctx, cancel := context.WithCancel(context.Background())
	go c.serve(ctx)
	go func() {
		cmd.Wait()
		cancel()
		conn.Close()
		s.guests.records.remove(coreRecord)
		close(c.gone)
	}()
	return c, nil
}

// end kills core, for a reason.
func (c *core) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why == nil {
		c.why = why
	}
	c.cmd.Process.Kill()
}

// death is how core ended, in words.
func (c *core) death() string {
	<-c.gone
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.why != nil {
		return c.why.Error()
	}
	return c.cmd.ProcessState.String()
}

// leave tells core to end, by hanging up, and sees to it that it does.
func (c *core) leave() {
	c.conn.Close()
	select {
	case <-c.gone:
	case <-time.After(coreTime):
		c.end(errors.New("did not end when it was told to"))
		<-c.gone
	}
}

// silent reports whether core hangs.
func (c *core) silent() bool {
	return time.Since(time.Unix(0, c.heard.Load())) > aliveTime
}

// serve answers core's requests until it hangs up, and ends it for what a
// working core does not send.
func (c *core) serve(ctx context.Context) {
	peer, err := c.conn.Hello("priv")
	if err == nil && (len(peer) != 1 || peer[0] != "core") {
		err = fmt.Errorf("it says it is %.80q", peer)
	}
	if err != nil {
		c.end(fmt.Errorf("no hello: %w", err))
		return
	}
	places := make(chan struct{}, inFlight)
	err = c.conn.Serve(func(r *wire.Request) { c.request(ctx, places, r) })
	switch {
	case errors.Is(err, net.ErrClosed): // by us, who see to its end elsewhere
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		c.hungUp()
	default:
		c.end(fmt.Errorf("conversation: %w", err))
	}
}

// hungUp sees core end, which hangs up when it does so by itself.
func (c *core) hungUp() {
	select {
	case <-c.gone:
	case <-time.After(time.Second):
		c.end(errors.New("hung up without ending"))
	}
}

// request parses a request at once and works on it beside the others.
func (c *core) request(ctx context.Context, places chan struct{}, r *wire.Request) {
	c.heard.Store(time.Now().UnixNano())
	do, err := parseRequest(r.Verb, r.Args)
	if err == nil {
		err = checkFiles(r.Verb, r.Files)
	}
	if err != nil {
		r.Close()
		c.end(fmt.Errorf("impossible request: %w", err))
		return
	}
	places <- struct{}{}
	go func() {
		defer func() { <-places }()
		defer r.Close()
		c.answer(ctx, do, r)
	}()
}

// answer does what was asked for and says how it went.
func (c *core) answer(ctx context.Context, do act, r *wire.Request) {
	if len(r.Files) > 0 {
		ctx = withFile(ctx, r.Files[0])
	}
	done, err := do(ctx, c.server)
	defer closeAll(done.files)
	if err == nil {
		err = r.OK(done.files, done.fields...)
	}
	if err != nil {
		r.Refuse(err) // to nobody, if core is gone
		return
	}
	if done.then != nil {
		done.then()
	}
}

// notify tells core something; it may be gone.
func (c *core) notify(fields ...string) { c.conn.Notify(nil, fields...) }

// endStray ends a core that an earlier daemon left behind. It ends by itself
// when its daemon does, unless it hangs.
func (s *server) endStray() error {
	r, err := s.guests.records.read(coreRecord)
	if err != nil {
		return nil // none, or not one that can be told from others
	}
	defer s.guests.records.remove(coreRecord)
	if fd := r.open(); fd >= 0 {
		defer syscall.Close(fd)
		if ended(fd, time.Second) {
			return nil
		}
		if err := r.kill(coreTime); err != nil {
			return fmt.Errorf("core of an earlier daemon: %w", err)
		}
	}
	return nil
}

// coreUser says who core is.
func coreUser(lookup func(string) (uid, gid uint32, ok bool)) (uid, gid uint32) {
	if uid, gid, ok := lookup("_vmfs"); ok {
		return uid, gid
	}
	return confine.CoreUID, confine.CoreUID
}
