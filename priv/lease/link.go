package lease

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// What a link may cost. A frame that is longer than maxFrame is none of ours;
// a guest that sends more than paceFrames in paceTime waits, be they ours or
// not, and what the socket cannot hold meanwhile is lost.
const (
	maxFrame   = 1500
	paceFrames = 20
	paceTime   = 10 * time.Millisecond
	socketSize = 64 << 10
)

// link is one interface, with its socket.
type link struct {
	file *os.File
	raw  syscall.RawConn

	mu      sync.Mutex
	service *service
	adverts adverts
	timer   *time.Timer // sends the next advertisement; nil when closed
}

// newLink makes sure that a socket is what priv hands out: bound to one
// interface, with a filter that cannot be changed. On success f is the link's.
func newLink(f *os.File, s *service) (*link, error) {
	own, err := checkSocket(f)
	if err != nil {
		return nil, ctl.Errorf(syscall.EINVAL, "socket: %v", err)
	}
	raw, err := own.SyscallConn()
	if err != nil {
		own.Close()
		return nil, err
	}
	l := &link{file: own, raw: raw, service: s}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.self(); err != nil {
		own.Close()
		return nil, ctl.Errorf(syscall.EINVAL, "socket: %v", err)
	}
	f.Close()
	l.timer = time.AfterFunc(0, l.advertise)
	go l.serve()
	return l, nil
}

// checkSocket looks at a socket and returns a descriptor of our own for it,
// which the runtime waits for.
func checkSocket(f *os.File) (*os.File, error) {
	fd := int(f.Fd())
	for _, must := range []struct {
		what       string
		name, want int
	}{
		{"of family", unix.SO_DOMAIN, unix.AF_PACKET},
		{"of type", unix.SO_TYPE, unix.SOCK_DGRAM},
		{"with a locked filter", unix.SO_LOCK_FILTER, 1},
	} {
		got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, must.name)
		if err != nil || got != must.want {
			return nil, fmt.Errorf("%s %d, want %d (%v)", must.what, got, must.want, err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketSize); err != nil {
		return nil, err
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	// The flag is shared with who has a copy and may take it back; it counts
	// here only for os.NewFile, and every call below says that it does not wait.
	if err := unix.SetNonblock(own, true); err != nil {
		unix.Close(own)
		return nil, err
	}
	return os.NewFile(uintptr(own), "packet"), nil
}

// self says what the interface is now: its index and MAC. An error is the
// end of the link.
func (l *link) self() (address, error) {
	var sa unix.Sockaddr
	var gerr error
	if err := l.raw.Control(func(fd uintptr) { sa, gerr = unix.Getsockname(int(fd)) }); err != nil {
		return address{}, err
	}
	if gerr != nil {
		return address{}, gerr
	}
	ll, ok := sa.(*unix.SockaddrLinklayer)
	if !ok || ll.Ifindex <= 0 || ll.Hatype != unix.ARPHRD_ETHER || ll.Halen != 6 {
		return address{}, errors.New("not bound to an Ethernet interface")
	}
	return address{ll.Ifindex, mac(ll.Addr[:])}, nil
}

// address is an interface's end, or who sent a frame there.
type address struct {
	ifindex int
	mac     mac
}

// use puts a service in the place of the one before.
func (l *link) use(s *service) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.service = s
	if l.timer != nil {
		l.timer.Reset(0)
	}
	l.adverts.begin(time.Now())
}

// close ends the link. It does not wait for a frame that is being answered.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
		l.file.Close()
	}
}

// serve answers frames until the link is closed, or its interface is gone.
func (l *link) serve() {
	defer l.close()
	buf := make([]byte, maxFrame)
	began, n := time.Now(), 0
	for {
		f, ok, err := l.recv(buf)
		if err != nil {
			return
		}
		if ok {
			l.handle(f)
		}
		if n++; n < paceFrames {
			continue
		}
		time.Sleep(paceTime - time.Since(began))
		began, n = time.Now(), 0
	}
}

// frame is what came in one.
type frame struct {
	from     mac
	proto    uint16 // of Ethernet
	unsummed bool   // the checksum was left to the card
	body     []byte
}

