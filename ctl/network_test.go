package ctl_test

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"vmfs/ctl"
)

func TestLocal(t *testing.T) {
	prefix, ula := netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fd12:3456:789a:bcde::/64")
	for _, test := range []struct {
		id                         uint32
		nic                        int
		host, guest, host6, guest6 string
	}{
		{1, 0, "100.64.1.2/31", "100.64.1.3/31", "fd12:3456:789a:bcde:6440:103:0:1/96", "fd12:3456:789a:bcde:6440:103:0:2/96"},
		{1, 15, "100.64.1.32/31", "100.64.1.33/31", "fd12:3456:789a:bcde:6440:121:0:1/96", "fd12:3456:789a:bcde:6440:121:0:2/96"},
		{16383, 15, "100.127.255.32/31", "100.127.255.33/31", "fd12:3456:789a:bcde:647f:ff21:0:1/96", "fd12:3456:789a:bcde:647f:ff21:0:2/96"},
	} {
		a, err := ctl.Local(prefix, ula, test.id, test.nic)
		if err != nil {
			t.Fatal(err)
		}
		got := []string{a.Host.String(), a.Guest.String(), a.Host6.String(), a.Guest6.String()}
		for i, want := range []string{test.host, test.guest, test.host6, test.guest6} {
			if got[i] != want {
				t.Errorf("machine %d NIC %d: %s, want %s", test.id, test.nic, got[i], want)
			}
		}
	}
	for _, id := range []uint32{16384, 32768, 1<<32 - 1} {
		if _, err := ctl.Local(prefix, ula, id, 0); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("machine %d: %v, want ENOSPC: vmd gives it the addresses of another", id, err)
		}
	}
	if a, err := ctl.Local(prefix, netip.Prefix{}, 1, 0); err != nil || a.Host6.IsValid() {
		t.Errorf("without an IPv6 network: %v, %v", a, err)
	}
}

func FuzzParseLink(f *testing.F) {
	for _, s := range []string{"vm1-if0", "switch3", "vm0-if0", "vm1-if16", "vm01-if0", "switch4294967296", "switch-1", "vm1", "vm1-if", "eth0", "1-if0", "switch1-if0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if l, err := ctl.ParseLink(s); err == nil && (l.String() != s || l.ID == 0 || l.ID > ctl.MaxID || l.NIC >= ctl.MaxNICs) {
			t.Errorf("ParseLink(%q) = %+v", s, l)
		}
	})
}

func TestParseLink(t *testing.T) {
	for _, l := range []ctl.Link{ctl.NICLink(1, 0), ctl.NICLink(ctl.MaxID, 15), ctl.SwitchLink(7)} {
		if got, err := ctl.ParseLink(l.String()); err != nil || got != l {
			t.Errorf("%v: got %+v, %v", l, got, err)
		}
	}
	for _, s := range []string{"", "vm1", "vm1-if16", "vm01-if0", "vm1-if00", "vm100000001-if0", "1-if0", "switch0", "switch1-if0", "switch"} {
		if l, err := ctl.ParseLink(s); err == nil {
			t.Errorf("%q is read as %+v", s, l)
		}
	}
}
