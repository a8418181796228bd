package priv

import (
	"io/fs"
	"os"
	"strings"

	"vmfs/priv/confine"
)

// What follows is what a daemon would find on this host, for whoever asks
// before there is one. It needs no privilege and changes nothing.

// NoKVM says why KVM cannot run an ordinary kernel for the caller, "" if it
// can. It opens /dev/kvm, for which the kernel may load a module.
func NoKVM() string { return noKVM("/dev/kvm", "/sys/module/kvm_pvm") }

// FindQEMU finds the QEMU that machines would run with. The error is
// fs.ErrNotExist if there is none, else what is wrong with the last one.
func FindQEMU() (path, version string, err error) {
	err = fs.ErrNotExist
	for _, path := range qemuPaths {
		if _, missing := os.Stat(path); missing != nil {
			continue
		}
		if version, err = askVersion(path); err == nil {
			return path, version, nil
		}
	}
	return "", "", err
}

// CoreUser is the uid that core would have, and whether a user of the host is
// named for it.
func CoreUser() (uid uint32, named bool) {
	uid, _ = coreUser(lookupUser)
	return uid, uid != confine.CoreUID
}

// Mounted tells what is on a mount point, without asking the file system:
// nothing, the cover, a daemon's tree, or something of somebody else's.
func Mounted(point string) (Mount, error) {
	mounts, err := readMounts()
	if err != nil {
		return Mount{}, err
	}
	top := topMount(mounts, point)
	if top == nil {
		return Mount{}, nil
	}
	m := Mount{Type: top.fstype, Cover: top.fstype == coverType && top.source == coverSource}
	if run, ours := strings.CutPrefix(top.source, "vmfs:"); ours && top.fstype == treeType {
		m.Run = run
	}
	return m, nil
}

// Mount is what is mounted on a mount point; its zero value is nothing.
type Mount struct {
	Type  string // of the file system
	Cover bool   // it is the empty directory of a daemon that is away
	Run   string // it is the tree of the daemon with this run directory
}

// Refusal says what keeps a daemon of these options from serving, as far as
// its arguments go, and makes their paths canonical. The daemon is the
// caller's own, or root's, whoever calls.
func (o *Options) Refusal(own bool) error {
	if own {
		return o.check()
	}
	return o.valid()
}

// RootDefaults are the options of root's daemon, whoever asks.
func RootDefaults() Options {
	return Options{Mount: DefaultMount, State: DefaultState, Run: DefaultRun, Images: DefaultImages, Networks: DefaultNetworks}
}
