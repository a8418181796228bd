package main_test

// docs/cookbook.md is run as it stands, and of README.md the section "Use it".
// Each section is a task, and has a session of the same name in testdata/cookbook, which makes the hosts
// and what the page takes for granted, runs the lines of the page by the verb
// page, and looks at what came of them. The hosts are namespaces with a file
// tree of their own, so that the lines need not be changed: /vmfs is /vmfs.
//
// A block of the page is a script for bash. A paragraph before it, such as
// "As alice:", "On the laptop:" or "On the laptop, as alice:", says who types
// it; otherwise it is root, on the first host. In it, lines that begin with
// "# " are what the lines above them print, "..." standing for anything; what
// is not followed by such lines prints nothing and succeeds.

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// pages are where tasks are, and the heading of the only section that has some.
var pages = []struct{ path, only string }{
	{"../../README.md", "Use it"},
	{"../../docs/cookbook.md", ""},
}

// A block is some lines of a page, and what they are to print.
type block struct {
	at         string // page and line
	user, host string
	chunks     []chunk
}

// A chunk is lines of a block up to what they print.
type chunk struct{ lines, want []string }

var (
	typist = regexp.MustCompile(`^(?:(As|On the|On) (\w+)(?:, (?:as (\w+)|who .*))?):$`)
	quoted = regexp.MustCompile(`'[^']*'`)
	// historic leaves out the first line of a script that is made.
	historic = regexp.MustCompile(`[^#]![^ ]`)
	noSlug   = regexp.MustCompile(`[^a-z0-9 -]`)
)

// tasks are the sections of the pages by the names that links to them have.
func tasks() (names []string, blocks map[string][]*block, err error) {
	blocks = make(map[string][]*block)
	for _, page := range pages {
		text, err := os.ReadFile(page.path)
		if err != nil {
			return nil, nil, err
		}
		found, err := read(page.path, string(text), page.only, blocks)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, found...)
	}
	return names, blocks, nil
}

// read adds the blocks of a page, or of its only section with tasks, and gives
// the sections' names.
func read(path, text, only string, blocks map[string][]*block) (names []string, err error) {
	var name, before string
	var open *block
	for i, line := range strings.Split(text, "\n") {
		at := fmt.Sprintf("%s:%d", path, i+1)
		title, heading := strings.CutPrefix(line, "## ")
		switch {
		case open != nil && line == "```":
			open = nil
		case open != nil && historic.MatchString(quoted.ReplaceAllString(line, "")):
			return nil, fmt.Errorf("%s: to an interactive bash, ! without quotes is history: %s", at, line)
		case open != nil:
			open.add(line)
		case heading && only != "" && title != only:
			name = ""
		case heading:
			name, before = slug(title), ""
			names = append(names, name)
		case name == "" && only != "":
		case line == "```sh" && name != "":
			open = &block{at: at, user: "root"}
			open.typedBy(before)
			before = ""
			blocks[name] = append(blocks[name], open)
		case strings.HasPrefix(line, "```") || strings.HasPrefix(line, "    "):
			return nil, fmt.Errorf("%s: code that no test runs: %s", at, line)
		case line != "":
			before = line
		}
	}
	return names, nil
}

func slug(title string) string {
	return strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
}

func (b *block) typedBy(paragraph string) {
	switch m := typist.FindStringSubmatch(paragraph); {
	case m == nil:
	case m[1] == "As":
		b.user = m[2]
	default:
		b.host = m[2]
		if m[3] != "" {
			b.user = m[3]
		}
	}
}

func (b *block) add(line string) {
	want, printed := strings.CutPrefix(line, "# ")
	last := len(b.chunks) - 1
	if !printed {
		if last < 0 || b.chunks[last].want != nil {
			b.chunks, last = append(b.chunks, chunk{}), last+1
		}
		b.chunks[last].lines = append(b.chunks[last].lines, line)
		return
	}
	if last < 0 {
		b.chunks, last = append(b.chunks, chunk{}), 0
	}
	b.chunks[last].want = append(b.chunks[last].want, want)
}

// Marks in a block's output: the end of a chunk, and a command that failed.
const (
	endMark  = "\x02\n"
	failMark = "\x01"
)

// script is the block for bash, which says where each chunk ends and what in
// it failed.
func (b *block) script() string {
	var s strings.Builder
	s.WriteString(`trap 'printf "\1%s\n" "$BASH_COMMAND"' ERR` + "\n")
	for _, c := range b.chunks {
		s.WriteString(strings.Join(c.lines, "\n") + "\n" + `printf '\2\n'` + "\n")
	}
	return s.String()
}

var (
	failed   = regexp.MustCompile(`(?m)^` + failMark + `.*\n`)
	position = regexp.MustCompile(`(?m)^bash: line \d+: `) // what an interactive shell does not print
)

