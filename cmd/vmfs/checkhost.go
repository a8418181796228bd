package main

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
)

// What check finds of the kernel, the programs and the users of a host.

// The least that vmfs runs on, as the manual says.
var (
	leastLinux = [2]int{6, 1}
	leastQEMU  = [2]int{7, 2}
)

// kernelRelease is what uname -r says.
func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// older reports whether a version is less than one that is needed; one that
// is not understood is not.
func older(version string, least [2]int) bool {
	var got [2]int
	if n, _ := fmt.Sscanf(version, "%d.%d", &got[0], &got[1]); n < 2 {
		return false
	}
	return got[0] < least[0] || got[0] == least[0] && got[1] < least[1]
}

// landlockVersion asks the kernel, which makes nothing for it.
func landlockVersion() int {
	const versionFlag = 1 // LANDLOCK_CREATE_RULESET_VERSION
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, versionFlag)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func (c *checker) lookAtKernel() {
	if older(c.release, leastLinux) {
		c.lacks("kernel", "Linux %s is too old, %d.%d is needed: apt install linux-image-amd64, then reboot", c.release, leastLinux[0], leastLinux[1])
	} else {
		c.ok("kernel", "Linux %s", c.release)
	}
	if strings.Contains(c.read("/proc/self/status"), "\nSeccomp:") {
		c.ok("seccomp", "is there")
	} else {
		c.lacks("seccomp", "this kernel is built without it, and no process of vmfs runs without: apt install linux-image-amd64, then reboot")
	}
	if v := c.landlock(); v > 0 {
		c.ok("Landlock", "version %d", v)
	} else {
		c.warn("Landlock", "is off, so one of two fences around the daemon is not there: add landlock to lsm= on the kernel's command line")
	}
}

// lookAtRights compares what root has here with what the daemon keeps: in a
// container it may be less.
func (c *checker) lookAtRights() {
	switch {
	case c.own:
		c.ok("rights", "the daemon has those of user %d: nobody else sees the tree, and a NIC is on no switch of the host's, but QEMU's network (nic/N/user)", c.daemon)
		return
	case !c.root:
		c.warn("rights", "could not look: this is about root's daemon, and you are user %d; vmfs check -m DIR is about one of yours", os.Geteuid())
		return
	}
	var has uint64
	for line := range strings.Lines(c.read("/proc/self/status")) {
		if set, ok := strings.CutPrefix(line, "CapEff:"); ok {
			has, _ = strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		}
	}
	all := true
	for _, k := range confine.Priv.Capabilities {
		if has&(1<<k.Bit) == 0 {
			all = false
			c.lacks("rights", "root has no %s here (%s): is this a container? It must be given that", k.Name, k.Why)
		}
	}
	if all {
		c.ok("rights", "root has the capabilities that the daemon keeps")
	}
	if !c.has("/usr/bin/id") {
		c.lacks("id", "/usr/bin/id is not there, which tells the groups of users: apt install coreutils")
	}
}

// A module is a part of the kernel that vmfs needs.
type module struct{ name, config string }

// How the kernel has a module.
const (
	present    = "present"   // now
	loadable   = "loadable"  // it is on the disk
	uprooted   = "uprooted"  // the kernel was built with it, the file is gone
	notBuilt   = "not built" // the kernel was built without it
	untellable = "untellable"
)

// hasModule tells how the kernel has a module. It goes by files alone: to use a
// module would be to load it.
func (c *checker) hasModule(m module) string {
	if c.has("/sys/module/" + m.name) {
		return present
	}
	lib := "/lib/modules/" + c.release
	if c.listsModule(lib+"/modules.builtin", m.name) {
		return present
	}
	if c.listsModule(lib+"/modules.dep", m.name) {
		return loadable
	}
	switch value, known := c.config(m.config); {
	case !known:
		return untellable
	case value == "y":
		return present
	case value == "m":
		return uprooted
	}
	return notBuilt
}

// listsModule reports whether a list of files, such as modules.dep, has a
// module's at the beginning of a line.
func (c *checker) listsModule(list, name string) bool {
	for line := range strings.Lines(c.read(list)) {
		file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		base, _, isModule := strings.Cut(file[strings.LastIndexByte(file, '/')+1:], ".ko")
		if isModule && strings.ReplaceAll(base, "-", "_") == name {
			return true
		}
	}
	return false
}

// config is the value of an option that the kernel was built with, "" if it
// is off; it is not known where the kernel's configuration cannot be read.
func (c *checker) config(option string) (value string, known bool) {
	text, err := c.readGzip("/proc/config.gz")
	if err != nil {
		plain, err := os.ReadFile(c.path("/boot/config-" + c.release))
		if err != nil {
			return "", false
		}
		text = string(plain)
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, option+"="); ok {
			return strings.TrimSpace(value), true
		}
	}
	return "", true
}

