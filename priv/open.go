package priv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"vmfs/ctl"
	"vmfs/priv/wire"
)

const (
	openTime    = 2 * time.Second // that an opener gets
	maxHung     = 32              // openers that were killed and are not gone
	maxHungEach = 4               // the same, of one user
	maxBusyEach = inFlight / 4    // of one user at a time: he could stop his own
)

// openers starts the openers and counts those that do not end: a killed
// process stays for as long as the file system does that holds it.
type openers struct {
	dirs  []string      // -images
	limit time.Duration // openTime

	mu   sync.Mutex
	hung map[uint32]int // by user
	all  int            // the sum
	busy map[uint32]int // being worked on, by user
}

func newOpeners(dirs []string) *openers {
	return &openers{dirs: dirs, limit: openTime, hung: make(map[uint32]int), busy: make(map[uint32]int)}
}

// open opens the wants with the rights of a user; the caller closes the
// files. fields say which belong to which want, as parseOpened reads it.
func (o *openers) open(ctx context.Context, uid uint32, wants []ctl.Want) (files []*os.File, fields []string, err error) {
	what := "open " + wants[0].Path
	var m wire.Message
	err = o.turn(ctx, uid, what, func(ctx context.Context) error {
		text, err := o.groups(ctx, uid)
		if err != nil {
			return err
		}
		groups, err := parseGroups(text)
		if err == nil {
			m, err = o.ask(ctx, uid, what, openRequest{uid, groups, o.dirs, wants}.fields())
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	fields, err = parseAnswer(m.Fields, len(m.Files), len(wants))
	if err != nil {
		m.Close()
		return nil, nil, err
	}
	return m.Files, fields, nil
}

// turn does what is to be done for a user within the limit, if it is his turn.
// What of it was late is ETIMEDOUT.
func (o *openers) turn(ctx context.Context, uid uint32, what string, work func(context.Context) error) error {
	if own := uint32(os.Geteuid()); ordinary() && uid != own {
		return ctl.Errorf(syscall.EPERM, "%s as %s: this daemon has the rights of %s alone", what, userName(uid), userName(own))
	}
	if err := o.begin(uid); err != nil {
		return err
	}
	defer o.end(uid)
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	err := work(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return ctl.Errorf(syscall.ETIMEDOUT, "%s as %s: no answer within %v, from the file system or about the user's groups", what, userName(uid), o.limit)
	}
	return err
}

// ask starts an opener for a user and has its answer, if that comes before the
// end of ctx, whose error it is otherwise.
func (o *openers) ask(ctx context.Context, uid uint32, what string, request []string) (m wire.Message, err error) {
	cmd := role("opener")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	conn, err := startRole(cmd)
	if err != nil {
		return m, fmt.Errorf("opener: %w", err)
	}
	gone := make(chan struct{})
	go func() { cmd.Wait(); close(gone) }()
	stop := context.AfterFunc(ctx, func() {
		cmd.Process.Kill()
		conn.Close()
		o.await(uid, gone)
	})
	m, err = askOpener(conn, what, request)
	if stop() {
		conn.Close()
		cmd.Process.Kill() // it is done; its user may have stopped it
		return m, err
	}
	m.Close()
	return wire.Message{}, ctx.Err()
}

// end is the counterpart of begin.
func (o *openers) end(uid uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy[uid]--; o.busy[uid] == 0 {
		delete(o.busy, uid)
	}
}

// begin says no to a user of whose openers too many hang already, or are at
// work.
func (o *openers) begin(uid uint32) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if uid != 0 && o.busy[uid] >= maxBusyEach {
		return ctl.Errorf(syscall.EAGAIN, "open as %s: %d openers of his are at work", userName(uid), o.busy[uid])
	}
	if o.all < maxHung && o.hung[uid] < maxHungEach {
		o.busy[uid]++
		return nil
	}
	return ctl.Errorf(syscall.EAGAIN, "open as %s: %d earlier openers of his, %d in all, hang on file systems that do not answer", userName(uid), o.hung[uid], o.all)
}

// await counts an opener that was killed for as long as it is there.
func (o *openers) await(uid uint32, gone <-chan struct{}) {
	o.count(uid, 1)
	<-gone
	o.count(uid, -1)
}

func (o *openers) count(uid uint32, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all += n
	if o.hung[uid] += n; o.hung[uid] == 0 {
		delete(o.hung, uid)
	}
}

func askOpener(conn *wire.Conn, what string, request []string) (wire.Message, error) {
	if err := conn.Send(nil, request...); err != nil {
		return wire.Message{}, ctl.Errorf(syscall.EINVAL, "%s: %v", what, err)
	}
	m, err := conn.Recv()
	if err != nil {
		return wire.Message{}, ctl.Errorf(syscall.EIO, "%s: the opener ended: %v", what, err)
	}
	return m, nil
}

// parseAnswer reads an opener's answer to open, and returns what is behind ok.
func parseAnswer(fields []string, files, wants int) ([]string, error) {
	fields, err := parseSaid("open", fields, files)
	if err == nil {
		_, err = parseOpened(fields, files, wants)
	}
	return fields, err
}

// parseSaid reads what a process said that has a user's rights or has read his
// files, and so may be his. It returns what is behind ok.
func parseSaid(verb string, fields []string, files int) ([]string, error) {
	switch {
	case len(fields) == 3 && fields[0] == "error" && files == 0:
		if errno := wire.ErrnoNamed(fields[1]); errno != 0 {
			return nil, &ctl.Error{Errno: errno, Reason: oneLine(clip(fields[2]))}
		}
	case fields[0] == "ok":
		return fields[1:], nil
	}
	return nil, errAnswer(verb)
}

// startRole starts another role with one end of a socket as descriptor 3.
func startRole(cmd *exec.Cmd, more ...*os.File) (*wire.Conn, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd.ExtraFiles = append([]*os.File{theirs}, more...)
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
