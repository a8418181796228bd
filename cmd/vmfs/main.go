// The runtime would keep the host's CPU limits open, in guests too, and look
// at them every second. No role is that busy.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Vmfs serves virtual machines as a file tree: mkdir makes one, echo starts
// it, cat watches it. One program is all of its roles; serve starts the
// others, which say in their own packages what they trust and cannot do.
package main

import (
	"fmt"
	"os"

	"vmfs/priv"
	"vmfs/priv/lease"
	"vmfs/vmm"
	"vmfs/vmm/qemu"
	"vmfs/vmm/unpack"
)

const version = "0.1"

const usage = `usage: vmfs serve [-m DIR] [-state DIR] [-run DIR] [-images DIR]... [-interface NAME]... [-network CIDR]...
                  [-cgroup DIR] [-9p ADDR]... [-9p-cert FILE -9p-key FILE -9p-ca FILE] [-9p-root] [-9p-insecure]
       vmfs mount [-allow-other] [-ca FILE] [-cert FILE] [-key FILE] [-name NAME] ADDR DIR
       vmfs console [-m DIR] NAME
       vmfs check [-m DIR] [-state DIR] [-run DIR] [-images DIR]... [-interface NAME]...
       vmfs version
`

func main() {
	verb := ""
	if len(os.Args) > 1 {
		verb = os.Args[1]
	}
	switch verb {
	case "serve":
		os.Exit(serve(os.Args[2:]))
	case "mount":
		os.Exit(mount(os.Args[2:]))
	case "console":
		os.Exit(console(os.Args[2:]))
	case "check":
		os.Exit(check(os.Args[2:]))
	case "version":
		fmt.Println("vmfs", version)

	// The roles that serve starts: each has its socket as descriptor 3.
	case "core":
		rename("vmfs core")
		if err := core(os.Args[2:]); err != nil {
			os.Exit(fail(err))
		}
	case "opener":
		rename("vmfs opener")
		os.Exit(priv.Opener())
	case "whois":
		rename("vmfs whois")
		os.Exit(priv.Whois(os.Args[2:]))
	case "lease":
		rename("vmfs lease")
		os.Exit(lease.Main())
	case "unpack":
		rename("vmfs unpack")
		os.Exit(unpack.Main(os.Args[2:]))
	case "keeper":
		rename("vmfs keeper")
		if err := keeper(os.Args[2:]); err != nil {
			os.Exit(fail(err))
		}
	case "guest":
		rename("vmfs guest")
		os.Exit(vmm.Main(os.Args[2:], &vmm.QEMU{Jail: qemu.Jail, OrdinaryJail: qemu.OrdinaryJail, Start: qemu.Start}))

	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
}

// fail says on standard error why something did not work; the result is the
// exit status.
func fail(err error) int {
	fmt.Fprintf(os.Stderr, "vmfs: %v\n", err)
	return 1
}

// rename makes ps(1) and top(1) show a role by its name: it was executed as
// /proc/self/exe. Where that does not work, nothing is lost.
func rename(name string) { os.WriteFile("/proc/self/comm", []byte(name), 0) }
