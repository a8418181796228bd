package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// netns NAME... gives a session network namespaces of its own, each under the
// variable of its name as ip(8) calls it. The daemon and the lines from here
// on are in the first, where lo is up.
func netns(ts *testscript.TestScript, neg bool, args []string) {
	s := stageOf(ts)
	if neg || len(args) == 0 || s.netns != nil {
		ts.Fatalf("usage: netns NAME..., once")
	}
	for _, name := range args {
		own := "vmfs-test-" + ts.Getenv("TAG") + "-" + name
		ts.Check(ts.Exec("ip", "netns", "add", own))
		s.netns = append(s.netns, own)
		ts.Check(ts.Exec("nsenter", "--net=/run/netns/"+own, "bash", "-c", settle))
		ts.Setenv(name, own)
	}
}

const settle = `ip link set lo up && echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad &&
	for f in /proc/sys/net/bridge/bridge-nf-call-ip*tables; do test ! -e $f || echo 0 >$f; done`

// inNetns is a command that runs in the first namespace of a stage, if it has
// one. It sees the mounts of all others, which with ip netns exec it would
// not.
func (s *stage) inNetns(args ...string) []string {
	switch {
	case s.host != nil:
		return s.host.run(args...)
	case s.netns == nil:
		return args
	}
	return append([]string{"nsenter", "--net=/run/netns/" + s.netns[0], "--"}, args...)
}

func (s *stage) removeNetns() {
	for _, name := range s.netns {
		if out, err := exec.Command("ip", "netns", "del", name).CombinedOutput(); err != nil {
			s.env.T().Log("ip netns del ", name, ": ", string(out))
		}
	}
}

// networkTools say what a namespace has, all of it but what traffic changes.
var networkTools = [][]string{
	{"ip", "-d", "link"},
	{"ip", "addr"},
	{"ip", "route", "show", "table", "all"},
	{"bridge", "fdb", "show", "state", "permanent"},
	{"bridge", "-d", "link"},
	{"nft", "list", "ruleset"},
}

// changing is what differs from one moment to the next, or between what was
// never up and what was: the groups to which IPv6 listens.
var changing = regexp.MustCompile(`_timer +[0-9.]+| tentative| state (UP|DOWN|UNKNOWN|LOWERLAYERDOWN)|(?m:^33:33:\S+ dev \S+ self permanent\n)`)

// links lists what the stage's namespaces have, and what priv's records say
// of it.
func (s *stage) links() string {
	var b bytes.Buffer
	for _, name := range s.netns {
		for _, tool := range networkTools {
			args := append([]string{"--net=/run/netns/" + name, "--"}, tool...)
			out, err := exec.Command("nsenter", args...).CombinedOutput()
			fmt.Fprintf(&b, "%s in %s: %v\n%s", strings.Join(tool, " "), name, err, changing.ReplaceAll(out, nil))
		}
	}
	for _, kind := range []string{"link.*", "vrf.*", "nftables"} {
		paths, _ := filepath.Glob(s.run() + "/priv/" + kind)
		for _, path := range paths {
			text, err := os.ReadFile(path)
			fmt.Fprintf(&b, "%s: %v\n%s", path, err, text)
		}
	}
	return b.String()
}
