package ninep

import (
	"encoding/binary"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
	"vmfs/fs"
)

// The conversations of testdata/*.txt, a line a message:
//
//	as UID GID GROUP...   a new connection of this user
//	> TYPE TAG FIELD...   what the client sends
//	> hex BYTES           the same, whatever it is
//	< TYPE TAG FIELD...   what it hears, in order, before it sends the next
//	< hung up
//	start, kill           the machine web is started, killed
//
// A field is a number, ~ for all ones, or a quoted string. A qid is a letter,
// d or f, and the number by which the conversation met it. An entry is
// (NAME=VALUE ...) of what is not untouched; its times are not shown. Text
// from # on is a remark. With -update the < lines are written as they come.

var update = flag.Bool("update", false, "write what was heard into testdata")

var kinds = map[string]uint8{
	"Tversion": 100, "Rversion": 101, "Tauth": 102, "Rauth": 103, "Tattach": 104, "Rattach": 105, "Rerror": 107,
	"Tflush": 108, "Rflush": 109, "Twalk": 110, "Rwalk": 111, "Topen": 112, "Ropen": 113, "Tcreate": 114, "Rcreate": 115,
	"Tread": 116, "Rread": 117, "Twrite": 118, "Rwrite": 119, "Tclunk": 120, "Rclunk": 121, "Tremove": 122, "Rremove": 123,
	"Tstat": 124, "Rstat": 125, "Twstat": 126, "Rwstat": 127,
}

// answers are the layouts of what a client hears; q is a qid, Q a count of
// them and they.
var answers = map[uint8]layout{
	101: {"4s", ""}, 105: {"q", ""}, 107: {"s", "4"}, 109: {"", ""}, 111: {"Q", ""}, 113: {"q4", ""}, 115: {"q4", ""},
	117: {"d", ""}, 119: {"4", ""}, 121: {"", ""}, 123: {"", ""}, 125: {"e", ""}, 127: {"", ""},
}

type conversation struct {
	t    *testing.T
	addr string
	c    *raw
	dotu bool
	inos []uint64
}

func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) { transcript(t, name) })
	}
}

func transcript(t *testing.T, name string) {
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	tr, _, _ := tree(t)
	var mu sync.Mutex
	var peer ctl.Cred
	addr, _ := serve(t, tr.Root(), Options{Limits: Limits{Fids: 20, Requests: 4}}, func() Peer {
		mu.Lock()
		defer mu.Unlock()
		return Peer{Cred: peer, Believed: peer.UID == 0}
	})
	v := &conversation{t: t, addr: addr}
	var out strings.Builder
	lines := strings.SplitAfter(string(text), "\n")
	for i := 0; i < len(lines); i++ {
		line, _, _ := strings.Cut(lines[i], "#")
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "<") || !*update {
			out.WriteString(lines[i])
		}
		switch word, rest, _ := strings.Cut(line, " "); word {
		case "", "<":
		case "as":
			var ids []uint32
			for f := range strings.FieldsSeq(rest) {
				n, _ := strconv.ParseUint(f, 10, 32)
				ids = append(ids, uint32(n))
			}
			mu.Lock()
			peer = ctl.Cred{UID: ids[0], GID: ids[1], Groups: ids[2:]}
			mu.Unlock()
			v.c = dial(t, addr)
			v.inos, v.dotu = nil, false
		case "start", "kill":
			h := openNode(t, tr.Root(), "vm/web/do/"+word)
			if err := h.Write(bg, []byte("\n")); err != nil {
				t.Fatal(err)
			}
			h.Close()
		case ">":
			v.say(rest)
			v.hear(lines[i+1:], &out, fmt.Sprintf("%s:%d", name, i+1))
		default:
			t.Fatalf("%s:%d: %q", name, i+1, line)
		}
	}
	if *update {
		if err := os.WriteFile(name, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// hear holds what comes against the < lines that follow.
func (v *conversation) hear(lines []string, out *strings.Builder, where string) {
	v.t.Helper()
	if *update {
		for {
			p, err := v.c.receiveBy(150 * time.Millisecond)
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				return
			}
			if err != nil {
				out.WriteString("< hung up\n")
				return
			}
			out.WriteString("< " + v.show(p) + "\n")
		}
	}
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "<") {
			return
		}
		want := strings.TrimSpace(line[1:])
		p, err := v.c.receiveBy(30 * time.Second)
		got := "hung up"
		if err == nil {
			got = v.show(p)
		}
		if got != want {
			v.t.Fatalf("%s: got  %s\nwant %s (%v)", where, got, want, err)
		}
	}
}

