package ninep

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmfs/ctl"
)

// dialAs connects with the credentials of another user.
func dialAs(t *testing.T, addr string, as ctl.Cred) net.Conn {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and ends with its goroutine: the thread is nobody's any more
		fd, err := connectAs(addr, as)
		done <- result{fd, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	f := os.NewFile(uintptr(r.fd), addr)
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// connectAs changes this thread alone.
func connectAs(addr string, as ctl.Cred) (int, error) {
	groups := append(slices.Clone(as.Groups), 0) // for its address
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, uintptr(len(as.Groups)), uintptr(unsafe.Pointer(&groups[0]))},
		{unix.SYS_SETRESGID, uintptr(as.GID), uintptr(as.GID), uintptr(as.GID)},
		{unix.SYS_SETRESUID, uintptr(as.UID), uintptr(as.UID), uintptr(as.UID)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return 0, errno
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: addr})
	}
	return fd, err
}

// Whoever connects to a socket is who the kernel says, with all his groups.
func TestSocketPeer(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becoming others needs root")
	}
	dir, err := os.MkdirTemp("", "ninep-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	addr := filepath.Join(dir, "9p.sock")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	os.Chmod(addr, 0o666)
	many := make([]uint32, 1000)
	for i := range many {
		many[i] = uint32(60000 + i)
	}
	for _, want := range []ctl.Cred{{UID: 52001, GID: 52002}, {UID: 52001, GID: 52001, Groups: []uint32{52100, 52101}}, {UID: 52001, GID: 52001, Groups: many}, {}} {
		dialAs(t, addr, want)
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		got, err := SocketPeer(context.Background(), c)
		c.Close()
		if err != nil || got.UID != want.UID || got.GID != want.GID || !slices.Equal(got.Groups, want.Groups) {
			t.Errorf("got %v %v, want %v", got.Cred, err, want)
		}
		if got.Believed != (want.UID == 0) {
			t.Errorf("believed: %v of uid %d", got.Believed, want.UID)
		}
	}
}

// Who attaches is who the connection is, but where that is believed.
func TestAttached(t *testing.T) {
	nobodyUser, err := user.Lookup("nobody")
	if err != nil || nobodyUser.Uid != "65534" {
		t.Skip("nobody is not 65534 here")
	}
	anybody, _ := Anybody(context.Background(), nil)
	for _, c := range []struct {
		peer  Peer
		name  string
		id    uint32
		want  uint32
		fails bool
	}{
		{Peer{Cred: alice}, "root", noID, alice.UID, false},
		{Peer{Cred: alice}, "root", 0, alice.UID, false},
		{Peer{Cred: alice}, "", noID, alice.UID, false},
		{Peer{Cred: root, Believed: true}, "nobody", noID, 65534, false},
		{Peer{Cred: root, Believed: true}, "", noID, 0, false},
		{Peer{Cred: root, Believed: true}, "", 52001, 52001, false},
		{Peer{Cred: root, Believed: true}, "nosuchuser", noID, 0, true},
		{anybody, "", noID, 65534, false},
		{anybody, "nobody", noID, 65534, false},
		{anybody, "", 52001, 52001, false},
		{anybody, "root", noID, 0, true},
		{anybody, "", 0, 0, true},
	} {
		got, err := c.peer.attached(c.name, c.id)
		if (err != nil) != c.fails || err == nil && got.UID != c.want {
			t.Errorf("%d attaches as %q %d: %d %v", c.peer.UID, c.name, c.id, got.UID, err)
		}
	}
}

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func certificate(t *testing.T, by *authority, name string) (tls.Certificate, *authority) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: by == nil, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if by == nil {
		by = &authority{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, &authority{c, key}
}

// A certificate is the local user of its common name, if our authority made
// it, and root only if root says so.
func TestCertifiedPeer(t *testing.T) {
	_, ca := certificate(t, nil, "ca")
	_, otherCA := certificate(t, nil, "ca")
	mine, _ := certificate(t, ca, "localhost")
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	server := &tls.Config{Certificates: []tls.Certificate{mine}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}
	for _, c := range []struct {
		name string
		by   *authority
		root bool
		want string // part of the error
	}{
		{"nobody", ca, false, ""},
		{"root", ca, false, "not accepted for root"},
		{"root", ca, true, ""},
		{"nosuchuser", ca, true, "no user"},
		{"nobody", otherCA, true, "unknown authority"},
		{"", nil, true, "certificate"},
	} {
		config := &tls.Config{RootCAs: pool, ServerName: "localhost"}
		if c.by != nil {
			cert, _ := certificate(t, c.by, c.name)
			config.Certificates = []tls.Certificate{cert}
		}
		a, b := net.Pipe()
		go func() {
			client := tls.Client(a, config)
			client.Handshake()
			client.Read(make([]byte, 1))
			a.Close()
		}()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		got, err := CertifiedPeer(c.root)(ctx, tls.Server(b, server))
		cancel()
		b.Close()
		if c.want == "" && (err != nil || got.UID != map[string]uint32{"nobody": 65534}[c.name]) {
			t.Errorf("%s: %v %v", c.name, got, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
}
