package priv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/confine"
)

// A whois is a process for one question: which groups a user has now. It
// confines itself and becomes the host's id(1), which asks whatever
// nsswitch.conf names. So files and sockets cannot be taken from it; but it has
// a uid that nobody else has, changes no file, makes no process and signals
// none, and what it uses and says is bounded. Who knows the users may hang as a
// file system does: priv waits for openTime, and kills it itself, since it has
// the right to.

const (
	idProgram   = "/usr/bin/id"
	maxAnswer   = 32 << 10  // bytes: half a message, so that a request to open has room for it
	whoisMemory = 512 << 20 // bytes of addresses: caches of users are mapped, 32 MiB each with nscd
	noSuchUser  = 1         // id's exit status for it
	unanswered  = 2         // the exit status of a whois that could not ask
)

// whois is the text of the groups of a user, as parseGroups reads it.
func (o *openers) whois(ctx context.Context, uid uint32) (groups string, err error) {
	err = o.turn(ctx, uid, "groups", func(ctx context.Context) error {
		groups, err = o.groups(ctx, uid)
		return err
	})
	return groups, err
}

// groups asks for the groups of a user, his own first. Root has one, and who
// started an ordinary daemon those that it was started with. EACCES for a user
// who is no more.
func (o *openers) groups(ctx context.Context, uid uint32) (text string, err error) {
	switch {
	case uid == 0:
		return "0", nil
	case ordinary():
		return ownGroups()
	}
	cmd, out := whoisOf(uid), &head{room: maxAnswer + 1}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("whois: %w", err)
	}
	gone := make(chan struct{})
	var ended error
	go func() { ended = cmd.Wait(); close(gone) }()
	select {
	case <-gone:
		return said(uid, ended, string(out.text))
	case <-ctx.Done():
		cmd.Process.Kill()
		go o.await(uid, gone)
		return "", ctx.Err()
	}
}

// whoisOf is the process that is to say the groups of a user.
func whoisOf(uid uint32) *exec.Cmd {
	cmd := role("whois", strconv.Itoa(os.Getpid()), decimal(uid))
	cmd.WaitDelay = time.Second
	// Shared memory of System V would stay when it is gone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWIPC}
	return cmd
}

// said reads what a process of whois said, and how it ended.
func said(uid uint32, ended error, text string) (string, error) {
	refuse := func(why string) (string, error) {
		return "", ctl.Errorf(syscall.EACCES, "groups of user %d: %s: %s", uid, idProgram, why)
	}
	var status *exec.ExitError
	switch {
	case errors.As(ended, &status) && status.ExitCode() == noSuchUser:
		return "", ctl.Errorf(syscall.EACCES, "user %d: no such user", uid)
	case errors.As(ended, &status) && status.ExitCode() == unanswered:
		return refuse(clip(oneLine(text)))
	case ended != nil:
		return refuse(ended.Error())
	case len(text) > maxAnswer:
		return refuse(fmt.Sprintf("it said more than %d bytes", maxAnswer))
	}
	groups, err := parseGroups(text)
	if err != nil {
		return refuse(err.Error())
	}
	return groupsText(groups), nil
}

// ownGroups are those of this process.
func ownGroups() (string, error) {
	more, err := unix.Getgroups()
	if err != nil {
		return "", fmt.Errorf("getgroups: %w", err)
	}
	groups := []uint32{uint32(os.Getegid())}
	for _, g := range more {
		groups = append(groups, uint32(g))
	}
	return groupsText(groups), nil
}

// parseGroups reads gids that blanks or ends of lines are between.
func parseGroups(text string) ([]uint32, error) {
	var groups []uint32
	for _, f := range strings.Fields(text) {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil || n == 1<<32-1 {
			return nil, fmt.Errorf("%.40q is no gid", f)
		}
		groups = append(groups, uint32(n))
	}
	if len(groups) == 0 || len(groups) > 1<<16 {
		return nil, fmt.Errorf("%d groups", len(groups))
	}
	return groups, nil
}

// groupsText is the inverse of parseGroups.
func groupsText(groups []uint32) string {
	text := make([]string, len(groups))
	for i, g := range groups {
		text[i] = decimal(g)
	}
	return strings.Join(text, " ")
}

// Whois is the main of the role whois; its arguments are PARENT UID, the pid of
// who started it and whom it is to ask about. It answers on its standard output
// as id -G does. It returns, with the exit status, only if it could not ask,
// and has said there why.
func Whois(args []string) int {
	fmt.Print(becomeID(args))
	return unanswered
}

func becomeID(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%d arguments, not PARENT UID", len(args))
	}
	uid, err := parseUID(args[1])
	if err != nil {
		return err
	}
	argv, err := syscall.SlicePtrFromStrings([]string{"id", "-G", "--", "+" + decimal(uid)}) // + : a number, whatever names there are
	if err != nil {
		return err
	}
	env, err := syscall.SlicePtrFromStrings([]string{"LC_ALL=C"})
	if err != nil {
		return err
	}
	program, err := syscall.BytePtrFromString(idProgram)
	if err != nil {
		return err
	}
	runtime.LockOSThread() // which the signal below and the program go to
	if err := confineWhois(args[0]); err != nil {
		return err
	}
	// The last limit is below what this program's runtime has reserved, so that
	// nothing may allocate between the two calls.
	memory := unix.Rlimit{Cur: whoisMemory, Max: whoisMemory}
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_AS, uintptr(unsafe.Pointer(&memory)), 0, 0, 0)
	if errno == 0 {
		_, _, errno = syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(program)),
			uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&env[0])))
	}
	return errno
}

// confineWhois gives up all but what the table says. The program that it
// becomes has what is left.
func confineWhois(parent string) error {
	if err := confine.NoNewPrivs(); err != nil {
		return err
	}
	if err := confine.Keep(confine.Whois.Capabilities); err != nil {
		return err
	}
	if err := confine.Become(confine.WhoisUID, confine.WhoisUID, nil); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("signal of the parent's end: %w", err)
	}
	if strconv.Itoa(os.Getppid()) != parent {
		return errors.New("who asked has gone")
	}
	if err := confine.LandlockOpen(confine.Whois.Paths); err != nil {
		return err
	}
	for _, l := range whoisLimits {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.limit, Max: l.limit}); err != nil {
			return fmt.Errorf("limit %d: %w", l.what, err)
		}
	}
	return confine.Seccomp(confine.Whois)
}

type whoisLimit struct {
	what  int
	limit uint64
	why   string
}

// whoisLimits are limits of id, but for whoisMemory.
var whoisLimits = []whoisLimit{
	{unix.RLIMIT_CORE, 0, "nobody is to read a crash"},
	{unix.RLIMIT_CPU, 2, "seconds; it is killed after as many of the clock"},
	{unix.RLIMIT_FSIZE, 0, "bytes: it writes to no file, nor to memory that is one"},
	{unix.RLIMIT_NOFILE, 64, "sockets and files of a few modules of NSS"},
	{unix.RLIMIT_NPROC, 256, "threads of all that run at a time, which are less than a hundred processes"},
}
