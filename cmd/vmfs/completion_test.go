package main

// The completions are held against the flags by running them, in their own
// shells, and looking at what they offer.

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const completions = "../../scripts/completion/"

// commandNames are those of the usage.
func commandNames() []string {
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^(?:usage:)? +vmfs (\w+)`).FindAllStringSubmatch(usage, -1) {
		names = append(names, m[1])
	}
	return names
}

// run gives a script to a shell that reads no file of its user's.
func runShell(t *testing.T, shell []string, script string) string {
	t.Helper()
	if _, err := exec.LookPath(shell[0]); err != nil {
		t.Skipf("skipping the completion of %s: %v (package %s)", shell[0], err, shell[0])
	}
	cmd := exec.Command(shell[0], append(shell[1:], "-c", script)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", shell[0], err, out)
	}
	return string(out)
}

// bashOffers is what bash offers for the last of some words.
func bashOffers(t *testing.T, words ...string) []string {
	t.Helper()
	script := "source " + completions + "vmfs; COMP_WORDS=("
	for _, w := range words {
		script += " '" + w + "'"
	}
	script += "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _vmfs; printf '%s\\n' \"${COMPREPLY[@]}\""
	return strings.Fields(runShell(t, []string{"bash", "--norc", "--noprofile"}, script))
}

func TestBashCompletion(t *testing.T) {
	same(t, "vmfs <TAB>", bashOffers(t, "vmfs", ""), commandNames())
	taken := flagSets(t)
	for _, c := range commandNames() {
		var flags []string
		for _, f := range taken[c] {
			flags = append(flags, "-"+f)
		}
		same(t, "vmfs "+c+" -<TAB>", bashOffers(t, "vmfs", c, "-"), flags)
	}
	same(t, "vmfs c<TAB>", bashOffers(t, "vmfs", "c"), []string{"console", "check"})
	if got := bashOffers(t, "vmfs", "serve", "-interface", "l"); !slices.Contains(got, "lo") {
		t.Errorf("vmfs serve -interface l<TAB>: got %q, want lo among them", got)
	}
}

// Machines are those of a tree; a name that a shell would execute is none.
func TestBashCompletesMachines(t *testing.T) {
	tree := t.TempDir()
	for _, d := range []string{"live/vm", "vm/web", "vm/web2", "vm/db", "vm/$(touch OWNED)", "vm/`touch OWNED`"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "machines", bashOffers(t, "vmfs", "console", "-m", tree, ""), []string{"web", "web2", "db"})
	same(t, "machines", bashOffers(t, "vmfs", "console", "-m", tree, "w"), []string{"web", "web2"})
	if got := bashOffers(t, "vmfs", "console", "-m", tree+"/vm", ""); len(got) > 0 {
		t.Errorf("a directory that is no tree: got %q", got)
	}
	if _, err := os.Stat("OWNED"); err == nil {
		os.Remove("OWNED")
		t.Error("the name of a machine was executed")
	}
}

// zshOffers runs the completion with its last step replaced by one that
// prints what it would offer.
func zshOffers(t *testing.T, words ...string) string {
	t.Helper()
	return runShell(t, []string{"zsh", "-f"}, `
		typeset -A opt_args
		_arguments() { print -rl -- "$@" }
		_describe() { print -rl -- ${(P)2} }
		words=(`+strings.Join(words, " ")+` ''); CURRENT=$#words
		source `+completions+`_vmfs`)
}

func TestZshCompletion(t *testing.T) {
	var offered []string
	for line := range strings.Lines(zshOffers(t, "vmfs")) {
		word, _, _ := strings.Cut(line, ":")
		offered = append(offered, word)
	}
	same(t, "vmfs <TAB>", offered, commandNames())
	taken := flagSets(t)
	for _, c := range commandNames() {
		var flags []string
		for _, m := range regexp.MustCompile(`(?m)^\*?-([\w-]+)\[`).FindAllStringSubmatch(zshOffers(t, "vmfs", c), -1) {
			flags = append(flags, m[1])
		}
		same(t, "vmfs "+c+" -<TAB>", flags, taken[c])
	}
}
