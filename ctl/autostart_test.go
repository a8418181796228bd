package ctl_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vmfs/ctl"
	"vmfs/ctl/ctltest"
)

// autostarts makes n machines that start with the host, on a host whose
// starts each wait for a receive from pass; begun counts them.
func autostarts(t *testing.T, n int) (m *ctl.Manager, host *ctltest.Host, begun *atomic.Int32, pass chan struct{}) {
	t.Helper()
	host, begun, pass = ctltest.NewHost(), new(atomic.Int32), make(chan struct{})
	host.Blocking = func(context.Context) { begun.Add(1); <-pass }
	m = open(t, t.TempDir(), host)
	kernel := file(t, "vmlinuz", "kernel")
	for i := range n {
		vm, err := m.Create(root, fmt.Sprintf("vm%03d", i), 0o755, 0)
		ok(t, err)
		ok(t, vm.Edit(root, "autostart yes\nkernel "+kernel+"\n"))
	}
	return m, host, begun, pass
}

// At most as many start at a time as there are CPUs, in the order of their
// names; the next does when one runs, has failed, or keeps its place too long.
func TestAutostartInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cpus := runtime.NumCPU()
		m, host, begun, pass := autostarts(t, 3*cpus+2)
		order := make(chan error, 1)
		go func() { order <- m.Autostart(ctx) }()
		have := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if got := int(begun.Load()); got != want {
				t.Errorf("%s: %d starts were begun, want %d", when, got, want)
			}
			for i, vm := range m.VMs() {
				if begun := !strings.HasPrefix(vm.Status(), "stopped"); begun != (i < want) {
					t.Errorf("%s: %s is %s", when, vm.Name(), vm.Status())
				}
			}
		}
		have("at once", cpus)
		pass <- struct{}{}
		have("when one runs", cpus+1)
		time.Sleep(29 * time.Second)
		have("after 29 s of silence", cpus+1)
		time.Sleep(time.Second)
		have("after 30 s of silence", 2*cpus+1)

		// What hung fails in the end, and does not give up its place twice.
		for range cpus {
			pass <- struct{}{}
		}
		have("when those that hung are let go", 2*cpus+1)
		for range cpus + 1 {
			pass <- struct{}{}
		}
		have("when the next ones run", 3*cpus+2)
		close(pass)
		ok(t, <-order)
		shutDown(t, m, host)
	})
}

// A daemon that ends meanwhile leaves the rest, and the next daemon of the
// same boot starts them.
func TestAutostartGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cpus := runtime.NumCPU()
		m, host, begun, pass := autostarts(t, cpus+1)
		own, cancel := context.WithCancel(ctx)
		stopped := make(chan error, 1)
		go func() { stopped <- m.Autostart(own) }()
		synctest.Wait()
		cancel()
		if err := <-stopped; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
		close(pass)
		synctest.Wait()
		begun.Store(0)
		m.Close()
		m = open(t, m.State, host)
		ok(t, m.Autostart(ctx))
		synctest.Wait()
		if got := int(begun.Load()); got != cpus+1 {
			t.Errorf("%d starts were begun by the next daemon, want %d", got, cpus+1)
		}
		shutDown(t, m, host)
	})
}

// shutDown ends every guest, so that nothing of a Manager runs on.
func shutDown(t *testing.T, m *ctl.Manager, host *ctltest.Host) {
	t.Helper()
	for _, vm := range m.VMs() {
		ok(t, vm.Do(ctx, root, "kill", ""))
	}
	synctest.Wait()
	m.Close()
}
