package ctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// format is the version of the form of STATE. A newer one is refused, not
// guessed at.
const format = 1

// What a power cut leaves of STATE. A change is certain when it is answered:
// it was synced, and so was the directory if a name changed. Before that there
// is the old text or the new one, whole: a definition is written beside the
// one that holds (slots.go), and any other file beside the one that it
// replaces, whose place it takes by a rename. What a cut leaves half done is
// not looked at, and goes at the next start of the daemon or is written over.

// replaceFile puts text in the place of dir/name.
func replaceFile(dir, name, text string) error {
	tmp := filepath.Join(dir, name+".new")
	err := writeFile(tmp, text)
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(tmp)
	}
	return err
}

// writeFile writes and syncs a file that nobody looks at yet.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// syncDir makes the names in directories outlast a power cut.
func syncDir(dirs ...string) error {
	for _, dir := range dirs {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		err = d.Sync()
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// saveError turns a failure to write STATE into what a user is told.
func saveError(what string, err error) error {
	if err == nil {
		return nil
	}
	return Errorf(Errno(err), "%s: the state directory: %v", what, err)
}

// serialBlock is how many serial numbers are reserved by one write.
const serialBlock = 1024

// rootState is STATE/vmfs: what is known of no object.
type rootState struct {
	serials uint64 // numbers below are used, or reserved by this process
	boot    string // the boot of the host whose autostart is done
	nodes   map[string]node
	net     map[string]string // of net/, where it is not the default
}

func (r rootState) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "format %d\nserials %d\n", format, r.serials)
	if r.boot != "" {
		fmt.Fprintf(&b, "boot %s\n", r.boot)
	}
	for _, name := range sortedKeys(r.net) {
		fmt.Fprintf(&b, "net %s %s\n", name, r.net[name])
	}
	for _, p := range sortedKeys(r.nodes) {
		fmt.Fprintf(&b, "node %s\n", r.nodes[p].text(p))
	}
	return b.String()
}

func parseRootState(text string) (rootState, error) {
	r := newRootState()
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		key, rest, _ := strings.Cut(line, " ")
		var err error
		switch key {
		case "format":
			var n int
			if n, err = strconv.Atoi(rest); err == nil && n != format {
				err = fmt.Errorf("this program knows format %d, not %d", format, n)
			}
		case "serials":
			err = number(&r.serials, rest)
		case "boot":
			r.boot = rest
		case "node":
			err = parseNode(r.nodes, rest)
		case "net":
			name, value, _ := strings.Cut(rest, " ")
			r.net[name] = value
		default:
			err = syscall.EINVAL
		}
		if err != nil {
			return r, fmt.Errorf("vmfs line %d: %s: %w", i+1, key, err)
		}
	}
	return r, nil
}

// loadRootState reads STATE/vmfs; a directory without one is new.
func loadRootState(dir string) (rootState, error) {
	text, err := os.ReadFile(filepath.Join(dir, "vmfs"))
	if os.IsNotExist(err) {
		r := newRootState()
		r.draw()
		return r, r.save(dir)
	}
	if err != nil {
		return rootState{}, err
	}
	r, err := parseRootState(string(text))
	if err == nil && r.draw() {
		err = r.save(dir)
	}
	return r, err
}

func newRootState() rootState {
	return rootState{serials: 1, nodes: map[string]node{}, net: map[string]string{}}
}

func (r rootState) save(dir string) error {
	if err := replaceFile(dir, "vmfs", r.text()); err != nil {
		return err
	}
	return syncDir(dir)
}
