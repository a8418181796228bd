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
