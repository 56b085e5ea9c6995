package daemon

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

func TestEventsFollowFromTheStatus(t *testing.T) {
	peer := func(addr string, loss float64, sent uint64, mtu int) status.Peer {
		return status.Peer{
			PublicIP: netip.MustParseAddr(addr), Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")},
			Probe: &status.Probe{Sent: sent, Loss: loss}, MTU: mtu,
		}
	}
	for _, tt := range []struct {
		name string
		doc  status.Document
		want []string // reasons, with a part of the message
	}{
		{"ready", status.Document{
			Backend: "auto", Backends: []string{"vxlan", "udp"}, Lease: &status.Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24")},
		}, []string{"NetworkReady: pods can communicate, 10.5.1.0/24, by vxlan and udp"}},
		{"no podCIDR", status.Document{Waiting: "a lease: node n1 has no podCIDR", WaitingReason: metrics.WaitLease.String()}, []string{"NoLease: the node is waiting for a lease: node n1 has no podCIDR"}},
		{"configuration", status.Document{Waiting: waitsForConfig + `unknown key "Backnd"`, WaitingReason: metrics.WaitConfig.String()},
			[]string{`NetworkConfigRefused: the node is waiting for a valid network configuration: unknown key "Backnd"`}},
		{"interface", status.Document{Waiting: waitsForLink, WaitingReason: metrics.WaitInterface.String()}, []string{"NetworkNotReady: the node is waiting for " + waitsForLink}},
		{"firewall", status.Document{Waiting: "the firewall rules: no iptables", WaitingReason: metrics.WaitRules.String()},
			[]string{"NetworkNotReady: the node is waiting for the firewall rules: no iptables"}},
		{"restart", status.Document{Restart: "the network is now [10.0.0.0/8]"}, []string{"NetworkReady", "RestartNeeded: the network is now"}},
		{"conflict", status.Document{Source: status.Source{Conflicts: 2, ConflictsWhy: "10.5.1.128/25 is inside 10.5.1.0/24"}},
			[]string{"NetworkReady", "LeaseConflict: 2 leases overlap others and are not used: 10.5.1.128/25"}},
		{"fallback", status.Document{Backend: "auto", Backends: []string{"udp"}, BackendWhy: "no VXLAN: operation not supported"},
			[]string{"NetworkReady", "BackendFallback: udp is used: no VXLAN"}},
		{"udp by choice", status.Document{Backend: "udp", Backends: []string{"udp"}}, []string{"NetworkReady"}},
		{"peers", status.Document{Dataplane: &status.Dataplane{Peers: []status.Peer{
			peer("192.0.2.2", 1, 10, 0), peer("192.0.2.3", 0.9, 10, 1200), peer("192.0.2.4", 1, 2, 0), {PublicIP: netip.MustParseAddr("192.0.2.5")},
		}}}, []string{
			"NetworkReady", "PeersUnreachable: 1 of 4 peers do not answer probes: 192.0.2.2 [10.5.2.0/24]",
			"PathTooNarrow: 1 of 4 peers receive only packets smaller than the device's MTU",
		}},
		{"no backend in common", status.Document{Dataplane: &status.Dataplane{Unreached: []status.Unreached{
			{Subnet: netip.MustParsePrefix("10.5.7.0/24"), PublicIP: netip.MustParseAddr("192.0.2.7"), Why: strings.Repeat("its backend is wireguard ", 40)},
			{Subnet: netip.MustParsePrefix("10.5.8.0/24")},
		}}}, []string{"NetworkReady", "NoBackendForPeers: no packets are sent to 2 subnets of other nodes (see twill status), the first: 10.5.7.0/24 of 192.0.2.7: its backend is wireguard"}},
		{"many peers", status.Document{Dataplane: &status.Dataplane{Peers: slices.Repeat([]status.Peer{peer("192.0.2.2", 1, 10, 0)}, 5000)}},
			[]string{"NetworkReady", "and 4997 more"}},
	} {
		got := eventsOf(&tt.doc)
		same := len(got) == len(tt.want)
		for i := range min(len(got), len(tt.want)) {
			same = same && strings.Contains(got[i].Reason+": "+got[i].Message, tt.want[i])
		}
		if !same {
			t.Errorf("%s: the Events are %+v, want %q", tt.name, got, tt.want)
		}
		for _, e := range got {
			if len(e.Message) > 500 {
				t.Errorf("%s: a message of %d bytes: %s", tt.name, len(e.Message), e.Message)
			}
		}
	}
}
