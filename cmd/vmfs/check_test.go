package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"vmfs/priv"
)

const allRights = "CapEff:\t000001ffffffffff\nSeccomp:\t0\n"

// goodHost is a host that lacks nothing. A file whose name ends in a slash is
// a directory; one at a config.gz is packed.
func goodHost() map[string]string {
	return map[string]string{
		"/proc/self/status":                    "Name:\tvmfs\n" + allRights,
		"/proc/cpuinfo":                        "flags\t\t: fpu vmx\n",
		"/proc/sys/net/ipv4/ip_forward":        "1\n",
		"/sys/class/misc/kvm/":                 "",
		"/sys/module/kvm_intel/":               "",
		"/sys/module/fuse/":                    "",
		"/lib/modules/6.1.0-1/modules.builtin": "kernel/net/bridge/bridge.ko\n",
		"/lib/modules/6.1.0-1/modules.dep":     "kernel/drivers/net/tun.ko.xz:\nkernel/drivers/net/vrf.ko: kernel/x.ko\n",
		"/boot/config-6.1.0-1":                 "CONFIG_NF_TABLES=y\nCONFIG_NFT_MASQ=y\n",
		"/sys/fs/cgroup/cgroup.controllers":    "cpuset cpu io memory pids\n",
		"/dev/fuse":                            "",
		"/dev/net/tun":                         "",
		"/usr/bin/id":                          "",
		"/usr/bin/fusermount3":                 "",
		"/etc/passwd":                          "root:x:0:0::/:/bin/sh\n_vmfs:x:998:998::/:/bin/false\n",
		"/etc/subuid":                          "anna:100000:65536\n",
		"/var/lib/":                            "",
		"/usr/share/":                          "",
	}
}

// noQEMU is a host on which it is not installed.
func noQEMU(c *checker) {
	c.qemu = func() (string, string, error) { return "", "", fs.ErrNotExist }
}

// checked looks at a host of files as root, or as the tests' user where files
// that would be root's are his.
func checked(t *testing.T, files map[string]string, change func(*checker)) *checker {
	t.Helper()
	c := &checker{
		options: priv.Options{Mount: "/vmfs", State: "/var/lib/vmfs", Run: "/run/vmfs", Images: []string{"/usr/share"}},
		host:    t.TempDir(), root: true, release: "6.1.0-1", coreUID: 998, named: true,
		landlock: func() int { return 2 }, kvm: func() string { return "" }, access: func(string) error { return nil },
		qemu:    func() (string, string, error) { return "/usr/bin/qemu-system-x86_64", "7.2.22", nil },
		mounted: func(string) (priv.Mount, error) { return priv.Mount{}, nil },
		holder:  func(string) string { return "" },
	}
	// Not of who runs the tests, who may be nobody.
	c.refusal = func(bool) error { return c.options.Refusal(false) }
	for path, content := range files {
		if err := putFile(c.host+path, content); err != nil {
			t.Fatal(err)
		}
	}
	if change != nil {
		change(c)
	}
	c.lookAtAll()
	return c
}

// ownDaemon makes it one of who runs the tests.
func ownDaemon(c *checker) {
	c.root, c.own = false, true
	c.daemon, c.coreUID = uint32(os.Getuid()), uint32(os.Getuid())
}

func putFile(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil || strings.HasSuffix(path, "/") {
		return err
	}
	if strings.HasSuffix(path, ".gz") {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		z.Write([]byte(content))
		z.Close()
		content = b.String()
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

func (c *checker) text() string {
	var b strings.Builder
	c.report(&b)
	return b.String()
}

func TestCheckGoodHost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipping a host without a fault: its files are root's")
	}
	c := checked(t, goodHost(), nil)
	if got := c.text(); strings.Contains(got, "warn") || strings.Contains(got, "missing") {
		// Where the tests run, nothing need be a tmpfs.
		if rest := regexp.MustCompile(`(?m)^(ok .*|warn    /run/vmfs: is not on a tmpfs.*)\n`).ReplaceAllString(got, ""); rest != "" {
			t.Errorf("got %s", rest)
		}
	}
	if c.missing() {
		t.Error("something is missing")
	}
}

