package lease

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"vmfs/ctl"
	"vmfs/priv/wire"
)

// conversation is core's end: a ctl.Lease.
type conversation struct {
	caller *wire.Caller
	one    sync.Mutex // what one Serve says is not mixed with another's
}

// Meet begins the conversation with the process lease at the other end of
// conn, which it takes over, or closes when it returns an error.
func Meet(conn *wire.Conn) (ctl.Lease, error) {
	peer, err := conn.Hello("core")
	if err == nil && (len(peer) == 0 || peer[0] != "lease") {
		err = ctl.Errorf(syscall.EPROTO, "it says it is %.60q", peer)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("lease: %w", err)
	}
	return &conversation{caller: wire.NewCaller(conn, func(m wire.Message) { m.Close() })}, nil
}

func (c *conversation) Serve(ctx context.Context, l ctl.Link, socket *os.File, s ctl.LeaseService) error {
	c.one.Lock()
	defer c.one.Unlock()
	// The first page says that there are none before it, also if it is empty.
	pages := slices.Collect(slices.Chunk(s.Bindings, maxPage))
	if len(pages) == 0 {
		pages = append(pages, nil)
	}
	n := 0
	for _, page := range pages {
		fields := []string{l.String(), strconv.Itoa(n)}
		for _, b := range page {
			fields = append(fields, sayBinding(b)...)
		}
		if err := c.call(ctx, nil, "bind", fields...); err != nil {
			return err
		}
		n += len(page)
	}
	var files []*os.File
	if socket != nil {
		files = []*os.File{socket}
	}
	return c.call(ctx, files, "serve", serveFields(l, s)...)
}

func (c *conversation) Stop(ctx context.Context, l ctl.Link) error {
	return c.call(ctx, nil, "stop", l.String())
}

func (c *conversation) call(ctx context.Context, files []*os.File, verb string, args ...string) error {
	m, err := c.caller.Call(ctx, files, verb, args...)
	m.Close()
	return err
}

func (c *conversation) Done() <-chan struct{} { return c.caller.Done() }

func (c *conversation) Close() error { return c.caller.Close() }
