package fs

import (
	"context"
	"slices"
	"strings"

	"vmfs/ctl"
)

// line is a line of the table: one file of the tree, or as many as there are
// objects and parts.
type line struct {
	path   string // below the root; NAME is an object, N a part's number
	mode   uint32 // until somebody changes it
	root   bool   // it is root's, whoever owns the object
	kind   kind
	values string // what it holds and takes, for help

	// read makes the text of a file; nil reads empty.
	read func(ctx context.Context, n *node, by ctl.Cred) string
	// write does what one line of text asks for, without its newline.
	write func(ctx context.Context, n *node, by ctl.Cred, text string) error
	// open is for files that are more than a text and a line.
	open func(n *node, o opened) (Handle, error)

	// groups is set where more than mode bits decide: open and write then
	// look at all groups of who opened.
	groups bool

	// mkdir and rmdir are for directories whose entries come and go; of
	// all others the table has every entry.
	mkdir func(n *node, by ctl.Cred, name string, mode uint32) (Node, error)
	rmdir func(n *node, by ctl.Cred, name string) error

	place // in the tree
}

// kind is what stat says of a file, and whether its reads wait.
type kind int

const (
	directory kind = iota
	text           // a text with its true size and time
	computed       // a text made for each open; size 0
	grows          // has a true size and is read as it grows
	waits          // a read waits, then it is a text; size 0
	stream         // a read waits for more; size 0
)

// lines are every file there is. A file is added by adding its line.
var lines = index(slices.Concat(machineLines, each(ctl.Attrs, attrLine("vm/NAME")), each(ctl.Verbs, verbLine("vm/NAME")),
	switchLines, each(ctl.SwitchAttrs, attrLine("switch/NAME")), each(ctl.SwitchVerbs, verbLine("switch/NAME")),
	userLines, each(ctl.UserAttrs, attrLine("user/NAME")),
	each(ctl.NetAttrs, netLine), liveLines))

