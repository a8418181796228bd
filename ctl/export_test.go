package ctl

import "testing"

// Saved is the definition as STATE has it.
func (o *object) Saved() string { return o.def.Load().text() }

// CreateSwitch is Make of a switch.
func (m *Manager) CreateSwitch(by Cred, name string, mode, gid uint32) (*Switch, error) {
	return m.switches.make(by, name, mode, gid)
}

// Drop closes what the end of the process would.
func (m *Manager) Drop() {
	m.log.mu.Lock()
	defer m.log.mu.Unlock()
	m.log.file.Close()
}

// Process is what a launch asks its host for.
func (l *Launch) Process() Process { return l.process() }

// The form of a definition in STATE.
var (
	ParseSlot = parseSlot
	SlotText  = slotText
)

// ParseResolvers is what of a resolv.conf a guest is told.
var ParseResolvers = parseResolvers

// Resolvers are what guests are told now.
var Resolvers = resolvers

// SetResolvConfs makes other files than the host's say what resolvers it asks,
// for the time of a test.
func SetResolvConfs(t *testing.T, files ...string) {
	was := resolvConfs
	resolvConfs = files
	t.Cleanup(func() { resolvConfs = was })
}
