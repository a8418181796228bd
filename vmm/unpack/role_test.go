package unpack

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
	"vmfs/priv/wire"
	"vmfs/vmm/boot"
	"vmfs/vmm/ram"
)

// program is the role as a program, in a directory that TestMain removes.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "unpack")
	if err != nil {
		return "", err
	}
	programDir = dir
	path := filepath.Join(dir, "unpack")
	cmd := exec.Command("go", "build", "-o", path, "./testdata/unpack")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %s", err, out)
	}
	return path, nil
})

var programDir string

func TestMain(m *testing.M) {
	status := m.Run()
	if programDir != "" {
		os.RemoveAll(programDir)
	}
	os.Exit(status)
}

// run plays the parent: one request, one answer. It also returns the most
// memory that the process had, in MiB.
func run(t *testing.T, limit int64, files ...*os.File) (wire.Message, int64) {
	t.Helper()
	conn, cmd := start(t, limit)
	sendErr := conn.Send(files, "unpack")
	m, err := conn.Recv()
	cmd.Wait()
	if err != nil || sendErr != nil {
		t.Fatalf("%v, %v, %v", sendErr, err, cmd.ProcessState)
	}
	t.Cleanup(m.Close)
	return m, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss >> 10
}

// start starts the role, which then waits for its request or for the test's
// end.
func start(t *testing.T, limit int64) (*wire.Conn, *exec.Cmd) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	conn, child, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	const uid = 1899999997
	cmd := exec.Command(path, strconv.Itoa(uid), strconv.FormatInt(limit, 10))
	cmd.ExtraFiles = []*os.File{child}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child.Close()
	return conn, cmd
}

// What it may use is bounded before it reads anything, whatever it is made to
// do: there are no more memory files, and addresses for all other memory.
func TestRoleBounds(t *testing.T) {
	conn, cmd := start(t, 4<<20)
	defer func() { conn.Close(); cmd.Wait() }()
	of := func(name string) string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", cmd.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	until(t, "it is under its list of calls", func() bool {
		status := of("status")
		return strings.Contains(status, "NoNewPrivs:\t1") && strings.Contains(status, "Seccomp:\t2")
	})
	for _, c := range confine.Unpack.Calls {
		if c.Do == confine.Allow && slices.Contains(strings.Fields(c.Names), "memfd_create") {
			t.Error("its list has memfd_create")
		}
	}
	limits := of("limits")
	for _, b := range bounds(4<<20, 0) {
		name, ok := map[int]string{
			unix.RLIMIT_CORE: "Max core file size", unix.RLIMIT_CPU: "Max cpu time", unix.RLIMIT_DATA: "Max data size", unix.RLIMIT_AS: "Max address space",
			unix.RLIMIT_FSIZE: "Max file size", unix.RLIMIT_NOFILE: "Max open files", unix.RLIMIT_NPROC: "Max processes",
		}[b.what]
		_, line, found := strings.Cut(limits, "\n"+name)
		var soft, hard uint64
		if n, err := fmt.Sscan(line, &soft, &hard); !ok || !found || n != 2 {
			t.Errorf("%s: %v in\n%s", name, err, limits)
			continue
		}
		most := b.limit
		if b.what == unix.RLIMIT_AS {
			most += 2 << 30 // of Go's reserves
		}
		if soft != hard || hard > most || hard < min(b.limit, 1) {
			t.Errorf("%s: %d, at most %d; want %d", name, soft, hard, most)
		}
	}
}

// file is a file with these bytes.
func file(t *testing.T, b []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRole(t *testing.T) {
	p := sample(3 << 20)
	for name, packed := range map[string][]byte{
		"gzip": gz(t, p), "lz4": sized(lz4Legacy(t, p), len(p)), "zstd": sized(zst(t, p), len(p)),
		"xz": sized(tool(t, p, "xz", "--check=crc32", "--x86", "--lzma2=preset=0"), len(p)),
	} {
		m, _ := run(t, 4<<20, file(t, image(packed)))
		if len(m.Fields) != 2 || m.Fields[0] != "ok" || m.Fields[1] != strconv.Itoa(len(p)) || len(m.Files) != 1 {
			t.Fatalf("%s: answer %q", name, m.Fields)
		}
		got, err := io.ReadAll(io.NewSectionReader(m.Files[0], 0, 1<<30))
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		seals, err := unix.FcntlInt(m.Files[0].Fd(), unix.F_GET_SEALS, 0)
		if want := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL; err != nil || seals != want {
			t.Errorf("%s: seals %#x, want %#x", name, seals, want)
		}
	}
}

func TestRoleRefuses(t *testing.T) {
	good := file(t, image(gz(t, sample(100_000))))
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, c := range []struct {
		files []*os.File
		limit int64
		want  string
	}{
		{[]*os.File{file(t, []byte("no kernel"))}, 1 << 20, "EINVAL kernel: 9 bytes"},
		{[]*os.File{good}, 60_000, "EINVAL kernel: unpack: 100000 bytes"},
		{[]*os.File{null}, 1 << 20, "EINVAL kernel: not a regular file"},
		{[]*os.File{good, good}, 1 << 20, "EINVAL unpack: not a request"},
	} {
		m, _ := run(t, c.limit, c.files...)
		if got := strings.Join(m.Fields, " "); !strings.HasPrefix(got, "error "+c.want) || len(m.Files) != 0 {
			t.Errorf("got %q with %d files, want %q", got, len(m.Files), c.want)
		}
	}
}

// The kernels of this machine's guests come out, within the role's bounds, as
// ELF files that are entered by PVH.
func TestRealKernels(t *testing.T) {
	home, _ := os.UserHomeDir()
	for _, name := range []string{".cache/vmfs/vmlinuz", ".cache/vmfs/box/vmlinuz"} {
		f, err := os.Open(filepath.Join(home, name))
		if err != nil {
			t.Skip("no kernel in ~/.cache/vmfs: scripts/guest and scripts/testbed put them there")
		}
		defer f.Close()
		began := time.Now()
		m, mib := run(t, Limit, f)
		if m.Fields[0] != "ok" {
			t.Fatalf("%s: %q", name, m.Fields)
		}
		t.Logf("%s: %s bytes in %v, at most %d MiB resident", name, m.Fields[1], time.Since(began), mib)
		memory, err := ram.New(192 << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer memory.Close()
		st, _ := m.Files[0].Stat()
		s, err := boot.Load(memory, boot.Spec{Kernel: io.NewSectionReader(m.Files[0], 0, st.Size()), Cmdline: "quiet"})
		if err != nil || s.Mode != boot.PVH32 {
			t.Errorf("%s: %v, mode %v", name, err, s.Mode)
		}
	}
}
