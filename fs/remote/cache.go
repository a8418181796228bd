package remote

import (
	"os/user"
	"strconv"
	"sync"
	"time"

	"vmfs/fs"
)

// fresh is how long names and attributes are believed that the server told,
// unless something is changed from here: then nothing is. So what others
// change is seen a second later, and what is done here at once. The kernel is
// not to believe anything by itself: it cannot be told of all that a write
// changes.
const fresh = time.Second

// mostKept is how many are remembered.
const mostKept = 1 << 16

// cache is what is believed.
type cache struct {
	mu    sync.Mutex
	ages  uint64 // counts how often all was forgotten
	attrs map[*node]fs.Attr
	named map[place]*node
	timer *time.Timer // forgets the oldest in time, and all else with it
}

// place is a name in a directory.
type place struct {
	in   *node
	name string
}

// age is to be asked for before the server is: what it then says is not kept
// if all was forgotten meanwhile.
func (c *cache) age() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ages
}

func (c *cache) attr(n *node) (fs.Attr, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.attrs[n]
	return a, ok
}

// name is nil if it is not known.
func (c *cache) name(in *node, name string) *node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.named[place{in, name}]
}

func (c *cache) keep(age uint64, n *node, a fs.Attr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begin(age) {
		c.attrs[n] = a
	}
}

func (c *cache) keepName(age uint64, in *node, name string, n *node, a fs.Attr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.begin(age) {
		c.attrs[n] = a
		c.named[place{in, name}] = n
	}
}

// begin reports whether something can be kept.
func (c *cache) begin(age uint64) bool {
	if age != c.ages || len(c.attrs) >= mostKept {
		return false
	}
	if c.attrs == nil {
		c.attrs, c.named = map[*node]fs.Attr{}, map[place]*node{}
		c.timer = time.AfterFunc(fresh, func() { c.expire(age) })
	}
	return true
}

func (c *cache) expire(age uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if age == c.ages {
		c.drop()
	}
}

// forget is for when something may have changed.
func (c *cache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop()
}

func (c *cache) drop() {
	c.ages++
	if c.timer != nil {
		c.timer.Stop()
	}
	c.attrs, c.named, c.timer = nil, nil, nil
}

// owners are the numbers of users and groups by name, for a server that says
// no numbers. Nobody is who has a name that this host does not know.
type owners struct {
	mu     sync.Mutex
	since  time.Time
	users  map[string]uint32
	groups map[string]uint32
}

const (
	nobody     = 65534
	ownersFor  = 10 * time.Second
	mostOwners = 4096
)

func (o *owners) uid(name string) uint32 {
	return o.get(&o.users, name, func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func (o *owners) gid(name string) uint32 {
	return o.get(&o.groups, name, func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

func (o *owners) get(in *map[string]uint32, name string, look func(string) (string, error)) uint32 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); now.Sub(o.since) > ownersFor || len(*in) >= mostOwners {
		o.since = now
		o.users, o.groups = map[string]uint32{}, map[string]uint32{}
	}
	id, ok := (*in)[name]
	if !ok {
		id = number(name, look)
		(*in)[name] = id
	}
	return id
}

// number is the one that a name has, or is.
func number(name string, look func(string) (string, error)) uint32 {
	s, err := look(name)
	if err != nil {
		s = name
	}
	if id, err := strconv.ParseUint(s, 10, 32); err == nil {
		return uint32(id)
	}
	return nobody
}
