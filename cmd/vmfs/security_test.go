package main

// docs/security.md says of each line what shows it. These tests hold that what
// it names is there, that no line goes without, and that its table of roles is
// that of package confine. Whether a test shows what the line says is for its
// readers.

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"vmfs/priv/confine"
)

var (
	shownByTest    = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Z]\\w*)`")
	shownBySession = regexp.MustCompile("`session ([a-z0-9/-]+)`")
	aboutTests     = regexp.MustCompile("\\b(?:Test|Fuzz)[A-Z]\\w*|`session\\b")
)

// TestSecurityShown finds every test and session that the page names.
func TestSecurityShown(t *testing.T) {
	tests := map[string][]string{} // of each package
	for i, line := range manual(t, "security.md") {
		found := shownByTest.FindAllStringSubmatch(line, -1)
		for _, m := range found {
			if tests[m[1]] == nil {
				tests[m[1]] = testsOf(t, m[1])
			}
			if !slices.Contains(tests[m[1]], m[2]) {
				t.Errorf("line %d: package %s has no %s", i+1, m[1], m[2])
			}
		}
		sessions := shownBySession.FindAllStringSubmatch(line, -1)
		for _, m := range sessions {
			if _, err := os.Stat(filepath.Join("testdata", m[1]+".txt")); err != nil {
				t.Errorf("line %d: no session %s: %v", i+1, m[1], err)
			}
		}
		if n := len(found) + len(sessions); len(aboutTests.FindAllString(line, -1)) != n {
			t.Errorf("line %d names a test or a session otherwise than as `package.Test` or `session name`: %s", i+1, line)
		}
	}
}

// testsOf are the tests and fuzz targets of the package in a directory, as go
// test would run them.
func testsOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("../..", dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := []string{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				found = append(found, fn.Name.Name)
			}
		}
	}
	return found
}

// TestSecurityLines wants a proof of each line about somebody who owns
// something.
func TestSecurityLines(t *testing.T) {
	owned := strings.Join(manual(t, "security.md").between(t, "## Who owns what", "## "), "\n")
	for _, item := range strings.Split(owned, "\n- ")[1:] {
		item, _, _ = strings.Cut(item, "\n\n")
		if !shownByTest.MatchString(item) && !shownBySession.MatchString(item) {
			t.Errorf("nothing shows this: %s", item)
		}
	}
}

var capability = regexp.MustCompile(`[A-Z][A-Z_]+`)

// TestSecurityRoles holds the table of roles against confine's.
func TestSecurityRoles(t *testing.T) {
	keeps := map[string]string{}
	for _, line := range manual(t, "security.md").between(t, "## Roles", "## ") {
		if cells := strings.Split(line, "|"); len(cells) > 3 {
			keeps[strings.TrimSpace(cells[1])] = cells[3]
		}
	}
	seen := map[string]bool{}
	for _, r := range confine.Roles {
		if seen[r.Name] { // of a daemon without root
			continue
		}
		seen[r.Name] = true
		page, ok := keeps[r.Name]
		if !ok {
			t.Errorf("the page does not have the role %s", r.Name)
			continue
		}
		same(t, "capabilities of "+r.Name, capability.FindAllString(page, -1),
			names(r.Capabilities, func(c confine.Capability) string { return strings.TrimPrefix(c.Name, "CAP_") }))
	}
}
