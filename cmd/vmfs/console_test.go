package main

import "testing"

func TestEscape(t *testing.T) {
	for _, c := range []struct {
		typed []string
		out   string
		leave bool
	}{
		{[]string{"ls\r"}, "ls\r", false},
		{[]string{"~."}, "", true},
		{[]string{"ls\r~.more"}, "ls\r", true},
		{[]string{"ls\r~", "."}, "ls\r", true},
		{[]string{"a~."}, "a~.", false},
		{[]string{"~~."}, "~.", false},
		{[]string{"~x\r~"}, "~x\r", false},
		{[]string{"\n~.", "x"}, "\n", true},
	} {
		e := escape{fresh: true}
		var out string
		var leave bool
		for _, s := range c.typed {
			if leave {
				break
			}
			var b []byte
			b, leave = e.filter([]byte(s))
			out += string(b)
		}
		if out != c.out || leave != c.leave {
			t.Errorf("%q: got %q, %v, want %q, %v", c.typed, out, leave, c.out, c.leave)
		}
	}
}
