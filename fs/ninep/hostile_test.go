package ninep

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/knusbaum/go9p/proto"

	"vmfs/ctl"
)

// seeds are a message of each type, as they should be.
func seeds() [][]byte {
	st := proto.Stat{Type: 1<<16 - 1, Dev: noID, Qid: proto.Qid{Qtype: 255, Vers: noID, Uid: 1<<64 - 1}, Mode: noID, Atime: noID, Mtime: noID, Length: 1<<64 - 1}
	return [][]byte{
		(&proto.TRVersion{Header: header(proto.Tversion, noTag), Msize: 8192, Version: "9P2000"}).Compose(),
		(&proto.TRVersion{Header: header(proto.Tversion, noTag), Msize: 8192, Version: "9P2000.u"}).Compose(),
		(&proto.TAuth{Header: header(proto.Tauth, 1), Afid: 5, Uname: "a"}).Compose(),
		(&proto.TAttach{Header: header(proto.Tattach, 1), Fid: 0, Afid: noID, Uname: "a"}).Compose(),
		sized(binary.LittleEndian.AppendUint32((&proto.TAttach{Header: header(proto.Tattach, 1), Afid: noID}).Compose(), noID)),
		(&proto.TWalk{Header: header(proto.Twalk, 1), Newfid: 1, Nwname: 1, Wname: []string{"waits"}}).Compose(),
		(&proto.TWalk{Header: header(proto.Twalk, 1), Newfid: 2, Nwname: 1, Wname: []string{"long"}}).Compose(),
		(&proto.TWalk{Header: header(proto.Twalk, 1), Newfid: 3}).Compose(),
		(&proto.TWalk{Header: header(proto.Twalk, 1), Newfid: 4, Nwname: 16, Wname: slices.Repeat([]string{".."}, 16)}).Compose(),
		(&proto.TOpen{Header: header(proto.Topen, 1), Fid: 1, Mode: 2}).Compose(),
		(&proto.TOpen{Header: header(proto.Topen, 1), Fid: 2}).Compose(),
		(&proto.TOpen{Header: header(proto.Topen, 1), Fid: 3}).Compose(),
		(&proto.TCreate{Header: header(proto.Tcreate, 1), Fid: 4, Name: "new", Perm: permDir | 0o777}).Compose(),
		(&proto.TRead{Header: header(proto.Tread, 7), Fid: 1, Count: 100}).Compose(),
		(&proto.TRead{Header: header(proto.Tread, 8), Fid: 2, Count: noID}).Compose(),
		(&proto.TRead{Header: header(proto.Tread, 9), Fid: 3, Count: 8000}).Compose(),
		(&proto.TWrite{Header: header(proto.Twrite, 1), Fid: 1, Count: 5, Data: []byte("hello")}).Compose(),
		(&proto.TStat{Header: header(proto.Tstat, 1), Fid: 1}).Compose(),
		(&proto.TWstat{Header: header(proto.Twstat, 1), Fid: 1, Stat: st}).Compose(),
		(&proto.TFlush{Header: header(proto.Tflush, 2), Oldtag: 7}).Compose(),
		(&proto.TClunk{Header: header(proto.Tclunk, 1), Fid: 1}).Compose(),
		(&proto.TRemove{Header: header(proto.Tremove, 1), Fid: 2}).Compose(),
		(&proto.RClunk{Header: header(proto.Rclunk, 1)}).Compose(),
	}
}

// A frame, whatever is in it, is parsed or refused, and not read past its end.
func FuzzFrame(f *testing.F) {
	for _, p := range seeds() {
		f.Add(p, false)
		f.Add(p, true)
	}
	f.Add([]byte{13, 0, 0, 0, proto.Tversion, 0, 0, 255, 255, 255, 255, 255, 255}, false)
	f.Add([]byte{11, 0, 0, 0, proto.Twstat, 1, 0, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, p []byte, dotu bool) {
		if len(p) < headerSize || len(p) > MaxMessage {
			return
		}
		p = slices.Clip(slices.Clone(p))
		var r request
		err := r.parse(new(parser), sized(p), dotu)
		if (err == nil) != (r.call != nil) {
			t.Fatalf("%v and %v", r.call, err)
		}
		if err != nil {
			return
		}
		if w, ok := r.call.(*proto.TWrite); ok && int(w.Count) != len(w.Data) {
			t.Errorf("%d bytes counted, %d there", w.Count, len(w.Data))
		}
		// Composed anew it is the same, but for what 9P2000.u adds.
		if q := r.call.Compose(); !dotu && string(q) != string(p) {
			t.Errorf("parsed %x, composed %x", p, q)
		}
	})
}