func (c *checker) readGzip(path string) (string, error) {
	const most = 4 << 20
	f, err := os.Open(c.path(path))
	if err != nil {
		return "", err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(z, most))
	return string(text), err
}

// why says in words what to do about a module that is not there.
func why(m module, how string) string {
	switch how {
	case uprooted:
		return fmt.Sprintf("the module %s is not where the running kernel looks for it, as after an update of the kernel: reboot", m.name)
	case notBuilt:
		return fmt.Sprintf("this kernel is built without %s: apt install linux-image-amd64, then reboot into it", m.config)
	}
	return fmt.Sprintf("cannot tell whether this kernel has it; modprobe %s would", m.name)
}

// deviceTrouble says why the device of a module cannot be used, "" if it can.
func (c *checker) deviceTrouble(m module, node string) string {
	how := c.hasModule(m)
	switch {
	case how == present && c.has(node), how == loadable && c.has(node):
		return ""
	case how == present:
		return fmt.Sprintf("%s is not there, though the kernel has the device: in a container, it must be given it", node)
	case how == loadable:
		return fmt.Sprintf("%s is not there: modprobe %s; and for the next boots, echo %s >/etc/modules-load.d/vmfs.conf", node, m.name, m.name)
	}
	return why(m, how)
}

func (c *checker) lookAtFUSE() {
	if trouble := c.deviceTrouble(module{"fuse", "CONFIG_FUSE_FS"}, "/dev/fuse"); trouble != "" {
		c.lacks("FUSE", "%s", trouble)
	} else if err := c.access(c.path("/dev/fuse")); c.own && err != nil {
		c.lacks("FUSE", "/dev/fuse: %v, and fusermount3 opens it as you: chmod 666 /dev/fuse, as it is where udev makes it", err)
	} else {
		c.ok("FUSE", "/dev/fuse is there")
	}
	switch {
	case c.has("/usr/bin/fusermount3") || c.has("/bin/fusermount3"):
		c.ok("fusermount3", "is there, for those who are not root")
	case c.own:
		c.lacks("fusermount3", "is not there, and only root can mount without: apt install fuse3")
	default:
		c.warn("fusermount3", "is not there, and only root can mount without: apt install fuse3")
	}
}

func (c *checker) lookAtQEMU() {
	path, version, err := c.qemu()
	switch {
	case errors.Is(err, fs.ErrNotExist) && c.has("/sys/class/misc/kvm") && c.kvm() == "":
		c.warn("QEMU", "there is no qemu-system-x86_64 in /usr/bin or /usr/local/bin; without it the native engine runs what it can, and no machine "+
			"with a firmware, a cdrom, a qcow2 disk or no kernel: apt install qemu-system-x86")
	case errors.Is(err, fs.ErrNotExist):
		c.lacks("QEMU", "there is no qemu-system-x86_64 in /usr/bin or /usr/local/bin: apt install qemu-system-x86")
	case err != nil:
		c.lacks("QEMU", "does not run: %v", err)
	case older(version, leastQEMU):
		c.lacks("QEMU", "%s is version %s, and %d.%d is needed: apt install qemu-system-x86", path, version, leastQEMU[0], leastQEMU[1])
	default:
		c.ok("QEMU", "version %s, %s", version, path)
	}
}

const emulated = "machines run all the same, with an emulated CPU, many times slower"

// lookAtKVM tells which kind of KVM is here, if any.
func (c *checker) lookAtKVM() {
	if !c.has("/sys/class/misc/kvm") {
		c.warn("KVM", "%s; %s", c.noKVM(), emulated)
		return
	}
	trouble := c.kvm()
	switch {
	case trouble == "":
		c.ok("KVM", "/dev/kvm runs an ordinary kernel (%s)", c.kvmKind())
	case c.own && strings.HasSuffix(trouble, fs.ErrPermission.Error()):
		c.warn("KVM", "%s: sudo adduser USER kvm, then log in again; until then %s", trouble, emulated)
	case !c.root && strings.HasSuffix(trouble, fs.ErrPermission.Error()):
		c.warn("KVM", "could not look: %s, which is nothing to root's daemon; root sees more: sudo vmfs check", trouble)
	default:
		c.warn("KVM", "%s; %s", trouble, emulated)
	}
}

func (c *checker) kvmKind() string {
	for _, kind := range []string{"kvm_intel", "kvm_amd"} {
		if c.has("/sys/module/" + kind) {
			return kind
		}
	}
	return "of an unknown kind"
}

