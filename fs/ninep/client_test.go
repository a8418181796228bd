package ninep

import (
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"9fans.net/go/plan9"
	ninefans "9fans.net/go/plan9/client"
	go9p "github.com/knusbaum/go9p/client"
	"github.com/knusbaum/go9p/proto"
)

// What other people's clients do works.

func TestPlan9Client(t *testing.T) {
	tr, _, _ := tree(t)
	addr, _ := serve(t, tr.Root(), Options{}, is(root))
	conn, err := ninefans.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Auth("root", ""); err == nil {
		t.Error("Auth worked")
	}
	fsys, err := conn.Attach(nil, "root", "")
	if err != nil {
		t.Fatal(err)
	}
	defer fsys.Close()
	read := func(path string) string {
		t.Helper()
		f, err := fsys.Open(path, plan9.OREAD)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if got := read("vm/web/status"); got != "stopped\n" {
		t.Errorf("status: %q", got)
	}
	dir, err := fsys.Create("vm/db", plan9.OREAD, plan9.DMDIR|0o755)
	if err != nil {
		t.Fatal(err)
	}
	dir.Close()
	f, err := fsys.Open("vm/db/cpus", plan9.OWRITE|plan9.OTRUNC)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("2\n")); err != nil {
		t.Error(err)
	}
	if _, err := f.Write([]byte("x\n")); err == nil || err.Error() != "Invalid argument" {
		t.Errorf("write: %v", err)
	}
	f.Close()
	d := plan9.Dir{}
	d.Null()
	d.Mode, d.Gid = 0o660, "52100"
	if err := fsys.Wstat("vm/db/cpus", &d); err != nil {
		t.Error(err)
	}
	if st, err := fsys.Stat("vm/db/cpus"); err != nil || st.Mode != 0o660 || st.Gid != "52100" || st.Length != 2 {
		t.Errorf("stat: %v %v", st, err)
	}
	if dir, err = fsys.Open("vm", plan9.OREAD); err != nil {
		t.Fatal(err)
	}
	entries, err := dir.Dirreadall()
	var names []string
	for _, e := range entries {
		names = append(names, e.Name)
	}
	if slices.Sort(names); err != nil || !slices.Equal(names, []string{"db", "web"}) {
		t.Errorf("vm: %v %v", names, err)
	}
	dir.Close()
	if err := fsys.Remove("vm/db"); err != nil {
		t.Error(err)
	}
	if _, err := fsys.Stat("vm/db"); err == nil {
		t.Error("vm/db is still there")
	}
}

func TestGo9pClient(t *testing.T) {
	tr, _, _ := tree(t)
	addr, _ := serve(t, tr.Root(), Options{}, is(root))
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := go9p.NewClient(conn, "root", "")
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Open("/vm/web/config", proto.Ordwr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("cpus 3\n")); err != nil {
		t.Error(err)
	}
	text := make([]byte, 4096)
	n, err := f.ReadAt(text, 0) // its own offset is where the write ended
	if err != nil || !strings.Contains(string(text[:n]), "\ncpus 3\n") {
		t.Errorf("config: %q %v", text[:n], err)
	}
	f.Close()
	entries, err := c.Readdir("/vm/web")
	if err != nil || len(entries) < 20 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	if st, err := c.Stat("/vm/web"); err != nil || st.Mode != proto.DMDIR|0o755 || st.Name != "web" {
		t.Errorf("stat: %v %v", st, err)
	}
	// It creates for reading and writing only, which no directory is.
	if _, err := c.Create("/vm/db", os.FileMode(proto.DMDIR|0o755)); err == nil || err.Error() != "Invalid argument" {
		t.Errorf("create: %v", err)
	}
	if _, err := c.Open("/vm/nowhere", proto.Oread); err == nil {
		t.Error("opened what is not there")
	}
	if err := c.Remove("/vm/web"); err != nil {
		t.Error(err)
	}
}
