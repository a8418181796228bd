package ninep

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// Peer is who a connection is.
type Peer struct {
	ctl.Cred

	// Believed is set where a client is whoever he says in Tattach, of the
	// users that this host knows. Where it is not, what he says is not
	// even looked at: over a socket that ssh forwards he gives the name
	// that he has at home.
	Believed bool

	// NotRoot takes root out of that.
	NotRoot bool
}

// Who says who is at the other end of a connection, before ctx ends.
type Who func(ctx context.Context, c net.Conn) (Peer, error)

// nobody is the uid and the gid of one who has no name.
const nobody = 65534

// Nobody is the Who of a connection that says nothing: none of Plan 9, uid
// and gid 65534, in no other group.
func Nobody(context.Context, net.Conn) (Peer, error) {
	return Peer{Cred: ctl.Cred{UID: nobody, GID: nobody}}, nil
}

// Anybody is nobody until he says whom he wants to be, and then that user
// without a proof; only root he cannot be.
func Anybody(ctx context.Context, c net.Conn) (Peer, error) {
	p, err := Nobody(ctx, c)
	p.Believed, p.NotRoot = true, true
	return p, err
}

// SocketPeer is the Who of a unix socket: whoever connected, with all his
// groups. Root may say that he is somebody else.
func SocketPeer(_ context.Context, c net.Conn) (Peer, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return Peer{}, errors.New("not a unix socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var gerr error
	if err := raw.Control(func(fd uintptr) { p.Cred, gerr = peerCred(int(fd)) }); err != nil {
		return Peer{}, err
	}
	p.Believed = p.Rules()
	return p, gerr
}

func peerCred(fd int) (ctl.Cred, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return ctl.Cred{}, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return ctl.Cred{}, fmt.Errorf("SO_PEERGROUPS: %w", err)
	}
	return ctl.Cred{UID: cred.Uid, GID: cred.Gid, Groups: groups}, nil
}

// maxGroups is NGROUPS_MAX of Linux.
const maxGroups = 65536

// peerGroups reads SO_PEERGROUPS, for which x/sys has no function.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[: size/4 : size/4], nil
		case errno != unix.ERANGE || size/4 > maxGroups || int(size/4) <= len(groups):
			return nil, errno
		}
		groups = make([]uint32, size/4)
	}
}

// CertifiedPeer is the Who of a tls.Conn whose configuration demands a
// client's certificate: the local user of its common name. It is root only if
// root says so.
func CertifiedPeer(root bool) Who {
	return func(ctx context.Context, c net.Conn) (Peer, error) {
		t, ok := c.(*tls.Conn)
		if !ok {
			return Peer{}, errors.New("not a TLS connection")
		}
		if err := t.HandshakeContext(ctx); err != nil {
			return Peer{}, err
		}
		chain := t.ConnectionState().VerifiedChains
		if len(chain) == 0 {
			return Peer{}, errors.New("no certificate that was verified")
		}
		name := chain[0][0].Subject.CommonName
		cred, err := lookupName(name)
		if err != nil {
			return Peer{}, err
		}
		if cred.Rules() && !root {
			return Peer{}, fmt.Errorf("certificate of %s: not accepted for root", name)
		}
		return Peer{Cred: cred, Believed: cred.Rules()}, nil
	}
}

// lookupName finds a local user by login name, with all his groups.
func lookupName(name string) (ctl.Cred, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return ctl.Cred{}, ctl.Errorf(syscall.EACCES, "there is no user %.80q", name)
	}
	return credOf(u)
}

// lookupID finds him by uid. One without a name is in no group of anybody's.
func lookupID(uid uint32) (ctl.Cred, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return ctl.Cred{UID: uid, GID: nobody}, nil
	}
	return credOf(u)
}

func credOf(u *user.User) (ctl.Cred, error) {
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	ids, err3 := u.GroupIds()
	if err := errors.Join(err1, err2, err3); err != nil {
		return ctl.Cred{}, ctl.Errorf(syscall.EACCES, "user %s: %v", u.Username, err)
	}
	c := ctl.Cred{UID: uint32(uid), GID: uint32(gid)}
	for _, id := range ids {
		if g, err := strconv.ParseUint(id, 10, 32); err == nil {
			c.Groups = append(c.Groups, uint32(g))
		}
	}
	return c, nil
}

// attached is who attaches as name, or, in 9P2000.u, as number; noID is none.
func (p *Peer) attached(name string, number uint32) (ctl.Cred, error) {
	if !p.Believed || name == "" && number == noID {
		return p.Cred, nil
	}
	look := func() (ctl.Cred, error) { return lookupName(name) }
	if number != noID {
		look = func() (ctl.Cred, error) { return lookupID(number) }
	}
	c, err := look()
	if err == nil && c.Rules() && p.NotRoot {
		err = ctl.Errorf(syscall.EACCES, "root has to prove it")
	}
	return c, err
}

// names remembers the names of users and groups for a while: a listing asks
// for the same few again and again, and each answer is a reading of a file.
type names struct {
	mu     sync.Mutex
	since  time.Time
	users  map[uint32]string
	groups map[uint32]string
}

const (
	namesFor  = 10 * time.Second
	namesMost = 4096
)

func (n *names) user(uid uint32) string  { return n.get(&n.users, uid, ctl.UserName) }
func (n *names) group(gid uint32) string { return n.get(&n.groups, gid, groupName) }

func (n *names) get(in *map[uint32]string, id uint32, look func(uint32) string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if now := time.Now(); now.Sub(n.since) > namesFor || len(*in) >= namesMost {
		n.since = now
		n.users, n.groups = make(map[uint32]string), make(map[uint32]string)
	}
	name, ok := (*in)[id]
	if !ok {
		name = look(id)
		(*in)[id] = name
	}
	return name
}

func groupName(gid uint32) string {
	s := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(s); err == nil {
		return g.Name
	}
	return s
}

// userID is the uid of a login name or of a number.
func userID(name string) (uint32, error) {
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	return number("user", name)
}

func groupID(name string) (uint32, error) {
	if g, err := user.LookupGroup(name); err == nil {
		name = g.Gid
	}
	return number("group", name)
}

func number(what, name string) (uint32, error) {
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil || uint32(id) == noID {
		return 0, ctl.Errorf(syscall.EINVAL, "there is no %s %.80q", what, name)
	}
	return uint32(id), nil
}
