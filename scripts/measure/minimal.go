package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
)

// serveMinimal serves vm/vm0/status over 9P2000, on a unix socket: what is in
// memory, to whoever asks, who may read all of it, with no bound and no way to
// interrupt. It is the least that is right: sizes and fids are what they have
// to be, a walk may end on its way, and a file is opened before it is read.
func serveMinimal(socket string) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, "minimal:", err)
		os.Exit(1)
	}
	status := &node{qid: 4, text: []byte("stopped\n")}
	vm0 := &node{qid: 3, entries: map[string]*node{"status": status}}
	vm := &node{qid: 2, entries: map[string]*node{"vm0": vm0}}
	root := &node{qid: 1, entries: map[string]*node{"vm": vm}}
	fmt.Println("serving")
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go (&minimal{root: root, fids: map[uint32]file{}}).serve(c)
	}
}

type node struct {
	qid     uint64
	entries map[string]*node // of a directory
	text    []byte
}

// file is what a fid is.
type file struct {
	at   *node
	open bool
}

type minimal struct {
	root *node
	fids map[uint32]file
	out  []byte
}

// minimalMost is how long a message can be, in bytes.
const minimalMost = 8 << 10

func (s *minimal) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReaderSize(c, minimalMost)
	for {
		head, err := in.Peek(4)
		if err != nil {
			return
		}
		size := binary.LittleEndian.Uint32(head)
		if size < 7 || size > minimalMost {
			return
		}
		m, err := in.Peek(int(size))
		if err != nil {
			return
		}
		s.out = append(s.out[:0], 0, 0, 0, 0, m[4]+1, m[5], m[6])
		if !s.answer(m[4], &fields{p: m[7:]}) {
			s.out = appendString(append(s.out[:0], 0, 0, 0, 0, rerror, m[5], m[6]), "no such thing")
		}
		in.Discard(len(m))
		if _, err := c.Write(sized(s.out)); err != nil {
			return
		}
	}
}

// answer appends what follows the tag. It is false for what cannot be.
func (s *minimal) answer(kind byte, m *fields) bool {
	fid := uint32(m.number(4)) // of a Tversion, the size
	f, known := s.fids[fid]
	switch {
	case kind == tversion:
		s.out = binary.LittleEndian.AppendUint32(s.out, min(fid, minimalMost))
		s.out = appendString(s.out, "9P2000")
		m.text()
	case kind == tattach:
		m.number(4)
		m.text()
		m.text()
		if known || !m.whole() {
			return false
		}
		s.fids[fid] = file{at: s.root}
		s.qid(s.root)
	case !known:
		return false
	case kind == twalk:
		return !f.open && s.walk(fid, f.at, m)
	case kind == topen:
		if m.number(1) != 0 || f.open || !m.whole() {
			return false
		}
		s.fids[fid] = file{f.at, true}
		s.qid(f.at)
		s.out = append(s.out, 0, 0, 0, 0)
	case kind == tread:
		off, count := m.number(8), m.number(4)
		if !f.open || f.at.entries != nil {
			return false
		}
		text := f.at.text[min(off, uint64(len(f.at.text))):]
		text = text[:min(count, uint64(len(text)))]
		s.out = append(binary.LittleEndian.AppendUint32(s.out, uint32(len(text))), text...)
	case kind == tclunk:
		delete(s.fids, fid)
	default:
		return false
	}
	return m.whole()
}

// walk makes the new fid only if it comes to the end.
func (s *minimal) walk(fid uint32, at *node, m *fields) bool {
	newfid, n := uint32(m.number(4)), m.number(2)
	if _, known := s.fids[newfid]; known && newfid != fid || n > 16 {
		return false
	}
	count := len(s.out)
	s.out = append(s.out, 0, 0)
	for i := range n {
		next := at.entries[string(m.text())]
		if next == nil {
			return i > 0
		}
		at = next
		s.qid(at)
		s.out[count]++
	}
	if !m.whole() {
		return false
	}
	s.fids[newfid] = file{at: at}
	return true
}

func (s *minimal) qid(f *node) {
	kind := byte(0)
	if f.entries != nil {
		kind = 0x80
	}
	s.out = append(s.out, kind, 0, 0, 0, 0)
	s.out = binary.LittleEndian.AppendUint64(s.out, f.qid)
}

// fields are those of a message that are still to be read. What is not there
// reads as nothing.
type fields struct {
	p     []byte
	short bool
}

func (f *fields) take(n int) []byte {
	if n > len(f.p) {
		f.short = true
		return nil
	}
	p := f.p[:n]
	f.p = f.p[n:]
	return p
}

// number is a number of so many bytes.
func (f *fields) number(bytes int) (n uint64) {
	for i, b := range f.take(bytes) {
		n |= uint64(b) << (8 * i)
	}
	return n
}

func (f *fields) text() []byte { return f.take(int(f.number(2))) }

// whole reports whether all was there, and nothing besides.
func (f *fields) whole() bool { return !f.short && len(f.p) == 0 }