var machineLines = []*line{
	{path: "", mode: 0o755, kind: directory},
	{path: "help", mode: 0o444, kind: computed, values: "this text", read: readHelp},
	{path: "ctl", mode: 0o600, kind: computed, values: daemonVerbs(), write: writeDaemon},
	{path: "version", mode: 0o444, kind: computed, values: "the program, its protocols, the engines found", read: readVersion},
	{path: "err", mode: 0o444, kind: computed, values: "what you were refused last: TIME USER FILE ERRNO reason", read: readErr},
	{path: "clone", mode: 0o666, kind: computed, values: "opened to read and write: a machine with a free name, and its ctl", read: readEmpty, open: openClone, groups: true},
	{path: "metrics", mode: 0o440, kind: computed, values: "OpenMetrics", read: readMetrics},
	{path: "events.log", mode: 0o440, kind: text, values: "the last events: SEQ TIME OBJECT EVENT USER [detail]", read: readEvents},

	{path: "vm", mode: ctl.DirMode, kind: directory, values: "mkdir makes a machine, rmdir removes it, mv renames it", mkdir: mkdirObject, rmdir: rmdirObject},
	{path: "vm/NAME", mode: 0o755, kind: directory, values: "1 to 63 of A-Z a-z 0-9 . - _, the first a letter or digit"},
	{path: "vm/NAME/ctl", mode: 0o660, kind: text, values: verbs(ctl.Verbs), read: readName, write: writeVerb},
	{path: "vm/NAME/config", mode: 0o640, kind: text, values: "PATH VALUE or -PATH, a line each; all of it between begin and end", read: readConfig, open: openConfig, groups: true},
	{path: "vm/NAME/config.old", mode: 0o440, kind: text, values: "the definition before its last change", read: readConfigOld},
	{path: "vm/NAME/edition", mode: 0o440, kind: text, values: "how often the definition was changed", read: readEdition},
	{path: "vm/NAME/modes", mode: 0o600, kind: text, values: "PATH MODE OWNER GROUP of what differs, a line each, written as config is", read: readModes, open: openModes, groups: true},
	{path: "vm/NAME/status", mode: 0o444, kind: text, values: "stopped starting running paused stopping or failed REASON", read: readStatus},
	{path: "vm/NAME/info", mode: 0o444, kind: computed, values: "KEY VALUE, a line each", read: readInfo},
	{path: "vm/NAME/check", mode: 0o440, kind: computed, values: "what a start would say now, a line each; ok if nothing", read: readCheck},
	{path: "vm/NAME/pending", mode: 0o440, kind: text, values: "PATH NOW NEXT of what waits for the next start", read: readPending},
	{path: "vm/NAME/err", mode: 0o444, kind: computed, values: "what you were refused last, as in err", read: readErr},
	{path: "vm/NAME/console.log", mode: 0o440, kind: grows, values: "the last 256 KiB of the console", open: openConsoleLog},
	{path: "vm/NAME/events.log", mode: 0o440, kind: text, values: "this machine's events among the last of all", read: readEvents},
	{path: "vm/NAME/instance", mode: ctl.InstanceAccess.Mode, kind: text, values: "NAME; makes a machine of that name as an instance of this one, the writer's", write: writeInstance},
	{path: "vm/NAME/do", mode: 0o755, kind: directory, values: "any write does it; the text is the argument"},
	{path: "vm/NAME/disk", mode: 0o750, kind: directory, values: "mkdir N makes a disk, rmdir removes it, never its image", mkdir: mkdirPart, rmdir: rmdirPart},
	{path: "vm/NAME/disk/N", mode: 0o750, kind: directory, values: "0..15"},
	{path: "vm/NAME/nic", mode: 0o750, kind: directory, values: "mkdir N makes a NIC and draws its mac, rmdir removes it", mkdir: mkdirPart, rmdir: rmdirPart},
	{path: "vm/NAME/nic/N", mode: 0o750, kind: directory, values: "0..15"},
	{path: "vm/NAME/nic/N/ifname", mode: 0o440, kind: text, values: "the tap of a NIC of an active machine", read: readIfname},
	{path: "vm/NAME/nic/N/address", mode: 0o440, kind: text, values: "ADDRESS/BITS that the guest is given", read: readAddress},
	{path: "vm/NAME/nic/N/stats", mode: 0o440, kind: computed, values: "KEY VALUE, a line each, as the host counts", read: readStats},
}

var switchLines = []*line{
	{path: "switch", mode: ctl.DirMode, kind: directory, values: "mkdir makes a switch, rmdir removes it, mv renames it", mkdir: mkdirObject, rmdir: rmdirObject},
	{path: "switch/NAME", mode: 0o755, kind: directory, values: "named as machines are"},
	{path: "switch/NAME/ctl", mode: 0o660, kind: text, values: verbs(ctl.SwitchVerbs), read: readName, write: writeVerb},
	{path: "switch/NAME/do", mode: 0o755, kind: directory, values: "any write does it"},
	{path: "switch/NAME/config", mode: 0o640, kind: text, values: "as a machine's", read: readConfig, open: openConfig, groups: true},
	{path: "switch/NAME/config.old", mode: 0o440, kind: text, values: "the definition before its last change", read: readConfigOld},
	{path: "switch/NAME/edition", mode: 0o440, kind: text, values: "how often the definition was changed", read: readEdition},
	{path: "switch/NAME/modes", mode: 0o600, kind: text, values: "as a machine's", read: readModes, open: openModes, groups: true},
	{path: "switch/NAME/status", mode: 0o444, kind: text, values: "up down or failed REASON", read: readStatus},
	{path: "switch/NAME/err", mode: 0o444, kind: computed, values: "what you were refused last, as in err", read: readErr},
	{path: "switch/NAME/events.log", mode: 0o440, kind: text, values: "this switch's events among the last of all", read: readEvents},
	{path: "switch/NAME/ports", mode: ctl.PortsAccess.Mode, kind: computed, values: "VM/N IFNAME MAC STATE, a line each; who may write it may attach", read: readPorts, write: writePorts},
	{path: "switch/NAME/leases", mode: 0o440, kind: computed, values: "ADDRESS MAC VM/N SINCE, a line each", read: readLeases},
	{path: "switch/NAME/check", mode: 0o444, kind: computed, values: "what is not as it is configured, and what is in the way, a line each; ok if nothing", read: readCheck},
	{path: "net", mode: 0o700, kind: directory, values: "networks of local NICs"},
}

