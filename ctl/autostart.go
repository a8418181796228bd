package ctl

import (
	"context"
	"runtime"
	"time"
)

// autostartWait is how long one machine may keep the next from starting.
const autostartWait = 30 * time.Second

// Autostart starts the machines whose autostart is yes, in the order of their
// names, if that was not done in this boot of the host. As many start at a
// time as there are CPUs, the next when one runs or after autostartWait. It
// returns when all were begun. Where the boot is not known, none does.
func (m *Manager) Autostart(ctx context.Context) error {
	m.mu.RLock()
	done := m.Boot == "" || m.root.boot == m.Boot
	m.mu.RUnlock()
	if done {
		return nil
	}
	places := make(chan struct{}, runtime.NumCPU())
	for _, vm := range m.VMs() {
		if vm.Get("autostart") != "yes" || vm.Active() {
			continue
		}
		select {
		case places <- struct{}{}:
		case <-time.After(autostartWait):
			places = make(chan struct{}, cap(places)) // those that hang keep theirs
			places <- struct{}{}
		case <-ctx.Done():
			return ctx.Err()
		}
		go func(places chan struct{}) {
			defer func() { <-places }()
			if err := vm.start(ctx, "-"); err != nil {
				m.failed("autostart %s: %v", vm.Name(), err)
			}
		}(places)
	}
	m.making.Lock()
	defer m.making.Unlock()
	r := m.root
	r.boot = m.Boot
	return saveError("autostart", m.setRoot(r))
}
