package ninep

import (
	"strings"
	"testing"

	"github.com/knusbaum/go9p/proto"
)

func TestReadWrite(t *testing.T) {
	tr, _, _ := tree(t)
	for _, version := range []string{"9P2000", "9P2000.u"} {
		addr, _ := serve(t, tr.Root(), Options{}, is(alice))
		c := attached(t, addr, version)
		if e := c.open(1, "vm/web/cpus", proto.Ordwr); e != "" {
			t.Fatal(e)
		}
		if e := c.write(1, "3\n"); e != "" {
			t.Errorf("write: %s", e)
		}
		if got := c.read(1, 0, 100); got != "3\n" {
			t.Errorf("read: %q", got)
		}
		if e := c.write(1, "x\n"); e != "Invalid argument" {
			t.Errorf("write of nonsense: %q", e)
		}
		if e := c.open(2, "vm/web/config", proto.Oread); e != "" {
			t.Fatal(e)
		}
		if got := c.read(2, 0, 1<<20); !strings.Contains(got, "cpus 3\n") {
			t.Errorf("config: %q", got)
		}
	}
}

func BenchmarkStatus(b *testing.B) {
	tr, _, _ := tree(b)
	addr, _ := serve(b, tr.Root(), Options{}, is(alice))
	c := attached(b, addr, "9P2000")
	for b.Loop() {
		if e := c.open(1, "vm/web/status", proto.Oread); e != "" {
			b.Fatal(e)
		}
		if got := c.read(1, 0, 8192); got != "stopped\n" {
			b.Fatal(got)
		}
		c.clunk(1)
	}
}

