package priv

import "os/exec"

// self is this very file, replaced or not.
var self = "/proc/self/exe"

// role prepares this program as another role. It inherits no file but those
// that the caller adds, no environment, and no directory of the caller's.
func role(name string, args ...string) *exec.Cmd {
	return &exec.Cmd{
		Path: self,
		Args: append([]string{"vmfs", name}, args...),
		Env:  []string{},
		Dir:  "/",
	}
}
