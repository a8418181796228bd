package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// DefaultPort is where 9P is served where nobody says otherwise.
const DefaultPort = "5640"

// TLS is how a server is told from others, and who one says to be.
type TLS struct {
	Cert, Key string // files of the client's certificate and its key, in PEM
	CA        string // file of the certificates that sign servers'; empty for the host's
	Name      string // that the server's certificate has; empty for the host of the address
}

// Addr is where a server is: unix!PATH, tcp!HOST!PORT or tls!HOST!PORT, as
// Plan 9 writes it. HOST is a name or an address; the port may be left out.
type Addr struct {
	Net  string // unix, tcp or tls
	Path string // of unix
	Host string
	Port string
}

// ParseAddr reads an address.
func ParseAddr(s string) (Addr, error) {
	network, rest, _ := strings.Cut(s, "!")
	host, port, given := strings.Cut(rest, "!")
	a := Addr{Net: network, Host: host, Port: port}
	switch {
	case network == "unix" && rest != "" && rest[0] != '@' && !strings.Contains(rest, "\x00"):
		return Addr{Net: network, Path: rest}, nil
	case network == "unix":
		return a, fmt.Errorf("address %q: want unix!PATH", s)
	case network != "tcp" && network != "tls":
		return a, fmt.Errorf("address %q: want unix!PATH, tcp!HOST!PORT or tls!HOST!PORT", s)
	case host == "":
		return a, fmt.Errorf("address %q: no host", s)
	}
	if !given {
		a.Port = DefaultPort
	}
	if n, err := strconv.ParseUint(a.Port, 10, 16); err != nil || n == 0 {
		return a, fmt.Errorf("address %q: %q is no port", s, a.Port)
	}
	return a, nil
}

func (a Addr) String() string {
	if a.Net == "unix" {
		return "unix!" + a.Path
	}
	return a.Net + "!" + a.Host + "!" + a.Port
}

// Dial gives the way to a. Files that o names are read now, and not again.
func (a Addr) Dial(o TLS) (Dial, error) {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	if a.Net != "tls" {
		if o != (TLS{}) {
			return nil, fmt.Errorf("address %s: certificates are for tls!HOST!PORT", a)
		}
		network, addr := "tcp", net.JoinHostPort(a.Host, a.Port)
		if a.Net == "unix" {
			network, addr = "unix", a.Path
		}
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, network, addr) }, nil
	}
	config, err := o.config(a.Host)
	if err != nil {
		return nil, err
	}
	td := &tls.Dialer{NetDialer: d, Config: config}
	return func(ctx context.Context) (net.Conn, error) {
		return td.DialContext(ctx, "tcp", net.JoinHostPort(a.Host, a.Port))
	}, nil
}

func (o TLS) config(host string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: o.Name}
	if c.ServerName == "" {
		c.ServerName = host
	}
	if (o.Cert == "") != (o.Key == "") {
		return nil, errors.New("a certificate and its key go together")
	}
	if o.Cert != "" {
		pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s, key %s: %w", o.Cert, o.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: there is no certificate in it", o.CA)
		}
	}
	return c, nil
}
