package fs

import (
	"sync"

	"vmfs/ctl"
)

// parts tells the parts of one number apart that an object had one after the
// other: who has the directory or a file of the first open does not have the
// second.
type parts struct {
	mu sync.RWMutex
	of map[uint64]map[ctl.Part]part // by the object's serial number
}

type part struct {
	seen bool   // a Node of it was made, and it is there
	life uint64 // how many there were before it
}

// see gives the life of a part that is there.
func (s *parts) see(o ctl.Object, p ctl.Part) uint64 {
	s.mu.RLock()
	known := s.of[o.Serial()][p]
	s.mu.RUnlock()
	if known.seen {
		return known.life
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = make(map[uint64]map[ctl.Part]part)
	}
	list := s.of[o.Serial()]
	if list == nil {
		list = make(map[ctl.Part]part)
		s.of[o.Serial()] = list
	}
	list[p] = part{true, list[p].life}
	return list[p].life
}

// is reports whether a part that was seen is the one that is there.
func (s *parts) is(o ctl.Object, p ctl.Part, life uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	known, ok := s.of[o.Serial()][p]
	return ok && known.life == life
}

// settle ends the lives of the parts that were seen and are not there any
// more, and calls there and gone of those that were seen.
func (s *parts) settle(o ctl.Object, there, gone func(p ctl.Part, life uint64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.of[o.Serial()]
	for p, known := range list {
		switch {
		case !known.seen:
		case o.HasPart(p):
			there(p, known.life)
		default:
			gone(p, known.life)
			list[p] = part{life: known.life + 1}
		}
	}
	if o.Removed() {
		delete(s.of, o.Serial())
	}
}