func TestCheckFindings(t *testing.T) {
	const none = "\x00" // the file is not there
	for _, tt := range []struct {
		name   string
		files  map[string]string
		change func(*checker)
		want   string // the beginning of a line
		also   string // a part of it: what to do
	}{
		{"old kernel", nil, func(c *checker) { c.release = "5.10.0-1" }, "missing kernel: Linux 5.10.0-1 is too old", "linux-image-amd64"},
		{"no seccomp", map[string]string{"/proc/self/status": "CapEff:\t1ffffffffff\n"}, nil, "missing seccomp:", "linux-image"},
		{"no landlock", nil, func(c *checker) { c.landlock = func() int { return 0 } }, "warn    Landlock: is off", "lsm="},
		{"container", map[string]string{"/proc/self/status": "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"}, nil, "missing rights: root has no CAP_SYS_ADMIN", "mounts the tree"},
		{"not root", nil, func(c *checker) { c.root = false }, "warn    rights: could not look", "root's daemon"},
		{"no fuse device", map[string]string{"/dev/fuse": none}, nil, "missing FUSE: /dev/fuse is not there", "container"},
		{"fuse not loaded", map[string]string{"/dev/fuse": none, "/sys/module/fuse/": none, "/lib/modules/6.1.0-1/modules.dep": "kernel/fs/fuse/fuse.ko.zst:\n"}, nil,
			"missing FUSE: /dev/fuse is not there: modprobe fuse", "/etc/modules-load.d/vmfs.conf"},
		{"fuse not built", map[string]string{"/sys/module/fuse/": none}, nil, "missing FUSE: this kernel is built without CONFIG_FUSE_FS", "linux-image-amd64"},
		{"fuse after an update", map[string]string{"/sys/module/fuse/": none, "/boot/config-6.1.0-1": none, "/proc/config.gz": "CONFIG_FUSE_FS=m\n"}, nil, "missing FUSE: the module fuse is not where", "reboot"},
		{"no fusermount3", map[string]string{"/usr/bin/fusermount3": none}, nil, "warn    fusermount3:", "apt install fuse3"},
		{"no QEMU", nil, noQEMU, "warn    QEMU: there is no", "apt install qemu-system-x86"},
		{"no QEMU and pvm", nil, func(c *checker) {
			noQEMU(c)
			c.kvm = func() string { return "kvm_pvm interprets" }
		}, "missing QEMU: there is no", "apt install qemu-system-x86"},
		{"no QEMU and no kvm", map[string]string{"/sys/class/misc/kvm/": none}, noQEMU, "missing QEMU: there is no", "apt install qemu-system-x86"},
		{"old QEMU", nil, func(c *checker) { c.qemu = func() (string, string, error) { return "/q", "5.2.0", nil } }, "missing QEMU: /q is version 5.2.0", "7.2"},
		{"broken QEMU", nil, func(c *checker) { c.qemu = func() (string, string, error) { return "", "", errors.New("no libfoo") } }, "missing QEMU: does not run", "no libfoo"},
		{"kvm not loaded", map[string]string{"/sys/class/misc/kvm/": none, "/sys/module/kvm_intel/": none, "/lib/modules/6.1.0-1/modules.dep": "kernel/arch/x86/kvm/kvm-intel.ko: x\n"}, nil,
			"warn    KVM: the module is not loaded: modprobe kvm_intel", "emulated"},
		{"kvm idle", map[string]string{"/sys/class/misc/kvm/": none}, nil, "warn    KVM: the kernel has kvm_intel", "dmesg"},
		{"no vmx", map[string]string{"/sys/class/misc/kvm/": none, "/proc/cpuinfo": "flags : fpu svmx\n"}, nil, "warn    KVM: the CPU shows no virtualization", "firmware"},
		{"nested", map[string]string{"/sys/class/misc/kvm/": none, "/proc/cpuinfo": "flags : fpu hypervisor\n"}, nil, "warn    KVM: this host is a virtual machine", "nested"},
		{"pvm", nil, func(c *checker) { c.kvm = func() string { return "kvm_pvm interprets" } }, "warn    KVM: kvm_pvm interprets", "emulated"},
		{"kvm closed", nil, func(c *checker) { c.root, c.kvm = false, func() string { return "open /dev/kvm: permission denied" } }, "warn    KVM: could not look", "sudo vmfs check"},
		{"kvm closed to my daemon", nil, func(c *checker) {
			c.root, c.own, c.kvm = false, true, func() string { return "open /dev/kvm: permission denied" }
		}, "warn    KVM: open /dev/kvm: permission denied", "adduser USER kvm"},
		{"my daemon", nil, ownDaemon, "ok      rights: the daemon has those of user", "nic/N/user"},
		{"my daemon without fusermount3", map[string]string{"/usr/bin/fusermount3": none}, ownDaemon, "missing fusermount3:", "apt install fuse3"},
		{"fuse closed to my daemon", nil, func(c *checker) {
			ownDaemon(c)
			c.access = func(string) error { return syscall.EACCES }
		}, "missing FUSE: /dev/fuse: permission denied", "chmod 666 /dev/fuse"},
		{"fuse closed to who looks", nil, func(c *checker) {
			c.root, c.access = false, func(string) error { return syscall.EACCES }
		}, "ok      FUSE:", ""},
		{"my files at the mount point", map[string]string{"/vmfs/precious": ""}, ownDaemon, "missing /vmfs: has files (precious)", "-m"},
		{"my first state", map[string]string{"/var/lib/vmfs/": ""}, ownDaemon, "ok      /var/lib/vmfs: is empty", ""},
		{"my later state", map[string]string{"/var/lib/vmfs/vmfs": ""}, ownDaemon, "ok      /var/lib/vmfs: belongs to user", ""},
		{"my other files", map[string]string{"/var/lib/vmfs/diary": ""}, ownDaemon, "missing /var/lib/vmfs: is no daemon's and not empty (diary)", "-state"},
		{"my run", map[string]string{"/run/vmfs/": ""}, ownDaemon, "ok      /run/vmfs: only user", ""},
		{"no tun", map[string]string{"/dev/net/tun": none}, nil, "warn    taps: /dev/net/tun is not there: modprobe tun", "no NIC"},
		{"no vrf", map[string]string{"/lib/modules/6.1.0-1/modules.dep": "kernel/tun.ko:\n"}, nil, "warn    VRFs: this kernel is built without CONFIG_NET_VRF", "rdomain"},
		{"no masquerade", map[string]string{"/boot/config-6.1.0-1": "CONFIG_NF_TABLES=y\n"}, nil, "warn    nftables: this kernel is built without CONFIG_NFT_MASQ", "nat"},
		{"cannot tell", map[string]string{"/boot/config-6.1.0-1": none}, nil, "warn    nftables: cannot tell", "modprobe nf_tables"},
		{"forwarding", map[string]string{"/proc/sys/net/ipv4/ip_forward": "0\n"}, nil, "warn    forwarding: is off", "sysctl net.ipv4.ip_forward=1"},
		{"cgroup v1", map[string]string{"/sys/fs/cgroup/cgroup.controllers": none}, nil, "warn    cgroup v2: is not", "unified_cgroup_hierarchy"},
		{"cgroup without cpu", map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpuset memory pids\n"}, nil, "warn    cgroup v2: has no cpu here", ""},
		{"no _vmfs", nil, func(c *checker) { c.named, c.coreUID = false, 1899999999 }, "warn    user _vmfs: is not there", "useradd"},
		{"uid", map[string]string{"/etc/passwd": "eve:x:1900000001:1::/:/bin/sh\n"}, nil, "warn    user eve: has uid 1900000001", ""},
		{"subuids", map[string]string{"/etc/subuid": "eve:1899900000:100000\n"}, nil, "warn    user eve: has uids 1899900000", "/etc/subuid"},
		{"bad argument", nil, func(c *checker) { c.options.State = "here" }, "missing arguments: state directory", "absolute"},
		{"a tree", nil, func(c *checker) {
			c.mounted = func(string) (priv.Mount, error) { return priv.Mount{Type: "fuse.vmfs", Run: "/run/vmfs"}, nil }
			c.holder = func(string) string { return "77" }
		}, "ok      /vmfs: served by process 77", ""},
		{"a dead tree", nil, func(c *checker) {
			c.mounted = func(string) (priv.Mount, error) { return priv.Mount{Type: "fuse.vmfs", Run: "/run/vmfs"}, nil }
		}, "warn    /vmfs: the tree of a daemon that is dead", "umount -l /vmfs"},
		{"the cover", nil, func(c *checker) {
			c.mounted = func(string) (priv.Mount, error) { return priv.Mount{Type: "tmpfs", Cover: true}, nil }
		}, "ok      /vmfs: covered", ""},
		{"another mount", nil, func(c *checker) {
			c.mounted = func(string) (priv.Mount, error) { return priv.Mount{Type: "ext4"}, nil }
		}, "warn    /vmfs: a file system (ext4)", "-m"},
		{"files", map[string]string{"/vmfs/precious": ""}, nil, "warn    /vmfs: has files (precious)", "-m"},
		{"a file", map[string]string{"/vmfs": ""}, nil, "missing /vmfs: is not a directory", "-m"},
		{"state of core", map[string]string{"/var/lib/vmfs/": ""}, func(c *checker) { c.coreUID = uint32(os.Getuid()) }, "ok      /var/lib/vmfs: belongs to user", ""},
		{"state is a file", map[string]string{"/var/lib/vmfs": ""}, nil, "missing /var/lib/vmfs: is not a directory", "-state"},
		{"run for all", map[string]string{"/run/vmfs/": ""}, func(c *checker) { os.Chmod(c.host+"/run/vmfs", 0o777) }, "missing /run/vmfs: is not a directory that user 0 alone may write", "chmod go-w"},
		{"images for all", nil, func(c *checker) { os.Chmod(c.host+"/usr/share", 0o777|os.ModeSticky) }, "warn    -images /usr/share: /usr/share ", ""},
		{"no images", nil, func(c *checker) { c.options.Images = []string{"/srv/images"} }, "warn    -images /srv/images: is not there", "mkdir"},
		{"new images", nil, func(c *checker) { c.options.Images = []string{"/var/lib/vmfs/images"} }, "ok      -images /var/lib/vmfs/images: is made at", ""},
		{"no interface", nil, func(c *checker) { c.options.Interfaces = []string{"br0"} }, "warn    -interface br0: this host has no such", "ip link"},
		{"interface", map[string]string{"/sys/class/net/br0/": ""}, func(c *checker) { c.options.Interfaces = []string{"br0"} }, "ok      -interface br0:", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := goodHost()
			for path, content := range tt.files {
				if files[path] = content; content == none {
					delete(files, path)
				}
			}
			got := checked(t, files, tt.change).text()
			for line := range strings.Lines(got) {
				if strings.HasPrefix(line, tt.want) && strings.Contains(line, tt.also) {
					return
				}
			}
			t.Errorf("no line begins with %q and has %q:\n%s", tt.want, tt.also, got)
		})
	}
}

