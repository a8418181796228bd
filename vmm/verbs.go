package vmm

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/wire"
)

// verb is a line of the table of what core may ask of a guest process.
type verb struct {
	args  int // how many; -1: pairs
	files int
	do    func(*machine, *wire.Request) (answer, error)
}

// answer is what follows ok. Its files are copied and not closed.
type answer struct {
	fields []string
	files  []*os.File
	after  func() // called when the answer is sent
}

// maxStop is the longest that a guest may be given to stop, in seconds: ten
// years, which the clock can count.
const maxStop = 10 * 365 * 24 * 3600

var verbs = map[string]verb{
	"launch":   {-1, 0, doLaunch},
	"kernel":   {0, 1, doBoot},
	"initrd":   {0, 1, doBoot},
	"firmware": {0, 1, doBoot},
	"uefi":     {0, 2, doUEFI},
	"cdrom":    {0, 1, doCdrom},
	"eject":    {0, 0, doEject},
	"disk":     {4, 1, doDisk},
	"nic":      {2, 1, doNIC},
	"usernic":  {2, 0, doUserNIC},
	"go":       {0, 0, doGo},
	"state":    {0, 0, doState},
	"usage":    {0, 0, doUsage},
	"console":  {0, 0, doConsole},
	"input":    {0, 1, doInput},
	"stop":     {3, 0, doStop},
	"kill":     {3, 0, doKill},
	"reset":    {0, 0, button((*machine).reset)},
	"pause":    {0, 0, button((*machine).pause)},
	"resume":   {0, 0, button((*machine).resume)},
	"forget":   {0, 0, doForget},
}

// handle answers one request. Files that nobody took are closed.
func (m *machine) handle(r *wire.Request) {
	defer r.Close()
	a, err := m.do(r)
	if err != nil {
		r.Refuse(err)
		return
	}
	r.OK(a.files, a.fields...)
	if a.after != nil {
		a.after()
	}
}

func (m *machine) do(r *wire.Request) (answer, error) {
	v, ok := verbs[r.Verb]
	if !ok {
		return answer{}, ctl.Errorf(syscall.ENOSYS, "%.40q: unknown verb", r.Verb)
	}
	if len(r.Args) != v.args && v.args >= 0 || len(r.Files) != v.files {
		return answer{}, ctl.Errorf(syscall.EINVAL, "%s: %d arguments and %d files", r.Verb, len(r.Args), len(r.Files))
	}
	return v.do(m, r)
}

func doLaunch(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.edit(func(l *launch) error { return l.describe(r.Args, m.accel) })
}

// doBoot takes what is booted. The native engine reads it where it is, again
// at each of the guest's reboots.
func doBoot(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.edit(func(l *launch) error {
		if m.accel == accelNative {
			return took(r, l.boot(r.Verb, r.Files[0], false))
		}
		return l.boot(r.Verb, r.Files[0], true)
	})
}

func doUEFI(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.edit(func(l *launch) error {
		return took(r, l.uefi(r.Files[0], r.Files[1]))
	})
}

// doCdrom gives the machine the medium that it starts with, or another one
// when it runs.
func doCdrom(m *machine, r *wire.Request) (answer, error) {
	if _, told := m.phase(); told {
		return answer{}, m.insert(context.Background(), r.Files[0])
	}
	return answer{}, m.edit(func(l *launch) error {
		return took(r, l.cdrom(r.Files[0]))
	})
}

func doEject(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.insert(context.Background(), nil)
}

func doDisk(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.edit(func(l *launch) error {
		return took(r, l.disk(r.Args, r.Files[0]))
	})
}

func doNIC(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.edit(func(l *launch) error {
		return took(r, l.nic(r.Args, r.Files[0]))
	})
}

func doUserNIC(m *machine, r *wire.Request) (answer, error) {
	return answer{}, m.edit(func(l *launch) error { return l.userNIC(r.Args, m.outward) })
}

// took leaves the files to who took them, if he did.
func took(r *wire.Request, err error) error {
	if err == nil {
		for i := range r.Files {
			r.Take(i)
		}
	}
	return err
}

func doGo(m *machine, _ *wire.Request) (answer, error) { return answer{}, m.start() }

func button(press func(*machine, context.Context) error) func(*machine, *wire.Request) (answer, error) {
	return func(m *machine, _ *wire.Request) (answer, error) {
		return answer{}, press(m, context.Background())
	}
}

func doState(m *machine, _ *wire.Request) (answer, error) {
	return answer{fields: encodeState(m.status())}, nil
}

func doUsage(m *machine, _ *wire.Request) (answer, error) {
	u, err := m.usage()
	if err != nil {
		return answer{}, err
	}
	return answer{fields: encodeUsage(u)}, nil
}

// encodeUsage is microseconds and bytes, and behind them pairs of a kind of
// exits and their number.
func encodeUsage(u ctl.Usage) []string {
	fields := []string{
		strconv.FormatInt(u.CPU.Microseconds(), 10),
		strconv.FormatUint(u.Overhead, 10),
	}
	if u.Exits == nil {
		return fields
	}
	for _, kind := range exitKinds {
		fields = append(fields, kind.name, strconv.FormatUint(*kind.of(u.Exits), 10))
	}
	return fields
}

var exitKinds = []struct {
	name string
	of   func(*ctl.Exits) *uint64
}{
	{"pio", func(e *ctl.Exits) *uint64 { return &e.PIO }},
	{"mmio", func(e *ctl.Exits) *uint64 { return &e.MMIO }},
	{"interrupted", func(e *ctl.Exits) *uint64 { return &e.Interrupted }},
	{"stray", func(e *ctl.Exits) *uint64 { return &e.Stray }},
}

