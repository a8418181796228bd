package ninep

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/knusbaum/go9p/proto"
)

// canned is a connection over which the same messages come again and again,
// one a Read, and whose answers nobody looks at.
type canned struct {
	net.Conn
	first, again [][]byte
	rounds       int
}

func (c *canned) Read(p []byte) (int, error) {
	if len(c.first) == 0 {
		if c.rounds--; c.rounds < 0 {
			return 0, io.EOF
		}
		c.first = c.again
	}
	n := copy(p, c.first[0])
	c.first = c.first[1:]
	return n, nil
}

func (c *canned) Write(p []byte) (int, error)      { return len(p), nil }
func (c *canned) SetReadDeadline(time.Time) error  { return nil }
func (c *canned) SetWriteDeadline(time.Time) error { return nil }
func (c *canned) Close() error                     { return nil }

// What the server itself takes for walk, open, read and clunk of a status.
func BenchmarkMessages(b *testing.B) {
	tr, _, _ := tree(b)
	s := New(tr.Root(), Options{})
	b.Cleanup(s.Close)
	c := &canned{
		first: slices.Clone([][]byte{seeds()[0], seeds()[3]}),
		again: [][]byte{
			(&proto.TWalk{Header: header(proto.Twalk, 1), Newfid: 1, Nwname: 3, Wname: []string{"vm", "web", "status"}}).Compose(),
			(&proto.TOpen{Header: header(proto.Topen, 1), Fid: 1}).Compose(),
			(&proto.TRead{Header: header(proto.Tread, 1), Fid: 1, Count: 4096}).Compose(),
			(&proto.TClunk{Header: header(proto.Tclunk, 1), Fid: 1}).Compose(),
		},
		rounds: b.N,
	}
	b.ReportAllocs()
	b.ResetTimer()
	s.serve(c, Peer{Cred: alice})
}
