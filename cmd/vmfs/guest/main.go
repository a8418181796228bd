// The runtime would keep the host's CPU limits open and look at them every
// second. A guest is not that busy.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Vmfs-guest is the role guest of vmfs and nothing else: the process of one
// machine that it runs itself. Installed beside vmfs, it is what vmfs starts
// for such machines; each then has a megabyte less of memory than with the
// whole program. Without it nothing is missing.
package main

import (
	"os"

	"vmfs/vmm"
)

func main() {
	os.WriteFile("/proc/self/comm", []byte("vmfs guest"), 0) // for ps(1)
	os.Exit(vmm.Main(os.Args[2:], nil))                      // vmfs guest ...
}
