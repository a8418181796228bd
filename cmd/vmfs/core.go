package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmfs/ctl"
	"vmfs/fs"
	"vmfs/fs/fuse"
	"vmfs/priv"
	"vmfs/priv/confine"
	"vmfs/priv/wire"
	"vmfs/vmm"
	"vmfs/vmm/unpack"
)

// aliveEvery is how often core shows that it works.
const aliveEvery = 2 * time.Second

// core is the role that serves users: it decides, and asks priv to act. Its
// descriptors are 3, the conversation with priv, 4, the mounted tree, and from
// 5 on the sockets that clients of 9P come by. It gives up whatever it could do
// besides before it looks at anything, and ends when priv does.
func core(args []string) error {
	if len(args) < 4 {
		return fmt.Errorf("core: %d arguments, want 4 or more: it is started by vmfs serve", len(args))
	}
	mount, state, run, version := args[0], args[1], args[2], args[3]
	conn, err := wire.NewConn(os.NewFile(3, "priv"))
	if err != nil {
		return err
	}
	ruler, err := conn.Peer() // priv is whose daemon this is
	if err != nil {
		return err
	}
	ctl.RuledBy(ruler.Uid, ruler.Gid)
	if err := sealCore(state, run); err != nil {
		return err
	}
	var d daemon
	client, err := priv.NewClient(conn, d.exited)
	if err != nil {
		return err
	}
	go func() {
		<-client.Done()
		d.close()
		os.Exit(0)
	}()
	ctx := context.Background()
	m, err := ctl.Open(ctx, ctl.Options{State: state, Boot: bootID(), Version: version, Host: &host{
		Client: client, run: run, ordinary: ruler.Uid != 0, kernels: unpack.Cache{Unpack: client.Unpack, Log: logLine},
	}, Log: logLine})
	if err != nil {
		return err
	}
	d.set(m)
	debug.FreeOSMemory() // what was read is several times what is kept
	go beat(ctx, client, m)
	return serveTree(ctx, client, m, mount, args[4:])
}

// sealCore leaves this process what confine's table for core says.
func sealCore(state, run string) error {
	paths, err := confine.Bind(confine.Core.Paths, map[string]string{"STATE": state, "RUN": run})
	if err != nil {
		return err
	}
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Core.Capabilities); err != nil {
		return err
	}
	if err := confine.Landlock(paths); err != nil {
		return err
	}
	return confine.Seccomp(confine.Core)
}

// serveTree serves m on the descriptor that priv mounted, until that ends, and
// at the doors.
func serveTree(ctx context.Context, client *priv.Client, m *ctl.Manager, mount string, doors []string) error {
	tree := fs.New(m)
	server, err := fuse.Serve("/dev/fd/4", tree.Root(), fuse.Options{Log: logLine})
	if err != nil {
		return err
	}
	tree.Watch(server.Changed)
	if err := serve9P(tree.Root(), doors); err != nil {
		return err
	}
	if err := client.Serving(ctx); err != nil {
		return err
	}
	go func() {
		if err := m.Autostart(ctx); err != nil {
			logLine("autostart: %v", err)
		}
	}()
	server.Wait()
	// Priv took the mount away, and will say why by hanging up.
	select {
	case <-client.Done():
		m.Close()
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("core: %s was unmounted by somebody else", mount)
	}
}

// bootID names this boot of the host; empty if the kernel does not say.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		logLine("nothing is started by itself: %v", err)
	}
	return strings.TrimSpace(string(id))
}

// daemon is what priv's news are told to, once it is there.
type daemon struct {
	mu sync.Mutex
	m  *ctl.Manager
}

func (d *daemon) set(m *ctl.Manager) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.m = m
}

func (d *daemon) exited(id uint32, how string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m != nil {
		d.m.Exited(id, how)
	}
}

func (d *daemon) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m != nil {
		d.m.Close()
	}
}

// beat tells priv that core works, as long as its locks can be had.
func beat(ctx context.Context, client *priv.Client, m *ctl.Manager) {
	for {
		for _, vm := range m.VMs() {
			vm.Active()
		}
		if client.Alive(ctx) != nil {
			return
		}
		time.Sleep(aliveEvery)
	}
}

func logLine(format string, args ...any) { fmt.Fprintf(os.Stderr, "vmfs: "+format+"\n", args...) }

// host is ctl's Host: priv, and the guests that it starts.
type host struct {
	*priv.Client
	run      string
	ordinary bool // the daemon is an ordinary user's: there is one uid
	kernels  unpack.Cache
}

// Unpacked is the kernel in f, if that is at hand.
func (h *host) Unpacked(ctx context.Context, uid uint32, f *os.File) *os.File {
	return h.kernels.Get(ctx, uid, f)
}

// Spawn starts a guest process and connects to it.
func (h *host) Spawn(ctx context.Context, p ctl.Process) (ctl.Guest, int, error) {
	pid, err := h.Client.Spawn(ctx, p)
	if err != nil {
		return nil, 0, err
	}
	g, err := h.Adopt(ctx, p.ID)
	return g, pid, err
}

// Adopt connects to the guest process that listens for machine id.
func (h *host) Adopt(ctx context.Context, id uint32) (ctl.Guest, error) {
	path := filepath.Join(h.run, "guest", strconv.FormatUint(uint64(id), 10))
	uid := confine.GuestUID + id
	if h.ordinary {
		uid = uint32(os.Geteuid())
	}
	return vmm.Dial(ctx, path, id, uid)
}
