package priv

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmfs/priv/confine"
	"vmfs/priv/confine/held"
)

// bzImage is a kernel with a payload, in sealed memory.
func bzImage(t *testing.T, payload string) *os.File {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write([]byte(payload))
	z.Close()
	const setup = 1024
	b := make([]byte, setup+(packed.Len()+15)&^15)
	put := binary.LittleEndian
	b[0x1f1] = 1
	put.PutUint32(b[0x1f4:], uint32(len(b)-setup)/16)
	put.PutUint16(b[0x1fe:], 0xaa55)
	b[0x201] = 0x6a
	copy(b[0x202:], "HdrS")
	put.PutUint16(b[0x206:], 0x20f)
	put.PutUint32(b[0x230:], 0x200000)
	put.PutUint32(b[0x24c:], uint32(packed.Len()))
	put.PutUint64(b[0x258:], 0x1000000)
	put.PutUint32(b[0x260:], 16<<20)
	copy(b[setup:], packed.Bytes())
	return memory(t, b, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
}

// memory is a memory file with seals.
func memory(t *testing.T, b []byte, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestUnpack(t *testing.T) {
	program(t)
	text := strings.Repeat("a kernel ", 1000)
	var u unpackers
	f, err := u.unpack(t.Context(), bzImage(t, text), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<20)); string(got) != text || err != nil {
		t.Errorf("%d bytes came out, %v; want %d", len(got), err, len(text))
	}
	for _, c := range []struct {
		what  string
		limit int64 // up to 4, what the process does in the place of its work
		image *os.File
		want  syscall.Errno
	}{
		{"more than is allowed", 5000, bzImage(t, text), syscall.EINVAL},
		{"no kernel", 5000, memory(t, []byte("hello"), unix.F_SEAL_WRITE), syscall.EINVAL},
		{"a process that dies", 2, bzImage(t, text), syscall.EIO},
		{"one that lies", 3, bzImage(t, text), syscall.EPROTO},
		{"one that lies of an error", 4, bzImage(t, text), syscall.EPROTO},
	} {
		if f, err := u.unpack(t.Context(), c.image, c.limit); !errors.Is(err, c.want) || f != nil {
			t.Errorf("%s: %v, %v; want %v", c.what, f, err, c.want)
		}
	}
	if len(u.all) != 0 {
		t.Errorf("%d are left", len(u.all))
	}
}

// Two hang, and no third begins; they end with who asked, or with the daemon.
func TestUnpackHangs(t *testing.T) {
	program(t)
	var u unpackers
	image := bzImage(t, "a kernel")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, maxUnpackers)
	hang := func(ctx context.Context) {
		_, err := u.unpack(ctx, image, 1)
		ended <- err
	}
	running := func(n int) func() bool {
		return func() bool {
			u.mu.Lock()
			defer u.mu.Unlock()
			return len(u.all) == n
		}
	}
	go hang(ctx)
	go hang(t.Context())
	eventually(t, "both run", running(2))
	if _, err := u.unpack(t.Context(), image, 1<<20); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("the third: %v, want EAGAIN", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, syscall.ETIMEDOUT) {
		t.Errorf("who asked has gone: %v", err)
	}
	eventually(t, "one runs", running(1))
	u.close()
	if err := <-ended; !errors.Is(err, syscall.EIO) {
		t.Errorf("the daemon ends: %v", err)
	}
	if _, err := u.unpack(t.Context(), image, 1<<20); !errors.Is(err, syscall.EAGAIN) || len(u.all) != 0 {
		t.Errorf("after the end: %v, and %d run", err, len(u.all))
	}
}

// TestUnpackerHeld looks at a process that waits for its file.
func TestUnpackerHeld(t *testing.T) {
	program(t)
	if err := keepFiles(); err != nil { // as Serve does
		t.Fatal(err)
	}
	cmd := role("unpack", decimal(confine.UnpackUID), "4096")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	conn, err := startRole(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { conn.Close(); cmd.Process.Kill(); cmd.Wait() }()
	var wrong error
	eventually(t, "is held", func() bool {
		wrong = held.Check(cmd.Process.Pid, confine.Role{Name: "unpack", Bounding: "as the opener's"}, confine.UnpackUID)
		return wrong == nil
	})
	files, err := held.Files(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for fd, to := range files {
		if fd <= 2 && to != "/dev/null" || fd > 2 && to != "/memfd:kernel (deleted)" && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "anon_inode:") && !strings.HasPrefix(to, "/sys/fs/cgroup/") {
			t.Errorf("it has %d: %s", fd, to)
		}
	}
}

// What may come with a request.
func TestRequestFiles(t *testing.T) {
	fixed := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	good, loose := memory(t, []byte("x"), fixed), memory(t, []byte("x"), unix.F_SEAL_SHRINK)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, c := range []struct {
		verb  string
		files []*os.File
		ok    bool
	}{
		{verbUnpack, []*os.File{good}, true},
		{verbUnpack, []*os.File{loose}, false},
		{verbUnpack, []*os.File{null}, false},
		{verbUnpack, []*os.File{good, good}, false},
		{verbUnpack, nil, false},
		{"alive", nil, true},
		{"alive", []*os.File{good}, false},
	} {
		if err := checkFiles(c.verb, c.files); (err == nil) != c.ok {
			t.Errorf("%s with %d files: %v, want taken: %v", c.verb, len(c.files), err, c.ok)
		}
	}
}
