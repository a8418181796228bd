package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
	"vmfs/priv/network"
)

// inNamespace calls f on a thread with a network namespace of its own. Both go
// when f returns.
func inNamespace(f func() (line, error)) (l line, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("network namespace: %w", err)
			return
		}
		l, err = f()
	}()
	<-done
	return l, err
}

// A lan is a switch that is up, and who works on it.
type lan struct {
	n      *network.Network
	bridge string
}

var onLan = ctl.SwitchLink(1)

// newLan makes a switch in the thread's namespace.
func (b *bench) newLan() (*lan, error) {
	dir, err := os.MkdirTemp(b.memDir, "records")
	if err != nil {
		return nil, err
	}
	n, err := network.Open(network.Options{Records: dir, Tables: "vmfs-bench"})
	if err != nil {
		return nil, err
	}
	bridge, err := n.Bridge(onLan, "")
	if err == nil {
		err = n.SetUp(onLan, true)
	}
	return &lan{n, bridge}, err
}

func (l *lan) close() error {
	defer l.n.Close()
	return l.n.Release(onLan)
}

// mac is a NIC's, of a machine by its id.
func mac(id uint32) net.HardwareAddr {
	return net.HardwareAddr{0xfe, 0xe1, 0xbb, 0xd1, byte(id >> 8), byte(id)}
}

// attach does what a start does for a NIC of a switch, and gives its time.
func (l *lan) attach(id uint32) (*os.File, time.Duration, error) {
	nic := ctl.NICLink(id, 0)
	begin := time.Now()
	f, _, err := l.n.Tap(nic, network.AnyTap)
	if err == nil {
		err = errors.Join(
			l.n.Alias(nic, "web"),
			l.n.Attach(nic, onLan, ctl.Port{MAC: mac(id), Locked: true, Isolated: true}),
			l.n.SetUp(nic, true))
	}
	return f, time.Since(begin), err
}

// release undoes it, and gives the time of that.
func (l *lan) release(id uint32, f *os.File) (time.Duration, error) {
	begin := time.Now()
	err := l.n.Release(ctl.NICLink(id, 0))
	return time.Since(begin), errors.Join(err, f.Close())
}

// attachByHand is the same by ip(8) and bridge(8), in as few commands as can
// be: it sets the entry for the MAC after the NIC is up. Nothing of what the
// host answers there is turned off, and nothing is kept about it.
func (l *lan) attachByHand() (time.Duration, error) {
	begin := time.Now()
	err := batch("ip", "tuntap add dev hand mode tap vnet_hdr\n"+
		"link set dev hand alias vm1-if0-web\n"+
		"link set dev hand master "+l.bridge+"\n"+
		"link set dev hand type bridge_slave locked on learning off isolated on root_block on\n"+
		"link set dev hand up\n")
	if err == nil {
		err = batch("bridge", "fdb replace "+mac(1).String()+" dev hand master static sticky\n")
	}
	return time.Since(begin), err
}

func releaseByHand() (time.Duration, error) {
	begin := time.Now()
	err := batch("ip", "link delete dev hand\n")
	return time.Since(begin), err
}

// batch has a command do lines.
func batch(name, lines string) error {
	cmd := exec.Command(name, "-batch", "-")
	cmd.Stdin = strings.NewReader(lines)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %v: %s", name, err, complaint.Bytes())
	}
	return nil
}

// attachNIC holds all that is done for a NIC against the same by hand.
func (b *bench) attachNIC() (line, error) {
	return b.onLan(func(l *lan) (line, error) {
		line, err := compare(b.pairs, func() (time.Duration, error) {
			f, d, err := l.attach(1)
			if err == nil {
				_, err = l.release(1, f)
			}
			return d, err
		}, func() (time.Duration, error) {
			d, err := l.attachByHand()
			if err == nil {
				_, err = releaseByHand()
			}
			return d, err
		})
		line.what, line.aim = "attach of a NIC, to ip and bridge -batch", 1
		return line, err
	})
}

// releaseNIC is the other end, most of which is the kernel's own: it waits
// until nobody can look at the tap any more.
func (b *bench) releaseNIC() (line, error) {
	return b.onLan(func(l *lan) (line, error) {
		line, err := compare(b.pairs, func() (time.Duration, error) {
			f, _, err := l.attach(1)
			if err != nil {
				return 0, err
			}
			return l.release(1, f)
		}, func() (time.Duration, error) {
			if _, err := l.attachByHand(); err != nil {
				return 0, err
			}
			return releaseByHand()
		})
		line.what = "release of a NIC, to ip link delete"
		return line, err
	})
}

// onLan calls f with a switch in a namespace of its own.
func (b *bench) onLan(f func(*lan) (line, error)) (line, error) {
	return inNamespace(func() (line, error) {
		l, err := b.newLan()
		if err != nil {
			return line{}, err
		}
		result, err := f(l)
		return result, errors.Join(err, l.close())
	})
}

const (
	manyNICs = 200
	someNICs = 20 // of them, at either end
)

// attachAmongMany holds the last NICs of many against the first.
func (b *bench) attachAmongMany() (line, error) {
	return b.onLan(func(l *lan) (line, error) {
		var first, last []time.Duration
		var ratios []float64
		for range (b.pairs + 7) / 8 {
			f, t, err := l.attachMany()
			if err != nil {
				return line{}, err
			}
			first, last, ratios = append(first, f), append(last, t), append(ratios, float64(t)/float64(f))
		}
		return line{what: fmt.Sprintf("attach of the last %d of %d NICs, to the first", someNICs, manyNICs),
			ours: short(median(last)), peer: short(median(first)), ratio: median(ratios), aim: 1.25, unit: "x"}, nil
	})
}

// attachMany attaches NICs and releases them. It gives the medians of the
// first and the last.
func (l *lan) attachMany() (first, last time.Duration, err error) {
	var files []*os.File
	var times []time.Duration
	for id := uint32(1); id <= manyNICs && err == nil; id++ {
		f, d, failed := l.attach(id)
		files, times, err = append(files, f), append(times, d), failed
	}
	for i, f := range files {
		_, failed := l.release(uint32(i+1), f)
		err = errors.Join(err, failed)
	}
	if err != nil {
		return 0, 0, err
	}
	return median(times[:someNICs]), median(times[manyNICs-someNICs:]), nil
}

// startWithNIC holds a start of a machine with a NIC against one without, in
// a daemon with a network namespace of its own.
func (b *bench) startWithNIC() (line, error) {
	d, err := b.serveIn("net", 2, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	if err != nil {
		return line{}, err
	}
	if err := os.Mkdir(d.mnt+"/switch/lan", 0o755); err != nil {
		return line{}, err
	}
	conf := fmt.Sprintf("kernel %s/vmlinuz\ninitrd %s/initrd\nmemory 192M\n", b.dir, b.dir)
	for vm, nic := range map[string]string{"vm0": "nic/0/switch lan\n", "vm1": ""} {
		if err := write(d.mnt+"/vm/"+vm+"/config", conf+nic, false); err != nil {
			return line{}, err
		}
	}
	l, err := compare(b.pairs, starts(d.mnt+"/vm/vm0"), starts(d.mnt+"/vm/vm1"))
	l.what = "start with a NIC of a switch, to none"
	return l, err
}

// starts gives the time of a start; the machine is killed then.
func starts(vm string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		kill(vm)
		begin := time.Now()
		err := write(vm+"/ctl", "start\n", false)
		d := time.Since(begin)
		kill(vm)
		return d, err
	}
}
