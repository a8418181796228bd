package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// replace holds a new definition of 4 KiB against what it takes to put 4 KiB
// safely in the place of a file: write, fsync, rename.
func (b *bench) replace() (line, error) {
	d, err := b.serveBelow(b.diskDir, "disk", 1)
	if err != nil {
		return line{}, err
	}
	config, hand := d.mnt+"/vm/vm0/config", b.diskDir+"/hand/definition"
	if err := os.MkdirAll(filepath.Dir(hand), 0o700); err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs,
		texts(func(text string) error { return write(config, text, false) }),
		texts(func(text string) error {
			if err := write(hand+".new", text, true); err != nil {
				return err
			}
			return os.Rename(hand+".new", hand)
		}))
	l.what, l.aim = "replace config, to write, fsync, rename; 4 KiB", 1.5
	return l, err
}

// texts gives the median time of f with definitions of 4 KiB, each unlike the
// one before.
func texts(f func(text string) error) func() (time.Duration, error) {
	n := 0
	return func() (time.Duration, error) {
		times := make([]time.Duration, 25)
		for i := range times {
			n++
			head := fmt.Sprintf("begin\ncmdline %01000d\nnote %d ", n, n)
			text := head + strings.Repeat("x", 4096-len(head)-len("\nend\n")) + "\nend\n"
			begin := time.Now()
			if err := f(text); err != nil {
				return 0, err
			}
			times[i] = time.Since(begin)
		}
		return median(times), nil
	}
}

// write writes a file in one piece, as a shell's > does.
func write(path, text string, sync bool) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// many gives a daemon with so many VMs defined, in memory: to make them on a
// disk takes minutes, and a start reads what is cached anyway.
func (b *bench) many(vms int) (*daemon, error) {
	name := fmt.Sprintf("many%d", vms)
	if d := b.daemons[name]; d != nil {
		return d, nil
	}
	d, err := b.serveBelow(b.memDir, name, vms)
	if err != nil {
		return nil, err
	}
	for i := range 2 * vms { // there is a former definition, too
		vm := i % vms
		if err := write(fmt.Sprintf("%s/vm/vm%d/config", d.mnt, vm), usual(b.dir, vm, i), false); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// usual is a definition as people have them.
func usual(dir string, n, note int) string {
	return fmt.Sprintf("begin\ncmdline console=ttyS0 root=/dev/vda ro\ncpus 2\n"+
		"disk/0/format qcow2\ndisk/0/path %[1]s/disk%[2]d.qcow2\ndisk/1/path %[1]s/data%[2]d.raw\n"+
		"initrd %[1]s/initrd\nkernel %[1]s/vmlinuz\nmemory 1024M\nnote %[3]d\nend\n", dir, n, note)
}

// readyWithMany is a start until the tree is there.
func (b *bench) readyWithMany() (line, error) {
	many, err := b.many(10000)
	if err != nil {
		return line{}, err
	}
	few, err := b.many(1000)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, many.restart, few.restart)
	l.what, l.aim = "daemon ready, 10000 VMs defined, to 1000", 11
	return l, err
}

func (b *bench) memoryWithMany() (line, error) {
	d, err := b.many(10000)
	if err != nil {
		return line{}, err
	}
	l, err := d.idle()
	l.what, l.aim = "core and priv, 10000 VMs defined, Pss", 60
	return l, err
}

func (b *bench) openReadCloseAmongMany() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	many, err := b.many(10000)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, reads(many.mnt+"/vm/vm5000/status"), reads(one.mnt+"/vm/vm0/status"))
	l.what, l.aim = "read of status among 10000 VMs, to one", 1.10
	return l, err
}
