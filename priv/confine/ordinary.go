package confine

import (
	"fmt"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// The roles of a daemon that an ordinary user started. All have his uid, gid
// and groups, which nobody there could change; what keeps them apart is
// Landlock, seccomp, and for guests namespaces. Where no role is listed here,
// Ordinary is what becomes of the one of root's daemon.

// OrdinaryPriv is serve.
var OrdinaryPriv = Role{
	Name:       "priv",
	User:       "who started it",
	NewPrivs:   "fusermount3 is setuid, and is needed again when core has died",
	Default:    Allow,
	NoSeccomp:  "without a capability the kernel takes a filter only from who gains no privilege any more",
	NoLandlock: "fusermount3 would be under it, and could not mount",
	Bounding:   "nobody could empty it, and fusermount3 needs some of it",
}

// OrdinaryJail is a guest from its exec until it has built its jail. Its
// capabilities are those of a user namespace of its own, and nothing outside
// of that heeds them.
var OrdinaryJail = Role{
	Name: "jail",
	User: "who started the daemon",
	Capabilities: []Capability{
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN, "mounts the jail in its own mount namespace, and makes it the root directory"},
		{"CAP_SETPCAP", unix.CAP_SETPCAP, "empties the bounding set"},
	},
	Default:    Allow,
	Calls:      Priv.Calls, // there is no filter yet that it could have inherited
	NoLandlock: "a process under Landlock may not mount",
}

// Ordinary is r in a daemon that an ordinary user started.
func (r Role) Ordinary() Role {
	r.User = "who started the daemon"
	r.Capabilities = nil
	r.Bounding = "nobody could empty it; no_new_privs makes that no door"
	return r
}

// Unjailed is what becomes of a guest's paths where there are no namespaces to
// build a jail in: the host's own, without what a jail shows something else of.
func Unjailed(paths []Path) []Path {
	paths = slices.DeleteFunc(slices.Clone(paths), func(p Path) bool { return p.Path == "/etc" })
	return append(paths, Path{"/etc/ld.so.cache", File, true, "where libraries are; no secret"})
}

// Outward is a guest's further path where a NIC of it is on the engine's own
// network.
var Outward = Path{"/etc/resolv.conf", File, true, "whom to ask for the guest's names"}

// LandlockOutward is Landlock, but for TCP and UDP: connections and packets
// may go out. No port is listened on; a port that the kernel chooses is bound
// for packets.
func LandlockOutward(paths []Path) error {
	rules, err := pathRules(paths)
	if err != nil {
		return err
	}
	c := landlock.V11
	c.HandledAccessNet = ll.AccessNetBindTCP | ll.AccessNetBindUDP
	if err := c.BestEffort().Restrict(append(rules, landlock.BindUDP(0))...); err != nil {
		return fmt.Errorf("confine: landlock: %w", err)
	}
	return nil
}

// HasLandlock reports whether this kernel has Landlock, of any version.
func HasLandlock() bool {
	version, err := ll.LandlockGetABIVersion()
	return err == nil && version > 0
}
