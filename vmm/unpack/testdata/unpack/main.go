// Unpack is the role unpack alone, for tests: what restricts all threads of a
// process works only without cgo, which a test under the race detector needs.
package main

import (
	"os"

	"vmfs/vmm/unpack"
)

func main() { os.Exit(unpack.Main(os.Args[1:])) }
