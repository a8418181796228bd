package network

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Hosts whose iptables(8) is the older one have rules that nftables does not
// show. The kernel gives a table as it keeps it: entries, and for each hook
// where its first is, and its last, which is the policy.

const (
	getInfo    = 64 // IPT_SO_GET_INFO and IP6T_SO_GET_INFO
	getEntries = 65 // ..._GET_ENTRIES

	tableName  = 32 // bytes
	infoSize   = 84 // struct ipt_getinfo
	underflow  = 56 // in it: the policies' entries, a number for each hook
	sizeAt     = 80 // in it: of the entries
	entriesAt  = 40 // in struct ipt_get_entries
	verdictAt  = 32 // in struct xt_standard_target
	maxEntries = 16 << 20

	drop = -1 // -NF_DROP-1
)

// legacy is what differs between the two families.
type legacy struct {
	names        string // file that lists the tables that are there
	domain       int
	level        int
	targetOffset int // in an entry
	tool, family string
}

var legacies = []legacy{
	{"/proc/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP, 88, "iptables", "IPv4"},
	{"/proc/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6, 140, "ip6tables", "IPv6"},
}

var errTable = errors.New("not a table")

// legacyWalls finds the tables that drop forwarded packets which no rule
// accepts. What cannot be looked at is not there.
func legacyWalls() []wall {
	var walls []wall
	for i, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		f := legacies[i]
		names, err := os.ReadFile(f.names) // asking for a table would make it
		if err != nil || !slices.Contains(strings.Fields(string(names)), "filter") {
			continue
		}
		if verdict, err := f.policy(); err == nil && verdict == drop {
			walls = append(walls, wall{family, "the policy of " + f.tool + "'s FORWARD (legacy) is DROP: " + f.family + " packets are forwarded only where a rule accepts them"})
		}
	}
	return walls
}

// policy is the verdict of the last entry for forwarded packets.
func (f legacy) policy() (int32, error) {
	fd, err := unix.Socket(f.domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info, "filter")
	if err := getsockopt(fd, f.level, getInfo, info); err != nil {
		return 0, err
	}
	size := binary.NativeEndian.Uint32(info[sizeAt:])
	if size > maxEntries {
		return 0, errTable
	}
	entries := make([]byte, entriesAt+size)
	copy(entries, "filter")
	binary.NativeEndian.PutUint32(entries[tableName:], size)
	if err := getsockopt(fd, f.level, getEntries, entries); err != nil {
		return 0, err
	}
	at := binary.NativeEndian.Uint32(info[underflow+4*unix.NF_INET_FORWARD:])
	return verdict(entries[entriesAt:], at, f.targetOffset)
}

// verdict reads the verdict of the entry at an offset.
func verdict(entries []byte, at uint32, targetOffset int) (int32, error) {
	if uint64(at)+uint64(targetOffset)+2 > uint64(len(entries)) {
		return 0, errTable
	}
	entry := entries[at:]
	target := int(binary.NativeEndian.Uint16(entry[targetOffset:])) + verdictAt
	if target+4 > len(entry) {
		return 0, errTable
	}
	return int32(binary.NativeEndian.Uint32(entry[target:])), nil
}

func getsockopt(fd, level, option int, b []byte) error {
	size := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
