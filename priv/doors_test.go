package priv

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDoors(t *testing.T) {
	tls := NineP{Cert: "c", Key: "k", CA: "a"}
	with := func(n NineP, addrs ...string) NineP { n.Addrs = addrs; return n }
	for _, c := range []struct {
		o    NineP
		want string // of the last door, or part of the error
	}{
		{NineP{}, "unix /run/v/9p.sock socket"},
		{with(NineP{}, "unix!/tmp/a//b"), "unix /tmp/a/b socket"},
		{with(NineP{}, "tcp!127.0.0.1!564"), "tcp 127.0.0.1:564 nobody"},
		{with(NineP{}, "tcp!::1!564"), "tcp [::1]:564 nobody"},
		{with(NineP{Insecure: true}, "tcp!*!564"), "tcp [::]:564 anybody"},
		{with(NineP{Insecure: true}, "tcp!127.0.0.1!564"), "tcp 127.0.0.1:564 anybody"},
		{with(tls, "tls!*!5640"), "tcp [::]:5640 certified"},
		{with(NineP{Cert: "c", Key: "k", CA: "a", Root: true}, "tls!192.0.2.1!5640"), "tcp 192.0.2.1:5640 certified-root"},

		{with(NineP{}, "unix!a"), "absolute"},
		{with(NineP{}, "unix!"), "absolute"},
		{with(NineP{}, "unix!/"+strings.Repeat("a", 107)), "107"},
		{with(NineP{}, "tcp!192.0.2.1!564"), "loopback"},
		{with(NineP{}, "tcp!*!564"), "loopback"},
		{with(NineP{}, "tcp!localhost!564"), "numbers"},
		{with(NineP{}, "tcp!127.0.0.1"), "numbers"},
		{with(NineP{}, "tcp!127.0.0.1!0"), "numbers"},
		{with(NineP{}, "tcp!127.0.0.1!70000"), "numbers"},
		{with(NineP{}, "udp!127.0.0.1!564"), "want unix!PATH"},
		{with(NineP{}, ""), "want unix!PATH"},
		{with(NineP{}, "tls!*!5640"), "-9p-cert"},
		{with(NineP{Cert: "c", Key: "k"}, "tls!*!5640"), "-9p-ca"},
		{tls, "are for"},
		{NineP{Root: true}, "are for"},
	} {
		o := Options{Run: "/run/v", NineP: c.o}
		list, err := o.doors()
		if err != nil {
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: %v, want %s", c.o, err, c.want)
			}
			continue
		}
		d := list[len(list)-1]
		if got := d.network + " " + d.addr + " " + d.who; got != c.want {
			t.Errorf("%v: %s, want %s", c.o, got, c.want)
		}
	}
}

// A socket that nobody listens on is replaced; nothing else is.
func TestOpenDoors(t *testing.T) {
	dir := t.TempDir()
	o := Options{Run: dir}
	path := filepath.Join(dir, socketName)
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDoors(&o); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("beside another server: %v", err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	w, err := openDoors(&o)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket: %v %v", info, err)
	}
	c, err := net.Dial("unix", path) // before anybody accepts
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	w.close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is still there")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openDoors(&o); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("in the place of a file: %v", err)
	}
	o.NineP = NineP{Addrs: []string{"tls!127.0.0.1!1"}, Cert: dir, Key: dir, CA: dir}
	os.Remove(path)
	if _, err := openDoors(&o); err == nil {
		t.Error("a directory is a certificate")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left of a failure")
	}
}
