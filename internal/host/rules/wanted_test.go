package rules

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestWrongConfigIsRefused(t *testing.T) {
	pods := func(network, subnet string) Pods {
		p := Pods{Network: netip.MustParsePrefix(network)}
		if subnet != "" {
			p.Subnet = netip.MustParsePrefix(subnet)
		}
		return p
	}
	for _, tt := range []struct {
		name   string
		wanted Wanted
		want   string
	}{
		{"IPv6 as IPv4", Wanted{Forward: true, IPv4: pods("fd00::/8", "")}, "network fd00::/8 is not an IPv4 prefix"},
		{"IPv4 as IPv6", Wanted{Forward: true, IPv6: pods("10.5.0.0/16", "")}, "network 10.5.0.0/16 is not an IPv6 prefix"},
		{"all addresses", Wanted{Forward: true, IPv4: pods("0.0.0.0/0", "")}, "network 0.0.0.0/0 is not an IPv4 prefix of one bit or more"},
		{"no network", Wanted{Forward: true, IPv4: Pods{Subnet: netip.MustParsePrefix("10.5.1.0/24")}}, "network invalid Prefix"},
		{"no subnet", Wanted{Masquerade: true, IPv4: pods("10.5.0.0/16", "")}, "subnet invalid Prefix is outside the network 10.5.0.0/16"},
		{"subnet elsewhere", Wanted{Masquerade: true, IPv4: pods("10.5.0.0/16", "10.6.1.0/24")}, "subnet 10.6.1.0/24 is outside"},
		{"subnet wider than the network", Wanted{Masquerade: true, IPv4: pods("10.5.0.0/16", "10.0.0.0/8")}, "subnet 10.0.0.0/8 is outside"},
		{"subnet of the other family", Wanted{Masquerade: true, IPv4: pods("10.5.0.0/16", "fd00::/64")}, "subnet fd00::/64 is outside"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := Config{Wanted: tt.wanted, Resync: time.Second, Logger: slog.New(slog.DiscardHandler)}
			if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: got %v, want %q", err, tt.want)
			}
			r := newRules(t, wanted(iptablesNFT))
			before := r.Status().Wanted
			if err := r.Set(tt.wanted); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Set: got %v, want %q", err, tt.want)
			}
			if after := r.Status().Wanted; !after.Equal(before) {
				t.Errorf("half set: %+v", after)
			}
		})
	}
	for _, every := range []time.Duration{0, -time.Second} {
		if _, err := New(Config{Wanted: wanted(iptablesNFT), Resync: every}); err == nil || !strings.Contains(err.Error(), "want more than 0") {
			t.Errorf("resync every %s: got %v", every, err)
		}
	}
}

func TestForwardRulesNeedNoSubnet(t *testing.T) {
	w := Wanted{Forward: true, IPv4: Pods{Network: netip.MustParsePrefix("10.5.0.0/16")}}
	if _, err := New(Config{Wanted: w, Resync: time.Second}); err != nil {
		t.Error(err)
	}
}