// run sends a client's bytes and waits until nothing is left of him.
func run(t *testing.T, s *Server, who Who, input []byte) {
	t.Helper()
	a, b := net.Pipe()
	s.admit(b, who, &strangers{})
	go func() { // reads all answers
		p := make([]byte, 64<<10)
		for {
			if _, err := a.Read(p); err != nil {
				return
			}
		}
	}()
	a.SetWriteDeadline(time.Now().Add(30 * time.Second))
	a.Write(input)
	a.Close()
	s.wait.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.users {
		t.Errorf("user %d is there: %d fids, %d requests", u.uid, u.fids.Load(), u.requests.Load())
	}
}

// fuzzed is a server that counts what users have when they go.
func fuzzed(t testing.TB) (*Server, fakeDir) {
	d, hear := fakes()
	close(hear)
	delete(d, "panics")
	s := New(d, Options{Log: t.Logf, Limits: Limits{Fids: 50, Requests: 20, Flush: time.Millisecond}})
	t.Cleanup(s.Close)
	return s, d
}

// A connection, whatever comes over it, leaves no file, fid or goroutine.
func FuzzConn(f *testing.F) {
	all := slices.Concat(seeds()...)
	f.Add(all)
	f.Add(slices.Concat(seeds()[1:]...))
	for i := range seeds() {
		f.Add(slices.Concat(seeds()[0], seeds()[3], slices.Concat(seeds()[5:]...), seeds()[i]))
	}
	s, d := fuzzed(f)
	goroutines := runtime.NumGoroutine()
	f.Fuzz(func(t *testing.T, input []byte) {
		run(t, s, Nobody, input)
		if n := d.opens(); n != 0 {
			t.Errorf("%d files are open", n)
		}
		waitFor(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines+8 })
	})
}

// said is a conversation of one who attaches and then does this to files, each
// with a fid and a tag of its own: "PATH" reads it, "PATH=TEXT" writes that, and
// "PATH/" makes a directory. Nobody waits for an answer.
func said(lines ...string) []byte {
	p := slices.Concat(seeds()[0], seeds()[3])
	for i, line := range lines {
		fid := uint32(i + 1)
		h := func(kind uint8) proto.Header { return header(kind, uint16(i+1)) }
		path, text, writes := strings.Cut(line, "=")
		path, makes := strings.CutSuffix(path, "/")
		names := strings.Split(path, "/")
		if makes {
			names = names[:len(names)-1]
		}
		p = append(p, (&proto.TWalk{Header: h(proto.Twalk), Newfid: fid, Nwname: uint16(len(names)), Wname: names}).Compose()...)
		var calls []proto.FCall
		switch {
		case makes:
			calls = append(calls, &proto.TCreate{Header: h(proto.Tcreate), Fid: fid, Name: path[strings.LastIndex(path, "/")+1:], Perm: permDir | 0o755})
		case writes:
			calls = append(calls, &proto.TOpen{Header: h(proto.Topen), Fid: fid, Mode: proto.Owrite},
				&proto.TWrite{Header: h(proto.Twrite), Fid: fid, Count: uint32(len(text)), Data: []byte(text)})
		default:
			calls = append(calls, &proto.TOpen{Header: h(proto.Topen), Fid: fid}, &proto.TRead{Header: h(proto.Tread), Fid: fid, Count: 4096})
		}
		for _, call := range calls {
			p = append(p, call.Compose()...)
		}
	}
	return p
}

