package main

import (
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// catRemote holds cat of a status through vmfs mount, over the daemon's unix
// socket, against cat of the same file where the daemon itself mounted it.
func (b *bench) catRemote() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	dir := one.dir + "/remote"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return line{}, err
	}
	cmd := exec.Command(b.dir+"/vmfs", "mount", "unix!"+one.dir+"/run/9p.sock", dir)
	cmd.Stderr = os.Stderr
	if err := started(cmd, "vmfs: mounted "); err != nil {
		return line{}, err
	}
	defer func() {
		cmd.Process.Signal(unix.SIGTERM)
		force := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		defer force.Stop()
		cmd.Wait()
	}()
	l, err := compare(b.pairs, runs("cat", dir+"/vm/vm0/status"), runs("cat", one.mnt+"/vm/vm0/status"))
	l.what, l.aim = "cat status by vmfs mount, to the daemon's", 2.5
	return l, err
}
