package priv

import "strings"

// oneLine makes control bytes of a text that others wrote harmless in a log
// and in err.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

// maxReason bounds a sentence that another process said, in bytes. Quoting
// makes at most four of one.
const maxReason = 8 << 10

func clip(s string) string { return s[:min(len(s), maxReason)] }