var userLines = []*line{
	{path: "user", mode: 0o755, kind: directory, values: "mkdir makes limits of one user, rmdir removes them", mkdir: mkdirObject, rmdir: rmdirObject},
	{path: "user/NAME", mode: 0o755, kind: directory, values: "a login name, a uid, or default for whoever has none"},
	{path: "user/NAME/usage", mode: 0o444, kind: computed, values: "KEY USED LIMIT, a line each; of default, your own", read: readUsage},
}

var liveLines = []*line{
	{path: "live", mode: 0o755, kind: directory, values: "all that waits; open it O_NONBLOCK for an end of file instead"},
	{path: "live/events", mode: 0o440, kind: stream, values: "events as they come", open: openEvents},
	{path: "live/wait", mode: 0o444, kind: waits, values: "ends when no machine is active", open: openIdle},
	{path: "live/vm", mode: 0o755, kind: directory},
	{path: "live/vm/NAME", mode: 0o755, kind: directory},
	{path: "live/vm/NAME/console", mode: 0o600, kind: stream, values: "the console: all of this launch, then the rest as it comes; a write is typed", open: openConsole},
	{path: "live/vm/NAME/events", mode: 0o440, kind: stream, values: "this machine's events as they come", open: openEvents},
	{path: "live/vm/NAME/wait", mode: 0o444, kind: waits, values: "the status that ended the present launch", open: openEnd},
}

func each[T any](list []T, f func(T) *line) []*line {
	var lines []*line
	for _, v := range list {
		lines = append(lines, f(v))
	}
	return lines
}

// verbLine is do/VERB. It writes one verb whatever the text is, so that its
// mode bits grant just that.
func verbLine(in string) func(v ctl.Verb) *line {
	return func(v ctl.Verb) *line {
		return &line{path: in + "/do/" + v.Name, mode: 0o660, kind: text, values: strings.TrimPrefix(v.Arg+" "+v.Help, " "),
			write: func(ctx context.Context, n *node, by ctl.Cred, text string) error {
				return n.actor().Do(ctx, by, v.Name, text)
			}}
	}
}

func attrLine(in string) func(a ctl.Attr) *line {
	return func(a ctl.Attr) *line {
		def := a.Access()
		return &line{path: in + "/" + a.Name, mode: def.Mode, root: def.Root, kind: text, values: valuesOf(a),
			read: readAttr, write: writeAttr, groups: true}
	}
}

// valuesOf is what an attribute takes, with its default.
func valuesOf(a ctl.Attr) string {
	if a.Default == "" {
		return a.Values
	}
	return a.Values + " (" + a.Default + ")"
}

// netLine is a file of net/.
func netLine(a ctl.Attr) *line {
	return &line{path: "net/" + a.Name, mode: 0o600, kind: computed, values: valuesOf(a),
		read: func(_ context.Context, n *node, _ ctl.Cred) string { return n.t.m.NetGet(a.Name) + "\n" },
		write: func(_ context.Context, n *node, by ctl.Cred, text string) error {
			return n.t.m.NetSet(by, a.Name, text)
		}}
}

// phrase is a verb with its argument.
func phrase(name, arg string) string { return strings.TrimSuffix(name+" "+arg, " ") }

// verbs are what the ctl of an object takes.
func verbs(list []ctl.Verb) string {
	words := make([]string, 0, len(list)+1)
	for _, v := range list {
		words = append(words, phrase(v.Name, v.Arg))
	}
	return strings.Join(append(words, removeVerb), ", ")
}

// daemonVerbs are what the root's ctl takes.
func daemonVerbs() string {
	var words []string
	for _, v := range ctl.DaemonVerbs {
		words = append(words, phrase(v.Name, v.Arg))
	}
	return strings.Join(words, ", ")
}
