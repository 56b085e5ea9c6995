//go:build linux && amd64 && cgo

package main

import (
	"strings"
	"testing"
)

func TestParseArgsRefusesWhatFlannelWouldTakeWrongly(t *testing.T) {
	good := map[string]string{
		"iface":     "eth0",
		"network":   "10.5.0.0/16",
		"subnet":    "10.5.1.0/24",
		"public-ip": "172.31.9.11",
		"peer":      "10.5.2.0/24=172.31.9.12",
	}
	for _, tc := range []struct {
		name, flag, value string
		want              string // part of the error; empty: accepted
	}{
		{name: "complete"},
		{"no peer", "peer", "-", ""},
		{"no interface", "iface", "-", "--iface"},
		{"no network", "network", "-", "--network"},
		{"IPv6 network", "network", "fc00::/48", "--network"},
		{"host bits in the network", "network", "10.5.0.1/16", "--network"},
		{"foreign subnet", "subnet", "10.6.1.0/24", "--subnet"},
		{"subnet wider than the network", "subnet", "10.0.0.0/8", "--subnet"},
		{"no public address", "public-ip", "-", "--public-ip"},
		{"IPv6 public address", "public-ip", "fd00::1", "--public-ip"},
		{"peer without address", "peer", "10.5.2.0/24", "subnet=address"},
		{"foreign peer", "peer", "10.6.2.0/24=172.31.9.12", "--peer"},
		{"IPv6 peer", "peer", "10.5.2.0/24=fd00::2", "--peer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var args []string
			for name, value := range good {
				if name == tc.flag {
					value = tc.value
				}
				if value != "-" {
					args = append(args, "--"+name+"="+value)
				}
			}
			n, err := parseArgs(args)
			switch {
			case tc.want == "" && err != nil:
				t.Fatalf("parseArgs(%q): %v", args, err)
			case tc.want != "" && err == nil:
				t.Fatalf("parseArgs(%q) = %+v, want an error about %s", args, n, tc.want)
			case tc.want != "" && !strings.Contains(err.Error(), tc.want):
				t.Fatalf("parseArgs(%q): %v, want an error that names %s", args, err, tc.want)
			}
		})
	}
}

func TestConfigPassesFlannelsOwnChecks(t *testing.T) {
	n, err := parseArgs([]string{
		"--iface=eth0", "--network=10.5.0.0/16", "--subnet=10.5.1.0/24", "--public-ip=172.31.9.11",
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := newLeases(n).GetNetworkConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Network.String(); got != "10.5.0.0/16" || c.BackendType != "udp" || c.SubnetLen != 24 {
		t.Errorf("config = %s %s /%d, want 10.5.0.0/16 udp /24", got, c.BackendType, c.SubnetLen)
	}
}

func TestParseArgsRefusesAnArgumentThatIsNoFlag(t *testing.T) {
	if _, err := parseArgs([]string{"--iface=eth0", "udp"}); err == nil || !strings.Contains(err.Error(), "unexpected") {
		t.Errorf("error %v, want one about an unexpected argument", err)
	}
}
