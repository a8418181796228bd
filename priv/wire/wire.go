// Package wire is how the roles of vmfs speak to each other: a message is one
// line of text, its fields quoted as Go quotes them, with open files beside
// it, in one packet of a SOCK_SEQPACKET socket.
//
//	7 open 1000 ro /srv/debian.raw
//	7 ok raw                            (and a file)
//	8 end 3
//	8 error ENOENT "end 3: no such guest"
//
// It trusts neither side: a packet is bounded in bytes, fields and files
// before it is looked at, and what does not parse ends the conversation.
// It cannot say who the other side is; Peer asks the kernel.
package wire

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Bounds of one message.
const (
	Protocol   = 1        // the version that hello carries
	MaxMessage = 64 << 10 // bytes
	MaxFields  = 256
	MaxFiles   = 80 // 16 disks of 4 images, and what boots them
)

var errMessage = errors.New("not a message")

// Encode joins fields to a line, without a newline.
func Encode(fields ...string) ([]byte, error) {
	var b []byte
	for i, f := range fields {
		if i > 0 {
			b = append(b, ' ')
		}
		if plain(f) {
			b = append(b, f...)
		} else {
			b = strconv.AppendQuote(b, f)
		}
	}
	if len(fields) == 0 || len(fields) > MaxFields || len(b) > MaxMessage {
		return nil, fmt.Errorf("message of %d fields and %d bytes: too large", len(fields), len(b))
	}
	return b, nil
}

// Decode splits a line into its fields. It accepts what Encode makes and
// nothing else: one blank between fields, quotes only where they are needed.
func Decode(line []byte) ([]string, error) {
	if len(line) > MaxMessage {
		return nil, errMessage
	}
	var fields []string
	for s := string(line); ; s = s[1:] {
		field, rest, err := next(s)
		if err != nil || len(fields) == MaxFields {
			return nil, errMessage
		}
		fields = append(fields, field)
		if s = rest; s == "" {
			return fields, nil
		}
		if s[0] != ' ' {
			return nil, errMessage
		}
	}
}

// next takes one field off the front of s.
func next(s string) (field, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		field, rest = s, ""
		if i := strings.IndexByte(s, ' '); i >= 0 {
			field, rest = s[:i], s[i:]
		}
		if !plain(field) {
			return "", "", errMessage
		}
		return field, rest, nil
	}
	quoted, err := strconv.QuotedPrefix(s)
	if err != nil {
		return "", "", err
	}
	field, err = strconv.Unquote(quoted)
	if err != nil || plain(field) || strconv.Quote(field) != quoted {
		return "", "", errMessage
	}
	return field, s[len(quoted):], nil
}

// plain reports whether a field needs no quotes.
func plain(f string) bool {
	for i := 0; i < len(f); i++ {
		if c := f[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '`' {
			return false
		}
	}
	return f != ""
}
