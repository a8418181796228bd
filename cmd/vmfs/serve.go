package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"vmfs/priv"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// serve is the daemon: this process is the role priv.
func serve(args []string) int {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	defaults := priv.Defaults()
	o := priv.Options{Version: version}
	flags.StringVar(&o.Mount, "m", defaults.Mount, "")
	flags.StringVar(&o.State, "state", defaults.State, "")
	flags.StringVar(&o.Run, "run", defaults.Run, "")
	flags.Var((*list)(&o.Images), "images", "")
	flags.Var((*list)(&o.Interfaces), "interface", "")
	flags.Var((*list)(&o.Networks), "network", "")
	flags.StringVar(&o.Cgroup, "cgroup", "", "")
	flags.Var((*list)(&o.NineP.Addrs), "9p", "")
	flags.StringVar(&o.NineP.Cert, "9p-cert", "", "")
	flags.StringVar(&o.NineP.Key, "9p-key", "", "")
	flags.StringVar(&o.NineP.CA, "9p-ca", "", "")
	flags.BoolVar(&o.NineP.Root, "9p-root", false, "")
	flags.BoolVar(&o.NineP.Insecure, "9p-insecure", false, "")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vmfs: serve: %q is too much\n%s", flags.Arg(0), usage)
		return 2
	}
	if o.Images == nil {
		o.Images = defaults.Images
	}
	if o.Networks == nil {
		o.Networks = defaults.Networks
	}
	err := checkTLS(o.NineP)
	if err == nil {
		err = priv.Serve(o)
	}
	if err != nil {
		return fail(err)
	}
	return 0
}