func doConsole(m *machine, _ *wire.Request) (answer, error) {
	memory, bell, err := m.screen.Share()
	if err != nil {
		return answer{}, err
	}
	return answer{files: []*os.File{memory, bell}, after: func() { bell.Close() }}, nil
}

func doInput(m *machine, r *wire.Request) (answer, error) {
	p, err := readMemory(r.Files[0])
	if err != nil {
		return answer{}, err
	}
	return answer{}, m.input.put(p)
}

// readMemory reads a memfd, which cannot make us wait.
func readMemory(f *os.File) ([]byte, error) {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil {
		return nil, ctl.Errorf(syscall.EINVAL, "input: not a memfd: %v", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("input: %w", err)
	}
	if st.Size() > maxInput {
		return nil, ctl.Errorf(syscall.EFBIG, "console: %d bytes at once, at most %d", st.Size(), maxInput)
	}
	p := make([]byte, st.Size())
	n, err := f.ReadAt(p, 0)
	if n < len(p) {
		return nil, ctl.Errorf(syscall.EINVAL, "input: %v", err)
	}
	return p, nil
}

func doStop(m *machine, r *wire.Request) (answer, error) {
	seconds, err := number(r.Args[0], 0, maxStop)
	if err != nil {
		return answer{}, ctl.Errorf(syscall.EINVAL, "stop: %.20q: %v", r.Args[0], err)
	}
	restart, err := yesNo(r.Args[1])
	if err != nil {
		return answer{}, ctl.Errorf(syscall.EINVAL, "stop: %v", err)
	}
	m.stopIn(time.Duration(seconds)*time.Second, printable(r.Args[2], "-"), restart)
	return answer{}, nil
}

func doKill(m *machine, r *wire.Request) (answer, error) {
	failed, err := yesNo(r.Args[2])
	if err != nil {
		return answer{}, ctl.Errorf(syscall.EINVAL, "kill: %v", err)
	}
	m.end(verdict{who: printable(r.Args[0], "-"), how: printable(r.Args[1], "kill"), failed: failed})
	return answer{}, nil
}

// doForget ends this process when the answer is out.
func doForget(m *machine, _ *wire.Request) (answer, error) {
	if state := m.status().State; state != stateEnded {
		return answer{}, ctl.Errorf(syscall.EBUSY, "forget: the machine is %s", state)
	}
	return answer{after: m.forget}, nil
}

func yesNo(s string) (bool, error) {
	word, err := oneOf(s, "yes", "no")
	return word == "yes", err
}

func sayYesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// encodeState is the answer to state: pairs of key and value.
func encodeState(s ctl.GuestState) []string {
	fields := []string{
		"generation", strconv.FormatUint(s.Generation, 10),
		"name", s.Name,
		"state", s.State,
		"started", encodeTime(s.Started),
		"reboots", strconv.Itoa(s.Reboots),
		"engine", s.Engine,
		"reason", s.Reason,
	}
	if e := s.Exit; e != nil {
		fields = append(fields,
			"failed", sayYesNo(e.Failed),
			"who", e.Who,
			"how", e.How,
			"at", encodeTime(e.At),
			"restart", sayYesNo(e.Restart))
	}
	return fields
}

// encodeTime says a time in milliseconds since 1970, 0 if it is none.
func encodeTime(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return strconv.FormatInt(t.UnixMilli(), 10)
}

func decodeTime(s string) (time.Time, error) {
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil || ms < 0 {
		return time.Time{}, fmt.Errorf("%.20q: not a time", s)
	}
	if ms == 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(ms), nil
}

// decodeState takes the answer to state apart. It believes nothing: what does
// not parse is an error, and text becomes printable. A key that it does not
// know is from a newer guest, and skipped.
func decodeState(fields []string) (ctl.GuestState, error) {
	var s ctl.GuestState
	var exit ctl.Exit
	seen := make(map[string]bool)
	for i := 0; i < len(fields); i += 2 {
		if i+1 == len(fields) || seen[fields[i]] {
			return s, fmt.Errorf("%.20q: no value, or a second one", fields[i])
		}
		seen[fields[i]] = true
		if err := setState(&s, &exit, fields[i], fields[i+1]); err != nil {
			return s, fmt.Errorf("%s: %w", fields[i], err)
		}
	}
	if s.State == "" {
		return s, fmt.Errorf("no state")
	}
	if s.State == stateEnded {
		s.Exit = &exit
	}
	return s, nil
}

func setState(s *ctl.GuestState, exit *ctl.Exit, key, value string) (err error) {
	switch key {
	case "generation":
		s.Generation, err = strconv.ParseUint(value, 10, 64)
	case "name":
		s.Name = printable(value, "")
	case "state":
		s.State, err = oneOf(value, stateNew, stateRunning, statePaused, stateStopping, stateEnded)
	case "started":
		s.Started, err = decodeTime(value)
	case "reboots":
		s.Reboots, err = number(value, 0, 1<<62)
	case "engine":
		s.Engine = printable(value, "")
	case "reason":
		s.Reason = printable(value, "")
	case "failed":
		exit.Failed, err = yesNo(value)
	case "who":
		exit.Who = printable(value, "-")
	case "how":
		exit.How = printable(value, "-")
	case "at":
		exit.At, err = decodeTime(value)
	case "restart":
		exit.Restart, err = yesNo(value)
	}
	return err
}
