package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vmfs/priv"
)

// console is a terminal on a machine's console: what the present launch has
// printed, then the rest as it comes, and what is typed goes to the guest. It
// ends with the launch, or when ~. is typed at the beginning of a line.
func console(args []string) int {
	flags := flag.NewFlagSet("console", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	mount := flags.String("m", priv.DefaultMount, "")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() != 1 || strings.Contains(flags.Arg(0), "/") {
		fmt.Fprint(os.Stderr, usage)
		return 2
	}
	if err := attach(*mount, flags.Arg(0)); err != nil {
		return fail(fmt.Errorf("console %s: %w", flags.Arg(0), err))
	}
	return 0
}

func attach(mount, name string) error {
	// Not os.Open: the file cannot be polled, and reads of it wait.
	fd, err := unix.Open(filepath.Join(mount, "live/vm", name, "console"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	status, err := os.ReadFile(filepath.Join(mount, "vm", name, "status"))
	if err == nil && !strings.HasPrefix(string(status), "running") {
		fmt.Fprintf(os.Stderr, "vmfs: %s is %s; ~. leaves\n", name, strings.TrimSpace(string(status)))
	}
	in := int(os.Stdin.Fd())
	if term.IsTerminal(in) {
		old, err := term.MakeRaw(in)
		if err != nil {
			return err
		}
		defer term.Restore(in, old)
	}
	// Each end is heard of once; the other's goroutine ends with the process.
	done := make(chan error, 2)
	go func() { done <- show(fd) }()
	go func() {
		if left, err := keys(fd); left || err != nil {
			done <- err
		}
	}()
	return <-done
}

// show copies the console to standard output until the launch ends.
func show(fd int) error {
	p := make([]byte, 32<<10)
	for {
		n, err := unix.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return nil
		}
		if _, err := os.Stdout.Write(p[:n]); err != nil {
			return err
		}
	}
}

// keys copies standard input to the console. It reports whether ~. was typed;
// an end of the input is none.
func keys(fd int) (left bool, err error) {
	e := escape{fresh: true}
	p := make([]byte, 4096)
	for {
		n, err := os.Stdin.Read(p)
		if err != nil {
			return false, nil
		}
		out, leave := e.filter(p[:n])
		if len(out) > 0 {
			// EAGAIN is a guest that does not take it: the keys are lost.
			if _, err := unix.Write(fd, out); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
				return false, err
			}
		}
		if leave {
			return true, nil
		}
	}
}

// escape finds ~. at the beginning of a line; ~~ there is one tilde.
type escape struct {
	fresh bool // at the beginning of a line
	tilde bool // after a tilde there
}

func (e *escape) filter(typed []byte) (out []byte, leave bool) {
	for _, c := range typed {
		switch {
		case e.tilde && c == '.':
			return out, true
		case e.tilde && c != '~':
			out = append(out, '~', c)
		case !e.tilde && e.fresh && c == '~':
			e.tilde = true
			continue
		default:
			out = append(out, c)
		}
		e.tilde = false
		e.fresh = c == '\r' || c == '\n'
	}
	return out, false
}
