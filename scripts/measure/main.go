// Measure is the half of scripts/bench that needs a clock: it serves trees of
// its own, holds each line of the table against its peer, and prints it.
//
//	measure [-box] DIR DISK MEMORY PAIRS [LINES]
//
// DIR has the programs and the guest: inside, vmfs, vmfs-guest, vmlinuz, initrd;
// with -box it is in scripts/testbed, started by itself. DISK and MEMORY
// are directories for states, the one on a disk, the other on a tmpfs. What is
// made in all three is the caller's to remove. A single pair of two identical
// servers measures anything from 0.8 to 1.5, so every line is the median of
// PAIRS ratios, ours and the peer's taken in turn; of fewer where one takes long.
// LINES is a regular expression for the names of the functions that measure;
// without it all do.
package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmfs/vmm/native/nativetest"
)

// A line is one row of the table.
type line struct {
	what, ours, peer string
	ratio            float64
	aim              float64          // of the ratio, or of ours in MiB, KiB or a second where there is no peer; 0 for none
	unit             string           // of the aim: "x", "MiB", "KiB" or "/s"
	least            bool             // the aim is the least that it shall be, not the most
	took             [2]time.Duration // what compare measured
}

// skip is why a line cannot be had on this machine.
type skip struct{ why string }

func (s skip) Error() string { return s.why }

func main() {
	log.SetFlags(0)
	log.SetPrefix("measure: ")
	if len(os.Args) == 3 {
		if serve := peers[os.Args[1]]; serve != nil {
			serve(os.Args[2])
			return
		}
	}
	args := os.Args[1:]
	boxed := len(args) > 0 && args[0] == "-box"
	if boxed {
		args = args[1:]
	}
	if len(args) != 4 && len(args) != 5 {
		log.Fatal("usage: measure [-box] DIR DISK MEMORY PAIRS [LINES]")
	}
	pairs, err := strconv.Atoi(args[3])
	if err != nil || pairs < 1 {
		log.Fatalf("%q: not a number of pairs", args[3])
	}
	only, err := regexp.Compile(strings.Join(args[4:], ""))
	if err != nil {
		log.Fatal(err)
	}
	if !measure(boxed, only, &bench{dir: args[0], diskDir: args[1], memDir: args[2], pairs: pairs}) {
		os.Exit(1)
	}
}

// peers are what this program is when it starts itself again: servers on a
// directory or a socket, and clients of a socket.
var peers = map[string]func(string){
	"peer":    servePeer,
	"minimal": serveMinimal,
	"attack":  attack,
}

// hostLines are measured on this machine, boxLines in scripts/testbed.
var (
	hostLines = []func(*bench) (line, error){
		(*bench).openReadClose,
		(*bench).openReadCloseThousand,
		(*bench).catStatus,
		(*bench).catRemote,
		(*bench).ninepMinimal,
		(*bench).ninepDiod,
		(*bench).ninepClients,
		(*bench).ninepBlocked,
		(*bench).ninepBlockedMemory,
		(*bench).ninepAttacked,
		(*bench).start,
		(*bench).startWithNIC,
		(*bench).attachNIC,
		(*bench).releaseNIC,
		(*bench).attachAmongMany,
		(*bench).memory,
		(*bench).list,
		(*bench).replace,
		(*bench).readyWithMany,
		(*bench).memoryWithMany,
		(*bench).openReadCloseAmongMany,
		(*bench).guestMemory,
		(*bench).guestMemoryShared,
		(*bench).firstInstruction,
		(*bench).startsSustained,
		(*bench).notification,
		(*bench).notificationAsleep,
		(*bench).blkRead4K,
		(*bench).blkRead64K,
		(*bench).blkWrite4K,
		(*bench).blkWrite64K,
		(*bench).netSend4K,
		(*bench).netSend64K,
		(*bench).netReceive4K,
		(*bench).netReceive64K,
	}
	boxLines = []func(*bench) (line, error){
		(*bench).userland,
		(*bench).userlandUnpacked,
		(*bench).blkGuest,
		(*bench).netGuest,
	}
)

// matching are the lines whose functions have names that match.
func matching(lines []func(*bench) (line, error), only *regexp.Regexp) []func(*bench) (line, error) {
	return slices.DeleteFunc(slices.Clone(lines), func(m func(*bench) (line, error)) bool {
		return !only.MatchString(runtime.FuncForPC(reflect.ValueOf(m).Pointer()).Name())
	})
}

// measure is false if something could not be measured at all. In the box it
// measures the lines of the box.
func measure(boxed bool, only *regexp.Regexp, b *bench) (whole bool) {
	defer b.close()
	if boxed {
		idle, err := nativetest.KeepCPU()
		if err != nil {
			fmt.Printf("not measured: %v\n", err)
			return false
		}
		defer idle.Close()
		return b.print(matching(boxLines, only))
	}
	if len(matching(hostLines, only))+len(matching(boxLines, only)) == 0 {
		fmt.Printf("not measured: no line's name matches %s\n", only)
		return false
	}
	fmt.Printf("%d pairs a line; medians; ratio is ours by the peer's\n\n", b.pairs)
	fmt.Printf("%-46s %12s %12s %8s %10s\n", "what", "ours", "peer", "ratio", "aim")
	whole = b.print(matching(hostLines, only))
	if len(matching(boxLines, only)) == 0 {
		return whole
	}
	return b.measureBox(only) && whole
}

