// Inside is the first program of a guest that is measured: it loads the drivers
// that the tests' guest has (scripts/lib.sh), takes the address that the kernel's
// command line has as ADDR, and does over UDP what it is told:
//
//	an echo   is answered as it came
//	a read    reads 4 KiB of the disk so many times, each elsewhere, past the
//	          guest's own cache, and answers how many nanoseconds that took
//
// It trusts whoever sends to it.
package main

import (
	"encoding/binary"
	"fmt"
	"log"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Port is where it listens. A message's first byte says what it is; a read's
// next four, the number, and an answer's next eight the time, are
// little-endian.
const (
	port = 7
	echo = 'e'
	read = 'r'
)

// block is what is read at a time.
const block = 4096

func main() {
	log.SetFlags(0)
	log.SetPrefix("inside: ")
	log.Print(run())
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// run returns when something failed, with that.
func run() error {
	if err := unix.Mount("dev", "/dev", "devtmpfs", 0, ""); err != nil {
		return fmt.Errorf("/dev: %w", err)
	}
	for _, m := range []string{"virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net"} {
		if err := load("/lib/" + m + ".ko"); err != nil {
			return err
		}
	}
	for _, args := range [][]string{{"addr", "add", os.Getenv("ADDR"), "dev", "eth0"}, {"link", "set", "eth0", "up"}} {
		cmd := exec.Command("/bin/busybox", append([]string{"ip"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %v: %s", args, err, out)
		}
	}
	disk, err := openDisk("/dev/vda")
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
	if err != nil {
		return err
	}
	return serve(conn, disk)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

type disk struct {
	fd     int
	blocks int64
	page   []byte
}

func openDisk(path string) (*disk, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	size, err := unix.Seek(fd, 0, unix.SEEK_END)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	memory := make([]byte, 2*block)
	skip := -int(uintptr(unsafe.Pointer(&memory[0]))) & (block - 1)
	return &disk{fd, size / block, memory[skip : skip+block]}, nil
}

// reads reads n blocks, and is how long that took.
func (d *disk) reads(n uint32) (time.Duration, error) {
	begin := time.Now()
	for range n {
		if _, err := unix.Pread(d.fd, d.page, rand.Int64N(d.blocks)*block); err != nil {
			return 0, err
		}
	}
	return time.Since(begin), nil
}

// serve answers until something fails.
func serve(conn *net.UDPConn, d *disk) error {
	p := make([]byte, 2048)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(p)
		if err != nil {
			return err
		}
		answer := p[:n]
		if n >= 5 && p[0] == read {
			took, err := d.reads(binary.LittleEndian.Uint32(p[1:]))
			if err != nil {
				return err
			}
			answer = binary.LittleEndian.AppendUint64([]byte{read}, uint64(took))
		}
		if _, err := conn.WriteToUDPAddrPort(answer, from); err != nil {
			return err
		}
	}
}
