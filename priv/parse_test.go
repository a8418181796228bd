package priv

import (
	"slices"
	"strings"
	"testing"

	"vmfs/priv/wire"
)

// seeds are requests that core may send, and some that it may not.
var seeds = []string{
	"open 1000 ro auto /srv/a.raw rw qcow2 /srv/b", `open 0 ro raw "/srv/a b"`, "open 5 ro firmware /f", "open 1000", "open 1000 ro", "open 1000 ro /a", "open 1000 ro raw a.raw",
	"open -1 ro raw /a", "open 4294967295 ro raw /a", "open 1899999999 ro raw /a", "open 1900000003 ro raw /a", "open 01 ro raw /a", "open 1 wo raw /a",
	`open 1 ro raw "/a\x00b"`, "open 1 ro raw /" + strings.Repeat("a", 5000), "open 1 ro vmdk /a", "open 1 ro rom /a", `open 1 ro "" /a`,
	"whois 1000", "whois", "whois root", "whois 1899999999", "whois 1899999996", "whois 1 2",
	"spawn 1 kvm yes 2 512 1 40", "spawn 1 tcg no 2 512 1 40", "spawn 0 tcg no 1 64 0 0", "spawn 100000001 tcg no 1 64 0 0", "spawn 1 xen no 1 64 0 0", "spawn 1 tcg maybe 1 64 0 0", "spawn 1 tcg no", "spawn 1 tcg no 0 64 0 0", "spawn 1 tcg no 65 64 0 0", "spawn 1 tcg no 1 0 0 0", "spawn 1 tcg no 1 16777217 0 0", "spawn 1 tcg no 1 64 65 0", "spawn 1 tcg no 1 064 0 0", "spawn 1 tcg no 1 64 -1 0", "spawn 1 tcg no 1 64 0 1048577", "spawn ../1 tcg no 1 64 0 0",
	"guests 0", "guests 7", "guests", "guests -1", "end 1", "end 0", "end 1 2", "engines", "engines x", "alive", "serving",
	"unpack 1048576", "unpack 0", "unpack", "unpack 268435457", "unpack 1 2", "draining", "shutdown", "shutdown now", "exec /bin/sh", `"" x`,
	"lease", "lease now", "links -", "links vm1-if0", "links x", "release vm1-if0",
}

func TestParseRequest(t *testing.T) {
	good := []string{"open 1000 ro auto /srv/a.raw rw qcow2 /srv/b", `open 0 ro raw "/srv/a b"`, "open 5 ro firmware /f", "whois 1000", "spawn 1 kvm yes 2 512 1 40", "spawn 1 tcg no 2 512 1 40",
		"guests 0", "guests 7", "end 1", "engines", "unpack 1048576", "alive", "serving", "draining", "shutdown",
		"lease", "links -", "links vm1-if0", "release vm1-if0"}
	for _, s := range seeds {
		fields, err := wire.Decode([]byte(s))
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		_, err = parseRequest(fields[0], fields[1:])
		if want := slices.Contains(good, s); (err == nil) != want {
			t.Errorf("%.60q: %v, want taken: %v", s, err, want)
		}
	}
	if _, err := parseRequest("open", append([]string{"1"}, slices.Repeat([]string{"ro", "raw", "/a"}, wire.MaxFiles+1)...)); err == nil {
		t.Error("more files than a message holds were taken")
	}
}

func TestVerbTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, v := range allVerbs() {
		if v.name == "" || v.why == "" || v.parse == nil || seen[v.name] {
			t.Errorf("verb %q: twice, or without a reason or a parser", v.name)
		}
		seen[v.name] = true
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields, err := wire.Decode([]byte(line))
		if err != nil {
			return
		}
		if do, err := parseRequest(fields[0], fields[1:]); (do == nil) == (err == nil) {
			t.Errorf("parseRequest(%q): an act %v, an error %v", fields, do != nil, err)
		}
	})
}

func FuzzOpenRequest(f *testing.F) {
	for _, s := range []string{"open 0 0 2 /a /b ro raw /c", `open 1000 "1000 24" 0 rw auto /c`, "open 1 1 -1 ro raw /a", "open 1 1 9 ro raw /a", "open 1 1 1 a ro raw /a", `open 1 "" 0 ro raw /a`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		fields, err := wire.Decode([]byte(line))
		if err != nil {
			return
		}
		r, err := parseOpenRequest(fields)
		if err != nil {
			return
		}
		again, err := parseOpenRequest(r.fields())
		if err != nil || !slices.Equal(again.wants, r.wants) || !slices.Equal(again.dirs, r.dirs) || !slices.Equal(again.groups, r.groups) || again.uid != r.uid {
			t.Errorf("parseOpenRequest(%q) = %v, again %v, %v", fields, r, again, err)
		}
	})
}