// noKVM says why the kernel shows no KVM.
func (c *checker) noKVM() string {
	flags := ""
	for line := range strings.Lines(c.read("/proc/cpuinfo")) {
		if strings.HasPrefix(line, "flags") {
			flags = line + " "
			break
		}
	}
	kind, config := "", ""
	switch words := " " + strings.Join(strings.Fields(flags), " ") + " "; {
	case strings.Contains(words, " vmx "):
		kind, config = "kvm_intel", "CONFIG_KVM_INTEL"
	case strings.Contains(words, " svm "):
		kind, config = "kvm_amd", "CONFIG_KVM_AMD"
	case strings.Contains(words, " hypervisor "):
		return "this host is a virtual machine whose CPU shows no virtualization: nested virtualization is switched on outside"
	default:
		return "the CPU shows no virtualization: it is switched on in the firmware's setup, where it is called VT-x, SVM or AMD-V"
	}
	m := module{kind, config}
	switch how := c.hasModule(m); how {
	case loadable:
		return "the module is not loaded: modprobe " + kind
	case present:
		return "the kernel has " + kind + ", which found nothing to work with: dmesg says why"
	default:
		return why(m, how)
	}
}

// lookAtNetwork looks at what NICs and switches are made of. A machine
// without a NIC needs none of it.
func (c *checker) lookAtNetwork() {
	if trouble := c.deviceTrouble(module{"tun", "CONFIG_TUN"}, "/dev/net/tun"); trouble != "" {
		c.warn("taps", "%s; until then no NIC can be on a switch or local", trouble)
	} else {
		c.ok("taps", "/dev/net/tun is there")
	}
	c.lookAtModule("bridges", module{"bridge", "CONFIG_BRIDGE"}, "no switch can be up")
	c.lookAtModule("VRFs", module{"vrf", "CONFIG_NET_VRF"}, "no switch and no NIC can have an rdomain")
	for _, m := range []module{{"nf_tables", "CONFIG_NF_TABLES"}, {"nft_masq", "CONFIG_NFT_MASQ"}} {
		c.lookAtModule("nftables", m, "a switch's nat and all groups do not work")
	}
	if c.read("/proc/sys/net/ipv4/ip_forward") == "0\n" {
		c.warn("forwarding", "is off, so no guest reaches beyond this host by a switch's nat: sysctl net.ipv4.ip_forward=1")
	} else {
		c.ok("forwarding", "is on")
	}
}

func (c *checker) lookAtModule(about string, m module, without string) {
	switch how := c.hasModule(m); how {
	case present:
		c.ok(about, "the kernel has %s", m.name)
	case loadable:
		c.ok(about, "%s is there, and is loaded when it is first used", m.name)
	default:
		c.warn(about, "%s; until then %s", why(m, how), without)
	}
}

// lookAtCgroups wants version 2 at its usual place, with what bounds a guest.
func (c *checker) lookAtCgroups() {
	controllers := c.read("/sys/fs/cgroup/cgroup.controllers")
	if !c.has("/sys/fs/cgroup/cgroup.controllers") {
		c.warn("cgroup v2", "is not what is mounted on /sys/fs/cgroup, so nothing bounds what a guest's process uses: "+
			"boot with systemd.unified_cgroup_hierarchy=1, the default since Debian 11")
		return
	}
	var lack []string
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !strings.Contains(" "+strings.TrimSpace(controllers)+" ", " "+name+" ") {
			lack = append(lack, name)
		}
	}
	if lack != nil {
		c.warn("cgroup v2", "has no %s here: version 1 or the host outside of this container keeps it", strings.Join(lack, ", "))
		return
	}
	c.ok("cgroup v2", "has cpu, memory and pids")
}

// lookAtUsers looks for the daemon's own user, and for users who would be
// taken for a guest.
func (c *checker) lookAtUsers() {
	st, err := lstat(c.path(c.options.State))
	switch {
	case c.named:
		c.ok("user _vmfs", "is there, uid %d", c.coreUID)
	case err == nil && st.Uid == c.coreUID:
		c.ok("user _vmfs", "is not there, and uid %d serves, to whom %s belongs", c.coreUID, c.options.State)
	default:
		c.warn("user _vmfs", "is not there, so uid %d serves: before the first start, useradd --system --user-group --no-create-home _vmfs", c.coreUID)
	}
	for line := range strings.Lines(c.read("/etc/passwd")) {
		f := strings.Split(line, ":")
		if len(f) > 2 && overlaps(f[2], "1") && f[0] != "_vmfs" {
			c.warn("user "+f[0], "has uid %s, which a guest of vmfs may have: no user may have one from %d on", f[2], confine.WhoisUID)
		}
	}
	for line := range strings.Lines(c.read("/etc/subuid")) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && overlaps(f[1], f[2]) {
			c.warn("user "+f[0], "has uids %s and on in /etc/subuid, which guests of vmfs may have: none may be from %d on", f[1], confine.WhoisUID)
		}
	}
}

// overlaps reports whether one of count uids from first on may be one of
// vmfs's own.
func overlaps(first, count string) bool {
	from, err1 := strconv.ParseUint(first, 10, 32)
	n, err2 := strconv.ParseUint(count, 10, 32)
	return err1 == nil && err2 == nil && n > 0 && from+n > confine.WhoisUID
}
