package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ninepAttacked holds the 99th percentile of a client that behaves while
// others, of another user, do their worst against the one while they stand
// still. They leave it the CPU, as those would that come from another host.
func (b *bench) ninepAttacked() (line, error) {
	d, err := b.serve("attacked", 1)
	if err != nil {
		return line{}, err
	}
	var ws wires
	defer func() { ws.close() }()
	good, err := ws.dial(d.socket())
	if err != nil {
		return line{}, err
	}
	cmd := exec.Command("/proc/self/exe", "attack", d.socket())
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, daemonLike
	if err := started(cmd, "attacking"); err != nil {
		return line{}, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	under := func(signal syscall.Signal) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			cmd.Process.Signal(signal)
			time.Sleep(50 * time.Millisecond)
			times, err := good.readTimes(1000, vm0Status...)
			if err != nil {
				return 0, err
			}
			return times[len(times)*99/100], nil
		}
	}
	l, err := compare(b.pairs, under(unix.SIGCONT), under(unix.SIGSTOP))
	l.what, l.aim = "p99 of it under attack, to no attack", 3
	return l, err
}

// attack attacks a socket as a user who is nobody else's until it is killed.
func attack(socket string) {
	const uid = 52001
	unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
	os.WriteFile("/proc/self/autogroup", []byte("19"), 0) // where the kernel groups by session, this counts
	if err := syscall.Setuid(uid); err != nil {
		fmt.Fprintln(os.Stderr, "attack:", err)
		os.Exit(1)
	}
	for _, a := range []func(c net.Conn){floodFids, floodReads, floodFlushes, neverRead, sayHalf, sayNothing, wrongSize} {
		go func() {
			for {
				if c, err := net.Dial("unix", socket); err == nil {
					a(c)
					c.Close()
				}
				time.Sleep(time.Millisecond)
			}
		}()
	}
	fmt.Println("attacking")
	select {}
}

// greeted is what a client says first.
func greeted() []byte {
	version := appendString(binary.LittleEndian.AppendUint32(message(tversion, noTag), 8192), "9P2000")
	return slices.Concat(sized(version), sized(attachMessage(0, "/")))
}

// flood sends messages as fast as they are taken, and reads what comes.
func flood(c net.Conn, n int, next func(i int) []byte) {
	go io.Copy(io.Discard, c)
	c.Write(greeted())
	for i := range n {
		if _, err := c.Write(next(i)); err != nil {
			return
		}
	}
}

func floodFids(c net.Conn) {
	flood(c, 20000, func(i int) []byte { return walkMessage(1, 0, uint32(i+1)) })
}

func floodReads(c net.Conn) {
	flood(c, 5000, func(i int) []byte {
		switch i {
		case 0:
			return walkMessage(1, 0, 1, "live", "wait")
		case 1:
			return openMessage(1)
		}
		return readMessage(uint16(i), 1)
	})
}

func floodFlushes(c net.Conn) {
	flood(c, 20000, func(i int) []byte {
		const tflush = 108
		return sized(binary.LittleEndian.AppendUint16(message(tflush, uint16(i)), uint16(i-1)))
	})
}

func neverRead(c net.Conn) {
	c.Write(greeted())
	c.SetWriteDeadline(time.Now().Add(time.Second))
	for i := uint32(1); ; i++ {
		if _, err := c.Write(walkMessage(1, 0, i, "vm", "vm0", "status")); err != nil {
			return
		}
	}
}

func sayHalf(c net.Conn) {
	c.Write(append(greeted(), 0, 16, 0, 0, tread))
	time.Sleep(20 * time.Millisecond)
}

func sayNothing(net.Conn) { time.Sleep(20 * time.Millisecond) }

func wrongSize(c net.Conn) {
	c.Write(append(greeted(), 255, 255, 255, 255, tread))
	io.Copy(io.Discard, c)
}
