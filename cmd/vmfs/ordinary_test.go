package main_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
)

// An ordinaryUser is who a session is from "ordinary" on.
type ordinaryUser struct {
	uid, gid int
	home     string
	holder   *exec.Cmd // holds the mount namespace that he is in
	confined []string  // how his commands begin, where the host lets him do less
}

// ordinary USER [nousers] makes the lines of a session, and its daemon, a user's, who has
// a home and what a login gives him besides: nothing of it is in root's hands,
// and the daemon is told no more than where to mount. With nousers nobody makes
// a user namespace.
func ordinary(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) == 2 && args[1] != "nousers" {
		ts.Fatalf("usage: ordinary USER [nousers]")
	}
	s := stageOf(ts)
	u, err := user.Lookup(args[0])
	ts.Check(err)
	o := &ordinaryUser{home: s.dir + "/home", confined: args[1:]}
	o.uid, err = strconv.Atoi(u.Uid)
	ts.Check(err)
	o.gid, err = strconv.Atoi(u.Gid)
	ts.Check(err)
	for _, dir := range []string{o.home, s.dir + "/xdg"} {
		ts.Check(os.Mkdir(dir, 0o700))
		ts.Check(os.Chown(dir, o.uid, o.gid))
	}
	lib := s.dir + "/lib.bash" // the sources may be where he cannot read
	ts.Check(copyFile(lib, ts.Getenv("BASH_ENV")))
	for name, value := range map[string]string{
		"HOME": o.home, "XDG_RUNTIME_DIR": s.dir + "/xdg", "XDG_STATE_HOME": "", "BASH_ENV": lib,
		"MNT": o.home + "/vm", "STATE": o.home + "/.local/state/vmfs", "RUN": s.dir + "/xdg/vmfs", "IMAGES": o.home,
	} {
		ts.Setenv(name, value)
	}
	ts.Check(o.hold(s.dir))
	s.user = o
}

// everybodysFUSE is a mount namespace in which /dev/fuse is everybody's, as it
// is on a host with udev.
const everybodysFUSE = `test $(stat -c %a /dev/fuse) = 666 || {
	mknod -m 666 "$0/fuse" c 10 229 && mount --bind "$0/fuse" /dev/fuse; } && echo held && exec sleep infinity`

func (o *ordinaryUser) hold(dir string) error {
	o.holder = exec.Command("unshare", "-m", "bash", "-c", everybodysFUSE, dir)
	o.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	o.holder.Stderr = os.Stderr
	said, err := o.holder.StdoutPipe()
	if err != nil {
		return err
	}
	if err := o.holder.Start(); err != nil {
		return err
	}
	if line, _ := bufio.NewReader(said).ReadString('\n'); line != "held\n" {
		return fmt.Errorf("no mount namespace: %q", line)
	}
	return nil
}

func (o *ordinaryUser) release() {
	if o == nil {
		return
	}
	o.holder.Process.Kill()
	o.holder.Wait()
}

// as is a command that runs as the user, if there is one.
func (o *ordinaryUser) as(args []string) []string {
	if o == nil {
		return args
	}
	return slices.Concat([]string{"nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", o.holder.Process.Pid), "--"}, o.confined, []string{
		"setpriv", fmt.Sprintf("--reuid=%d", o.uid), fmt.Sprintf("--regid=%d", o.gid), "--init-groups", "--"}, args)
}

// environment is that of his daemon; nil for this process's.
func (o *ordinaryUser) environment(ts *testscript.TestScript) (env []string) {
	if o == nil {
		return nil
	}
	for _, name := range []string{"PATH", "HOME", "XDG_RUNTIME_DIR"} {
		env = append(env, name+"="+ts.Getenv(name))
	}
	return env
}

// daemonArgs are those of vmfs serve.
func (o *ordinaryUser) daemonArgs(ts *testscript.TestScript) []string {
	args := []string{"-m", ts.Getenv("MNT")}
	if o == nil {
		args = append(args, "-state", ts.Getenv("STATE"), "-run", ts.Getenv("RUN"), "-images", ts.Getenv("IMAGES"))
	}
	return args
}

// run is where the daemon's RUN is.
func (s *stage) run() string {
	if s.user != nil {
		return filepath.Join(s.dir, "xdg", "vmfs")
	}
	return s.dir + "/run"
}

// nousers COMMAND runs a command that can make no user namespace, as an
// administrator can have it for all, by a filter that setuid programs do not
// escape either.
func nousers() {
	newUser := []confine.Arg{{N: 0, Mask: unix.CLONE_NEWUSER, Is: unix.CLONE_NEWUSER}}
	err := confine.Seccomp(confine.Role{Name: "nousers", Default: confine.Allow, Calls: []confine.Calls{
		{Names: "clone unshare", Do: confine.Deny, When: newUser},
	}})
	path := ""
	if err == nil {
		path, err = exec.LookPath(os.Args[1])
	}
	if err == nil {
		err = syscall.Exec(path, os.Args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "nousers:", err)
	os.Exit(1)
}
