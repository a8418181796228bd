package vmm

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
	"vmfs/vmm/engine"
	"vmfs/vmm/kvm"
	"vmfs/vmm/native"
)

// dropNative gives up everything that is not an open descriptor, for a
// process that runs its machine itself: m gets what it needs before.
func (r role) dropNative(m *machine) error {
	unix.Umask(0o077)
	host, err := nativeHost()
	if err != nil {
		return err
	}
	text := ownText()
	m.boot = func(_ context.Context, s *engine.Spec, tell func(engine.Event)) (engine.Engine, error) {
		// A CPU in the guest keeps its P for a while; devices have others.
		runtime.GOMAXPROCS(s.CPUs + deviceThreads)
		vm, err := native.Start(host, s, tell)
		if err != nil {
			return nil, err
		}
		host.KVM.Close() // it has its own
		host.Rollup.Close()
		time.AfterFunc(shedTime, text.shed)
		return vm, nil
	}
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Native.Capabilities); err != nil {
		return err
	}
	if r.unjailed == "" {
		if err := confine.EmptyRoot(r.jail); err != nil {
			return err
		}
	}
	if err := r.become(nil); err != nil {
		return err
	}
	return confine.Seccomp(confine.Native)
}

// shedTime is when a start is over, and what it needed can go.
const shedTime = 2 * time.Second

// deviceThreads is how many goroutines run beside the CPUs.
const deviceThreads = 2

// nativeHost is what of the host the native engine needs, while it can be
// had.
func nativeHost() (native.Host, error) {
	h := native.Host{KVM: os.NewFile(kvmFD, "/dev/kvm")}
	if h.KVM == nil {
		return h, fmt.Errorf("descriptor %d: no /dev/kvm", kvmFD)
	}
	if _, err := os.Stat("/sys/module/kvm_pvm"); err == nil {
		h.Quirk = kvm.KVMPVM
	}
	var err error
	h.Rollup, err = os.Open("/proc/self/smaps_rollup")
	return h, err
}
