// Unpack is the role unpack alone, for tests: what restricts all threads of a
// process works only without cgo, which a test under the race detector needs.
package main

import (
	"os"
	"slices"
	"strings"

	"vmfs/priv/confine"
	"vmfs/vmm/unpack"
)

func main() {
	role := confine.Role{Name: "unpack", Default: confine.Deny}
	// The opener's table, without its ways to a file and with a memory file.
	for _, line := range confine.Opener.Calls {
		names := strings.Fields(line.Names)
		if !slices.Contains(names, "openat") && !slices.Contains(names, "readlinkat") {
			role.Calls = append(role.Calls, line)
		}
	}
	role.Calls = append(role.Calls, confine.Calls{Names: "memfd_create", Do: confine.Allow})
	role.Capabilities = confine.Opener.Capabilities
	os.Exit(unpack.Main(os.Args[1:], role))
}