// check holds what a block printed against the page.
func (b *block) check(output string) error {
	got := strings.Split(output, endMark)
	if len(got) != len(b.chunks)+1 || got[len(b.chunks)] != "" {
		return fmt.Errorf("%s: got %d answers, want %d:\n%s", b.at, len(got)-1, len(b.chunks), output)
	}
	for i, c := range b.chunks {
		text := position.ReplaceAllString(failed.ReplaceAllString(got[i], ""), "bash: ")
		if !pattern(c.want).MatchString(text) {
			return fmt.Errorf("%s: %s\ngot\n%s\nwant\n%s", b.at,
				strings.Join(c.lines, "\n"), got[i], strings.Join(c.want, "\n"))
		}
		if len(c.want) == 0 && failed.MatchString(got[i]) {
			return fmt.Errorf("%s: a command failed in silence: %s", b.at, got[i])
		}
	}
	return nil
}

// pattern matches what wanted lines stand for, and only that.
func pattern(want []string) *regexp.Regexp {
	p := "^"
	for _, line := range want {
		p += strings.ReplaceAll(regexp.QuoteMeta(line), `\.\.\.`, `.*`) + `\r?\n`
	}
	return regexp.MustCompile(p + "$")
}

func TestCookbook(t *testing.T) {
	names, blocks, err := tasks()
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range names {
		file := "testdata/cookbook/" + name + ".txt"
		session, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(session), "\npage\n") || len(blocks[name]) == 0 {
			t.Errorf("task %s: no session types all that is on the page: %v", name, err)
		}
		files = append(files, file)
	}
	sessions, err := filepath.Glob("testdata/cookbook/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range sessions {
		if !slices.Contains(files, file) {
			t.Errorf("%s is of no task on the page", file)
		}
	}
	run(t, testscript.Params{Files: files})
}

// A machine of a session's own, as host.bash makes it.
type host struct {
	name   string
	netns  string
	holder *exec.Cmd
	stdin  io.Closer
	tag    string
}

// hosts NAME... makes hosts, each with a network namespace and a file tree of
// its own; the daemon and the lines from here on are in the first.
func hosts(ts *testscript.TestScript, neg bool, args []string) {
	netns(ts, neg, args)
	s := stageOf(ts)
	made := map[string]*host{}
	for i, name := range args {
		h := &host{name: name, netns: s.netns[i], tag: ts.Getenv("TAG")}
		root := filepath.Join(s.dir, name)
		ts.Check(os.Mkdir(root, 0o755))
		ts.Check(h.hold(root, ts.Getenv("VMFS")))
		s.env.Defer(h.release)
		made[name] = h
		for to, from := range map[string]string{"/boot/vmlinuz": "KERNEL", "/boot/initrd": "INITRD", "/etc/lib.bash": "BASH_ENV"} {
			ts.Check(h.install(to, strings.NewReader(ts.ReadFile(ts.Getenv(from)))))
		}
	}
	if len(args) == 2 {
		connect(ts, made[args[0]], made[args[1]])
	}
	s.hosts, s.host = made, made[args[0]]
	for name, value := range map[string]string{"MNT": "/vmfs", "STATE": "/var/lib/vmfs", "RUN": "/run/vmfs",
		"IMAGES": "/var/lib/vmfs/images", "KERNEL": "/boot/vmlinuz", "INITRD": "/boot/initrd", "BASH_ENV": "/etc/lib.bash"} {
		ts.Setenv(name, value)
	}
}

func (h *host) hold(root, program string) error {
	script, err := filepath.Abs("testdata/cookbook/host.bash")
	if err != nil {
		return err
	}
	units, err := filepath.Abs("../../scripts/debian")
	if err != nil {
		return err
	}
	h.holder = exec.Command("nsenter", "--net=/run/netns/"+h.netns, "prlimit", "--msgqueue="+h.tag,
		"unshare", "--mount", "--uts", "bash", script, root, h.name, program, units)
	var said bytes.Buffer
	h.holder.Stderr = &said
	if h.stdin, err = h.holder.StdinPipe(); err != nil {
		return err
	}
	stdout, err := h.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := h.holder.Start(); err != nil {
		return err
	}
	line := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, line); err != nil || string(line) != "ready\n" {
		h.release()
		return fmt.Errorf("no host %s: %q, %s", h.name, line, &said)
	}
	return nil
}

func (h *host) release() {
	h.stdin.Close()
	h.holder.Wait()
}

// connect lays a cable between two hosts, and tells each the name of the other.
func connect(ts *testscript.TestScript, a, b *host) {
	lines := "ip link set eth0 up; ip addr add %s/24 dev eth0; echo %s %s %s.example.org >>/etc/hosts"
	ts.Check(a.do("root", "ip link add eth0 type veth peer name eth0 netns "+strconv.Itoa(b.holder.Process.Pid)))
	ts.Check(a.do("root", fmt.Sprintf(lines, "192.0.2.1", "192.0.2.2", b.name, b.name)))
	ts.Check(b.do("root", fmt.Sprintf(lines, "192.0.2.2", "192.0.2.1", a.name, a.name)))
}

// beginSSHD is done when it listens, since sshd itself is done before.
const beginSSHD = `ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
mkdir /run/sshd
/usr/sbin/sshd -f /dev/null -o UsePAM=no -o Subsystem="sftp internal-sftp"
until ss -Hltn sport = :22 | grep -q .; do sleep 0.1; done`

