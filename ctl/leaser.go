package ctl

import (
	"context"
	"sync"
	"time"
)

// leaser has the process that answers DHCP, and what it is to answer: the
// process keeps nothing, and may end.
type leaser struct {
	m *Manager

	mu      sync.Mutex // held for as long as a change takes
	process Lease      // nil if none is needed, or it ended
	open    map[Link]bool
	served  map[Link]LeaseService
	closed  bool // a process that ends is not replaced
}

// leaseWait is how long a process that ended is not replaced.
const leaseWait = time.Second

func newLeaser(m *Manager) *leaser {
	return &leaser{m: m, open: map[Link]bool{}, served: map[Link]LeaseService{}}
}

// serve answers on a link from now on.
func (s *leaser) serve(ctx context.Context, l Link, what LeaseService) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, had := s.served[l]
	s.served[l] = what
	err := s.started(ctx)
	if err == nil {
		err = s.tell(ctx, l)
	}
	switch {
	case err == nil:
		s.tellRest(ctx)
		return nil
	case had:
		s.served[l] = was
	default:
		delete(s.served, l)
	}
	s.rest()
	return err
}

// stop answers on it no more. The process ends with its last link.
func (s *leaser) stop(ctx context.Context, l Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.served, l)
	if s.process != nil && s.open[l] {
		if err := s.process.Stop(ctx, l); err != nil {
			s.m.failed("lease %v: %v", l, err)
		}
	}
	delete(s.open, l)
	s.rest()
}

// rest ends a process that has nothing to answer.
func (s *leaser) rest() {
	if len(s.served) > 0 || s.process == nil {
		return
	}
	s.process.Close()
	select { // the Host is to give no process that is about to end
	case <-s.process.Done():
	case <-time.After(time.Second):
	}
	s.process = nil
}

// started sees to it that there is a process, which may have to be told all.
// Called with mu held.
func (s *leaser) started(ctx context.Context) error {
	if s.process != nil && !isClosed(s.process.Done()) {
		return nil
	}
	p, err := s.m.Host.Lease(ctx)
	if err != nil {
		return err
	}
	s.process, s.open = p, map[Link]bool{}
	go s.watch(p)
	return nil
}

// tell says what is answered on a link, with a socket if it has none.
func (s *leaser) tell(ctx context.Context, l Link) error {
	if s.open[l] {
		return s.process.Serve(ctx, l, nil, s.served[l])
	}
	f, err := s.m.Host.Listen(ctx, l)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := s.process.Serve(ctx, l, f, s.served[l]); err != nil {
		return err
	}
	s.open[l] = true
	return nil
}

// watch replaces a process that ended while it was needed.
func (s *leaser) watch(p Lease) {
	<-p.Done()
	for wait := leaseWait; ; wait = min(2*wait, time.Minute) {
		s.mu.Lock()
		needed := s.misses(p)
		s.mu.Unlock()
		if !needed {
			return
		}
		s.m.failed("the process that answers DHCP ended; another starts in %v", wait)
		time.Sleep(wait)
		if s.again(p) {
			return
		}
	}
}

// misses reports whether p, which ended, is to be replaced.
func (s *leaser) misses(p Lease) bool {
	return !s.closed && len(s.served) > 0 && (s.process == nil || s.process == p)
}

// close lets the process end without another.
func (s *leaser) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// again starts a process in the place of p, and tells it all. It reports
// whether that is done with.
func (s *leaser) again(p Lease) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.misses(p) {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), netTime)
	defer cancel()
	if err := s.started(ctx); err != nil {
		s.m.failed("lease: %v", err)
		return false
	}
	s.tellRest(ctx)
	return true
}

// tellRest says what the process does not know yet.
func (s *leaser) tellRest(ctx context.Context) {
	for l := range s.served {
		if s.open[l] {
			continue
		}
		if err := s.tell(ctx, l); err != nil {
			s.m.failed("lease %v: %v", l, err)
		}
	}
}

// running reports whether a link is being served.
func (s *leaser) running(l Link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process != nil && !isClosed(s.process.Done()) && s.open[l]
}
