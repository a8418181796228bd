package priv

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"vmfs/ctl"
)

// verb is one thing that core may ask for.
type verb struct {
	name, args string
	why        string // reason that priv does it, and its bound
	// parse makes an act of the arguments, without doing anything. An error
	// is what a working core never sends.
	parse func(args []string) (act, error)
}

// act does what a request asks for.
type act func(context.Context, *server) (reply, error)

// reply is an answer. Once it is sent, the files are closed and then is called.
type reply struct {
	fields []string
	files  []*os.File
	then   func()
}

// verbs is all that core may ask for, with linkVerbs.
var verbs = []verb{
	{"open", "UID (ro|rw FORMAT PATH)...", "only a user's own rights open his files, and those behind them; root's only below -images", parseOpen},
	{"whois", "UID", "id(1) asks whatever knows the host's users, as a uid that nobody has; core starts no programs", single(parseUID, whois)},
	{"spawn", "ID native|kvm|tcg yes|no CPUS MEMORY IMAGES FILES", "namespaces, the guest's uid and its cgroup need root; one guest an id", parseSpawn},
	{"bounds", "ID", "what is in a guest's cgroup is root's to say; only of one that the records name", single(parseID, boundsOf)},
	{"guests", "AFTER", "the records are root's, so that core cannot invent a guest; 100 at a time", single(parseAfter, listGuests)},
	{"end", "ID", "a guest has another uid than core; only one that the records name", single(parseID, endGuest)},
	{"engines", "", "/dev/kvm may be root's; QEMU is run as a uid that nobody has, for its version", none(engineList)},
	{verbUnpack, "LIMIT", "the process that does it is started as root and becomes nobody's uid; two at a time, each for a minute, in memory that comes sealed", parseUnpack},
	{"alive", "", "a core that is silent for 10 s hangs, and is replaced", none(nothing)},
	{"serving", "", "the tree is there: says so to who started the daemon", none(serving)},
	{"draining", "", "guests are being stopped: a SIGTERM waits for shutdown", none(draining)},
	{"shutdown", "", "ends the daemon; guests that are left run on", none(shutdown)},
}

func allVerbs() []verb { return append(verbs[:len(verbs):len(verbs)], linkVerbs...) }

// parseRequest finds the verb and parses its arguments.
func parseRequest(name string, args []string) (act, error) {
	for _, v := range allVerbs() {
		if v.name != name {
			continue
		}
		do, err := v.parse(args)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return do, nil
	}
	return nil, fmt.Errorf("%.40q: no such verb", name)
}

// count refuses another number of arguments.
func count(args []string, n int) error {
	if len(args) != n {
		return fmt.Errorf("%d arguments, want %d", len(args), n)
	}
	return nil
}

// none is the parse of a verb without arguments.
func none(do act) func([]string) (act, error) {
	return func(args []string) (act, error) { return do, count(args, 0) }
}

// single is the parse of a verb with one argument.
func single[T any](parse func(string) (T, error), do func(context.Context, *server, T) (reply, error)) func([]string) (act, error) {
	return func(args []string) (act, error) {
		if err := count(args, 1); err != nil {
			return nil, err
		}
		value, err := parse(args[0])
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, s *server) (reply, error) { return do(ctx, s, value) }, nil
	}
}

func parseOpen(args []string) (act, error) {
	if len(args) == 0 {
		return nil, count(args, 1)
	}
	uid, err := parseUID(args[0])
	if err != nil {
		return nil, err
	}
	wants, err := parseWants(args[1:])
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, s *server) (reply, error) {
		files, fields, err := s.openers.open(ctx, uid, wants)
		return reply{fields: fields, files: files}, err
	}, nil
}

func whois(ctx context.Context, s *server, uid uint32) (reply, error) {
	groups, err := s.openers.whois(ctx, uid)
	return reply{fields: []string{groups}}, err
}

func parseSpawn(args []string) (act, error) {
	p, err := parseProcess(args)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, s *server) (reply, error) {
		pid, err := s.guests.spawn(p)
		return reply{fields: []string{strconv.Itoa(pid)}}, err
	}, nil
}

func boundsOf(_ context.Context, s *server, id uint32) (reply, error) {
	text, killed := s.guests.bounds(id)
	return reply{fields: []string{text, strconv.FormatUint(killed, 10)}}, nil
}

// guestsPage is how many guests an answer names.
const guestsPage = 100

// parseAfter reads the id behind which an answer begins: 0, or a machine's.
func parseAfter(s string) (uint32, error) {
	if s == "0" {
		return 0, nil
	}
	return parseID(s)
}

func listGuests(_ context.Context, s *server, after uint32) (reply, error) {
	var r reply
	live, err := s.guests.list(after, guestsPage)
	for _, g := range live {
		r.fields = append(r.fields, strconv.FormatUint(uint64(g.ID), 10), strconv.Itoa(g.PID))
	}
	return r, err
}

func endGuest(_ context.Context, s *server, id uint32) (reply, error) {
	err := s.guests.end(id)
	if err != nil {
		err = ctl.Errorf(syscall.ETIMEDOUT, "%v", err)
	}
	return reply{}, err
}

func engineList(ctx context.Context, s *server) (reply, error) {
	e := s.engines.find()
	kvm := "no"
	if e.KVM {
		kvm = "yes"
	}
	return reply{fields: []string{e.QEMU, e.QEMUVersion, kvm, e.KVMReason}}, nil
}

func nothing(context.Context, *server) (reply, error) { return reply{}, nil }

func serving(ctx context.Context, s *server) (reply, error) {
	s.ready.Do(s.announce)
	return reply{}, nil
}

func draining(ctx context.Context, s *server) (reply, error) {
	s.draining.Store(true)
	return reply{}, nil
}

func shutdown(ctx context.Context, s *server) (reply, error) {
	return reply{then: func() { s.shutdown.Do(func() { close(s.ending) }) }}, nil
}
