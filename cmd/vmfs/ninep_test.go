package main_test

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"strings"

	"9fans.net/go/plan9"
	"9fans.net/go/plan9/client"
)

// ninep is somebody else's 9P client, for sessions:
//
//	9p [-cert FILE -key FILE -ca FILE] [-u USER] ADDR read|follow|ls|rm PATH
//	9p ... ADDR write|mkdir|chmod PATH TEXT
//
// To follow a file is to read it and to say first that it is open.
func ninep() {
	flags := flag.NewFlagSet("9p", flag.ExitOnError)
	cert, key := flags.String("cert", "", ""), flags.String("key", "", "")
	ca, user := flags.String("ca", "", ""), flags.String("u", "", "")
	flags.Parse(os.Args[1:])
	if err := runNinep(*cert, *key, *ca, *user, append(flags.Args(), "", "")); err != nil {
		fmt.Fprintln(os.Stderr, "9p:", err)
		os.Exit(1)
	}
}

func runNinep(cert, key, ca, user string, args []string) error {
	nc, err := dialNinep(cert, key, ca, args[0])
	if err != nil {
		return err
	}
	conn, err := client.NewConn(nc)
	if err != nil {
		return err
	}
	defer conn.Close()
	fsys, err := conn.Attach(nil, user, "")
	if err != nil {
		return err
	}
	return doNinep(fsys, args[1], args[2], args[3])
}

func dialNinep(cert, key, ca, addr string) (net.Conn, error) {
	f := strings.Split(addr, "!")
	if f[0] == "unix" {
		return net.Dial("unix", f[1])
	}
	if f[0] == "tcp" {
		return net.Dial("tcp", net.JoinHostPort(f[1], f[2]))
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	config.RootCAs.AppendCertsFromPEM(pem)
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return tls.Dial("tcp", net.JoinHostPort(f[1], f[2]), config)
}

func doNinep(fsys *client.Fsys, verb, name, text string) error {
	switch verb {
	case "read", "follow":
		f, err := fsys.Open(name, plan9.OREAD)
		if err == nil && verb == "follow" {
			fmt.Println(name, "is open")
		}
		if err == nil {
			_, err = io.Copy(os.Stdout, f)
		}
		return err
	case "write":
		f, err := fsys.Open(name, plan9.OWRITE|plan9.OTRUNC)
		if err == nil {
			_, err = f.Write([]byte(text + "\n"))
		}
		return err
	case "mkdir":
		_, err := fsys.Create(name, plan9.OREAD, plan9.DMDIR|0o755)
		return err
	case "rm":
		return fsys.Remove(name)
	case "chmod":
		st, err := fsys.Stat(name)
		if err != nil {
			return err
		}
		var d plan9.Dir
		d.Null()
		if _, err := fmt.Sscanf(text, "%o", &d.Mode); err != nil {
			return err
		}
		d.Mode |= st.Mode & plan9.DMDIR
		return fsys.Wstat(name, &d)
	case "ls":
		f, err := fsys.Open(path.Clean(name), plan9.OREAD)
		if err != nil {
			return err
		}
		entries, err := f.Dirreadall()
		for _, e := range entries {
			fmt.Println(e.Mode, e.Uid, e.Gid, e.Length, e.Name)
		}
		return err
	}
	return fmt.Errorf("%s: what is that?", verb)
}
