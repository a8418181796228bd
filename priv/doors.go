package priv

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// NineP is how the tree is served over 9P beside the socket in the run
// directory.
type NineP struct {
	Addrs         []string // unix!PATH, tcp!ADDRESS!PORT, tls!ADDRESS!PORT
	Cert, Key, CA string   // files for TLS, in PEM
	Root          bool     // a certificate can be root's
	Insecure      bool     // who comes by tcp is whoever he says, and may come from anywhere
}

// How core finds out who comes in by a door: the words that its arguments
// after the fourth are, one for each listening socket from descriptor 5 on.
// If one is certified, the files of TLS are the three descriptors after them.
const (
	DoorSocket        = "socket"         // by the socket's credentials
	DoorNobody        = "nobody"         // not at all
	DoorAnybody       = "anybody"        // by what he says
	DoorCertified     = "certified"      // by his certificate
	DoorCertifiedRoot = "certified-root" // the same, and it can be root's
)

// socketName is the socket that is always there.
const socketName = "9p.sock"

// door is an address that is listened on.
type door struct {
	network string // unix or tcp
	addr    string
	who     string
}

// doors are what o asks for, the socket in the run directory first. The
// errors say what is wrong with an address.
func (o *Options) doors() ([]door, error) {
	list := []door{{"unix", filepath.Join(o.Run, socketName), DoorSocket}}
	tls := false
	for _, s := range o.NineP.Addrs {
		d, err := o.NineP.parse(s)
		if err != nil {
			return nil, fmt.Errorf("-9p %s: %w", s, err)
		}
		tls = tls || d.certified()
		list = append(list, d)
	}
	files := 0
	for _, name := range []string{o.NineP.Cert, o.NineP.Key, o.NineP.CA} {
		if name != "" {
			files++
		}
	}
	switch {
	case tls && files < 3:
		return nil, errors.New("-9p tls!...: it needs -9p-cert, -9p-key and -9p-ca")
	case !tls && files > 0, !tls && o.NineP.Root:
		return nil, errors.New("-9p-cert, -9p-key, -9p-ca and -9p-root are for -9p tls!ADDRESS!PORT")
	}
	return list, nil
}

func (d door) certified() bool { return d.who == DoorCertified || d.who == DoorCertifiedRoot }

// maxSocket is the longest path that the address of a socket can have.
const maxSocket = 107

func (o *NineP) parse(s string) (door, error) {
	network, rest, _ := strings.Cut(s, "!")
	if network == "unix" {
		if !filepath.IsAbs(rest) || len(rest) > maxSocket || strings.ContainsAny(rest, "\x00\n") {
			return door{}, fmt.Errorf("want unix!PATH, absolute and at most %d bytes", maxSocket)
		}
		return door{"unix", filepath.Clean(rest), DoorSocket}, nil
	}
	host, port, _ := strings.Cut(rest, "!")
	if host == "*" {
		host = "::"
	}
	at, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	switch {
	case network != "tcp" && network != "tls", err != nil, at.Port() == 0:
		return door{}, errors.New("want unix!PATH, tcp!ADDRESS!PORT or tls!ADDRESS!PORT; an address is numbers, or * for all")
	case network == "tls" && o.Root:
		return door{"tcp", at.String(), DoorCertifiedRoot}, nil
	case network == "tls":
		return door{"tcp", at.String(), DoorCertified}, nil
	case o.Insecure:
		return door{"tcp", at.String(), DoorAnybody}, nil
	case !at.Addr().Unmap().IsLoopback():
		return door{}, errors.New("without TLS only on a loopback address, or with -9p-insecure")
	}
	return door{"tcp", at.String(), DoorNobody}, nil
}

// doorway is the doors, open: what core gets, and what is left to be removed.
type doorway struct {
	words   []string
	files   []*os.File
	sockets []socketFile
}

// socketFile is a socket that was made in a directory.
type socketFile struct {
	path     string
	dev, ino uint64
}

// openDoors listens on all doors and opens the files of TLS, whoever core is
// from then on. Whoever connects before core is there waits for it.
func openDoors(o *Options) (_ *doorway, err error) {
	list, err := o.doors()
	if err != nil {
		return nil, err
	}
	w := &doorway{}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	certified := false
	for _, d := range list {
		if err := w.listen(d); err != nil {
			return nil, fmt.Errorf("9p: %w", err)
		}
		certified = certified || d.certified()
	}
	if !certified {
		return w, nil
	}
	for _, name := range []string{o.NineP.Cert, o.NineP.Key, o.NineP.CA} {
		f, err := openRegular(name)
		if err != nil {
			return nil, err
		}
		w.files = append(w.files, f)
	}
	return w, nil
}

func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// listen adds a door.
func (w *doorway) listen(d door) error {
	if d.network == "unix" {
		if err := clearSocket(d.addr); err != nil {
			return err
		}
		// It is made with the mode that it keeps: everybody may connect,
		// and is then who he is.
		old := unix.Umask(0o111)
		defer unix.Umask(old)
	}
	l, err := net.Listen(d.network, d.addr)
	if err != nil {
		return err
	}
	defer l.Close() // the copy stays
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		st, err := lstat(d.addr)
		if err != nil {
			return fmt.Errorf("%s: %w", d.addr, err)
		}
		w.sockets = append(w.sockets, socketFile{d.addr, st.Dev, st.Ino})
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return err
	}
	w.words = append(w.words, d.who)
	w.files = append(w.files, f)
	return nil
}

// dyingTime is how long an earlier daemon that was killed may hold its sockets:
// its lock is given up before.
const dyingTime = 2 * time.Second

func listened(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return !errors.Is(err, unix.ECONNREFUSED)
}

// clearSocket removes a socket that nobody listens on any more. Anything else
// that is there stays, and is an error.
func clearSocket(path string) error {
	st, err := lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s: there is something else", path)
	}
	for end := time.Now().Add(dyingTime); listened(path); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s: somebody listens there", path)
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("%s: %w", path, reason(err))
	}
	return nil
}

// close stops listening and removes the sockets that are still ours.
func (w *doorway) close() {
	for _, s := range w.sockets {
		if st, err := lstat(s.path); err == nil && st.Dev == s.dev && st.Ino == s.ino {
			os.Remove(s.path)
		}
	}
	closeAll(w.files)
}
