package main_test

import (
	"errors"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"9fans.net/go/plan9"

	"vmfs/fs/fstest"
)

// TestMatrix9P holds what the daemon's socket of 9P lets whom do against the
// modes of the table of files.
func TestMatrix9P(t *testing.T) {
	mnt := daemon(t)
	fstest.Matrix(t, mnt, ninepDoor(filepath.Dir(mnt)+"/run/9p.sock"))
}

// ninepDoor is a socket, to which each connects himself.
func ninepDoor(socket string) func(t *testing.T, w fstest.Who) fstest.Actor {
	return func(t *testing.T, w fstest.Who) fstest.Actor {
		var a attached
		err := fstest.As(w, func() (err error) {
			a.conn, err = net.Dial("unix", socket)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.conn.Close() })
		if err := errors.Join(
			a.rpc(&plan9.Fcall{Type: plan9.Tversion, Tag: plan9.NOTAG, Msize: 8192, Version: "9P2000"}),
			a.rpc(&plan9.Fcall{Type: plan9.Tattach, Afid: plan9.NOFID}),
		); err != nil {
			t.Fatalf("attach as %s: %v", w.Name, err)
		}
		return a
	}
}

// attached is the Actor of a connection: its fid 0 is the root, and its fid 1
// what it works on. It walks name by name: of a longer walk a client hears only
// how far it came.
type attached struct{ conn net.Conn }

// rpc gives the errno whose text the server said.
func (a attached) rpc(tx *plan9.Fcall) error {
	if err := plan9.WriteFcall(a.conn, tx); err != nil {
		return err
	}
	rx, err := plan9.ReadFcall(a.conn)
	switch {
	case err != nil:
		return err
	case rx.Type == tx.Type+1:
		return nil
	case rx.Type != plan9.Rerror:
		return fmt.Errorf("%v was answered by %v", tx, rx)
	}
	for e := syscall.Errno(1); e < 134; e++ {
		if strings.EqualFold(e.Error(), rx.Ename) {
			return e
		}
	}
	return fmt.Errorf("no error of Linux: %s", rx.Ename)
}

// at walks to a file, sends messages about it until one fails, and clunks it.
func (a attached) at(name string, about ...*plan9.Fcall) error {
	err := a.rpc(&plan9.Fcall{Type: plan9.Twalk, Newfid: 1})
	for _, part := range strings.Split(path.Clean(name), "/") {
		if err == nil && part != "." {
			err = a.rpc(&plan9.Fcall{Type: plan9.Twalk, Fid: 1, Newfid: 1, Wname: []string{part}})
		}
	}
	for _, tx := range about {
		if err == nil {
			tx.Fid = 1
			err = a.rpc(tx)
		}
	}
	a.rpc(&plan9.Fcall{Type: plan9.Tclunk, Fid: 1}) // an error if it was removed
	return err
}

func (a attached) Open(name string, read, write bool) error {
	mode := uint8(plan9.OREAD)
	switch {
	case read && write:
		mode = plan9.ORDWR
	case write:
		mode = plan9.OWRITE
	}
	return a.at(name, &plan9.Fcall{Type: plan9.Topen, Mode: mode})
}

func (a attached) Write(name, text string) error {
	return a.at(name, &plan9.Fcall{Type: plan9.Topen, Mode: plan9.OWRITE},
		&plan9.Fcall{Type: plan9.Twrite, Count: uint32(len(text)), Data: []byte(text)})
}

func (a attached) Chmod(name string, mode uint32) error {
	var d plan9.Dir
	d.Null()
	d.Mode = plan9.Perm(mode & 0o777)
	err := a.wstat(name, d)
	if errors.Is(err, syscall.EPERM) { // because it is a directory, for one
		d.Mode |= plan9.DMDIR
		err = a.wstat(name, d)
	}
	return err
}

func (a attached) wstat(name string, d plan9.Dir) error {
	p, err := d.Bytes()
	if err != nil {
		return err
	}
	return a.at(name, &plan9.Fcall{Type: plan9.Twstat, Stat: p})
}

func (a attached) Mkdir(name string) error {
	return a.at(path.Dir(name), &plan9.Fcall{Type: plan9.Tcreate, Name: path.Base(name), Perm: plan9.DMDIR | 0o755})
}

func (a attached) Rmdir(name string) error {
	return a.at(name, &plan9.Fcall{Type: plan9.Tremove})
}
