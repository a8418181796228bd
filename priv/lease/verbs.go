package lease

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/wire"
)

// core says
//
//	bind LINK N (MAC ADDR ADDR6 NAME)...
//	serve LINK SERVER SERVER6 ROUTER DNS...     (and the socket of a new link)
//	stop LINK
//
// bind gathers the bindings of a link, N of which are there already, and
// serve puts them in force in the place of all that were. What is not there,
// an address or a name, is an empty field.

// bindingFields is how many fields a binding is, and maxPage how many
// bindings fit into a message.
const (
	bindingFields = 4
	maxPage       = (wire.MaxFields - 8) / bindingFields
)

// spareFiles are descriptors that are not a link's: the conversation, the
// runtime's, and those of a message.
const spareFiles = 64

// process is the role: the links that it serves.
type process struct {
	links    map[string]*link
	gathered map[string][]ctl.LeaseBinding
	maxLinks int
}

func newProcess() (*process, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("limit of files: %w", err)
	}
	return &process{
		links:    make(map[string]*link),
		gathered: make(map[string][]ctl.LeaseBinding),
		maxLinks: int(min(files.Cur, 1<<16)) - spareFiles,
	}, nil
}

// handle answers one request. Files that nobody took are closed.
func (p *process) handle(r *wire.Request) {
	defer r.Close()
	if err := p.do(r); err != nil {
		r.Refuse(err)
		return
	}
	r.OK(nil)
}

func (p *process) do(r *wire.Request) error {
	if len(r.Args) == 0 {
		return ctl.Errorf(syscall.EINVAL, "%.40q: no link", r.Verb)
	}
	name, args := r.Args[0], r.Args[1:]
	_, err := ctl.ParseLink(name)
	if err != nil {
		return ctl.Errorf(syscall.EINVAL, "%s: %v", r.Verb, err)
	}
	switch {
	case r.Verb == "bind" && len(r.Files) == 0:
		err = p.bind(name, args)
	case r.Verb == "serve" && len(r.Files) <= 1:
		err = p.serve(name, args, r)
	case r.Verb == "stop" && len(r.Files) == 0 && len(args) == 0:
		p.stop(name)
	case r.Verb == "bind", r.Verb == "serve", r.Verb == "stop":
		err = ctl.Errorf(syscall.EINVAL, "%d arguments and %d files", len(r.Args), len(r.Files))
	default:
		return ctl.Errorf(syscall.ENOSYS, "%.40q: unknown verb", r.Verb)
	}
	if err != nil {
		return ctl.Errorf(ctl.Errno(err), "%s %s: %v", r.Verb, name, err)
	}
	return nil
}

// bind gathers bindings until a serve.
func (p *process) bind(name string, args []string) error {
	if len(args) == 0 || len(args)%bindingFields != 1 {
		return ctl.Errorf(syscall.EINVAL, "%d fields", len(args))
	}
	n, err := strconv.Atoi(args[0])
	so := p.gathered[name]
	switch {
	case err != nil || n != 0 && n != len(so):
		return ctl.Errorf(syscall.EINVAL, "%.20q bindings before these: there are %d", args[0], len(so))
	case n == 0:
		so = nil
	}
	if n+len(args)/bindingFields > maxBindings || so == nil && len(p.gathered) >= p.maxLinks {
		return ctl.Errorf(syscall.ENOSPC, "too many")
	}
	for args = args[1:]; len(args) > 0; args = args[bindingFields:] {
		b, err := parseBinding(args)
		if err != nil {
			return ctl.Errorf(syscall.EINVAL, "%v", err)
		}
		so = append(so, b)
	}
	p.gathered[name] = so
	return nil
}

// serve puts what was gathered in force. A link is made with its first
// socket, and another in its place with another.
func (p *process) serve(name string, args []string, r *wire.Request) error {
	spec, err := parseService(args)
	if err != nil {
		return ctl.Errorf(syscall.EINVAL, "%v", err)
	}
	spec.Bindings = p.gathered[name]
	delete(p.gathered, name)
	s, err := newService(spec)
	if err != nil {
		return ctl.Errorf(syscall.EINVAL, "%v", err)
	}
	old := p.links[name]
	if len(r.Files) == 0 {
		if old == nil {
			return ctl.Errorf(syscall.ENOENT, "no socket")
		}
		old.use(s)
		return nil
	}
	if old == nil && len(p.links) >= p.maxLinks {
		return ctl.Errorf(syscall.EMFILE, "%d links are served, and no more can be", len(p.links))
	}
	l, err := newLink(r.Files[0], s)
	if err != nil {
		return err
	}
	r.Take(0)
	if old != nil {
		old.close()
	}
	p.links[name] = l
	return nil
}

func (p *process) stop(name string) {
	delete(p.gathered, name)
	if l := p.links[name]; l != nil {
		l.close()
		delete(p.links, name)
	}
}

// serveFields are the arguments of serve, and parseService the way back but
// for the link.
func serveFields(l ctl.Link, s ctl.LeaseService) []string {
	router := "no"
	if s.Router {
		router = "yes"
	}
	fields := []string{l.String(), sayPrefix(s.Server), sayPrefix(s.Server6), router}
	for _, a := range s.DNS {
		fields = append(fields, a.String())
	}
	return fields
}

func parseService(args []string) (s ctl.LeaseService, err error) {
	if len(args) < 3 || len(args) > 3+maxDNS {
		return s, fmt.Errorf("%d fields", len(args))
	}
	if s.Server, err = parsePrefix(args[0]); err != nil {
		return s, err
	}
	if s.Server6, err = parsePrefix(args[1]); err != nil {
		return s, err
	}
	if args[2] != "yes" && args[2] != "no" {
		return s, fmt.Errorf("%.20q: not yes or no", args[2])
	}
	s.Router = args[2] == "yes"
	for _, word := range args[3:] {
		a, err := netip.ParseAddr(word)
		if err != nil {
			return s, fmt.Errorf("%.60q: not an address", word)
		}
		s.DNS = append(s.DNS, a)
	}
	return s, nil
}

// sayBinding is the fields of b, and parseBinding the way back.
func sayBinding(b ctl.LeaseBinding) []string {
	return []string{b.MAC.String(), sayAddr(b.Addr), sayAddr(b.Addr6), b.Hostname}
}

func parseBinding(args []string) (b ctl.LeaseBinding, err error) {
	if b.MAC, err = net.ParseMAC(args[0]); err != nil || len(b.MAC) != 6 {
		return b, fmt.Errorf("%.40q: not a MAC", args[0])
	}
	if b.Addr, err = parseAddr(args[1]); err != nil {
		return b, err
	}
	if b.Addr6, err = parseAddr(args[2]); err != nil {
		return b, err
	}
	b.Hostname = args[3]
	return b, nil
}

func sayPrefix(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func parsePrefix(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%.60q: not an address with a network", s)
	}
	return p, nil
}

func sayAddr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func parseAddr(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%.60q: not an address", s)
	}
	return a, nil
}

// Main is the role lease; its conversation with core is descriptor 3, and
// ends it. It returns the exit status.
func Main() int {
	conn, err := wire.NewConn(os.NewFile(3, "core"))
	if err != nil {
		return 1
	}
	defer conn.Close()
	p, err := newProcess()
	if err != nil {
		return 1
	}
	if err := seal(); err != nil {
		fmt.Fprintf(os.Stderr, "vmfs lease: %v\n", err)
		return 1
	}
	if peer, err := conn.Hello("lease"); err != nil || len(peer) == 0 || peer[0] != "core" {
		return 1
	}
	conn.Serve(p.handle)
	return 0
}
