package fs

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"vmfs/ctl"
)

// What the lines of the table read, write and open.

func readEmpty(context.Context, *node, ctl.Cred) string           { return "" }
func readHelp(_ context.Context, n *node, _ ctl.Cred) string      { return n.t.help }
func readVersion(ctx context.Context, n *node, _ ctl.Cred) string { return n.t.m.Version(ctx) }
func readName(_ context.Context, n *node, _ ctl.Cred) string      { return n.obj.Name() + "\n" }
func readConfig(_ context.Context, n *node, _ ctl.Cred) string    { return n.obj.Config() }
func readConfigOld(_ context.Context, n *node, _ ctl.Cred) string { return n.obj.ConfigOld() }
func readMetrics(_ context.Context, n *node, _ ctl.Cred) string   { return n.t.m.MetricsText() }
func readModes(_ context.Context, n *node, _ ctl.Cred) string     { return n.obj.Modes(n.defaultOf) }
func readStatus(_ context.Context, n *node, _ ctl.Cred) string    { return n.actor().Status() }
func readInfo(ctx context.Context, n *node, _ ctl.Cred) string    { return n.vm().Info(ctx) }
func readCheck(ctx context.Context, n *node, _ ctl.Cred) string   { return n.actor().Check(ctx) }
func readPending(_ context.Context, n *node, _ ctl.Cred) string   { return n.vm().Pending() }

func readEdition(_ context.Context, n *node, _ ctl.Cred) string {
	return strconv.FormatUint(n.obj.Edition(), 10) + "\n"
}

func readErr(_ context.Context, n *node, by ctl.Cred) string {
	if n.obj == nil {
		return n.t.m.Refusals(by.UID, "")
	}
	return n.t.m.Refusals(by.UID, n.of+"/"+n.obj.Name())
}

func readUsage(_ context.Context, n *node, by ctl.Cred) string {
	return n.obj.(*ctl.User).Usage(by)
}

func readEvents(_ context.Context, n *node, _ ctl.Cred) string {
	if n.obj == nil {
		return n.t.m.EventsText()
	}
	return n.obj.EventsText()
}

// readAttr reads a value with a newline; one that is not set is empty.
func readAttr(_ context.Context, n *node, _ ctl.Cred) string {
	return asLine(n.obj.Get(n.policyPath()))
}

func writeAttr(_ context.Context, n *node, by ctl.Cred, text string) error {
	return n.obj.Set(by, n.policyPath(), text)
}

func readIfname(_ context.Context, n *node, _ ctl.Cred) string { return asLine(n.vm().NICIfname(n.n)) }
func readAddress(_ context.Context, n *node, _ ctl.Cred) string {
	return asLine(n.vm().NICAddress(n.n))
}
func readStats(ctx context.Context, n *node, _ ctl.Cred) string { return n.vm().NICStats(ctx, n.n) }
func readPorts(_ context.Context, n *node, _ ctl.Cred) string   { return n.sw().PortsText() }
func readLeases(_ context.Context, n *node, _ ctl.Cred) string  { return n.sw().LeasesText() }

// asLine is a value with a newline; of none, nothing.
func asLine(v string) string {
	if v == "" {
		return ""
	}
	return v + "\n"
}

// writePorts takes nothing: that somebody may write is what counts.
func writePorts(context.Context, *node, ctl.Cred, string) error {
	return ctl.Errorf(syscall.EINVAL, "write: who may write this file may attach; a machine's nic/N/switch does that")
}

// writeInstance makes a machine as clone does, for one who need not be allowed
// to make others.
func writeInstance(_ context.Context, n *node, by ctl.Cred, text string) error {
	in := n.t.machines().access()
	_, err := n.t.m.Instance(by, n.vm(), text, newMode&in.Mode, in.GID)
	return err
}

func writeDaemon(ctx context.Context, n *node, by ctl.Cred, text string) error {
	return n.t.m.Ctl(ctx, by, text)
}

// removeVerb is rmdir for clients that have none. Unlike the other verbs it
// is not granted by the mode bits of the file.
const removeVerb = "remove"

func writeVerb(ctx context.Context, n *node, by ctl.Cred, text string) error {
	verb, arg, _ := strings.Cut(text, " ")
	switch {
	case verb == removeVerb:
		return n.removeBy(by, arg)
	case text == n.obj.Name() && n.in.names["do"].names[verb] == nil:
		return nil // what is there: who restores a copy writes it, and rsync gives up at a refusal
	}
	return n.actor().Do(ctx, by, verb, arg)
}

func (n *node) removeBy(by ctl.Cred, arg string) error {
	owner := n.obj.Access("", ctl.Default{}).UID
	switch {
	case arg != "":
		return ctl.Errorf(syscall.EINVAL, "%s: it takes no argument", removeVerb)
	case !by.Rules() && by.UID != owner:
		return ctl.Errorf(syscall.EPERM, "%s: for the owner, %s, and root alone", removeVerb, ctl.UserName(owner))
	}
	return n.t.m.Remove(by, n.obj)
}

func openConsoleLog(n *node, o opened) (Handle, error) {
	return &growing{opened: o, at: n.vm().ConsoleLogAt}, nil
}

func openConsole(n *node, o opened) (Handle, error) {
	r := n.vm().OpenConsole()
	return &streamHandle{opened: o, turn: newTurn(), next: r.Read, send: n.vm().Input, end: r.Close}, nil
}

func openEvents(n *node, o opened) (Handle, error) {
	open := n.t.m.OpenEvents
	if n.obj != nil {
		open = n.obj.OpenEvents
	}
	return &streamHandle{opened: o, turn: newTurn(), next: open().Read}, nil
}

func openEnd(n *node, o opened) (Handle, error) {
	w := n.vm().OpenWait()
	return &waitHandle{opened: o, turn: newTurn(), done: w.Done, wait: w.Wait}, nil
}

func openIdle(n *node, o opened) (Handle, error) {
	m := n.t.m
	return &waitHandle{opened: o, turn: newTurn(), done: m.Idle,
		wait: func(ctx context.Context) (string, error) { return "", m.WaitIdle(ctx) }}, nil
}

// helpText is the table for people.
func helpText() string {
	var b strings.Builder
	b.WriteString("Virtual machines and switches as files. Mode bits say who may; err says why not.\n" +
		"A write is one message, taken whole or refused whole; an empty line unsets a value.\n\n")
	for _, l := range lines[1:] {
		path := l.path
		if l.kind == directory {
			path += "/"
		}
		fmt.Fprintf(&b, "%-26s %04o  %s\n", path, l.mode, l.values)
	}
	return b.String()
}
