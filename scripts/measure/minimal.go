package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
)

// serveMinimal serves vm/vm0/status over 9P2000, on a unix socket: what is in
// memory, to whoever asks, with no check, no limit and no way to interrupt. It
// is the least that has fids and walks.
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
		go (&minimal{root: root, fids: map[uint32]*node{}}).serve(c)
	}
}

type node struct {
	qid     uint64
	entries map[string]*node // of a directory
	text    []byte
}

type minimal struct {
	root *node
	fids map[uint32]*node
	out  []byte
}

func (s *minimal) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReaderSize(c, 8<<10)
	for {
		head, err := in.Peek(4)
		if err != nil {
			return
		}
		m, err := in.Peek(int(binary.LittleEndian.Uint32(head)))
		if err != nil {
			return
		}
		s.out = append(s.out[:0], 0, 0, 0, 0, m[4]+1, m[5], m[6])
		if !s.answer(m[4], m[7:]) {
			s.out = appendString(append(s.out[:0], 0, 0, 0, 0, rerror, m[5], m[6]), "no such thing")
		}
		in.Discard(len(m))
		if _, err := c.Write(sized(s.out)); err != nil {
			return
		}
	}
}

// answer appends what follows the tag.
func (s *minimal) answer(kind byte, m []byte) bool {
	fid := binary.LittleEndian.Uint32(m)
	f := s.fids[fid]
	switch {
	case kind == tversion:
		s.out = appendString(append(s.out, m[:4]...), "9P2000")
	case kind == tattach:
		s.fids[fid] = s.root
		s.qid(s.root)
	case f == nil:
		return false
	case kind == twalk:
		return s.walk(f, m[4:])
	case kind == topen:
		s.qid(f)
		s.out = append(s.out, 0, 0, 0, 0)
	case kind == tread:
		off, count := binary.LittleEndian.Uint64(m[4:]), binary.LittleEndian.Uint32(m[12:])
		text := f.text[min(off, uint64(len(f.text))):]
		text = text[:min(uint64(count), uint64(len(text)))]
		s.out = append(binary.LittleEndian.AppendUint32(s.out, uint32(len(text))), text...)
	case kind == tclunk:
		delete(s.fids, fid)
	default:
		return false
	}
	return true
}

func (s *minimal) walk(f *node, m []byte) bool {
	newfid, n := binary.LittleEndian.Uint32(m), binary.LittleEndian.Uint16(m[4:])
	s.out = append(s.out, m[4], m[5])
	m = m[6:]
	for range n {
		size := binary.LittleEndian.Uint16(m)
		if f = f.entries[string(m[2:2+size])]; f == nil {
			return false
		}
		m = m[2+size:]
		s.qid(f)
	}
	s.fids[newfid] = f
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