// Whatever its owner says over a connection, a machine is in one of its states,
// and obeys; of the connection nothing is left, and no descriptor.
func FuzzMachine(f *testing.F) {
	remove := (&proto.TRemove{Header: header(proto.Tremove, 9), Fid: 1}).Compose()
	for _, p := range [][]byte{
		said("vm/web/ctl=start\n", "live/vm/web/console", "live/vm/web/wait", "vm/web/ctl=kill\n", "vm/web/status"),
		said("vm/web/do/start=\n", "vm/web/do/pause=\n", "vm/web/do/reset=\n", "vm/web/do/stop=1\n", "live/vm/web/events"),
		said("vm/web/config=begin\ncpus 2\n", "vm/web/disk/0/", "vm/web/disk/0/path=/x\n", "vm/web/nic/3/", "vm/web/check"),
		said("vm/db/", "vm/db/instance=x\n", "clone", "vm/db/ctl=remove\n", "live/events"),
		slices.Concat(said("vm/web"), remove, said("vm/web/ctl=remove\n")),
	} {
		f.Add(p)
		f.Add(append(p, seeds()[0]...))
	}
	tr, m, _ := tree(f)
	all := uint32(0o777)
	if err := m.SetAccess(root, "vm", ctl.AccessChange{Mode: &all}); err != nil {
		f.Fatal(err)
	}
	s := New(tr.Root(), Options{Log: f.Logf, Limits: Limits{Fids: 50, Requests: 20}})
	f.Cleanup(s.Close)
	owner := func(context.Context, net.Conn) (Peer, error) { return Peer{Cred: alice}, nil }
	f.Fuzz(func(t *testing.T, input []byte) {
		goroutines, files := runtime.NumGoroutine(), openFiles(t)
		run(t, s, owner, input)
		for _, vm := range m.VMs() {
			if err := vm.Do(bg, root, "kill", ""); err != nil {
				t.Errorf("kill %s: %v", vm.Name(), err)
			}
			waitFor(t, "the machine is stopped", func() bool { return !vm.Active() })
			if err := m.Remove(root, vm); err != nil {
				t.Errorf("rmdir %s: %v", vm.Name(), err)
			}
		}
		if _, err := m.Create(alice, "web", 0o755, alice.GID); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "goroutines and descriptors are gone", func() bool {
			return runtime.NumGoroutine() <= goroutines && openFiles(t) <= files
		})
	})
}

// What fuzzing finds slowly: messages that are right but for a byte or two,
// in any order.
func TestRandomConns(t *testing.T) {
	s, d := fuzzed(t)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		input := slices.Concat(seeds()[rng.IntN(2)], seeds()[3])
		for range rng.IntN(40) {
			p := slices.Clone(seeds()[2+rng.IntN(len(seeds())-2)])
			if rng.IntN(3) == 0 {
				p[4+rng.IntN(len(p)-4)] = byte(rng.IntN(256))
			}
			if rng.IntN(20) == 0 {
				p[rng.IntN(2)] = byte(rng.IntN(256))
			}
			input = append(input, p...)
		}
		run(t, s, Nobody, input)
		if n := d.opens(); n != 0 {
			t.Errorf("%d files are open", n)
		}
	}
}

// Hostile clients of every kind, of a few users, at once: a good one goes on,
// and afterwards nothing of them is left.
func TestHostile(t *testing.T) {
	tr, _, _ := tree(t)
	var mu sync.Mutex
	next := uint32(0)
	addr, s := serve(t, tr.Root(), Options{Limits: Limits{Write: 500 * time.Millisecond, Frame: 5 * time.Second, Attach: 5 * time.Second}}, func() Peer {
		mu.Lock()
		defer mu.Unlock()
		p := Peer{}
		if next++; next > 1 { // the first is the good one
			p.UID = 52000 + next%8
		}
		return p
	})
	good := attached(t, addr, "9P2000")
	before, files, memory := runtime.NumGoroutine(), openFiles(t), heap()
	quiet := latencies(good, 300)

	attackers := exec.Command(os.Args[0], "-test.run=TestAttackers", "-test.v")
	attackers.Env = append(os.Environ(), attackEnv+"="+addr)
	if err := attackers.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "attackers come", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) > len(attacks)
	})
	loud := latencies(good, 300)
	attackers.Process.Kill()
	attackers.Wait()
	t.Logf("p50 and p99 of the good client: quiet %v %v, under attack %v %v", quiet[0], quiet[1], loud[0], loud[1])
	good.clunk(1)
	// The kernel may still have connections of theirs that nobody accepted.
	waitFor(t, "connections end", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.conns) == 1 && len(s.users) == 1 && openFiles(t) <= files
	})
	waitFor(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
	waitFor(t, "memory returns", func() bool { return heap() < memory+4<<20 })
}

// Nobody keeps a turn while he does not read, nor with half a message.
func TestTurns(t *testing.T) {
	d, _ := fakes()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2)) // so there is one turn
	addr, _ := serve(t, d, Options{}, is(root))
	stat := (&proto.TStat{Header: header(proto.Tstat, 1), Fid: 0}).Compose()
	stuck := attached(t, addr, "9P2000")
	stuck.c.SetWriteDeadline(time.Now().Add(time.Second))
	for {
		if _, err := stuck.c.Write(slices.Repeat(stat, 100)); err != nil {
			break
		}
	}
	half := attached(t, addr, "9P2000")
	go io.Copy(io.Discard, half.c)
	half.sendBytes(append(slices.Repeat(stat, 10*burst), stat[:9]...))
	good := attached(t, addr, "9P2000")
	for range 3 {
		good.sendBytes(slices.Repeat(stat, 10*burst))
		for range 10 * burst {
			if p := good.receive(); p[4] != proto.Rstat {
				t.Fatalf("answer of type %d", p[4])
			}
		}
	}
}