// sshd HOST USER CLIENT lets the user of a client in at a host, and each know
// the other.
func sshd(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 3, "sshd HOST USER CLIENT")
	s := stageOf(ts)
	h, user, client := s.hosts[args[0]], args[1], s.hosts[args[2]]
	ts.Check(h.do("root", beginSSHD))
	ts.Check(client.do(user, `ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/id_ed25519`))
	for _, key := range []struct {
		from, to *host
		user     string
		lines    [2]string
	}{
		{client, h, user, [2]string{"cat ~/.ssh/id_ed25519.pub", "mkdir -m 700 ~/.ssh; cat >~/.ssh/authorized_keys"}},
		{h, client, "root", [2]string{"echo " + h.name + " $(cat /etc/ssh/ssh_host_ed25519_key.pub)", "cat >/etc/ssh/ssh_known_hosts"}},
	} {
		args := key.from.as(key.user, "sh", "-c", key.lines[0])
		text, err := exec.Command(args[0], args[1:]...).Output()
		ts.Check(err)
		args = key.to.as(key.user, "sh", "-c", key.lines[1])
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Stdin = bytes.NewReader(text)
		ts.Check(cmd.Run())
	}
}

// do runs a line there that says nothing.
func (h *host) do(user, line string) error {
	args := h.as(user, "sh", "-c", line)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil || len(out) > 0 {
		return fmt.Errorf("%s: %s: %v: %s", h.name, line, err, out)
	}
	return nil
}

// run is a command there, of which no process is lost.
func (h *host) run(args ...string) []string {
	return slices.Concat([]string{"nsenter", "--target=" + strconv.Itoa(h.holder.Process.Pid),
		"--mount", "--uts", "--net", "--", "prlimit", "--msgqueue=" + h.tag}, args)
}

// as is a command there that somebody typed who has just logged in.
func (h *host) as(user string, args ...string) []string {
	home := "/home/" + user
	if user == "root" {
		home = "/root"
	}
	return h.run(slices.Concat([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups",
		"env", "-i", "-C", home, "HOME=" + home, "USER=" + user, "LOGNAME=" + user, "SHELL=/bin/bash", "LC_ALL=C",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, args)...)
}

// install makes a file there of what r has.
func (h *host) install(path string, r io.Reader) error {
	args := h.run("sh", "-c", `mkdir -p "$(dirname "$1")" && cat >"$1"`, "sh", path)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin = r
	return cmd.Run()
}

// page [N] runs the next N blocks of the page for this session, or all that are
// left.
func page(ts *testscript.TestScript, neg bool, args []string) {
	_, blocks, err := tasks()
	ts.Check(err)
	s := stageOf(ts)
	todo := blocks[ts.Name()][s.paged:]
	if len(args) > 0 {
		n, err := strconv.Atoi(args[0])
		ts.Check(err)
		todo = todo[:n]
	}
	s.paged += len(todo)
	for _, b := range todo {
		h := s.host
		if b.host != "" {
			h = hostOf(ts, b.host)
		}
		began := time.Now()
		output := typed(ts, h.as(b.user, "timeout", "-k", "5", "200", "bash", "-c", b.script(), "bash"))
		ts.Logf("%s: %v\n%s", b.at, time.Since(began).Round(10*time.Millisecond), output)
		ts.Check(b.check(output))
	}
}

// typed is all that a command prints until it ends, which what it left in the
// background need not have done.
func typed(ts *testscript.TestScript, args []string) string {
	out, err := os.CreateTemp(ts.Getenv("WORK"), "typed")
	ts.Check(err)
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	text := ts.ReadFile(out.Name())
	if err != nil {
		ts.Fatalf("%v: it printed\n%s", err, text)
	}
	return text
}

// on HOST[,USER] LINE: the line succeeds there, in silence.
func on(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 2, "on HOST[,USER] LINE")
	name, user, _ := strings.Cut(args[0], ",")
	if user == "" {
		user = "root"
	}
	line := hostOf(ts, name).as(user, "timeout", "-k", "5", "60", "bash", "-c", args[1])
	if got := typed(ts, line); got != "" {
		ts.Fatalf("%s: %s: it printed\n%s", args[0], args[1], got)
	}
}

// install HOST PATH FILE puts a file of the session's there, or one of another
// host's, as HOST:FILE.
func install(ts *testscript.TestScript, neg bool, args []string) {
	arguments(ts, neg, args, 3, "install HOST PATH FILE")
	text := ""
	if from, path, ok := strings.Cut(args[2], ":"); ok {
		text = typed(ts, hostOf(ts, from).as("root", "cat", path))
	} else {
		text = ts.ReadFile(args[2])
	}
	ts.Check(hostOf(ts, args[0]).install(args[1], strings.NewReader(text)))
}

func hostOf(ts *testscript.TestScript, name string) *host {
	h := stageOf(ts).hosts[name]
	if h == nil {
		ts.Fatalf("there is no host %s", name)
	}
	return h
}
