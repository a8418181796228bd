// Guest is the role guest alone, for tests that play priv and core: what
// restricts all threads of a process works only without cgo, which a test
// under the race detector needs.
package main

import (
	"os"

	"vmfs/vmm"
)

func main() { os.Exit(vmm.Main(os.Args[1:])) }
