package fuse

import (
	"os"
	"slices"
	"strconv"
	"strings"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"vmfs/ctl"
	"vmfs/fs"
)

// opener is who opens f: with all groups, if f asks for them.
func opener(f fs.File, flags fs.Flags, c *gofuse.Caller) ctl.Cred {
	by := cred(c)
	if g, ok := f.(fs.Grouper); ok && g.WantsGroups(flags) {
		by.Groups = groupsOf(c)
	}
	return by
}

// groupsOf reads the groups of the thread whose request is being served: it
// is in the kernel until it is answered, so its number is nobody else's. One
// that is somebody else there than in its request has none.
func groupsOf(c *gofuse.Caller) []uint32 {
	text, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(c.Pid), 10) + "/status")
	if err != nil {
		return nil
	}
	return parseGroups(string(text), c.Uid, c.Gid)
}

// parseGroups finds the groups in /proc/TID/status, if its file system uid
// and gid, the last of four, are these.
func parseGroups(status string, uid, gid uint32) []uint32 {
	fields := make(map[string][]uint32)
	for line := range strings.Lines(status) {
		key, rest, _ := strings.Cut(line, ":")
		if key == "Uid" || key == "Gid" || key == "Groups" {
			fields[key] = numbers(rest)
		}
	}
	is := func(ids []uint32, id uint32) bool { return len(ids) == 4 && ids[3] == id }
	if !is(fields["Uid"], uid) || !is(fields["Gid"], gid) {
		return nil
	}
	return slices.Clip(fields["Groups"])
}

func numbers(s string) []uint32 {
	var ids []uint32
	for _, f := range strings.Fields(s) {
		if n, err := strconv.ParseUint(f, 10, 32); err == nil {
			ids = append(ids, uint32(n))
		}
	}
	return ids
}
