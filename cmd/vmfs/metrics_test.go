package main

import (
	"context"
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"

	"vmfs/ctl"
	"vmfs/fs"
)

// A family is what a text says of one name.
type family struct {
	kind, help string
	samples    map[string]float64 // by their labels
}

// suffixes are what the specification wants at the names of samples.
var suffixes = map[string]string{"counter": "_total", "info": "_info", "gauge": ""}

// openMetrics reads a text as Prometheus does when it scrapes, and wants each
// sample after the head of its own family.
func openMetrics(t *testing.T, text string) map[string]*family {
	t.Helper()
	families := make(map[string]*family)
	var name string
	p := textparse.NewOpenMetricsParser([]byte(text), labels.NewSymbolTable())
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return families
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		switch entry {
		case textparse.EntryType:
			n, kind := p.Type()
			if name = string(n); families[name] != nil {
				t.Errorf("%s comes twice", name)
			}
			families[name] = &family{kind: string(kind), samples: make(map[string]float64)}
		case textparse.EntryHelp:
			n, help := p.Help()
			if string(n) != name {
				t.Fatalf("help of %s after the type of %s", n, name)
			}
			families[name].help = string(help)
		case textparse.EntrySeries:
			_, _, value := p.Series()
			families[name].add(t, name, p, value)
		default:
			t.Errorf("an entry of kind %d", entry)
		}
	}
}

func (f *family) add(t *testing.T, name string, p textparse.Parser, value float64) {
	t.Helper()
	var l labels.Labels
	p.Metric(&l)
	if got, want := l.Get(labels.MetricName), name+suffixes[f.kind]; got != want {
		t.Errorf("a sample is called %s, want %s", got, want)
	}
	key := l.DropMetricName().String()
	if _, twice := f.samples[key]; twice {
		t.Errorf("%s%s comes twice", name, key)
	}
	f.samples[key] = value
}

// value is that of a family's sample with the given labels.
func value(t *testing.T, families map[string]*family, name, labels string) float64 {
	t.Helper()
	v, ok := families[name].samples[labels]
	if !ok {
		t.Errorf("there is no %s%s", name, labels)
	}
	return v
}

func TestMetricsAreOpenMetrics(t *testing.T) {
	root, host := served(t)
	before := openMetrics(t, text(t, root, "metrics"))
	for _, name := range []string{"a", "b", "c"} {
		makeMachine(t, root, name)
	}
	do := func(path, line string) error {
		return open(t, root, path).Write(context.Background(), []byte(line+"\n"))
	}
	for path, line := range map[string]string{"vm/a/memory": "1G", "vm/a/cpus": "2"} {
		if err := do(path, line); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		if err := do("vm/"+name+"/ctl", "start"); err != nil {
			t.Fatal(err)
		}
	}
	host.Refused = func(string) error { return syscall.ENODEV }
	if do("vm/c/ctl", "start") == nil {
		t.Fatal("a start without an engine succeeded")
	}
	after := openMetrics(t, text(t, root, "metrics"))
	for _, m := range ctl.Metrics {
		if got := after[m.Name]; got == nil || got.kind != m.Type || got.help != m.Help || len(got.samples) == 0 {
			t.Errorf("%s: got %+v", m.Name, got)
		}
	}
	if len(after) != len(ctl.Metrics) {
		t.Errorf("got %d families, want %d", len(after), len(ctl.Metrics))
	}
	for _, want := range []struct {
		name, labels string
		value        float64
	}{
		{"vmfs_machines", `{status="running"}`, 2},
		{"vmfs_machines", `{status="failed"}`, 1},
		{"vmfs_machines", `{status="stopped"}`, 0},
		{"vmfs_cpus", "{}", 3},
		{"vmfs_memory_bytes", "{}", 1536 << 20},
		{"vmfs_starts", "{}", 2},
		{"vmfs_failed_starts", "{}", 1},
	} {
		if got := value(t, after, want.name, want.labels); got != want.value {
			t.Errorf("%s%s: got %v, want %v", want.name, want.labels, got, want.value)
		}
	}
	if a, b := value(t, before, "vmfs_events", "{}"), value(t, after, "vmfs_events", "{}"); b <= a {
		t.Errorf("vmfs_events went from %v to %v", a, b)
	}
}

func makeMachine(t *testing.T, root fs.Dir, name string) {
	t.Helper()
	vms, err := root.Lookup(context.Background(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vms.(fs.Dir).Mkdir(context.Background(), ctl.Cred{}, name, 0o755); err != nil {
		t.Fatal(err)
	}
}
