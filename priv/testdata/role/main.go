// Role is a daemon for the tests of package priv: its priv, opener and lease are
// the real ones, its core does what its version says, its guest only listens.
//
//	role serve MNT STATE RUN VERSION IMAGES...
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv"
	"vmfs/priv/confine"
	"vmfs/priv/lease"
	"vmfs/priv/wire"
	"vmfs/vmm/unpack"
)

func main() {
	if len(os.Args) < 2 {
		os.Exit(2)
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "serve":
		o := priv.Options{Mount: args[0], State: args[1], Run: args[2], Version: args[3], Images: args[4:]}
		if err := priv.Serve(o); err != nil {
			fmt.Fprintln(os.Stderr, "vmfs:", err)
			os.Exit(1)
		}
	case "opener":
		os.Exit(priv.Opener())
	case "whois":
		os.Exit(priv.Whois(args))
	case "core":
		core(args[3])
	case "guest":
		guest(args)
	case "lease":
		os.Exit(lease.Main())
	case "unpack":
		unpacker(args)
	}
}

var ctx = context.Background()

// unpacker is the real one, but for some limits.
func unpacker(args []string) {
	switch args[1] {
	case "1":
		time.Sleep(time.Hour)
	case "2":
		syscall.Kill(os.Getpid(), syscall.SIGSEGV)
	case "3":
		lie("ok", "4096") // without what came out
		return
	case "4":
		lie("error", "EWHAT", "no such number")
		return
	}
	os.Exit(unpack.Main(args))
}

// lie answers the request.
func lie(fields ...string) {
	conn, err := wire.NewConn(os.NewFile(3, "priv"))
	if err != nil {
		os.Exit(1)
	}
	conn.Recv()
	conn.Send(nil, fields...)
}

// core does one thing after the other: words of its version.
func core(version string) {
	conn, err := wire.NewConn(os.NewFile(3, "priv"))
	if err != nil {
		os.Exit(1)
	}
	if line, raw := strings.CutPrefix(version, "raw "); raw {
		sendRaw(conn, line)
	}
	p, err := priv.NewClient(conn, func(id uint32, status string) {
		fmt.Fprintf(os.Stderr, "exited %d %s\n", id, status)
	})
	if err != nil {
		os.Exit(1)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	for word := range strings.FieldsSeq(version) {
		do(p, word, signals)
	}
	for {
		select {
		case <-p.Done():
			return
		case <-time.After(200 * time.Millisecond):
			p.Alive(ctx)
		}
	}
}

func do(p *priv.Client, word string, signals chan os.Signal) {
	verb, arg, _ := strings.Cut(word, ":")
	n, _ := strconv.ParseUint(arg, 10, 32)
	var err error
	switch verb {
	case "serving":
		err = p.Serving(ctx)
	case "spawn":
		_, err = p.Spawn(ctx, ctl.Process{ID: uint32(n), Accel: "tcg", CPUs: 1, MemoryMiB: 64})
	case "end":
		err = p.End(ctx, uint32(n))
	case "guests":
		all, gerr := p.Guests(ctx)
		fmt.Fprintln(os.Stderr, "guests", len(all))
		err = gerr
	case "lease":
		_, err = p.Lease(ctx)
	case "draining":
		err = p.Draining(ctx)
	case "usr1":
		<-signals
	case "shutdown":
		err = p.Shutdown(ctx)
	case "exit":
		os.Exit(int(n))
	case "hang":
		select {}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, word, err)
	}
}

// sendRaw says hello, sends what a working core would not, and waits.
func sendRaw(conn *wire.Conn, line string) {
	conn.Hello("core")
	fields, err := wire.Decode([]byte(line))
	if err != nil {
		os.Exit(1)
	}
	conn.Send(nil, fields...)
	for {
		if _, err := conn.Recv(); err != nil {
			time.Sleep(time.Minute) // priv ends it
		}
	}
}

// guest drops its privileges, listens and says hello to whoever comes.
func guest(args []string) {
	uid, err := strconv.ParseUint(args[1], 10, 32)
	if err != nil {
		os.Exit(1)
	}
	for _, err := range []error{confine.NoNewPrivs(), confine.Keep(confine.Jail.Capabilities), confine.Become(uint32(uid), uint32(uid), nil)} {
		if err != nil {
			os.Exit(1)
		}
	}
	if unix.Listen(3, 1) != nil {
		os.Exit(1)
	}
	l, err := net.FileListener(os.NewFile(3, "socket"))
	if err != nil {
		os.Exit(1)
	}
	for {
		c, err := wire.Accept(l.(*net.UnixListener))
		if err != nil {
			os.Exit(1)
		}
		c.Hello("guest", args[0])
	}
}
