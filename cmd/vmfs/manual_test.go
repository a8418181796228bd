package main

// The manual is the contract: these tests hold docs/vmfs.4 and docs/vmfs.8
// against the program, in both directions. A page is read as source, by its
// macros: a file is a Pa, a verb an Ic, a word that is fixed a Cm, a flag a Fl.

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	iofs "io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
	"vmfs/fs"
	"vmfs/priv"
)

// page is the source of a manual page, or a part of it, in lines.
type page []string

func manual(t *testing.T, name string) page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

// between is what lies between the line first and the next line that begins
// with last, or the end.
func (p page) between(t *testing.T, first, last string) page {
	t.Helper()
	i := slices.Index(p, first)
	if i < 0 {
		t.Fatalf("the page has no line %q", first)
	}
	rest := p[i+1:]
	if j := slices.IndexFunc(rest, func(l string) bool { return strings.HasPrefix(l, last) }); j >= 0 {
		rest = rest[:j]
	}
	return rest
}

func (p page) section(t *testing.T, name string) page {
	t.Helper()
	return p.between(t, ".Sh "+name, ".Sh ")
}

// items are the first words of the items `.It MACRO WORD`.
func (p page) items(macro string) []string {
	var words []string
	for _, l := range p {
		if rest, ok := strings.CutPrefix(l, ".It "+macro+" "); ok {
			words = append(words, strings.Fields(rest)[0])
		}
	}
	return words
}

// uses are the words that a macro marks, wherever it stands in a line.
func (p page) uses(macro string) []string {
	var words []string
	for _, l := range p {
		if !strings.HasPrefix(l, ".") {
			continue
		}
		f := strings.Fields(l[1:])
		for i := range f[:max(0, len(f)-1)] {
			if f[i] == macro {
				words = append(words, f[i+1])
			}
		}
	}
	return words
}

// same wants two lists to have the same words, whatever their order.
func same(t *testing.T, what string, page, program []string) {
	t.Helper()
	for _, w := range program {
		if !slices.Contains(page, w) {
			t.Errorf("%s: the page does not have %s", what, w)
		}
	}
	for i, w := range page {
		if !slices.Contains(program, w) {
			t.Errorf("%s: the page has %s, the program does not", what, w)
		}
		if slices.Contains(page[:i], w) {
			t.Errorf("%s: the page has %s twice", what, w)
		}
	}
}

func names[T any](list []T, name func(T) string) []string {
	var words []string
	for _, v := range list {
		words = append(words, name(v))
	}
	return words
}

func verbNames() []string { return names(ctl.Verbs, func(v ctl.Verb) string { return v.Name }) }