// words cuts a line at blanks that are not in a string or an entry.
func words(s string) []string {
	var list []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		n := strings.IndexByte(s+" ", ' ')
		if s[0] == '"' {
			q, err := strconv.QuotedPrefix(s)
			if err != nil {
				panic(s)
			}
			n = len(q)
		}
		if s[0] == '(' {
			n = strings.IndexByte(s, ')') + 1
		}
		list = append(list, s[:n])
		s = s[n:]
	}
	return list
}

func (v *conversation) say(line string) {
	f := words(line)
	if f[0] == "hex" {
		var p []byte
		for _, w := range f[1:] {
			n, err := strconv.ParseUint(w, 16, 8)
			if err != nil {
				v.t.Fatal(err)
			}
			p = append(p, byte(n))
		}
		v.c.sendBytes(p)
		return
	}
	kind, ok := kinds[f[0]]
	if !ok {
		v.t.Fatalf("no message %q", f[0])
	}
	p := []byte{0, 0, 0, 0, kind}
	p = number16(p, f[1])
	l := layouts[kind]
	fields := l.plain
	if v.dotu {
		fields += l.tail
	}
	rest := f[2:]
	next := func() string {
		if len(rest) == 0 {
			v.t.Fatalf("%s: too few fields", line)
		}
		w := rest[0]
		rest = rest[1:]
		return w
	}
	for _, c := range []byte(fields) {
		switch c {
		case 's':
			p = appendString(p, next())
		case 'd':
			s := next()
			text, err := strconv.Unquote(s)
			if err != nil {
				v.t.Fatalf("%s: %v", s, err)
			}
			p = append(binary.LittleEndian.AppendUint32(p, uint32(len(text))), text...)
		case 'n':
			p = binary.LittleEndian.AppendUint16(p, uint16(len(rest)))
			for len(rest) > 0 {
				p = appendString(p, next())
			}
		case 'e':
			e := v.entry(next())
			p = append(binary.LittleEndian.AppendUint16(p, uint16(len(e))), e...)
		default:
			p = appendNumber(p, next(), int(c-'0'))
		}
	}
	if len(rest) > 0 {
		v.t.Fatalf("%s: too many fields", line)
	}
	v.c.sendBytes(sized(p))
	if kind == proto.Tversion {
		v.dotu = strings.Contains(line, "9P2000.u")
	}
}

func number16(p []byte, w string) []byte { return appendNumber(p, w, 2) }

func appendNumber(p []byte, w string, bytes int) []byte {
	n := ^uint64(0)
	if w != "~" {
		var err error
		if n, err = strconv.ParseUint(w, 0, 64); err != nil {
			panic(err)
		}
	}
	for range bytes {
		p = append(p, byte(n))
		n >>= 8
	}
	return p
}

func appendString(p []byte, w string) []byte {
	s, err := strconv.Unquote(w)
	if err != nil {
		panic(w + ": " + err.Error())
	}
	return append(binary.LittleEndian.AppendUint16(p, uint16(len(s))), s...)
}

// entry makes the entry of a Twstat.
func (v *conversation) entry(w string) []byte {
	st := proto.Stat{Type: 1<<16 - 1, Dev: noID, Qid: proto.Qid{Qtype: 255, Vers: noID, Uid: 1<<64 - 1}, Mode: noID, Atime: noID, Mtime: noID, Length: 1<<64 - 1}
	ids := [2]uint32{noID, noID}
	for f := range strings.FieldsSeq(strings.Trim(w, "()")) {
		key, value, _ := strings.Cut(f, "=")
		n, _ := strconv.ParseUint(value, 0, 64)
		switch key {
		case "mode":
			st.Mode = uint32(n)
		case "length":
			st.Length = n
		case "mtime":
			st.Mtime = uint32(n)
		case "dev":
			st.Dev = uint32(n)
		case "name":
			st.Name = value
		case "uid":
			st.Uid = value
		case "gid":
			st.Gid = value
		case "nuid":
			ids[0] = uint32(n)
		case "ngid":
			ids[1] = uint32(n)
		default:
			panic(key)
		}
	}
	if v.dotu {
		return appendEntry(nil, &st, &ids)
	}
	return appendEntry(nil, &st, nil)
}

