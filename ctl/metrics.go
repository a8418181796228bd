package ctl

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// counters are what metrics counts since the daemon began.
type counters struct {
	starts, failedStarts, ends, failedEnds, reboots, refusals atomic.Uint64
}

// Metrics are every family of metrics there is, for the manual.
var Metrics = []struct{ Name, Type, Help string }{
	{"vmfs", "info", "The program and its version."},
	{"vmfs_uptime_seconds", "gauge", "Time since the daemon began."},
	{"vmfs_machines", "gauge", "Machines by status."},
	{"vmfs_cpus", "gauge", "CPUs of the machines that are active."},
	{"vmfs_memory_bytes", "gauge", "Memory of the machines that are active."},
	{"vmfs_starts", "counter", "Starts that succeeded."},
	{"vmfs_failed_starts", "counter", "Starts that failed."},
	{"vmfs_ends", "counter", "Launches that ended as asked."},
	{"vmfs_failed_ends", "counter", "Launches that ended unasked."},
	{"vmfs_reboots", "counter", "Reboots by guests."},
	{"vmfs_refusals", "counter", "What users were refused."},
	{"vmfs_events", "counter", "Events, over all daemons of this host."},
}

// MetricsText is the text of metrics, in the form of OpenMetrics 1.0. What it
// counts begins anew with each daemon, but for events.
func (m *Manager) MetricsText() string {
	states := map[State]int{}
	cpus, memory := 0, 0
	for _, vm := range m.VMs() {
		vm.mu.Lock()
		state, active := vm.state, vm.launch != nil
		vm.mu.Unlock()
		states[state]++
		if active {
			cpus += atoi(vm.Get("cpus"))
			memory += atoi(strings.TrimSuffix(vm.Get("memory"), "M")) << 20
		}
	}
	var b strings.Builder
	for _, f := range Metrics {
		fmt.Fprintf(&b, "# TYPE %s %s\n# HELP %s %s\n", f.Name, f.Type, f.Name, f.Help)
		switch f.Name {
		case "vmfs":
			fmt.Fprintf(&b, "vmfs_info{version=%q} 1\n", m.Options.Version)
		case "vmfs_uptime_seconds":
			fmt.Fprintf(&b, "vmfs_uptime_seconds %.3f\n", time.Since(m.started).Seconds())
		case "vmfs_machines":
			for _, s := range []State{Stopped, Starting, Running, Paused, Stopping, Failed} {
				fmt.Fprintf(&b, "vmfs_machines{status=%q} %d\n", s, states[s])
			}
		case "vmfs_cpus":
			fmt.Fprintf(&b, "vmfs_cpus %d\n", cpus)
		case "vmfs_memory_bytes":
			fmt.Fprintf(&b, "vmfs_memory_bytes %d\n", memory)
		case "vmfs_events":
			fmt.Fprintf(&b, "vmfs_events_total %d\n", m.log.count())
		default:
			fmt.Fprintf(&b, "%s_total %d\n", f.Name, m.counter(f.Name).Load())
		}
	}
	return b.String() + "# EOF\n"
}

func (m *Manager) counter(name string) *atomic.Uint64 {
	return map[string]*atomic.Uint64{
		"vmfs_starts":        &m.count.starts,
		"vmfs_failed_starts": &m.count.failedStarts,
		"vmfs_ends":          &m.count.ends,
		"vmfs_failed_ends":   &m.count.failedEnds,
		"vmfs_reboots":       &m.count.reboots,
		"vmfs_refusals":      &m.count.refusals,
	}[name]
}