// served is a tree over a host without guests, and that host.
func served(t *testing.T) (fs.Dir, *ctltest.Host) {
	t.Helper()
	host := ctltest.NewHost()
	m, err := ctl.Open(context.Background(), ctl.Options{State: t.TempDir(), Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return fs.New(m).Root(), host
}

// open opens a file of a tree as root.
func open(t *testing.T, root fs.Dir, path string) fs.Handle {
	t.Helper()
	var n fs.Node = root
	for name := range strings.SplitSeq(path, "/") {
		next, err := n.(fs.Dir).Lookup(context.Background(), name)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		n = next
	}
	attr, err := n.Attr(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.(fs.File).Open(context.Background(), ctl.Cred{}, fs.Flags{Read: true, Write: attr.Mode&0o222 != 0})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func text(t *testing.T, root fs.Dir, path string) string {
	t.Helper()
	p := make([]byte, 1<<20)
	n, err := open(t, root, path).Read(context.Background(), p, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(p[:n])
}

// helpLine is what help says of a file.
type helpLine struct{ mode, values string }

// table is the table of files, as help prints it.
func table(t *testing.T) map[string]helpLine {
	t.Helper()
	root, _ := served(t)
	_, lines, _ := strings.Cut(text(t, root, "help"), "\n\n")
	files := make(map[string]helpLine)
	for line := range strings.Lines(lines) {
		path, rest, _ := strings.Cut(line, " ")
		mode, values, _ := strings.Cut(strings.TrimSpace(rest), " ")
		files[path] = helpLine{mode, strings.TrimSpace(values)}
	}
	return files
}

// phrases are the first words of what help says a ctl takes.
func (h helpLine) phrases() []string {
	return names(strings.Split(h.values, ", "), func(s string) string { return strings.Fields(s)[0] })
}

// The synopsis has every file with its mode, the description a paragraph on
// each.
func TestManualFiles(t *testing.T) {
	p, files := manual(t, "vmfs.4"), table(t)
	drawn := synopsis(t, p)
	same(t, "SYNOPSIS", slices.Collect(maps.Keys(drawn)), slices.Collect(maps.Keys(files)))
	for path, mode := range drawn {
		if files[path].mode != mode {
			t.Errorf("SYNOPSIS: %s has mode %s, want %s", path, mode, files[path].mode)
		}
	}
	var told []string
	base := ""
	for _, l := range p.section(t, "DESCRIPTION") {
		if dir, ok := strings.CutPrefix(l, ".Ss /vmfs"); ok {
			base = strings.TrimPrefix(dir+"/", "/")
		}
		for _, name := range (page{l}).items("Pa") {
			told = append(told, base+name)
		}
	}
	for _, verb := range p.section(t, "VERBS").items("Ic") {
		if verb != "remove" {
			told = append(told, "vm/NAME/do/"+verb)
		}
	}
	same(t, "DESCRIPTION", told, slices.Collect(maps.Keys(files)))
}

// synopsis reads the tree that is drawn: four blanks a level, the mode last,
// a directory with a slash behind its name.
func synopsis(t *testing.T, p page) map[string]string {
	t.Helper()
	drawn := make(map[string]string)
	var dirs []string // the directory of each level
	for _, l := range p.section(t, "SYNOPSIS").between(t, ".Bd -literal -compact", ".Ed") {
		level := (len(l) - len(strings.TrimLeft(l, " "))) / 4
		f := strings.Fields(l)
		if level == 0 {
			dirs = []string{""}
			continue
		}
		if level > len(dirs) || len(f) < 2 {
			t.Fatalf("SYNOPSIS: %q: what is that in?", l)
		}
		dirs = dirs[:level]
		for _, name := range f[:len(f)-1] {
			path := dirs[level-1] + name
			drawn[path] = f[len(f)-1]
			if strings.HasSuffix(path, "/") {
				dirs = append(dirs[:level], path)
			}
		}
	}
	return drawn
}

// Each attribute has its default and its words, and is in the right lists.
func TestManualAttributes(t *testing.T) {
	p := manual(t, "vmfs.4")
	var paths, live []string
	for _, a := range ctl.Attrs {
		if a.Path {
			paths = append(paths, a.Name)
		}
		if a.Live {
			live = append(live, a.Name)
		}
		dir := strings.TrimSuffix("/"+a.Name[:strings.LastIndexByte(a.Name, '/')+1], "/")
		describesAttr(t, p.between(t, ".Ss /vmfs/vm/NAME"+dir, ".Ss "), a)
	}
	same(t, "Files of the host", p.between(t, ".Ss Files of the host", "are absolute").uses("Pa"), paths)
	same(t, "live attributes", p.between(t, "The rest are the attributes.", "act at once").uses("Pa"), live)
	for _, a := range ctl.SwitchAttrs {
		describesAttr(t, p.between(t, ".Ss /vmfs/switch/NAME", ".Ss "), a)
		if waits := p.between(t, "As a machine's, of the attributes below.", "wait for").uses("Pa"); a.Live == slices.Contains(waits, a.Name) {
			t.Errorf("switch/NAME/%s: it acts at once: %v, the page says what waits are %v", a.Name, a.Live, waits)
		}
	}
	for _, a := range ctl.NetAttrs {
		describesAttr(t, p.between(t, ".Ss /vmfs/net", ".Ss "), a)
	}
	root, _ := served(t)
	for _, a := range ctl.UserAttrs {
		a.Default = strings.TrimSpace(text(t, root, "user/default/"+a.Name))
		describesAttr(t, p.between(t, ".Ss /vmfs/user/NAME", ".Ss "), a)
	}
}

// describesAttr wants a section to say the default of an attribute, and its
// words where they are few.
func describesAttr(t *testing.T, section page, a ctl.Attr) {
	t.Helper()
	item := ".It Pa " + a.Name[strings.LastIndexByte(a.Name, '/')+1:]
	text := section.between(t, item, ".It Pa ")
	said := strings.Join(text, " ")
	if a.Default != "" && !strings.Contains(said, "default "+a.Default+".") {
		t.Errorf("%s: the page does not say: default %s", a.Name, a.Default)
	}
	if a.Default == "" && strings.Contains(said, "default ") {
		t.Errorf("%s: the page has a default, the program does not", a.Name)
	}
	closed, _, _ := strings.Cut(a.Values, ";")
	if words := strings.Fields(closed); slices.Contains(words, a.Default) && !strings.Contains(closed, " or ") && closed != "yes no" {
		marked := text.uses("Cm")
		slices.Sort(marked)
		same(t, a.Name, slices.Compact(marked), words)
	}
}

func TestManualVerbs(t *testing.T) {
	p, files := manual(t, "vmfs.4"), table(t)
	verbs := files["vm/NAME/ctl"].phrases()
	same(t, "switch/NAME/ctl", p.between(t, ".Ss /vmfs/switch/NAME", ".It Pa do/").uses("Cm"), files["switch/NAME/ctl"].phrases())
	same(t, "VERBS", p.section(t, "VERBS").items("Ic"), verbs)
	same(t, "help", verbs, append(verbNames(), "remove"))

	daemon := files["ctl"].phrases()
	same(t, "ctl", p.between(t, ".Ss /vmfs", ".Ss ").items("Ic"), daemon)
	for _, v := range ctl.DaemonVerbs {
		item := ".It Ic " + v.Name
		if v.Arg != "" {
			item += " Cm " + strings.ReplaceAll(v.Arg, "|", " | ")
		}
		if !slices.Contains(p, item) {
			t.Errorf("ctl: the page has no item %q", item)
		}
	}
	for _, v := range ctl.Verbs {
		item := ".It Ic " + v.Name
		if v.Arg != "" {
			item += " Op Ar " + strings.ToLower(strings.Trim(v.Arg, "[]"))
		}
		if !slices.Contains(p, item) {
			t.Errorf("VERBS: the page has no item %q", item)
		}
	}
	for _, word := range append(p.uses("Ic"), manual(t, "vmfs.8").uses("Ic")...) {
		if !slices.Contains(verbs, word) && !slices.Contains(daemon, word) && !slices.ContainsFunc(ctl.SwitchVerbs, func(v ctl.Verb) bool { return v.Name == word }) {
			t.Errorf("%s is marked as a verb and is none", word)
		}
	}
}

// What the table says of a verb in a state, the verb does there.
func TestManualStates(t *testing.T) {
	var rows []string
	for _, l := range manual(t, "vmfs.4").section(t, "VERBS") {
		cells := strings.Split(strings.TrimPrefix(l, ".It "), " Ta ")
		if len(cells) != 6 {
			continue
		}
		verb := cells[0]
		if verb == "Em verb" {
			continue
		}
		rows = append(rows, verb)
		for i, states := range []string{"stopped failed", "starting", "running", "paused", "stopping"} {
			want := errnoNamed(cells[i+1])
			for state := range strings.FieldsSeq(states) {
				if got := ctl.Errno(doIn(t, verb, state)); got != want {
					t.Errorf("%s of a %s machine: got %q, the page says %q", verb, state, unix.ErrnoName(got), cells[i+1])
				}
			}
		}
	}
	same(t, "table of states", rows, append(verbNames(), "remove"))
}

// errnoNamed is the error that a cell names, 0 for none.
func errnoNamed(cell string) syscall.Errno {
	name, ok := strings.CutPrefix(cell, "Er ")
	for e := syscall.Errno(1); ok && e < 200; e++ {
		if unix.ErrnoName(e) == name {
			return e
		}
	}
	return 0
}

// doIn writes a verb to the ctl of a new machine in a state.
func doIn(t *testing.T, verb, state string) error {
	t.Helper()
	root, host := served(t)
	vms, err := root.Lookup(context.Background(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vms.(fs.Dir).Mkdir(context.Background(), ctl.Cred{}, "a", 0o755); err != nil {
		t.Fatal(err)
	}
	h := open(t, root, "vm/a/ctl")
	do := func(verb string) error { return h.Write(context.Background(), []byte(verb+"\n")) }
	var began chan error
	switch state {
	case "failed":
		host.Refused = func(string) error { return syscall.ENODEV }
		do("start")
		host.Refused = nil
	case "starting":
		host.Blocking = func(ctx context.Context) { <-ctx.Done() }
		began = make(chan error, 1)
		go func() { began <- do("start") }()
	case "running", "paused", "stopping":
		do("start")
		do(map[string]string{"running": "resume", "paused": "pause", "stopping": "stop"}[state])
	}
	for range 60000 { // a start is written to the disk
		if strings.HasPrefix(text(t, root, "vm/a/status"), state) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if got := text(t, root, "vm/a/status"); !strings.HasPrefix(got, state) {
		t.Fatalf("status %q, want %s", got, state)
	}
	err = do(verb)
	do("kill")
	if began != nil {
		<-began
		do("kill") // what restart began
	}
	return err
}

func TestManualEvents(t *testing.T) {
	p := manual(t, "vmfs.4")
	same(t, "EVENTS", p.section(t, "EVENTS").items("Cm"), names(ctl.Events, func(e struct{ Name, Help string }) string { return e.Name }))
	same(t, "METRICS", p.section(t, "METRICS").items("Cm"), names(ctl.Metrics, func(m struct{ Name, Type, Help string }) string { return m.Name }))
}

// Every error that a sentence goes with is in the list.
func TestManualErrors(t *testing.T) {
	listed := manual(t, "vmfs.4").section(t, "ERRORS").items("Bq Er")
	told := regexp.MustCompile(`(?:Errorf|refuses)\([^"\n]*?syscall\.(E[A-Z0-9]+)`)
	between := []string{"ENOSYS", "EPROTO"} // what roles tell each other
	for _, dir := range []string{"ctl", "fs", "priv", "vmm"} {
		err := filepath.WalkDir("../../"+dir, func(path string, e iofs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, m := range told.FindAllStringSubmatch(string(source), -1) {
				if !slices.Contains(listed, m[1]) && !slices.Contains(between, m[1]) {
					t.Errorf("%s: %s is not in ERRORS", path, m[1])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A path that a page names is there, in full or from one of its words on.
func TestManualPaths(t *testing.T) {
	var all strings.Builder
	for path := range table(t) {
		all.WriteString("/vmfs/" + strings.TrimSuffix(path, "/") + "\n")
	}
	there := func(path string) bool {
		return path == "/vmfs" || strings.Contains(all.String(), "/"+strings.Trim(path, "/")+"\n")
	}
	example := regexp.MustCompile(`(?m)(?:^|[^\w/])(/vmfs/[\w./*-]*\w)`)
	machine := strings.NewReplacer("/web2", "/NAME", "/web", "/NAME", "/lan", "/NAME", "/alice", "/NAME", "/*", "/NAME")
	for _, name := range []string{"vmfs.4", "vmfs.8"} {
		p := manual(t, name)
		for _, path := range p.uses("Pa") {
			host := path[0] == '/' && path != "/vmfs" && !strings.HasPrefix(path, "/vmfs/")
			if !host && !strings.HasPrefix(path, "STATE/") && !strings.HasPrefix(path, "RUN/") && path != "images/" && path != "live/console" && !there(path) {
				t.Errorf("%s: there is no file %s", name, path)
			}
		}
		for _, m := range example.FindAllStringSubmatch(strings.Join(p, "\n"), -1) {
			if path := machine.Replace(m[1]); !there(path) {
				t.Errorf("%s: there is no file %s", name, path)
			}
		}
	}
}

// The usage, the flags in the source and both places of the page agree.
func TestManualFlags(t *testing.T) {
	p := manual(t, "vmfs.8")
	spelled := make(map[string][]string)
	var commands []string
	for line := range strings.Lines(strings.ReplaceAll(usage, "\n                  ", " ")) {
		f := strings.Fields(strings.TrimPrefix(line, "usage:"))
		commands = append(commands, f[1])
		for _, m := range regexp.MustCompile(`[\[ ]-([\w-]+)`).FindAllStringSubmatch(line, -1) {
			spelled[f[1]] = append(spelled[f[1]], m[1])
		}
	}
	drawn, told := byCommand(p.section(t, "SYNOPSIS"), ".Cm "), byCommand(p.section(t, "DESCRIPTION"), ".It Cm ")
	same(t, "SYNOPSIS", slices.Collect(maps.Keys(drawn)), commands)
	same(t, "DESCRIPTION", slices.Collect(maps.Keys(told)), commands)
	taken := flagSets(t)
	for _, c := range commands {
		same(t, "usage of "+c, spelled[c], taken[c])
		same(t, "SYNOPSIS of "+c, drawn[c].uses("Fl"), taken[c])
		same(t, "DESCRIPTION of "+c, told[c].items("Fl"), taken[c])
		delete(taken, c)
	}
	for c := range taken {
		t.Errorf("%s takes flags and is not in the usage", c)
	}
	for _, flag := range p.uses("Fl") {
		if !slices.Contains(slices.Concat(slices.Collect(maps.Values(spelled))...), flag) {
			t.Errorf("there is no flag -%s", flag)
		}
	}
	for _, value := range append([]string{priv.DefaultMount, priv.DefaultState, priv.DefaultRun}, priv.DefaultImages...) {
		if !slices.Contains(p.uses("Pa"), value) {
			t.Errorf("the page does not name the default %s", value)
		}
	}
}

// byCommand cuts a section at the lines that begin with mark and a command.
func byCommand(section page, mark string) map[string]page {
	parts := make(map[string]page)
	command := ""
	for _, l := range section {
		if c, ok := strings.CutPrefix(l, mark); ok {
			command = c
			parts[c] = page{}
		} else if command != "" {
			parts[command] = append(parts[command], l)
		}
	}
	return parts
}

// flagSets finds in the source of this package which flags each command
// takes.
func flagSets(t *testing.T) map[string][]string {
	t.Helper()
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	taken := make(map[string][]string)
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		command := ""
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			on, ok := f.X.(*ast.Ident)
			switch word := firstString(call.Args); {
			case !ok || word == "":
			case on.Name == "flag" && f.Sel.Name == "NewFlagSet":
				command = word
			case on.Name == "flags":
				taken[command] = append(taken[command], word)
			}
			return true
		})
	}
	return taken
}

func firstString(args []ast.Expr) string {
	for _, a := range args {
		if lit, ok := a.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, _ := strconv.Unquote(lit.Value)
			return s
		}
	}
	return ""
}

func TestManualLint(t *testing.T) {
	if _, err := exec.LookPath("mandoc"); err != nil {
		t.Skipf("skipping the manual's form: %v (package mandoc)", err)
	}
	cmd := exec.Command("mandoc", "-Tlint", "vmfs.4", "vmfs.8")
	cmd.Dir = "../../docs" // where each finds the other
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("mandoc -Tlint: %v\n%s", err, out)
	}
}
