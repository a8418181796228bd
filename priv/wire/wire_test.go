package wire

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vmfs/ctl"
)

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"7 open 1000 ro /a", `7 ok ""`, `8 error ENOENT "no such\nguest"`, `"a`, "a  b", " a", "a ", `"plain"`, "\x00", `"\u00e9"`, strings.Repeat("a ", 300)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		fields, err := Decode(line)
		if err != nil {
			return
		}
		again, err := Encode(fields...)
		if err != nil || string(again) != string(line) {
			t.Errorf("Decode(%q) = %q, which encodes as %q, %v", line, fields, again, err)
		}
	})
}

func TestRoundTrip(t *testing.T) {
	for _, fields := range [][]string{{"7", "open", ""}, {"a b", "\n", "\x00\xff", `"`, `\`, "é"}, {"x"}} {
		line, err := Encode(fields...)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Decode(line); err != nil || !slices.Equal(got, fields) {
			t.Errorf("Decode(%q) = %q, %v; want %q", line, got, err, fields)
		}
	}
}

func TestBounds(t *testing.T) {
	if _, err := Encode(strings.Repeat("a", MaxMessage+1)); err == nil {
		t.Error("Encode took a field beyond MaxMessage")
	}
	if _, err := Encode(make([]string, MaxFields+1)...); err == nil {
		t.Error("Encode took too many fields")
	}
	if _, err := Decode([]byte(strings.Repeat("a", MaxMessage+1))); err == nil {
		t.Error("Decode took a line beyond MaxMessage")
	}
}

// pair returns two connected Conns.
func pair(t *testing.T) (a, b *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func TestCall(t *testing.T) {
	a, b := pair(t)
	news := make(chan []string, 1)
	caller := NewCaller(a, func(m Message) { news <- m.Fields; m.Close() })
	served := make(chan error, 1)
	go func() {
		served <- b.Serve(func(r *Request) {
			defer r.Close()
			switch r.Verb {
			case "echo":
				r.OK(r.Files, r.Args...)
			case "tell":
				b.Notify(nil, "told", "x y")
				r.OK(nil)
			case "drop":
				b.Close()
			default:
				r.Refuse(ctl.Errorf(syscall.ENOSYS, "%s: unknown verb", r.Verb))
			}
		})
	}()
	ctx := context.Background()

	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	m, err := caller.Call(ctx, []*os.File{w}, "echo", "a b", "")
	w.Close()
	if err != nil || !slices.Equal(m.Fields, []string{"a b", ""}) || len(m.Files) != 1 {
		t.Fatalf("echo = %q, %d files, %v", m.Fields, len(m.Files), err)
	}
	m.Files[0].WriteString("through")
	m.Close()
	if got, err := io.ReadAll(r); string(got) != "through" || err != nil {
		t.Errorf("read %q, %v through the file that came back", got, err)
	}

	if _, err := caller.Call(ctx, nil, "what"); !errors.Is(err, syscall.ENOSYS) || err.Error() != "what: unknown verb" {
		t.Errorf("unknown verb: %v", err)
	}
	if _, err := caller.Call(ctx, nil, "tell"); err != nil {
		t.Error(err)
	}
	if got := <-news; !slices.Equal(got, []string{"told", "x y"}) {
		t.Errorf("news: %q", got)
	}
	if _, err := caller.Call(ctx, nil, "drop"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after a hang-up: %v, want EPIPE", err)
	}
	if err := <-served; err == nil {
		t.Error("Serve ended without a reason")
	}
}

func TestCallGivesUp(t *testing.T) {
	a, b := pair(t)
	caller := NewCaller(a, func(m Message) { m.Close() })
	requests := make(chan *Request, 2)
	go b.Serve(func(r *Request) { requests <- r })
	ctx, cancel := context.WithCancel(context.Background())
	go func() { <-requests; cancel() }()
	if _, err := caller.Call(ctx, nil, "slow"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestHello(t *testing.T) {
	a, b := pair(t)
	got := make(chan []string)
	go func() { peer, _ := b.Hello("guest", "3"); got <- peer }()
	peer, err := a.Hello("core")
	if err != nil || !slices.Equal(peer, []string{"guest", "3"}) {
		t.Errorf("Hello = %q, %v", peer, err)
	}
	if peer := <-got; !slices.Equal(peer, []string{"core"}) {
		t.Errorf("the other Hello = %q", peer)
	}
	go b.Send(nil, "hello", "somebody", "else", "x")
	if _, err := a.Hello("core"); err == nil {
		t.Error("a stranger's hello was taken")
	}
}

func TestGarbageEndsTheConversation(t *testing.T) {
	a, b := pair(t)
	go a.Send(nil, "not-a-tag", "verb")
	if err := b.Serve(func(*Request) { t.Error("handled") }); !errors.Is(err, errMessage) {
		t.Errorf("Serve: %v, want %v", err, errMessage)
	}
}
