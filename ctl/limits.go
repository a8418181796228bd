package ctl

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"syscall"
)

// What is limited, in the order of UserAttrs.
const (
	limitVMs    = iota // machines that are defined
	limitCPUs          // of active machines
	limitMemory        // of active machines, in MiB
	limitNICs          // of active machines
	limitCount
)

// amounts are so much of each.
type amounts [limitCount]uint64

// charge is what a launch of a definition counts.
func (d *definition) charge() amounts {
	return chargeOf(d.get, len(d.numbers("nic")))
}

// launchCharge is what the launch that is on record counts.
func (d *definition) launchCharge() amounts {
	if d.launched == nil {
		return d.charge()
	}
	nics := 0
	for n := range MaxNICs {
		if d.launched[nicAttr(n, "mac")] != "" {
			nics++
		}
	}
	return chargeOf(func(attr string) string { return d.launched[attr] }, nics)
}

func chargeOf(get func(attr string) string, nics int) amounts {
	return amounts{
		limitCPUs:   uint64(atoi(get("cpus"))),
		limitMemory: uint64(atoi(strings.TrimSuffix(get("memory"), "M"))),
		limitNICs:   uint64(nics),
	}
}

// owner is who is charged for a machine.
func (vm *VM) owner() uint32 { return vm.def.Load().owner() }

// usage is what a user has. It is added up each time it is asked for, so that
// nothing is left over however a launch ends, and a machine that is given to
// another counts for him at once.
func (m *Manager) usage(uid uint32) (sum amounts) {
	m.vms.each(func(vm *VM) {
		if vm.owner() != uid {
			return
		}
		sum[limitVMs]++
		if c := vm.charged.Load(); c != nil {
			for i, n := range c {
				sum[i] += n
			}
		}
	})
	return sum
}

// allows refuses what would be more than a user may have. What he has too much
// already is no reason against what adds nothing to that. EDQUOT.
func (m *Manager) allows(uid uint32, more amounts) error {
	if unbounded(uid) {
		return nil
	}
	have, most, from := m.usage(uid), defaultLimits, DefaultUser
	if u := m.limitsOf(uid); u != nil {
		most, from = u.limits(), u.Name()
	}
	for i := range more {
		if sum := have[i] + more[i]; more[i] > 0 && sum > limitNumber(most[i]) {
			attr := UserAttrs[i].Name
			return Errorf(syscall.EDQUOT, "%s: %s would have %s: at most %s, says user/%s/%s",
				attr, UserName(uid), limitText(i, sum), most[i], from, attr)
		}
	}
	return nil
}

// unbounded reports whether a user may have what he likes.
func unbounded(uid uint32) bool { return Cred{UID: uid}.Rules() }

// charge counts a launch of a definition for the owner of the machine, or
// refuses it and counts nothing. It counts until over.
func (vm *VM) charge(d *definition) error {
	vm.m.charging.Lock()
	defer vm.m.charging.Unlock()
	more := d.charge()
	if err := vm.m.allows(vm.owner(), more); err != nil {
		return err
	}
	vm.charged.Store(&more)
	return nil
}

// admitVM refuses one machine more than its maker may have. Called with making
// held.
func (m *Manager) admitVM(by Cred, name string) error {
	if err := m.allows(by.UID, amounts{limitVMs: 1}); err != nil {
		return Errorf(Errno(err), "mkdir %s: %v", name, err)
	}
	return nil
}

const unlimited = "max"

func limitNumber(text string) uint64 {
	if text == unlimited {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(strings.TrimSuffix(text, "M"), 10, 64)
	return n
}

func limitText(i int, n uint64) string {
	if i == limitMemory {
		return strconv.FormatUint(n, 10) + "M"
	}
	return strconv.FormatUint(n, 10)
}

// canonCount takes what can be counted to.
func canonCount(s string) (string, error) {
	if s == unlimited {
		return s, nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return "", fmt.Errorf("neither a number nor %s", unlimited)
	}
	return strconv.FormatUint(n, 10), nil
}

// canonSum takes an amount of memory, or none.
func canonSum(s string) (string, error) {
	if s == unlimited {
		return s, nil
	}
	n, err := parseBytes(s)
	if err != nil {
		return "", fmt.Errorf("%w, nor %s", err, unlimited)
	}
	return limitText(limitMemory, n>>20), nil
}