func TestParseAnswer(t *testing.T) {
	for _, c := range []struct {
		line        string
		files, want int
		ok          bool
	}{
		{"ok 1 raw", 1, 1, true},
		{"ok 1 raw 4 qcow2 qcow2 qcow2 raw 2 flash vars", 7, 3, true},
		{"ok 1 raw", 2, 1, false},
		{"ok 1 raw", 1, 2, false},
		{"ok 1 raw 1 raw", 2, 1, false},
		{"ok 5 raw raw raw raw raw", 5, 1, false},
		{"ok 0", 0, 1, false},
		{"ok -1 raw", 1, 1, false},
		{"ok 2 raw", 2, 1, false},
		{"ok 1 auto", 1, 1, false},
		{"ok", 0, 0, true},
		{"fine 1 raw", 1, 1, false},
	} {
		fields, err := wire.Decode([]byte(c.line))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseAnswer(fields, c.files, c.want); (err == nil) != c.ok {
			t.Errorf("parseAnswer(%q, %d, %d): %v, want taken: %v", c.line, c.files, c.want, err, c.ok)
		}
	}
}

func FuzzOpened(f *testing.F) {
	f.Add("ok 1 raw 2 qcow2 raw", 3)
	f.Add("ok 1 raw", 2)
	f.Add("ok 2 flash vars 1 rom", 3)
	f.Add("ok -1 raw", 1)
	f.Add("error ENOENT \"open /a: no such file\"", 0)
	f.Add("error EWHAT x", 0)
	f.Add("error ENOENT \"a\\nb\"", 0)
	f.Fuzz(func(t *testing.T, line string, files int) {
		fields, err := wire.Decode([]byte(line))
		if err != nil {
			return
		}
		fields, err = parseAnswer(fields, files, 2)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r\x1b\x00") {
				t.Errorf("parseAnswer(%q): %q is no sentence for a log", line, err)
			}
			return
		}
		opened, err := parseOpened(fields, files, 2)
		if err != nil || len(opened) != 2 || len(opened[0])+len(opened[1]) != files {
			t.Errorf("parseOpened(%q, %d) = %q, %v", fields, files, opened, err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	for _, s := range []string{"pid 12\nstart 345\nuid 1900000001\n", "pid 1\nstart 1\nuid 0\n", "pid 12\nstart 345\n", "pid 012\nstart 345\nuid 1\n", "pid -5\nstart 1\nuid 1\n", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRecord([]byte(text))
		if err == nil && (string(r.text()) != text || r.pid <= 1) {
			t.Errorf("parseRecord(%q) = %v", text, r)
		}
	})
}

func FuzzParseMounts(f *testing.F) {
	f.Add("36 35 98:0 / /mnt rw,noatime shared:1 - ext4 /dev/root rw,errors=continue\n")
	f.Add(`43 42 0:40 / /a\040b rw - fuse.vmfs vmfs:/run\134x rw,user_id=7` + "\n")
	f.Add("1 2 - x\n")
	f.Add(`1 2 0:1 / \04 - - a b`)
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := parseMounts(text)
		if err != nil {
			return
		}
		for i := range mounts {
			mounts[i].owner()
			topMount(mounts, mounts[i].point)
		}
	})
}

func TestParseMounts(t *testing.T) {
	mounts, err := parseMounts("42 27 0:39 / /a\\040b ro - tmpfs vmfs ro\n" +
		"43 42 0:40 / /a\\040b rw shared:7 - fuse.vmfs vmfs:/r rw,user_id=7,group_id=7\n" +
		"44 27 0:41 / /c rw - ext4 /dev/x rw\n")
	if err != nil {
		t.Fatal(err)
	}
	top := topMount(mounts, "/a b")
	if top == nil || top.id != 43 || top.source != "vmfs:/r" {
		t.Fatalf("top = %+v", top)
	}
	if uid, ok := top.owner(); uid != "7" || !ok {
		t.Errorf("owner = %q, %v", uid, ok)
	}
	if _, ok := mounts[2].owner(); ok {
		t.Error("ext4 is no FUSE")
	}
	if topMount(mounts, "/a") != nil {
		t.Error("nothing is mounted on /a")
	}
}

func TestParseStart(t *testing.T) {
	rest := strings.Repeat(" 1", 18) + " 777 5 5"
	for stat, want := range map[string]struct {
		start uint64
		runs  bool
	}{
		"12 (a b) S" + rest:     {777, true},
		"12 (a) b) R) S" + rest: {777, true},
		"12 (ended) Z" + rest:   {777, false},
		"12 (short) S 1 2":      {},
		"":                      {},
	} {
		if start, runs := parseStart(stat); start != want.start || runs != want.runs {
			t.Errorf("parseStart(%q) = %d, %v, want %v", stat, start, runs, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright": "7.2.22",
		"QEMU emulator version 9.0.0\n":                                 "9.0.0",
		"QEMU emulator version \x1b[2J":                                 "",
		"something else":                                                "",
	} {
		if got, err := parseVersion(text); got != want || (err == nil) != (want != "") {
			t.Errorf("parseVersion(%q) = %q, %v; want %q", text, got, err, want)
		}
	}
}
