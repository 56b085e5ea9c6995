package static

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/lease"
)

func open(t *testing.T, text string) *Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text)
	s, err := Open(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func attrs(ip, ipv6 string) (a lease.Attrs) {
	if ip != "" {
		a.PublicIP = netip.MustParseAddr(ip)
	}
	if ipv6 != "" {
		a.PublicIPv6 = netip.MustParseAddr(ipv6)
	}
	return a
}

func TestAcquireFindsTheOwnLeaseByItsAddresses(t *testing.T) {
	s, ctx := open(t, good), context.Background()
	for _, tt := range []struct {
		ip, ipv6 string
		want     lease.Key
	}{
		{"192.0.2.1", "", "10.5.1.0-24&fd00:5:0:1::-64"},
		{"192.0.2.1", "2001:db8::1", "10.5.1.0-24&fd00:5:0:1::-64"},
		{"192.0.2.99", "2001:db8::1", "10.5.1.0-24&fd00:5:0:1::-64"},
		{"192.0.2.2", "2001:db8::99", "10.5.2.0-24"},
		{"", "2001:db8::3", "0.0.0.0-0&fd00:5:0:3::-64"},
	} {
		l, err := s.Acquire(ctx, attrs(tt.ip, tt.ipv6), lease.Previous{})
		if err != nil || l.Key() != tt.want {
			t.Errorf("%s, %s: got %v, %v, want %s", tt.ip, tt.ipv6, l, err, tt.want)
			continue
		}
		if again, err := s.Renew(ctx, l); err != nil || !again.Equal(*l) {
			t.Errorf("renew %s: got %v, %v", tt.want, again, err)
		}
		// What the node says of itself does not change the file.
		moved := *l
		if moved.PublicIP.IsValid() && moved.PublicIPv6.IsValid() {
			moved.PublicIP = netip.MustParseAddr("192.0.2.77")
			if again, err := s.Renew(ctx, &moved); err != nil || !again.Equal(*l) {
				t.Errorf("renew %s at another address: got %v, %v, want what the file says", tt.want, again, err)
			}
		}
	}
	if c, err := s.Config(ctx); err != nil || c.IPv4.Network.String() != "10.5.0.0/16" {
		t.Errorf("config: got %+v, %v", c, err)
	}
}

func TestAcquireSaysWhichAddressesTheFileHas(t *testing.T) {
	s := open(t, good)
	_, err := s.Acquire(context.Background(), attrs("192.0.2.9", "2001:db8::9"), lease.Previous{})
	want := "lease file " + s.path + ": no lease for this node: looked for 192.0.2.9, 2001:db8::9; " +
		"the file has 192.0.2.1, 2001:db8::1, 192.0.2.2, 2001:db8::3; " +
		"add a lease with this node's address as PublicIP, or choose another interface with --iface"
	if !errors.Is(err, lease.ErrNoLease) || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}

	var entries []string
	for i := range 100 {
		entries = append(entries, fmt.Sprintf(`{"Subnet":"10.5.%d.0/24","PublicIP":"192.0.2.%d"}`, i, i))
	}
	s = open(t, `{"Network":"10.5.0.0/16","Leases":[`+strings.Join(entries, ",")+`]}`)
	_, err = s.Acquire(context.Background(), attrs("198.51.100.1", ""), lease.Previous{})
	if err == nil || !strings.Contains(err.Error(), "192.0.2.15 and 84 more; ") {
		t.Errorf("got %v", err)
	}
	if _, err := open(t, `{"Network":"10.5.0.0/16","Leases":[]}`).Acquire(context.Background(), lease.Attrs{}, lease.Previous{}); err == nil ||
		!strings.Contains(err.Error(), "looked for no address; the file has no address; ") {
		t.Errorf("got %v", err)
	}
}

func TestAcquireRefusesTwoLeasesForOneNode(t *testing.T) {
	s := open(t, good)
	_, err := s.Acquire(context.Background(), attrs("192.0.2.2", "2001:db8::3"), lease.Previous{})
	want := "lease file " + s.path + ": this node's PublicIP 192.0.2.2 and PublicIPv6 2001:db8::3 " +
		"are in separate leases, 10.5.2.0-24 and 0.0.0.0-0&fd00:5:0:3::-64; combine them into one lease"
	if err == nil || err.Error() != want {
		t.Errorf("\n got %v\nwant %s", err, want)
	}
}

func TestRenewFailsWhenTheLeaseIsAnothers(t *testing.T) {
	s := open(t, good)
	own := &lease.Lease{Attrs: attrs("192.0.2.2", ""), Subnet: netip.MustParsePrefix("10.5.1.0/24")}
	if _, err := s.Renew(context.Background(), own); !errors.Is(err, lease.ErrNoLease) {
		t.Errorf("got %v", err)
	}
}
