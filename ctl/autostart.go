package ctl

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// autostartWait is how long a start may keep its place from the next machine.
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
		case <-ctx.Done():
			return ctx.Err()
		}
		leave := sync.OnceFunc(func() { <-places })
		late := time.AfterFunc(autostartWait, leave)
		go func() {
			defer leave()
			defer late.Stop()
			if err := vm.start(ctx, "-"); err != nil {
				m.failed("autostart %s: %v", vm.Name(), err)
			}
		}()
	}
	m.making.Lock()
	defer m.making.Unlock()
	r := m.root
	r.boot = m.Boot
	return saveError("autostart", m.setRoot(r))
}
