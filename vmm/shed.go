package vmm

import (
	"bufio"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// programText is what is mapped of this program's file and never written: its code
// and its constants.
type programText []span

type span struct{ start, length uintptr }

// ownText looks where it is, as long as there is a /proc. What cannot be read
// is none.
func ownText() programText {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	var text programText
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) == 6 && f[5] == exe && f[1][1] == '-' {
			from, to, _ := strings.Cut(f[0], "-")
			start, err1 := strconv.ParseUint(from, 16, 64)
			end, err2 := strconv.ParseUint(to, 16, 64)
			if err1 == nil && err2 == nil {
				text = append(text, span{uintptr(start), uintptr(end - start)})
			}
		}
	}
	return text
}

// shed lets go of the memory that only the beginning needed: garbage, and the
// code of it, which would be read again from its file if it were needed after
// all. A machine that runs uses a small part of the program.
func (t programText) shed() {
	debug.FreeOSMemory()
	for _, s := range t {
		unix.Syscall(unix.SYS_MADVISE, s.start, s.length, unix.MADV_DONTNEED)
	}
}
