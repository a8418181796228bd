// Role is the role lease as a program of its own, for the tests.
package main

import (
	"os"

	"vmfs/priv/lease"
)

func main() { os.Exit(lease.Main()) }
