package wire

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Message is what came in one packet. Who receives it closes its files.
type Message struct {
	Fields []string
	Files  []*os.File
}

// Close closes the files of m that were not taken.
func (m *Message) Close() {
	for _, f := range m.Files {
		if f != nil {
			f.Close()
		}
	}
	m.Files = nil
}

// Take gives file i to the caller, nil if there is none.
func (m *Message) Take(i int) *os.File {
	if i < 0 || i >= len(m.Files) {
		return nil
	}
	f := m.Files[i]
	m.Files[i] = nil
	return f
}

// Conn is one end of a SOCK_SEQPACKET socket.
type Conn struct {
	c  *net.UnixConn
	wr sync.Mutex // keeps a deadline and its packet together

	rd  sync.Mutex
	buf []byte // one packet and one byte more, made at the first Recv
}

// NewConn makes a Conn of an open socket and closes f.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("%s: not a unix socket", f.Name())
	}
	return &Conn{c: u}, nil
}

// Dial connects to the socket at path.
func Dial(path string) (*Conn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return &Conn{c: c}, nil
}

// Accept waits for a connection to l.
func Accept(l *net.UnixListener) (*Conn, error) {
	c, err := l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &Conn{c: c}, nil
}

// Pair makes two connected ends: a Conn, and a file for a child process.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "socketpair")
	c, err := NewConn(os.NewFile(uintptr(fds[0]), "socketpair"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c, theirs, nil
}

// Send sends one message with copies of files.
func (c *Conn) Send(files []*os.File, fields ...string) error {
	b, err := Encode(fields...)
	if err != nil {
		return err
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("message of %d files: too many", len(files))
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.wr.Lock()
	defer c.wr.Unlock()
	_, _, err = c.c.WriteMsgUnix(b, oob, nil)
	return err
}

// Recv waits for one message; io.EOF when the other side has hung up. After
// any error the Conn is of no more use.
func (c *Conn) Recv() (Message, error) {
	c.rd.Lock()
	defer c.rd.Unlock()
	if c.buf == nil {
		c.buf = make([]byte, MaxMessage+1)
	}
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.buf, oob)
	if err != nil {
		return Message{}, err
	}
	if n == 0 && oobn == 0 {
		return Message{}, io.EOF
	}
	m := Message{Files: files(oob[:oobn])}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		m.Close()
		return Message{}, errMessage
	}
	if m.Fields, err = Decode(c.buf[:n]); err != nil {
		m.Close()
		return Message{}, err
	}
	return m, nil
}

// files takes the descriptors out of a control message. They are
// close-on-exec: ReadMsgUnix asks for that.
func files(oob []byte) []*os.File {
	if len(oob) == 0 {
		return nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var out []*os.File
	for i := range cmsgs {
		fds, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			out = append(out, os.NewFile(uintptr(fd), "received"))
		}
	}
	return out
}

// Peer says who called connect or listen at the other end.
func (c *Conn) Peer() (*unix.Ucred, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var gerr error
	err = raw.Control(func(fd uintptr) {
		cred, gerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return nil, err
	}
	return cred, gerr
}

// Close hangs up. It is not an error to do so twice.
func (c *Conn) Close() error { return c.c.Close() }