// show writes an answer as a line.
func (v *conversation) show(p []byte) string {
	kind := p[4]
	name := fmt.Sprint(kind)
	for n, k := range kinds {
		if k == kind {
			name = n
		}
	}
	tag := binary.LittleEndian.Uint16(p[5:])
	f := []string{name, showNumber(uint64(tag), 2)}
	l := answers[kind]
	fields := l.plain
	if v.dotu {
		fields += l.tail
	}
	p = p[headerSize:]
	for _, c := range []byte(fields) {
		switch c {
		case 's':
			n := binary.LittleEndian.Uint16(p)
			f = append(f, strconv.Quote(string(p[2:2+n])))
			p = p[2+n:]
		case 'd':
			n := binary.LittleEndian.Uint32(p)
			f = append(f, v.data(p[4:4+n])...)
			p = p[4+n:]
		case 'q':
			f, p = append(f, v.qid(p)), p[13:]
		case 'Q':
			n := binary.LittleEndian.Uint16(p)
			for p = p[2:]; n > 0; n-- {
				f, p = append(f, v.qid(p)), p[13:]
			}
		case 'e':
			n := binary.LittleEndian.Uint16(p)
			f = append(f, v.showEntry(p[2:2+n]))
			p = p[2+n:]
		default:
			n := int(c - '0')
			var b [8]byte
			copy(b[:], p[:n])
			f, p = append(f, showNumber(binary.LittleEndian.Uint64(b[:]), n)), p[n:]
		}
	}
	if len(p) > 0 {
		f = append(f, fmt.Sprintf("and %d bytes", len(p)))
	}
	return strings.Join(f, " ")
}

func showNumber(n uint64, bytes int) string {
	if n == 1<<(8*bytes)-1 {
		return "~"
	}
	return strconv.FormatUint(n, 10)
}

// data shows entries as such.
func (v *conversation) data(p []byte) []string {
	var list []string
	for q := p; ; {
		if len(q) == 0 && len(list) > 0 {
			return list
		}
		if len(q) < 49 || int(binary.LittleEndian.Uint16(q)) > len(q)-2 {
			return []string{strconv.Quote(string(p))}
		}
		n := 2 + int(binary.LittleEndian.Uint16(q))
		if _, err := checkEntry(q[:n], v.dotu); err != nil {
			return []string{strconv.Quote(string(p))}
		}
		list = append(list, v.showEntry(q[:n]))
		q = q[n:]
	}
}

func (v *conversation) showEntry(p []byte) string {
	st, err := proto.ParseStats(p)
	if err != nil || len(st) == 0 {
		return fmt.Sprintf("(bad entry %x)", p)
	}
	s := st[0]
	text := fmt.Sprintf("(%s %s mode=%#o length=%d uid=%s gid=%s muid=%q", s.Name, v.qid(p[8:]), s.Mode, s.Length, s.Uid, s.Gid, s.Muid)
	if v.dotu {
		tail, err := checkEntry(p, true)
		if err != nil {
			return fmt.Sprintf("(bad entry %x)", p)
		}
		ids, _ := skip(tail, "s")
		text += fmt.Sprintf(" nuid=%d ngid=%d", binary.LittleEndian.Uint32(ids), binary.LittleEndian.Uint32(ids[4:]))
	}
	return text + ")"
}

func (v *conversation) qid(p []byte) string {
	letter := "f"
	if p[0] == typeDir {
		letter = "d"
	}
	ino := binary.LittleEndian.Uint64(p[5:])
	for i, n := range v.inos {
		if n == ino {
			return fmt.Sprintf("%s%d", letter, i)
		}
	}
	v.inos = append(v.inos, ino)
	return fmt.Sprintf("%s%d", letter, len(v.inos)-1)
}

// openNode opens a file without a door.
func openNode(t *testing.T, root fs.Dir, path string) fs.Handle {
	t.Helper()
	var n fs.Node = root
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if n, err = n.(fs.Dir).Lookup(bg, name); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	h, err := n.(fs.File).Open(bg, ctl.Cred{}, fs.Flags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	return h
}