// print measures lines and prints them.
func (b *bench) print(lines []func(*bench) (line, error)) (whole bool) {
	whole = true
	for _, m := range lines {
		l, err := m(b)
		if errors.As(err, new(skip)) {
			fmt.Printf("SKIPPED: %v\n", err)
			continue
		}
		if err != nil {
			fmt.Printf("not measured: %v\n", err)
			whole = false
			continue
		}
		l.print()
	}
	return whole
}

func (l line) print() {
	ratio, aim, verdict := "-", "-", ""
	if l.ratio > 0 {
		ratio = fmt.Sprintf("%.2f", l.ratio)
	}
	if l.aim > 0 {
		bound := "<="
		if l.least {
			bound = ">="
		}
		aim, verdict = fmt.Sprintf("%s %g %s", bound, l.aim, l.unit), "ok"
	}
	if l.missed() {
		verdict = "MISSED"
	}
	fmt.Println(strings.TrimRight(fmt.Sprintf("%-46s %12s %12s %8s %10s  %s", l.what, l.ours, l.peer, ratio, aim, verdict), " "))
}

func (l line) missed() bool {
	value := l.ratio
	switch {
	case l.aim == 0:
		return false
	case l.unit != "x":
		fmt.Sscan(l.ours, &value)
	}
	if l.least {
		return value < l.aim
	}
	return value > l.aim
}

// asRate makes a line of times for size bytes one of rates, to be at least
// aim times the peer's.
func (l line) asRate(size int, aim float64) line {
	rate := func(d time.Duration) string {
		return fmt.Sprintf("%.3g GB/s", float64(size)/float64(d.Nanoseconds()))
	}
	l.ours, l.peer, l.ratio = rate(l.took[0]), rate(l.took[1]), 1/l.ratio
	l.aim, l.least = aim, true
	return l
}

// compare takes ours and the peer's figure in turn, who is first changing
// from pair to pair, and gives the medians of both and of their ratios.
func compare(pairs int, ours, peer func() (time.Duration, error)) (line, error) {
	var as, bs []time.Duration
	var ratios []float64
	for i := range pairs {
		var d [2]time.Duration
		for j := range 2 {
			which, f := 0, ours
			if (i+j)%2 == 1 {
				which, f = 1, peer
			}
			var err error
			if d[which], err = f(); err != nil {
				return line{}, err
			}
		}
		as, bs = append(as, d[0]), append(bs, d[1])
		ratios = append(ratios, float64(d[0])/float64(d[1]))
	}
	took := [2]time.Duration{median(as), median(bs)}
	return line{ours: short(took[0]), peer: short(took[1]), ratio: median(ratios), unit: "x", took: took}, nil
}

func median[T ~int64 | ~float64](s []T) T {
	s = slices.Clone(s)
	slices.Sort(s)
	return s[len(s)/2]
}

// short rounds to three digits.
func short(d time.Duration) string {
	for _, unit := range []time.Duration{time.Second, time.Millisecond, time.Microsecond} {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// openReadClose holds one read of a status against a go-fuse server that can
// nothing else.
func (b *bench) openReadClose() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	peer, err := b.servePeer()
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, reads(one.mnt+"/vm/vm0/status"), reads(peer+"/vm/vm0/status"))
	l.what, l.aim = "open, read, close of status, p50", 1.10
	return l, err
}

func (b *bench) openReadCloseThousand() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	thousand, err := b.serve("thousand", 1000)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, reads(thousand.mnt+"/vm/vm500/status"), reads(one.mnt+"/vm/vm0/status"))
	l.what, l.aim = "the same among 1000 VMs, to one", 1.10
	return l, err
}

func (b *bench) catStatus() (line, error) {
	one, err := b.serve("one", 1)
	if err != nil {
		return line{}, err
	}
	l, err := compare(b.pairs, runs("cat", one.mnt+"/vm/vm0/status"),
		runs("virsh", "-c", "test:///default", "domstate", "test"))
	l.what, l.aim = "cat status, to virsh domstate", 0.1
	return l, err
}

// memory is what an idle daemon with 1000 definitions costs, before anybody
// has looked at them: Pss, so that the shared program counts once.
func (b *bench) memory() (line, error) {
	d, err := b.serve("thousand", 1000)
	if err != nil {
		return line{}, err
	}
	l, err := d.idle()
	l.what, l.aim = "core and priv, 1000 VMs defined, Pss", 40
	return l, err
}

// idle is what a daemon costs that has just started.
func (d *daemon) idle() (line, error) {
	if _, err := d.restart(); err != nil {
		return line{}, err
	}
	time.Sleep(2 * time.Second) // what it does in the background at its start
	sum, err := d.pss()
	return line{ours: fmt.Sprintf("%.1f MiB", float64(sum)/1024), peer: "-", unit: "MiB"}, err
}

func (b *bench) list() (line, error) {
	d, err := b.serve("thousand", 1000)
	if err != nil {
		return line{}, err
	}
	plain := b.memDir + "/plain"
	if err := os.Mkdir(plain, 0o755); err != nil {
		return line{}, err
	}
	for i := range 1000 {
		if err := os.Mkdir(filepath.Join(plain, fmt.Sprintf("vm%d", i)), 0o755); err != nil {
			return line{}, err
		}
	}
	l, err := compare(b.pairs, runs("ls", "-l", d.mnt+"/vm"), runs("ls", "-l", plain))
	l.what, l.aim = "ls -l of 1000 VMs, to 1000 in tmpfs", 6
	return l, err
}
