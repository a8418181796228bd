package network

import (
	"strings"
	"syscall"

	"github.com/google/nftables"

	"vmfs/ctl"
)

// Most is how much is made, and there at a time. A record of what is gone does
// not count, but is kept until there is no room.
type Most struct {
	Bridges, Taps, VRFs int
	Groups              int // of which sets were made
}

// room makes room for one more bridge or tap. ENOSPC.
func (n *Network) room(sw bool) error {
	most, what := n.options.Most.Taps, "taps"
	if sw {
		most, what = n.options.Most.Bridges, "bridges"
	}
	if n.count(sw) < most {
		return nil
	}
	for _, l := range sorted(n.links) {
		if l.Switch != sw {
			continue
		}
		i, err := n.live(n.links[l])
		if err == nil && i == nil {
			err = n.forget(l)
		}
		if err != nil {
			return err
		}
	}
	if n.count(sw) < most {
		return nil
	}
	return full(most, what)
}

// count is how many records there are of switches, or of NICs.
func (n *Network) count(sw bool) (count int) {
	for l := range n.links {
		if l.Switch == sw {
			count++
		}
	}
	return count
}

// roomInLedger is room for one more set of a family.
func (n *Network) roomInLedger(f nftables.TableFamily) error {
	sets := 0
	for _, line := range n.ledger {
		if strings.HasPrefix(line, made("set", f)+" ") {
			sets++
		}
	}
	if sets < n.options.Most.Groups {
		return nil
	}
	return full(n.options.Most.Groups, "groups")
}

func full(most int, what string) error {
	return ctl.Errorf(syscall.ENOSPC, "%d %s are there, and no more are made", most, what)
}
