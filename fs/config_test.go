package fs

import (
	"strings"
	"testing"
)

// fed is what comes out of a frame that text goes into in the given pieces.
// A writer that goes on after an error is the worst there is.
func fed(text string, cut func(rest string) int) (wholes, edits []string) {
	var f frame
	for text != "" {
		n := max(1, min(cut(text), len(text)))
		whole, edit, err := f.add([]byte(text[:n]))
		if err == nil && whole != "" {
			wholes = append(wholes, whole)
		}
		if err == nil && !blank([]byte(edit)) {
			edits = append(edits, edit)
		}
		text = text[n:]
	}
	return wholes, edits
}

func TestFrame(t *testing.T) {
	const text = "# remark\n\nbegin\ncpus 2\n\n# end\nmemory 1G\nend\n\n# after\n"
	const want = "begin\ncpus 2\n\n# end\nmemory 1G\nend\n"
	for size := 1; size <= len(text); size++ {
		wholes, edits := fed(text, func(string) int { return size })
		if len(wholes) != 1 || wholes[0] != want || len(edits) != 0 {
			t.Errorf("in pieces of %d: got %q and edits %q, want %q", size, wholes, edits, want)
		}
	}
	for text, want := range map[string]string{
		"begin\nend\n":             "begin\nend\n",
		"begin\nend":               "begin\nend\n",
		"begin\nend\ncpus 2\n":     "",
		"beginning\nend\n":         "",
		"begin\ncpus 2\n end\n":    "",
		"cpus 2\nbegin\nend\n":     "",
		"\x00begin\nend\n":         "",
		"begin\nbegin\nend\n":      "begin\nbegin\nend\n",
		"begin \nend\n":            "",
		"begin\r\nend\r\n":         "",
		"# only a remark\n":        "",
		"begin\n# x\nend\n# y\n\n": "begin\n# x\nend\n",
	} {
		wholes, _ := fed(text, func(s string) int { return len(s) })
		if got := strings.Join(wholes, "|"); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// A text that is too long is refused up to its end, in however many writes,
// and what follows is heard again.
func TestFrameTooLong(t *testing.T) {
	text := "begin\n" + strings.Repeat("cpus 2\n", MaxWrite/7) + "end\n"
	for _, size := range []int{7, 4096, MaxWrite, len(text)} {
		wholes, edits := fed(text+"begin\nend\n", func(rest string) int { return min(size, max(1, len(rest)-len("begin\nend\n"))) })
		if len(edits) != 0 || strings.Join(wholes, "") != "begin\nend\n" {
			t.Errorf("in pieces of %d: got %d texts and %d edits", size, len(wholes), len(edits))
		}
	}
}

// However a framed text is split, and however its writer treats errors, it
// is handed on whole and once, or not at all; no part of it is an edit.
func FuzzFrame(f *testing.F) {
	f.Add("cpus 2\n", []byte{1})
	f.Add("cpus 2\nmemory 1G\n# remark\n\n", []byte{3, 200, 1, 1})
	f.Add("begin\n", []byte{5, 1})
	f.Add("no newline", []byte{12})
	f.Fuzz(func(t *testing.T, body string, cuts []byte) {
		if strings.Contains("\n"+body, "\nend") || len(body) > MaxWrite/2 {
			return // that would be its end; or too long
		}
		if !strings.HasSuffix("\n"+body, "\n") {
			body += "\n"
		}
		for _, header := range []string{"", "# remark\n\n"} {
			whole := "begin\n" + body + "end\n"
			i := 0
			wholes, edits := fed(header+whole, func(string) int {
				if i++; len(cuts) == 0 {
					return len(whole)
				}
				return int(cuts[i%len(cuts)]) * int(cuts[i%len(cuts)])
			})
			if len(edits) != 0 {
				t.Errorf("edits %q", edits)
			}
			if len(wholes) != 1 || wholes[0] != whole {
				t.Errorf("got %d texts, want %q", len(wholes), whole)
			}
		}
	})
}

// Any bytes at all: nothing panics, and no more is kept than a text may have.
func FuzzFrameBytes(f *testing.F) {
	f.Add([]byte("begin\ncpus 2\nend\nbegin\nend"), 4)
	f.Add([]byte("beg\nbegin\nend\nend\nbeginend"), 1)
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		var fr frame
		for len(text) > 0 {
			n := max(1, min(size, len(text)))
			whole, edit, err := fr.add(text[:n])
			if len(fr.text) > 2*MaxWrite || whole != "" && edit != "" || err != nil && whole+edit != "" {
				t.Fatalf("kept %d bytes, gave %q and %q and %v", len(fr.text), whole, edit, err)
			}
			if whole != "" && (!strings.HasPrefix(whole, "begin\n") || !strings.HasSuffix(whole, "\nend\n")) {
				t.Fatalf("not a framed text: %q", whole)
			}
			text = text[n:]
		}
	})
}
