package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"vmfs/fs"
	"vmfs/fs/ninep"
	"vmfs/priv"
)

// firstDoor is core's first descriptor that clients of 9P come by.
const firstDoor = 5

// serve9P lets clients in by the doors that priv opened, each as its word
// says, until the process ends.
func serve9P(root fs.Dir, words []string) error {
	server := ninep.New(root, ninep.Options{Log: logLine})
	var config *tls.Config
	for i, word := range words {
		who, certified, err := whoBy(word)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(firstDoor+i), word)
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("9p: %w", err)
		}
		if certified {
			if config == nil {
				if config, err = tlsConfig(firstDoor + len(words)); err != nil {
					return fmt.Errorf("9p: %w", err)
				}
			}
			l = tls.NewListener(l, config)
		}
		go func() { logLine("9p at %s: %v", l.Addr(), server.Serve(l, who)) }()
	}
	return nil
}

// whoBy is how a door's word says who comes in.
func whoBy(word string) (who ninep.Who, certified bool, err error) {
	switch word {
	case priv.DoorSocket:
		return ninep.SocketPeer, false, nil
	case priv.DoorNobody:
		return ninep.Nobody, false, nil
	case priv.DoorAnybody:
		return ninep.Anybody, false, nil
	case priv.DoorCertified, priv.DoorCertifiedRoot:
		return ninep.CertifiedPeer(word == priv.DoorCertifiedRoot), true, nil
	}
	return nil, false, fmt.Errorf("9p: %q is no door", word)
}

// maxPEM is more than a file of certificates has.
const maxPEM = 1 << 20

// tlsConfig reads the server's certificate, its key and the certificates that
// sign clients', in three descriptors. An earlier core has read them too: they
// are read from the beginning.
func tlsConfig(first int) (*tls.Config, error) {
	var pem [3][]byte
	for i := range pem {
		f := os.NewFile(uintptr(first+i), "pem")
		text, err := io.ReadAll(io.NewSectionReader(f, 0, maxPEM))
		f.Close()
		if err != nil {
			return nil, err
		}
		pem[i] = text
	}
	return parseTLS(pem)
}

func parseTLS(pem [3][]byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, fmt.Errorf("-9p-cert and -9p-key: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem[2]) {
		return nil, errors.New("-9p-ca: there is no certificate in it")
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
	}, nil
}

// checkTLS says what is wrong with the files of TLS before anything is served.
func checkTLS(n priv.NineP) error {
	if n.Cert == "" || n.Key == "" || n.CA == "" {
		return nil // priv says if that is wrong
	}
	var pem [3][]byte
	for i, name := range []string{n.Cert, n.Key, n.CA} {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		pem[i] = text
	}
	_, err := parseTLS(pem)
	return err
}
