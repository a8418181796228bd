package ctl

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Attr describes one attribute of an object: one file, one value. The N of
// disk/N and nic/N stands for a number from 0 to MaxParts-1.
type Attr struct {
	Name    string
	Default string // what an unset one reads; empty for none
	Values  string // for help
	Path    bool   // a path of the host, opened with the rights of who set it
	Live    bool   // acts on what runs; the others wait for the next start
	Root    bool   // root's, whoever owns the object

	canon func(string) (string, error) // the canonical form, or why not
}

// Access is who may do what with the attribute's file until somebody changes
// that.
func (a *Attr) Access() Default {
	if a.Root {
		return Default{Mode: 0o644, Root: true}
	}
	return Default{Mode: 0o640}
}

// Attrs are the attributes of a machine, in the order of help.
var Attrs = slices.Concat(vmAttrs, nicAttrs)

var vmAttrs = []Attr{
	{Name: "cpus", Default: "1", Values: "1..64", canon: canonCPUs},
	{Name: "memory", Default: "512M", Values: "bytes with K M G T, at least 1M", canon: canonMemory},
	{Name: "kernel", Values: "path", Path: true, canon: canonPath},
	{Name: "initrd", Values: "path", Path: true, canon: canonPath},
	{Name: "cmdline", Values: "the kernel's command line", canon: canonCmdline},
	{Name: "firmware", Values: "path of a BIOS or UEFI image; with no kernel and no firmware the engine's own BIOS boots", Path: true, canon: canonPath},
	{Name: "cdrom", Values: "path", Path: true, Live: true, canon: canonPath},
	{Name: "boot", Default: "disk", Values: "disk cdrom net", canon: oneOf("disk", "cdrom", "net")},
	{Name: "engine", Default: "auto", Values: "auto native qemu", canon: oneOf("auto", "native", "qemu")},
	{Name: "autostart", Default: "no", Values: "yes no; starts once a boot of the host", Live: true, canon: canonBool},
	{Name: "ephemeral", Default: "no", Values: "yes no; the machine is removed when its guest stops", Live: true, canon: canonBool},
	{Name: "note", Values: "free text", Live: true, canon: canonNote},
	{Name: "instance.allow", Values: "words of " + strings.Join(instanceWords, " ") + ", which an instance's owner may set", Live: true, canon: canonAllow},
	{Name: "disk/N/path", Values: "path of an image", Path: true, canon: canonPath},
	{Name: "disk/N/format", Default: "auto", Values: "auto raw qcow2; auto is settled at the first start", canon: oneOf("auto", "raw", "qcow2")},
	{Name: "disk/N/readonly", Default: "no", Values: "yes no", canon: canonBool},
}

// canonical gives the canonical form of a value of a; empty stays empty.
func (a *Attr) canonical(value string) (string, error) {
	if value == "" {
		return "", nil
	}
	if err := plainText(value); err != nil {
		return "", err
	}
	return a.canon(value)
}

// plainText refuses what no value may hold.
func plainText(s string) error {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f {
			return fmt.Errorf("byte %d is the control byte %#02x", i, s[i])
		}
	}
	return nil
}

func canonCPUs(s string) (string, error) {
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n < 1 || n > 64 {
		return "", fmt.Errorf("not a number from 1 to 64")
	}
	return strconv.FormatUint(n, 10), nil
}

// maxMemory is 16 TiB, what x86's 46 physical address bits leave room for.
const maxMemory = 16 << 40

func canonMemory(s string) (string, error) {
	n, err := parseBytes(s)
	if err != nil {
		return "", err
	}
	if n>>20 == 0 {
		return "", fmt.Errorf("less than 1M")
	}
	return strconv.FormatUint(n>>20, 10) + "M", nil
}

// parseBytes parses an amount of memory. s is not empty.
func parseBytes(s string) (uint64, error) {
	shift := 0
	digits := s
	if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 && s[len(s)-1] >= 'A' {
		shift, digits = 10*(i+1), s[:len(s)-1]
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > maxMemory>>shift {
		return 0, fmt.Errorf("not a number of bytes with K, M, G or T up to 16T")
	}
	return n << shift, nil
}

func canonPath(s string) (string, error) {
	if s[0] != '/' {
		return "", fmt.Errorf("not an absolute path")
	}
	if len(s) > 4095 {
		return "", fmt.Errorf("longer than a path can be")
	}
	return s, nil
}

// maxNote bounds what people write about a machine, in bytes.
const maxNote = 4096

func canonNote(s string) (string, error) {
	if len(s) > maxNote {
		return "", fmt.Errorf("longer than %d bytes", maxNote)
	}
	return s, nil
}

// maxCmdline is COMMAND_LINE_SIZE of x86 Linux, less the NUL.
const maxCmdline = 2047

func canonCmdline(s string) (string, error) {
	if len(s) > maxCmdline {
		return "", fmt.Errorf("longer than the %d bytes that a kernel takes", maxCmdline)
	}
	return s, nil
}

func canonBool(s string) (string, error) {
	switch s {
	case "yes", "1":
		return "yes", nil
	case "no", "0":
		return "no", nil
	}
	return "", fmt.Errorf("neither yes nor no")
}

func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		for _, w := range words {
			if s == w {
				return s, nil
			}
		}
		return "", fmt.Errorf("not one of %s", strings.Join(words, ", "))
	}
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// checkName says whether an object can be called name.
func checkName(name string) error {
	if !nameForm.MatchString(name) {
		return Errorf(syscall.EINVAL, "name %.80q: 1 to 63 of A-Z a-z 0-9 . - _, the first a letter or digit", name)
	}
	return nil
}
