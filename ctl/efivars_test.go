package ctl_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A firmware's variables are the machine's own, kept over launches, and begin
// anew with another firmware.
func TestEfivars(t *testing.T) {
	m, vm, host := machine(t)
	ok(t, vm.Set(alice, "kernel", ""))
	firmware := func(template string) string {
		dir := t.TempDir()
		ok(t, os.WriteFile(filepath.Join(dir, "CODE.fd"), []byte("code"), 0o600))
		ok(t, os.WriteFile(filepath.Join(dir, "VARS.fd"), []byte(template), 0o600))
		return filepath.Join(dir, "CODE.fd")
	}
	begin := func(path, want string) string {
		t.Helper()
		ok(t, vm.Do(ctx, root, "clear-failed", ""))
		ok(t, vm.Set(root, "firmware", path))
		ok(t, vm.Do(ctx, root, "start", ""))
		vars := host.Guest(1).Vars()
		got, err := os.ReadFile(vars)
		if err != nil || string(got) != want || !strings.HasPrefix(vars, filepath.Join(m.State, "vm", "web")+"/") {
			t.Fatalf("%s holds %q, %v, want %q", vars, got, err, want)
		}
		ok(t, vm.Do(ctx, root, "kill", ""))
		return vars
	}
	one, two := firmware("template of one"), firmware("template of two")
	vars := begin(one, "template of one")
	ok(t, os.WriteFile(vars, []byte("what was told 1"), 0o600))
	begin(one, "what was told 1")
	begin(two, "template of two")
	if _, err := os.Stat(vars); !os.IsNotExist(err) {
		t.Errorf("the variables of the former firmware: %v", err)
	}
	begin(one, "template of one")

	// The same path, with memory of another size in it.
	ok(t, os.WriteFile(strings.Replace(one, "CODE", "VARS", 1), []byte("larger template"+" of one"), 0o600))
	begin(one, "larger template of one")

	// A BIOS has none.
	ok(t, vm.Do(ctx, root, "clear-failed", ""))
	ok(t, vm.Set(root, "firmware", file(t, "bios.bin", "bios")))
	ok(t, vm.Do(ctx, root, "start", ""))
	if got := host.Guest(1).Vars(); got != "" {
		t.Errorf("a BIOS has variables in %s", got)
	}
	ok(t, vm.Do(ctx, root, "kill", ""))
	if got := vm.Check(ctx); got != "ok\n" {
		t.Errorf("check: %s", got)
	}
}