// attackEnv is where the address is that TestAttackers attacks.
const attackEnv = "NINEP_ATTACK"

// TestAttackers is the hostile clients of TestHostile, in a process of their
// own, until it is killed.
func TestAttackers(t *testing.T) {
	addr := os.Getenv(attackEnv)
	if addr == "" {
		t.Skip("run by TestHostile")
	}
	for _, attack := range attacks {
		go func() {
			for {
				attack(addr)
				time.Sleep(time.Millisecond)
			}
		}()
	}
	time.Sleep(time.Minute)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// openFiles is how many descriptors this process has.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// latencies are the median and the 99th percentile of reading a status.
func latencies(c *raw, n int) (p [2]time.Duration) {
	c.t.Helper()
	var all []time.Duration
	for range n {
		start := time.Now()
		if e := c.open(1, "vm/web/status", proto.Oread); e != "" {
			c.t.Fatal(e)
		}
		if got := c.read(1, 0, 8192); got != "stopped\n" {
			c.t.Fatal(got)
		}
		c.clunk(1)
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	return [2]time.Duration{all[n/2], all[n*99/100]}
}

// attacks connect and do their worst, for a moment.
var attacks = []func(addr string){
	func(addr string) { // fids
		flood(addr, 20000, func(i int) proto.FCall {
			return &proto.TWalk{Header: header(proto.Twalk, 1), Newfid: uint32(i + 1)}
		})
	},
	func(addr string) { // requests that wait
		flood(addr, 5000, func(i int) proto.FCall {
			switch i {
			case 0:
				return &proto.TWalk{Header: header(proto.Twalk, 1), Newfid: 1, Nwname: 2, Wname: []string{"live", "wait"}}
			case 1:
				return &proto.TOpen{Header: header(proto.Topen, 1), Fid: 1}
			}
			return tread(uint16(i), 1)
		})
	},
	func(addr string) { // flushes
		flood(addr, 5000, func(i int) proto.FCall { return tflush(uint16(i), uint16(i-1)) })
	},
	func(addr string) { // one who never reads
		c, err := net.Dial("unix", addr)
		if err != nil {
			return
		}
		defer c.Close()
		c.Write(slices.Concat(seeds()[0], seeds()[3]))
		c.SetWriteDeadline(time.Now().Add(time.Second))
		for range 100000 {
			if _, err := c.Write(seeds()[7][:headerSize+10]); err != nil {
				return
			}
			c.Write((&proto.TStat{Header: header(proto.Tstat, 1)}).Compose())
		}
	},
	func(addr string) { // connections that say nothing
		for range 100 {
			c, err := net.Dial("unix", addr)
			if err != nil {
				return
			}
			defer c.Close()
		}
		time.Sleep(50 * time.Millisecond)
	},
	func(addr string) { // and that say half of something
		c, err := net.Dial("unix", addr)
		if err != nil {
			return
		}
		defer c.Close()
		c.Write(slices.Concat(seeds()[0], seeds()[3], []byte{0, 16, 0, 0, proto.Twrite}))
		time.Sleep(20 * time.Millisecond)
	},
	func(addr string) { // sizes
		for _, size := range []uint32{0, 1, 4, 6, 7, 8, 8193, 1 << 20, 1 << 31, noID} {
			c, err := net.Dial("unix", addr)
			if err != nil {
				return
			}
			c.Write(slices.Concat(seeds()[0], seeds()[3]))
			c.Write(binary.LittleEndian.AppendUint32(nil, size))
			c.Write(make([]byte, 100))
			c.Close()
		}
	},
}

// flood attaches and sends n messages as fast as answers are read.
func flood(addr string, n int, message func(i int) proto.FCall) {
	c, err := net.Dial("unix", addr)
	if err != nil {
		return
	}
	defer c.Close()
	go func() {
		p := make([]byte, 64<<10)
		for {
			if _, err := c.Read(p); err != nil {
				return
			}
		}
	}()
	c.Write(slices.Concat(seeds()[0], seeds()[3]))
	for i := range n {
		if _, err := c.Write(message(i).Compose()); err != nil {
			return
		}
	}
}
