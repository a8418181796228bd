package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The lines about 9P. All connections are to unix sockets, and every file is
// at the depth of vm/vm0/status.
var vm0Status = []string{"vm", "vm0", "status"}

func (d *daemon) socket() string { return d.dir + "/run/9p.sock" }

// daemonLike has a peer in a session of its own, as core is: the kernel groups
// processes by session and wakes those of a client's own group sooner.
var daemonLike = &syscall.SysProcAttr{Setsid: true}

// minimal starts this program again as a 9P server that can nothing but that,
// and gives its socket.
func (b *bench) minimal() (string, error) {
	socket := b.dir + "/minimal.sock"
	if _, err := os.Stat(socket); err == nil {
		return socket, nil
	}
	cmd := exec.Command("/proc/self/exe", "minimal", socket)
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, daemonLike
	if err := started(cmd, "serving"); err != nil {
		return "", err
	}
	b.servers = append(b.servers, cmd)
	return socket, nil
}

// diod starts diod on a directory that has the file, and gives its socket and
// the directory.
func (b *bench) diod() (socket, dir string, err error) {
	dir, socket = b.memDir+"/diod", b.dir+"/diod.sock"
	if err := os.MkdirAll(dir+"/vm/vm0", 0o755); err != nil {
		return "", "", err
	}
	if err := os.WriteFile(dir+"/vm/vm0/status", []byte("stopped\n"), 0o644); err != nil {
		return "", "", err
	}
	cmd := exec.Command("diod", "-f", "-n", "-N", "-S", "-U", "root", "-c", "/dev/null", "-L", b.dir+"/diod.log", "-l", socket, "-e", dir)
	cmd.SysProcAttr = daemonLike
	if err := cmd.Start(); err != nil {
		return "", "", err
	}
	b.servers = append(b.servers, cmd)
	for range 100 {
		if _, err := os.Stat(socket); err == nil {
			return socket, dir, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", "", fmt.Errorf("diod: no socket after 2 s; see %s/diod.log", b.dir)
}

// wires are the connections of a line.
type wires []*wire

func (ws *wires) dial(socket string) (*wire, error) {
	w, err := dial(socket)
	if err == nil {
		*ws = append(*ws, w)
	}
	return w, err
}

func (ws wires) close() {
	for _, w := range ws {
		w.close()
	}
}

// ninepMinimal holds one reading over 9P against a server that answers from
// memory.
func (b *bench) ninepMinimal() (line, error) {
	var ws wires
	defer func() { ws.close() }()
	ours, peer, err := b.ninepPair(&ws, 1)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, ours[0].readings(vm0Status...), peer[0].readings(vm0Status...))
	l.what, l.aim = "9P: walk, open, read, clunk; to a minimal one", 1.10
	return l, err
}

// ninepPair are n connections to a daemon and n to the minimal server.
func (b *bench) ninepPair(ws *wires, n int) (ours, peer []*wire, err error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return nil, nil, err
	}
	minimal, err := b.minimal()
	if err != nil {
		return nil, nil, err
	}
	for range n {
		o, err := ws.dial(one.socket())
		if err != nil {
			return nil, nil, err
		}
		p, err := ws.dial(minimal)
		if err != nil {
			return nil, nil, err
		}
		ours, peer = append(ours, o), append(peer, p)
	}
	return ours, peer, nil
}

// ninepDiod holds it against diod, which serves a file of a tmpfs.
func (b *bench) ninepDiod() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	socket, dir, err := b.diod()
	if err != nil {
		return line{}, err
	}
	var ws wires
	defer func() { ws.close() }()
	ours, err := ws.dial(one.socket())
	if err != nil {
		return line{}, err
	}
	peer, err := dialDotL(socket, dir)
	if err != nil {
		return line{}, err
	}
	defer peer.close()
	l, err := compare(b.pairs, ours.readings(vm0Status...), peer.readings(vm0Status...))
	l.what, l.aim = "the same, to diod", 1.0
	return l, err
}

// ninepClients holds what eight clients get done at once against the minimal
// server: the time for the same work, so that 0.85 of its throughput is 1.18.
func (b *bench) ninepClients() (line, error) {
	var ws wires
	defer func() { ws.close() }()
	ours, peer, err := b.ninepPair(&ws, 8)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, together(ours, 250, vm0Status...), together(peer, 250, vm0Status...))
	l.what, l.aim = "8 clients, 250 times each; to a minimal one", 1.18
	return l, err
}

const blockedReaders = 1000

// ninepBlocked holds a reading beside a thousand reads that wait against one
// in a daemon where nobody waits.
func (b *bench) ninepBlocked() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	crowd, err := b.serve("crowd", 1)
	if err != nil {
		return line{}, err
	}
	var ws wires
	defer func() { ws.close() }()
	var all [3]*wire
	for i, d := range []*daemon{one, crowd, crowd} {
		if all[i], err = ws.dial(d.socket()); err != nil {
			return line{}, err
		}
	}
	before, err := crowd.pss()
	if err != nil {
		return line{}, err
	}
	if err := all[2].block(blockedReaders); err != nil {
		return line{}, err
	}
	after, err := crowd.pss()
	if err != nil {
		return line{}, err
	}
	b.blocked = float64(after-before) / blockedReaders
	l, err := compare(b.pairs, all[1].readings(vm0Status...), all[0].readings(vm0Status...))
	l.what, l.aim = "the same beside 1000 blocked reads, to none", 1.10
	return l, err
}

// ninepBlockedMemory is what each of those costs.
func (b *bench) ninepBlockedMemory() (line, error) {
	if b.blocked == 0 {
		return line{}, errors.New("a blocked read's memory: there was none")
	}
	return line{what: "a blocked read, Pss of the daemon", ours: fmt.Sprintf("%.1f KiB", b.blocked), peer: "-", unit: "KiB", aim: 16}, nil
}

// block begins n reads that wait, and returns when the server has them all.
func (w *wire) block(n int) error {
	for i := range n {
		fid := uint32(i + 1)
		if _, err := w.call(walkMessage(1, 0, fid, "live", "vm", "vm0", "console")); err != nil {
			return err
		}
		if _, err := w.call(openMessage(fid)); err != nil {
			return err
		}
		if _, err := unix.Write(w.fd, readMessage(uint16(i+2), fid)); err != nil {
			return err
		}
	}
	// What comes after them was read after them.
	if _, err := w.call(walkMessage(1, 0, uint32(n+1))); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	return nil
}
