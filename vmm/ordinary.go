package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
	"vmfs/vmm/engine"
)

// The words that may follow the arguments of the role. They are for the
// daemon of an ordinary user, whose uid its guests have.
const (
	wordOutward  = "outward"   // it has the daemon's network, for NICs on the engine's own
	wordUnjailed = "unjailed " // it has no namespaces; a reason follows
)

// wordProbe in the place of the arguments builds a jail in the directory behind
// it, in the namespaces that the process was started in, and ends. Its exit
// status says whether that works, its standard error why not.
const wordProbe = "probe"

func probe(args []string, q *QEMU) error {
	if len(args) != 1 || !filepath.IsAbs(args[0]) {
		return errors.New("probe: want DIR")
	}
	r := role{jail: args[0], uid: uint32(os.Getuid())}
	return r.dropOrdinary(q)
}

// further takes the words behind the arguments.
func (r *role) further(words []string) error {
	for _, w := range words {
		why, unjailed := strings.CutPrefix(w, wordUnjailed)
		switch {
		case w == wordOutward:
			r.outward = true
		case unjailed && why != "":
			r.unjailed = why
		default:
			return fmt.Errorf("%.80q: no word of a guest's", w)
		}
	}
	return nil
}

// ordinary reports whether this is a guest of an ordinary user's daemon. It
// has no right outside of its own namespaces then, and cannot change its uid.
func ordinary() bool { return os.Geteuid() != 0 }

// dropOrdinary is drop with an ordinary user's rights.
func (r role) dropOrdinary(q *QEMU) error {
	unix.Umask(0o022)
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Seccomp(confine.OrdinaryJail); err != nil {
		return err
	}
	paths := confine.Guest.Paths
	if r.unjailed != "" {
		paths = confine.Unjailed(paths)
	} else {
		if err := confine.Keep(confine.OrdinaryJail.Capabilities); err != nil {
			return err
		}
		if err := q.OrdinaryJail(r.jail, r.accel == "kvm", r.outward); err != nil {
			return err
		}
	}
	if r.outward {
		paths = append(slices.Clone(paths), confine.Outward)
	}
	return r.become(paths)
}

// becomeUser leaves the guest's uid and no capability.
func (r role) becomeUser() error {
	if ordinary() {
		return confine.Keep(nil)
	}
	return confine.Become(r.uid, r.uid, nil)
}

// counts reports whether a limit counts for this process alone: that of
// processes does where the uid is the machine's, or the user namespace is.
func (r role) counts(limit int) bool { return limit != unix.RLIMIT_NPROC || r.unjailed == "" }

// reason is why the machine runs as it does. Called with mu held.
func (m *machine) reason() string {
	if m.unjailed == "" {
		return m.about.reason
	}
	return m.about.reason + "; without namespaces of its own: " + m.unjailed
}

// userNIC takes a NIC on QEMU's own network. words are N and MAC.
func (l *launch) userNIC(words []string, outward bool) error {
	n, mac, err := l.newNIC(words)
	if err != nil {
		return err
	}
	if !outward {
		return ctl.Errorf(syscall.EINVAL, "nic/%d: this process has no network", n)
	}
	l.nics[n] = engine.NIC{N: n, MAC: mac}
	return nil
}
