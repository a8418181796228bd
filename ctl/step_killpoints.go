//go:build killpoints

package ctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The step to stand still at is the content of STATE/killpoint.
func init() {
	atStep = func(state, step string) {
		at, err := os.ReadFile(filepath.Join(state, "killpoint"))
		if err == nil && strings.TrimSpace(string(at)) == step {
			fmt.Fprintf(os.Stderr, "at step %s\n", step)
			select {}
		}
	}
}