// handle answers one frame, if it is from a client that may have an answer
// now. An advertisement, which goes to all, is only planned.
func (l *link) handle(f frame) {
	now := time.Now()
	l.mu.Lock()
	s := l.service
	c := s.clients[f.from]
	ok := c != nil && c.answers.take(now)
	l.mu.Unlock()
	if !ok {
		return
	}
	self, err := l.self()
	if err != nil {
		return
	}
	b, solicited := s.answer(self.mac, c, f)
	if b != nil {
		l.send(address{self.ifindex, f.from}, f.proto, b)
	}
	if solicited {
		l.solicited(now)
	}
}

// answer decides on one frame of a client: what it is answered with, nil for
// nothing, or that it solicits an advertisement.
func (s *service) answer(self mac, c *client, f frame) (b []byte, solicited bool) {
	switch f.proto {
	case unix.ETH_P_IP:
		p, err := parseIPv4(f.body)
		if err != nil {
			return nil, false
		}
		if d, err := p.udp(f.unsummed); err == nil {
			return s.answer4(f.from, c, d), false
		}
	case unix.ETH_P_IPV6:
		p, err := parseIPv6(f.body)
		if err != nil {
			return nil, false
		}
		if p.solicits(f.unsummed) {
			return nil, true
		}
		if d, err := p.udp(f.unsummed); err == nil {
			return s.answer6(self, c, d), false
		}
	}
	return nil, false
}

// solicited plans an advertisement, where there are any.
func (l *link) solicited(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil && l.service.server6.IsValid() {
		l.adverts.solicited(now, rand.Float64())
		l.timer.Reset(l.adverts.next.Sub(now))
	}
}

// advertise is called when the next advertisement is due.
func (l *link) advertise() {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer == nil || !l.service.server6.IsValid() {
		return
	}
	if wait := l.adverts.next.Sub(now); wait > 0 {
		l.timer.Reset(wait)
		return
	}
	self, err := l.self()
	if err != nil {
		return
	}
	l.send(address{self.ifindex, multicast(allNodes.As16())}, unix.ETH_P_IPV6, l.service.advertisement(self.mac, advertLifetime))
	l.adverts.done(now, rand.Float64())
	l.timer.Reset(l.adverts.next.Sub(now))
}

// multicast is the Ethernet address of a group.
func multicast(group [16]byte) mac {
	return mac{0x33, 0x33, group[12], group[13], group[14], group[15]}
}

// recv waits for a frame, and says whether it is looked at.
func (l *link) recv(buf []byte) (f frame, ok bool, err error) {
	oob := make([]byte, unix.CmsgSpace(sizeofAuxdata))
	var n, oobn, flags int
	var from unix.Sockaddr
	var rerr error
	err = l.raw.Read(func(fd uintptr) bool {
		n, oobn, flags, from, rerr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_DONTWAIT)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	switch {
	case err != nil:
		return frame{}, false, err
	case rerr == unix.ENETDOWN: // down, for now or for ever
		_, err := l.self()
		return frame{}, false, err
	case rerr != nil:
		return frame{}, false, rerr
	}
	f, ok = admit(from, flags, oob[:oobn])
	f.body = buf[:n]
	return f, ok, nil
}

// admit looks at a frame that is short enough, of an Ethernet card, meant for
// the host or for many, and of no VLAN.
func admit(from unix.Sockaddr, flags int, oob []byte) (frame, bool) {
	ll, ok := from.(*unix.SockaddrLinklayer)
	if !ok || ll.Halen != 6 || ll.Hatype != unix.ARPHRD_ETHER || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return frame{}, false
	}
	switch ll.Pkttype {
	case unix.PACKET_HOST, unix.PACKET_BROADCAST, unix.PACKET_MULTICAST:
	default:
		return frame{}, false
	}
	status, ok := auxdata(oob)
	if !ok || status&unix.TP_STATUS_VLAN_VALID != 0 {
		return frame{}, false
	}
	return frame{
		from:     mac(ll.Addr[:]),
		proto:    networkOrder(ll.Protocol),
		unsummed: status&unix.TP_STATUS_CSUMNOTREADY != 0,
	}, true
}

// send sends a packet in a frame. What cannot be sent now is lost, as on a
// wire.
func (l *link) send(to address, proto uint16, b []byte) {
	sa := &unix.SockaddrLinklayer{Protocol: networkOrder(proto), Ifindex: to.ifindex, Halen: 6}
	copy(sa.Addr[:], to.mac[:])
	l.raw.Control(func(fd uintptr) { unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, sa) })
}
