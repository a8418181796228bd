package ctl

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// DefaultUser is the name under which the limits are of all who have none of
// their own.
const DefaultUser = "default"

// defaultLimits hold where nobody has said anything (VM_DEFAULT_USER_MAXCPU,
// _MAXMEM and _MAXIFS of vmd).
var defaultLimits = [limitCount]string{"64", "4", "2048M", "8"}

// UserAttrs are the limits of a user, in the order of help.
var UserAttrs = []Attr{
	{Name: "vms", Values: limited("how many machines he may have"), Live: true, Root: true, canon: canonCount},
	{Name: "cpus", Values: limited("of his active machines"), Live: true, Root: true, canon: canonCount},
	{Name: "memory", Values: limited("of his active machines, bytes with K M G T"), Live: true, Root: true, canon: canonSum},
	{Name: "nics", Values: limited("of his active machines"), Live: true, Root: true, canon: canonCount},
}

func limited(what string) string { return what + "; or " + unlimited }

// User is what a user may have, under his login name or his uid. That there is
// one says nothing of whether he exists: whose account goes keeps it.
type User struct{ object }

var users = func() *kind {
	k := newKind("user", "directory", UserAttrs)
	k.checkName, k.fixed = checkUser, true
	return k
}()

func (m *Manager) newUser(in shelved, name string, d *definition) *User {
	u := new(User)
	u.init(m, in, u, name, d)
	return u
}

// User finds the limits that are kept under a name; nil if there are none.
func (m *Manager) User(name string) *User {
	u, _ := m.users.named(name)
	return u
}

// loginForm is what login names are made of.
var loginForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$`)

// checkUser says whether limits can be kept under a name. What is a number is
// a uid, in its one form.
func checkUser(name string) error {
	if n, err := strconv.ParseUint(name, 10, 64); err == nil && (n >= nobody || strconv.FormatUint(n, 10) != name) {
		return Errorf(syscall.EINVAL, "name %.80q: no uid, which is 0 to %d in decimal", name, uint32(nobody-1))
	}
	if !loginForm.MatchString(name) {
		return Errorf(syscall.EINVAL, "name %.80q: neither a login name of 1 to 63 of A-Z a-z 0-9 . - _, the first none of . -, nor a uid", name)
	}
	return nil
}

// admitUser refuses limits that would never hold for anybody. Called with
// making held.
func (m *Manager) admitUser(_ Cred, name string) error {
	if name == DefaultUser {
		return nil
	}
	uid, err := userID(name)
	switch {
	case err != nil:
		return Errorf(syscall.ENOENT, "mkdir %s: no such user in /etc/passwd; one who is elsewhere goes by his uid", name)
	case unbounded(uid):
		return Errorf(syscall.EINVAL, "mkdir %s: %s is not limited", name, name)
	}
	if u := m.ownLimits(uid); u != nil {
		return Errorf(syscall.EEXIST, "mkdir %s: user/%s is the same user", name, u.Name())
	}
	return nil
}

// ownLimits finds the limits of one user: by his login name, else by his uid.
// A login name that looks like a uid is nobody's.
func (m *Manager) ownLimits(uid uint32) *User {
	number := strconv.FormatUint(uint64(uid), 10)
	if login := UserName(uid); login != DefaultUser {
		if _, err := strconv.ParseUint(login, 10, 64); err != nil {
			if u, ok := m.users.named(login); ok {
				return u
			}
		}
	}
	u, _ := m.users.named(number)
	return u
}

// limitsOf are the limits that hold for a user; nil if not even those of all
// can be read.
func (m *Manager) limitsOf(uid uint32) *User {
	if u := m.ownLimits(uid); u != nil {
		return u
	}
	return m.User(DefaultUser)
}

// makeDefault makes the limits of all others, which are always there.
func (m *Manager) makeDefault() error {
	m.making.Lock()
	defer m.making.Unlock()
	if m.users.taken(DefaultUser) {
		return nil
	}
	_, err := m.users.add(DefaultUser, RootAccess(0o755), nil)
	return err
}

// Get reads a limit: what is set, else what holds for all others.
func (u *User) Get(attr string) string {
	if v := u.object.Get(attr); v != "" {
		return v
	}
	if all := u.m.User(DefaultUser); all != nil && all != u {
		return all.Get(attr)
	}
	for i, a := range UserAttrs {
		if a.Name == attr {
			return defaultLimits[i]
		}
	}
	return ""
}

// Set writes one. What is so already, be it said here or for all others, is
// no change.
func (u *User) Set(by Cred, attr, value string) error {
	if a, _, err := u.kind.attrOf(attr); err == nil {
		if text, err := a.canonical(value); err == nil && text == u.Get(attr) {
			return nil
		}
	}
	return u.object.Set(by, attr, value)
}

// Mtime is when a limit changed last, here or for all others.
func (u *User) Mtime(file string) time.Time {
	t := u.mtime(file)
	if all := u.m.User(DefaultUser); all != nil && all != u && u.object.Get(file) == "" {
		return latest(t, all.Mtime(file))
	}
	return t
}

// Usage is the text of usage: KEY USED LIMIT, a line each. Of the limits of
// all others it is the reader's own; of a login name that nobody has, nothing.
func (u *User) Usage(by Cred) string {
	uid := by.UID
	if u.Name() != DefaultUser {
		var err error
		if uid, err = userID(u.Name()); err != nil {
			return ""
		}
	}
	// Starts that are charged while the machines are gone through, after others
	// were counted that end, would add up to what he never had.
	u.m.charging.Lock()
	used := u.m.usage(uid)
	u.m.charging.Unlock()
	most := u.limits()
	if own := u.m.ownLimits(uid); own != nil {
		most = own.limits()
	}
	var b strings.Builder
	for i, a := range UserAttrs {
		if unbounded(uid) {
			most[i] = unlimited
		}
		fmt.Fprintf(&b, "%s %s %s\n", a.Name, limitText(i, used[i]), most[i])
	}
	return b.String()
}

// limits are all of them, in the order of UserAttrs.
func (u *User) limits() (list [limitCount]string) {
	for i, a := range UserAttrs {
		list[i] = u.Get(a.Name)
	}
	return list
}

func (u *User) settle(*definition, Cred, time.Time) error { return nil }

func (u *User) apply(was, now *definition) (undo func(), err error) { return nil, nil }

// applied tells of the limits that are what the changed ones say.
func (u *User) applied() {
	if u.Name() != DefaultUser {
		return
	}
	for _, other := range u.m.users.all() {
		if other != u {
			other.notify(Contents)
		}
	}
}

func (u *User) idle(what string) (release func(), err error) {
	if u.Name() == DefaultUser {
		return nil, Errorf(syscall.EPERM, "%s %s: it is for all who have no limits of their own", what, DefaultUser)
	}
	u.edit.Lock()
	if u.Removed() {
		u.edit.Unlock()
		return nil, u.gone()
	}
	return u.edit.Unlock, nil
}

func (u *User) dissolve() error { return nil }
func (u *User) renamed()        {}
