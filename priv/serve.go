package priv

import (
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"vmfs/priv/cgroup"
	"vmfs/priv/confine"
	"vmfs/priv/network"
)

const (
	deathsAllowed = 5 // of core, the last of which ends priv
	deathsWithin  = time.Minute
	drainTime     = 150 * time.Second // a SIGTERM waits so long for shutdown
)

// server is the running daemon.
type server struct {
	options   Options
	lock      *lock
	state     *os.File // locked too
	tree      *tree
	doors     *doorway
	guests    *guests
	openers   *openers
	engines   engines
	unpackers unpackers
	network   *network.Network
	lease     leaser

	lastRefusal atomic.Int64 // unix nanoseconds

	ready    sync.Once     // announce
	draining atomic.Bool   // guests are being stopped
	shutdown sync.Once     // closes ending
	ending   chan struct{} // core asked for the end

	mu   sync.Mutex
	core *core // the present life, nil between two
}

// Serve is the main of the role priv: it serves until a signal or core ends
// it, in the foreground. Guests run on afterwards. An error says in words
// what keeps it from serving.
func Serve(o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	unix.Umask(madeMask()) // while directories are made
	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // who reads our output may go
	if err := restrict(); err != nil {
		return err
	}
	s, err := newServer(o)
	if err != nil {
		return err
	}
	defer s.close()
	unix.Umask(0o077) // from here on, and for every role
	return s.run(stop)
}

// restrict gives up what priv does not need, before it does anything.
func restrict() error {
	if ordinary() {
		return restrictOrdinary()
	}
	if err := keepFiles(); err != nil {
		return err
	}
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Priv.Capabilities); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("no core dumps: %w", err)
	}
	return confine.Seccomp(confine.Priv)
}

// keepFiles keeps what whoever started the daemon left open from reaching
// other roles; each gets its own files and standard ones.
func keepFiles() error {
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("files that were inherited: %w", err)
	}
	return nil
}

// newServer takes the lock and finds out what an earlier daemon left.
func newServer(o Options) (_ *server, err error) {
	uid, gid := uint32(os.Geteuid()), uint32(os.Getegid())
	if !ordinary() {
		uid, gid = coreUser(lookupUser)
	}
	s := &server{options: o, ending: make(chan struct{}), openers: newOpeners(o.Images)}
	if err := makeRun(o.Run); err != nil {
		return nil, fmt.Errorf("run directory %w", err)
	}
	if s.lock, err = takeLock(o.Run); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.tidy()
			s.lock.release()
		}
	}()
	s.guests = newGuests(o.Run, uid, s.exited)
	if err := makeOwn(s.guests.records.dir, 0o700); err != nil {
		return nil, err
	}
	if err := makeOwn(s.guests.dir, 0o711&^os.FileMode(madeMask())); err != nil {
		return nil, err
	}
	if err := s.endStray(); err != nil {
		return nil, err
	}
	s.guests.cgroups = cgroup.Open(o.cgroup(s.guests.records.dir))
	if err := s.guests.sweep(); err != nil {
		return nil, err
	}
	if err := makeState(o.State, o.Images, uid, gid); err != nil {
		return nil, fmt.Errorf("state directory %w", err)
	}
	if s.state, err = lockState(o.State); err != nil {
		return nil, fmt.Errorf("state directory %w", err)
	}
	if ordinary() {
		s.guests.probe()
	} else if s.network, err = network.Open(o.network(s.guests.records.dir)); err != nil {
		return nil, err
	}
	if err := makePoint(o.Mount); err != nil {
		return nil, fmt.Errorf("mount point %w", err)
	}
	s.tree = &tree{point: o.Mount, run: o.Run, uid: uid, gid: gid}
	if s.doors, err = openDoors(&o); err != nil {
		return nil, err
	}
	return s, nil
}

func lookupUser(name string) (uid, gid uint32, ok bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, false
	}
	id, err1 := strconv.ParseUint(u.Uid, 10, 32)
	group, err2 := strconv.ParseUint(u.Gid, 10, 32)
	return uint32(id), uint32(group), err1 == nil && err2 == nil && id != 0
}

// run keeps a core running until the end.
func (s *server) run(stop <-chan os.Signal) error {
	go s.engines.find() // so that the first start need not wait for QEMU's version
	var deaths []time.Time
	for {
		c, err := s.renew()
		if err != nil {
			return err
		}
		if s.watch(c, stop) {
			s.tree.clear()
			c.leave()
			return nil
		}
		s.draining.Store(false)
		s.lease.end()
		fmt.Fprintf(os.Stderr, "vmfs: core ended: %s\n", oneLine(c.death()))
		if deaths = recent(append(deaths, time.Now())); len(deaths) >= deathsAllowed {
			return fmt.Errorf("core ended %d times within %v", len(deaths), deathsWithin)
		}
	}
}

// recent keeps the deaths that count.
func recent(deaths []time.Time) []time.Time {
	for len(deaths) > 0 && time.Since(deaths[0]) > deathsWithin {
		deaths = deaths[1:]
	}
	return deaths
}

// renew mounts a new tree in the place of the old one and starts core on it.
func (s *server) renew() (*core, error) {
	dev, err := s.tree.mount()
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	c, err := s.startCore(dev)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.core = c
	return c, nil
}

// watch waits for core's death (false) or for the daemon's end (true).
func (s *server) watch(c *core, stop <-chan os.Signal) (end bool) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var limit <-chan time.Time // set once a signal came while draining
	for {
		select {
		case <-c.gone:
			return limit != nil
		case <-s.ending:
			return true
		case <-limit:
			return true
		case <-stop:
			if !s.draining.Load() {
				return true
			}
			if limit == nil {
				limit = time.After(drainTime)
			}
		case <-tick.C:
			if c.silent() {
				c.end(fmt.Errorf("silent for %v", aliveTime))
			}
		}
	}
}

// announce says that the tree is there.
func (s *server) announce() {
	fmt.Printf("vmfs: serving %s\n", s.tree.point)
	if _, err := daemon.SdNotify(true, daemon.SdNotifyReady); err != nil {
		fmt.Fprintf(os.Stderr, "vmfs: tell systemd: %v\n", err)
	}
}

// exited passes a guest's end on to core.
func (s *server) exited(id uint32, status string) {
	s.mu.Lock()
	c := s.core
	s.mu.Unlock()
	if c != nil {
		c.notify("exited", strconv.FormatUint(uint64(id), 10), status)
	}
}

// tidy removes what only a daemon with guests needs.
func (s *server) tidy() {
	if s.guests.cgroups == nil {
		return // the start failed before there was anything
	}
	if live, err := s.guests.list(0, 1); err != nil || len(live) > 0 {
		return
	}
	s.guests.cgroups.Close()
	os.Remove(s.guests.dir)
	os.Remove(s.guests.records.dir)
}

// close leaves what the next daemon needs: the cover, the state, and the
// guests with their records.
func (s *server) close() {
	s.tree.clear()
	s.doors.close()
	s.lease.end()
	s.unpackers.close()
	if s.network != nil {
		s.network.Close()
	}
	s.tidy()
	s.state.Close()
	s.lock.release()
}