// Only root's files can show who else may change them.
func TestCheckOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipping owners: only root can give files away")
	}
	for _, tt := range []struct {
		name   string
		change func(host string) error
		want   string
	}{
		{"state of another", func(h string) error { return putOwned(h+"/var/lib/vmfs/", 1899999999) }, "missing /var/lib/vmfs: belongs to user 1899999999, and the daemon is user 998 now: chown -R --from=1899999999 998:998 /var/lib/vmfs"},
		{"new state", func(h string) error { return putFile(h+"/var/lib/vmfs/images/", "") }, "ok      /var/lib/vmfs: is empty, and is user 998's"},
		{"full state", func(h string) error { return putFile(h+"/var/lib/vmfs/passwords", "") }, "missing /var/lib/vmfs: is no daemon's and not empty (passwords)"},
		{"images of another", func(h string) error { return os.Chown(h+"/usr/share", 1000, 0) }, "warn    -images /usr/share: /usr/share belongs to user 1000"},
		{"images below another's", func(h string) error { return os.Chown(h+"/usr", 1000, 0) }, "warn    -images /usr/share: /usr belongs to user 1000"},
		{"images of a group", func(h string) error {
			return errors.Join(os.Chown(h+"/usr/share", 0, 1000), os.Chmod(h+"/usr/share", 0o775))
		}, "warn    -images /usr/share: /usr/share can be written by group 1000"},
		{"images below a sticky one", func(h string) error { return os.Chmod(h+"/usr", 0o777|os.ModeSticky) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := checked(t, goodHost(), func(c *checker) {
				if err := tt.change(c.host); err != nil {
					t.Fatal(err)
				}
			})
			if got := c.text(); tt.want != "" && !strings.Contains(got, "\n"+tt.want) || tt.want == "" && strings.Contains(got, "warn    -images") {
				t.Errorf("got\n%swant %q", got, tt.want)
			}
		})
	}
}

func putOwned(path string, uid int) error {
	if err := putFile(path, ""); err != nil {
		return err
	}
	return os.Chown(path, uid, uid)
}

func TestOlder(t *testing.T) {
	for version, want := range map[string]bool{
		"6.1.0-37-amd64": false, "6.0.12": true, "5.19": true, "10.0": false, "6.18.44-fc": false, "": false, "rc": false,
	} {
		if got := older(version, leastLinux); got != want {
			t.Errorf("older(%q) = %v, want %v", version, got, want)
		}
	}
}
