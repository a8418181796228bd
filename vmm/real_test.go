package vmm

import (
	"testing"
	"time"
)

const bootTime = 60 * time.Second

func TestBoot(t *testing.T) {
	needHost(t)
	p := spawn(t, "tcg")
	g := p.dial()
	if err := g.Give(t.Context(), linux(t, p, 1)); err != nil {
		t.Fatal(err)
	}
	if err := g.Go(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &screen{t: t, c: g.Console()}
	t.Log(s.expect("READY cpus=1", bootTime))
}
