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

// replaceFile puts text in the place of dir/name so that after a power cut
// the old text is there or the new one.
func replaceFile(dir, name, text string) error {
	tmp := filepath.Join(dir, name+".new")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
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
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(tmp)
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
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

// rootState is STATE/vmfs: what is known of no machine.
type rootState struct {
	serials uint64 // numbers below are used, or reserved by this process
	boot    string // the boot of the host whose autostart is done
	nodes   map[string]node
}

func (r rootState) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "format %d\nserials %d\n", format, r.serials)
	if r.boot != "" {
		fmt.Fprintf(&b, "boot %s\n", r.boot)
	}
	for _, p := range sortedKeys(r.nodes) {
		fmt.Fprintf(&b, "node %s\n", r.nodes[p].text(p))
	}
	return b.String()
}

func parseRootState(text string) (rootState, error) {
	r := rootState{nodes: map[string]node{}}
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
		r := rootState{serials: 1, nodes: map[string]node{}}
		return r, replaceFile(dir, "vmfs", r.text())
	}
	if err != nil {
		return rootState{}, err
	}
	return parseRootState(string(text))
}
