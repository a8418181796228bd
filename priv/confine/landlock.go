package confine

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Landlock leaves all threads the given paths and nothing else of the file
// system; no TCP or UDP port, no signal to a process outside, no abstract
// socket of one. A kernel that knows less of Landlock enforces what it knows,
// one without it nothing: the uid and seccomp stand then. The process can
// mount nothing any more. It implies NoNewPrivs.
func Landlock(paths []Path) error {
	rules, err := pathRules(paths)
	if err != nil {
		return err
	}
	if err := landlock.V11.BestEffort().Restrict(rules...); err != nil {
		return fmt.Errorf("confine: landlock: %w", err)
	}
	return nil
}

// LandlockOpen is Landlock of paths alone: ports and abstract sockets stay what
// they were, and so do signals. As under any Landlock, no process can be traced,
// or its memory written through /proc, that is not under the same one or one
// within.
func LandlockOpen(paths []Path) error {
	rules, err := pathRules(paths)
	if err != nil {
		return err
	}
	if err := landlock.V11.BestEffort().RestrictPaths(rules...); err != nil {
		return fmt.Errorf("confine: landlock: %w", err)
	}
	return nil
}

func pathRules(paths []Path) ([]landlock.Rule, error) {
	rules := make([]landlock.Rule, len(paths))
	for i, p := range paths {
		rule, err := p.rule()
		if err != nil {
			return nil, err
		}
		rules[i] = rule
	}
	return rules, nil
}

func (p Path) rule() (landlock.Rule, error) {
	var rule landlock.FSRule
	switch p.Access {
	case Read:
		rule = landlock.PathAccess(ll.AccessFSReadFile|ll.AccessFSReadDir, p.Path)
	case File:
		rule = landlock.PathAccess(ll.AccessFSReadFile, p.Path)
	case Exec:
		rule = landlock.RODirs(p.Path)
	case Write:
		rule = landlock.RWDirs(p.Path).WithRefer()
	case Device:
		rule = landlock.RWFiles(p.Path).WithIoctlDev()
	case Connect:
		rule = landlock.PathAccess(ll.AccessFSResolveUnix, p.Path)
	default:
		return nil, fmt.Errorf("confine: path %s: %q is no access", p.Path, p.Access)
	}
	if p.Optional {
		rule = rule.IgnoreIfMissing()
	}
	return rule, nil
}
