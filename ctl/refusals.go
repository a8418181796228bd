package ctl

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How many refusals are remembered: of one user, and of how many users. One
// who is refused often cannot push out what others were told.
const (
	refusalsPerUser = 64
	refusalUsers    = 256
)

type refusal struct {
	at   time.Time
	file string
	line string
}

// refusals is what err reads.
type refusals struct {
	mu    sync.Mutex
	users map[uint32][]refusal // oldest first
}

func (r *refusals) add(by Cred, file string, err error) {
	now := time.Now()
	name := unix.ErrnoName(Errno(err))
	if name == "ENOTSUP" {
		name = "EOPNOTSUPP" // one number; this is its name in the manual
	}
	line := fmt.Sprintf("%s %s %s %s %s\n", clock(now), by, oneWord(file), name, oneLine(err.Error()))
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users == nil {
		r.users = make(map[uint32][]refusal)
	}
	list := append(r.users[by.UID], refusal{now, file, line})
	if len(list) > refusalsPerUser {
		list = append([]refusal(nil), list[1:]...)
	}
	r.users[by.UID] = list
	if len(r.users) > refusalUsers {
		r.forgetOldest(by.UID)
	}
}

// forgetOldest drops the user who was not refused anything for longest.
func (r *refusals) forgetOldest(not uint32) {
	var oldest uint32
	var at time.Time
	for uid, list := range r.users {
		if t := list[len(list)-1].at; uid != not && (at.IsZero() || t.Before(at)) {
			oldest, at = uid, t
		}
	}
	delete(r.users, oldest)
}

// text is what uid was refused of prefix and the files below it, of all if it
// is empty; root reads everyone's.
func (r *refusals) text(uid uint32, prefix string) string {
	all := Cred{UID: uid}.Rules()
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []refusal
	for u, list := range r.users {
		if !all && u != uid {
			continue
		}
		for _, x := range list {
			if prefix == "" || strings.HasPrefix(x.file+"/", prefix+"/") {
				found = append(found, x)
			}
		}
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].at.Before(found[j].at) })
	var b strings.Builder
	for _, x := range found {
		b.WriteString(x.line)
	}
	return b.String()
}
