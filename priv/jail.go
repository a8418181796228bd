package priv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
)

// What keeps a guest's process from everything else begins here: it is started
// in namespaces of its own, and builds the rest of its jail in them. Where a
// host lets an ordinary user make none, Landlock is left.

// What the role guest is told, in package vmm's words, beside its arguments or,
// to try only, in their place.
const (
	guestOutward  = "outward"   // it has the daemon's network
	guestUnjailed = "unjailed " // it has no namespaces, and why
	guestProbe    = "probe"
)

// probeTime is what a jail may take to be built, once.
const probeTime = 5 * time.Second

// probe finds out whether guests can have namespaces. Many hosts keep them
// from ordinary users, and how differs; so it is tried.
func (g *guests) probe() {
	if g.unjailed = g.tryJail(); g.unjailed != "" {
		fmt.Fprintf(os.Stderr, "vmfs: guests have no namespaces of their own, and Landlock alone: %s\n", g.unjailed)
	}
}

// tryJail says why a jail cannot be built, "" if it can.
func (g *guests) tryJail() string {
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	cmd := role("guest", guestProbe, g.dir)
	said := &head{room: maxReason}
	cmd.Stderr, cmd.WaitDelay = said, time.Second
	cmd.SysProcAttr = g.namespaces(false)
	if err := cmd.Start(); err != nil {
		return oneLine(err.Error())
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	switch said := bytes.TrimSpace(said.text); {
	case err == nil:
		return ""
	case len(said) > 0:
		return oneLine(strings.TrimPrefix(string(said), "vmfs guest: "))
	}
	return oneLine(err.Error())
}

// namespaces are those that a guest is started in. An ordinary user has to
// make a user namespace to make the others, and has rights in there that the
// guest builds its jail with. With outward it stays in the daemon's network.
func (g *guests) namespaces(outward bool) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setsid: true}
	if g.unjailed != "" {
		return a
	}
	a.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	// By unshare, and not by clone, because that makes the mounts private
	// before the guest's first instruction.
	a.Unshareflags = unix.CLONE_NEWNS
	if !outward {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	if ordinary() {
		uid, gid := os.Geteuid(), os.Getegid()
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		for _, c := range confine.OrdinaryJail.Capabilities {
			a.AmbientCaps = append(a.AmbientCaps, c.Bit)
		}
	}
	return a
}

// words are those behind the arguments of a guest.
func (g *guests) words(outward bool) (list []string) {
	if outward {
		list = append(list, guestOutward)
	}
	if g.unjailed != "" {
		list = append(list, guestUnjailed+g.unjailed)
	}
	return list
}

// fence refuses a guest that nothing would keep from what its user has, or
// that is to have a network which is not its owner's.
func (g *guests) fence(outward bool) error {
	switch {
	case outward && !ordinary():
		return ctl.Errorf(syscall.EOPNOTSUPP, "the engine's own network is for a daemon without root")
	case g.unjailed != "" && !confine.HasLandlock():
		return ctl.Errorf(syscall.EOPNOTSUPP, "this host lets %s make no namespaces (%s) and has no Landlock: nothing would keep a guest that breaks out from his files",
			userName(uint32(os.Geteuid())), g.unjailed)
	}
	return nil
}
