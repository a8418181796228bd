package ctl

import (
	"crypto/rand"
	"net"
	"sync"
	"syscall"
	"time"
)

// macs knows which machine has which MAC: none is on two NICs of the host.
type macs struct {
	mu sync.Mutex
	of map[string]*VM
}

// macTries is how many MACs are drawn for a NIC at most, of the 65536 that
// its number can have.
const macTries = 4096

// draw makes a MAC for NIC n that no other has, as vmd does: fe:e1:bb:dX and
// two bytes, X being the number of the NIC.
func (m *macs) draw(d *definition, n int) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	mac := net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd0 | byte(n+1)&0xf, 0, 0}
	for range macTries {
		rand.Read(mac[4:])
		if _, taken := d.hasMAC(mac.String()); !taken && m.of[mac.String()] == nil {
			return mac.String(), nil
		}
	}
	return "", Errorf(syscall.ENOSPC, "nic/%d/mac: no free address was found; set one", n)
}

// hasMAC finds the NIC of a definition that has a MAC.
func (d *definition) hasMAC(mac string) (n int, ok bool) {
	for _, n := range d.numbers("nic") {
		if d.get(nicAttr(n, "mac")) == mac {
			return n, true
		}
	}
	return 0, false
}

// drawMACs gives each NIC without a MAC one, for good.
func (m *macs) drawMACs(d *definition, by Cred, now time.Time) error {
	for _, n := range d.numbers("nic") {
		path := nicAttr(n, "mac")
		if d.get(path) != "" {
			continue
		}
		mac, err := m.draw(d, n)
		if err != nil {
			return err
		}
		d.attrs[path] = value{mac, by.UID, now}
	}
	return nil
}

// change notes the MACs that a machine has now in the place of those it had.
// EEXIST names who has one.
func (m *macs) change(vm *VM, was, now *definition) (undo func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := map[string]int{}
	for _, n := range now.numbers("nic") {
		mac := now.get(nicAttr(n, "mac"))
		if other, twice := seen[mac]; twice {
			return nil, Errorf(syscall.EEXIST, "nic/%d/mac: nic/%d has %s", n, other, mac)
		}
		if other := m.of[mac]; other != nil && other != vm {
			at, _ := other.def.Load().hasMAC(mac)
			return nil, Errorf(syscall.EEXIST, "nic/%d/mac: nic/%d of machine %s has %s", n, at, other.Name(), mac)
		}
		seen[mac] = n
	}
	m.swap(vm, was, now)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.swap(vm, now, was)
	}, nil
}

// note is change of what is so: of a machine that was found, or removed.
func (m *macs) note(vm *VM, was, now *definition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.swap(vm, was, now)
}

// swap takes the MACs of was from a machine and gives it those of now that
// no other has, nil having none. Called with mu held.
func (m *macs) swap(vm *VM, was, now *definition) {
	if m.of == nil {
		m.of = make(map[string]*VM)
	}
	if was != nil {
		for _, n := range was.numbers("nic") {
			if mac := was.get(nicAttr(n, "mac")); m.of[mac] == vm {
				delete(m.of, mac)
			}
		}
	}
	if now != nil {
		for _, n := range now.numbers("nic") {
			if mac := now.get(nicAttr(n, "mac")); m.of[mac] == nil {
				m.of[mac] = vm
			}
		}
	}
}

// holder is the machine that has a MAC.
func (m *macs) holder(mac string) *VM {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.of[mac]
}
