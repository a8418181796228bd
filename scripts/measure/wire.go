package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The types of the messages that are sent here; an answer's is the next one.
const (
	tlopen   = 12 // 9P2000.L's Topen
	tversion = 100
	tattach  = 104
	twalk    = 110
	topen    = 112
	tread    = 116
	tclunk   = 120
	rlerror  = 7
	rerror   = 107
)

const (
	noTag = ^uint16(0)
	noFid = ^uint32(0)
)

// A wire is a client's end of a 9P connection. It blocks in system calls, as
// cat does, so that what is measured is the server.
type wire struct {
	fd   int
	dotl bool
	in   []byte
}

// dial attaches fid 0 to the root of a server's only tree.
func dial(socket string) (*wire, error) {
	return dialAs(&wire{}, socket, "9P2000", "/")
}

// dialDotL does it for 9P2000.L, and a tree of several.
func dialDotL(socket, tree string) (*wire, error) {
	return dialAs(&wire{dotl: true}, socket, "9P2000.L", tree)
}

func dialAs(w *wire, socket, version, tree string) (_ *wire, err error) {
	if w.fd, err = connect(socket); err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	w.in = make([]byte, 16<<10)
	attach := attachMessage(0, tree)
	if w.dotl {
		attach = binary.LittleEndian.AppendUint32(attach, 0)
	}
	p := binary.LittleEndian.AppendUint32(message(tversion, noTag), uint32(len(w.in)))
	for _, m := range [][]byte{appendString(p, version), attach} {
		if _, err := w.call(sized(m)); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

// connect tries for a while: a server's queue may be short, and full.
func connect(socket string) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for range 100 {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err == nil {
			return fd, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	unix.Close(fd)
	return -1, err
}

func (w *wire) close() { unix.Close(w.fd) }

// call sends a message and gives the body of its answer, which is good until
// the next.
func (w *wire) call(m []byte) ([]byte, error) {
	if _, err := unix.Write(w.fd, m); err != nil {
		return nil, err
	}
	n, size := 0, 4
	for n < size {
		k, err := unix.Read(w.fd, w.in[n:])
		if err == nil && k == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		if n += k; n >= 4 {
			size = int(binary.LittleEndian.Uint32(w.in))
		}
		if size < 7 || size > len(w.in) {
			return nil, fmt.Errorf("an answer of %d bytes", size)
		}
	}
	if kind := w.in[4]; kind != m[4]+1 {
		return nil, fmt.Errorf("message of type %d: answer %q of type %d", m[4], w.in[7:size], kind)
	}
	return w.in[7:size], nil
}

// A reading is the four messages by which a file is read once.
type reading [4][]byte

// reading walks to a file by new fid 1.
func (w *wire) reading(names ...string) (r reading) {
	r[0] = walkMessage(1, 0, 1, names...)
	r[1] = openMessage(1)
	if w.dotl {
		r[1] = sized(append(binary.LittleEndian.AppendUint32(message(tlopen, 1), 1), 0, 0, 0, 0))
	}
	r[2] = readMessage(1, 1)
	r[3] = sized(binary.LittleEndian.AppendUint32(message(tclunk, 1), 1))
	return r
}

func (w *wire) read(r *reading) error {
	for i, m := range r {
		body, err := w.call(m)
		if err != nil {
			return err
		}
		if i == 2 && string(body[4:]) != "stopped\n" {
			return fmt.Errorf("read %q", body[4:])
		}
	}
	return nil
}

// readTimes gives the times of n readings, in order of length.
func (w *wire) readTimes(n int, names ...string) ([]time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := w.reading(names...)
	times := make([]time.Duration, n)
	for i := range times {
		begin := time.Now()
		if err := w.read(&r); err != nil {
			return nil, err
		}
		times[i] = time.Since(begin)
	}
	slices.Sort(times)
	return times, nil
}

// readings gives the median time of a reading.
func (w *wire) readings(names ...string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		times, err := w.readTimes(1000, names...)
		if err != nil {
			return 0, err
		}
		return times[len(times)/2], nil
	}
}

// together gives the time in which all of several clients have read a file so
// many times.
func together(clients []*wire, n int, names ...string) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		var wait sync.WaitGroup
		errs := make([]error, len(clients))
		begin := time.Now()
		for i, w := range clients {
			wait.Go(func() { _, errs[i] = w.readTimes(n, names...) })
		}
		wait.Wait()
		for _, err := range errs {
			if err != nil {
				return 0, err
			}
		}
		return time.Since(begin), nil
	}
}

// message begins one; sized ends it.
func message(kind byte, tag uint16) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0, 0, 0, 0, kind}, tag)
}

func sized(p []byte) []byte {
	binary.LittleEndian.PutUint32(p, uint32(len(p)))
	return p
}

func appendString(p []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint16(p, uint16(len(s))), s...)
}

// attachMessage has no size yet: 9P2000.L goes on.
func attachMessage(fid uint32, tree string) []byte {
	p := binary.LittleEndian.AppendUint32(message(tattach, 1), fid)
	p = binary.LittleEndian.AppendUint32(p, noFid)
	return appendString(appendString(p, "root"), tree)
}

func walkMessage(tag uint16, fid, newfid uint32, names ...string) []byte {
	p := binary.LittleEndian.AppendUint32(message(twalk, tag), fid)
	p = binary.LittleEndian.AppendUint32(p, newfid)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(names)))
	for _, name := range names {
		p = appendString(p, name)
	}
	return sized(p)
}

func openMessage(fid uint32) []byte {
	return sized(append(binary.LittleEndian.AppendUint32(message(topen, 1), fid), 0)) // OREAD
}

func readMessage(tag uint16, fid uint32) []byte {
	p := binary.LittleEndian.AppendUint32(message(tread, tag), fid)
	p = binary.LittleEndian.AppendUint64(p, 0)
	return sized(binary.LittleEndian.AppendUint32(p, 4096))
}
