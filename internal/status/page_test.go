package status

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func full() Document {
	return Document{
		Version: "v0.1.0", PID: 4242, Uptime: 7384.2,
		Restart: "Network is now 10.96.0.0/16", AddressConflict: "the public address 172.31.9.11 is also that of another host",
		Network: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Backend: "udp",
		Lease: &Lease{
			Subnet:   netip.MustParsePrefix("10.244.1.0/24"),
			PublicIP: netip.MustParseAddr("172.31.9.11"),
		},
		Underlay:   &Underlay{Name: "eth0", IPv4: netip.MustParseAddr("172.31.9.11"), MTU: 1500, Why: "it has the default route"},
		Privileges: &Privileges{Capabilities: []string{"NET_BIND_SERVICE", "NET_ADMIN", "NET_RAW"}, NoNewPrivileges: true},
		Rules:      &Rules{Masquerade: true, RandomFully: true, Forward: true, Unwritable: []string{`wan"1`}, Problem: "IPv4 rules: find iptables: not found"},
		Dataplane: &Dataplane{
			Devices: []Device{{Name: "flannel0", Kind: KindOffload, Why: "auto: the kernel grants it", MTU: 1472}},
			Port:    8285, SourceCheck: "strict", Memory: "small (the host has 121 MiB)",
			Offloads: []Offload{
				{Name: "tun-offload", Mode: "auto", InForce: true, Why: "granted: TSO4 TSO6 USO4 USO6"},
				{Name: "udp-gso", Mode: "auto", InForce: false, Why: "refused by the kernel: sendmsg: EIO, shard 1 of 2"},
			},
			Peers: []Peer{
				{Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}, PublicIP: netip.MustParseAddr("172.31.9.13")},
				{
					Subnets:   []netip.Prefix{netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("fd00:0:0:2::/64")},
					PublicIP:  netip.MustParseAddr("172.31.9.12"),
					TXPackets: 1_000_000, TXBytes: 1_472_000_000, RXPackets: 12, RXBytes: 999,
					Notes: []string{"sent from port 8285, as the peer does"},
				},
			},
		},
		Shards: []Shard{
			{TX: Direction{Packets: 900_000, Bytes: 1_300_000_000, TunCalls: 30_000, SockCalls: 20_000}, SocketOverflows: 3},
			{TX: Direction{Packets: 100_000, Bytes: 172_000_000, TunCalls: 10_000, SockCalls: 5_000}, RX: Direction{Packets: 12, Bytes: 999, TunCalls: 12, SockCalls: 6}},
		},
		Drops: Drops{
			TX: map[string]uint64{"no_route": 7},
			RX: map[string]uint64{"unknown_peer": 2, "spoofed_source": 31, "from_a_newer_version": 2},
		},
		Source: Source{Name: "file /etc/twill/leases.json", Leases: 3, LastError: "line 12: Leases[2].Subnet: overlaps Leases[0]"},
	}
}

// probed is a document of a node that probes its peers.
func probed() Document {
	d := full()
	heard := 4.2
	d.Dataplane.Peers[0].Probe, d.Dataplane.Peers[0].Heard = &Probe{Sent: 40, Lost: 4, Loss: 0.4, RTT: 0.00123}, &heard
	d.Dataplane.Peers[1].Probe = &Probe{Sent: 40, Lost: 40, Loss: 1}
	return d
}

// wide is a document of a node whose peers have long addresses, many subnets and much traffic.
func wide() Document {
	d := probed()
	d.Dataplane.Peers[0].PublicIP = netip.MustParseAddr("2001:db8:1234:5678:1234:5678:9abc:def0")
	d.Dataplane.Peers[0].Backend, d.Dataplane.Peers[0].Kernel = "udp", true
	for _, s := range []string{"10.244.3.0/24", "10.244.4.0/24", "10.244.128.0/24", "fd00:1234:5678:9abc::/64", "fd00:1234:5678:9abd::/64"} {
		d.Dataplane.Peers[0].Subnets = append(d.Dataplane.Peers[0].Subnets, netip.MustParsePrefix(s))
	}
	d.Dataplane.Peers[1].TXPackets = 1 << 63
	d.Dataplane.Peers[1].KernelWhy = "the peer's lease announces no kernel path, and its checksums are not complete on the way"
	return d
}

func TestPagesFitIn80Columns(t *testing.T) {
	for _, tc := range []struct {
		golden string
		doc    Document
	}{
		{"full.txt", full()},
		{"probed.txt", probed()},
		{"wide.txt", wide()},
		{"waiting.txt", Document{
			Version: "v0.1.0", PID: 4242, Uptime: 1, Waiting: "a lease",
			Source: Source{Name: "file /etc/twill/leases.json"},
		}},
		{"quiet.txt", Document{
			Version: "v0.1.0", PID: 4242, Uptime: 1,
			Network: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Backend: "udp",
			Rules:     &Rules{NFTables: true, RandomFully: true},
			Dataplane: &Dataplane{Devices: []Device{{Name: "flannel0", Kind: KindPlain, Why: "--tun-offload=off", MTU: 1472}}, Port: 8285, SourceCheck: "off"},
			Source:    Source{Name: "file /etc/twill/leases.json", Leases: 1},
		}},
		{"mixed.txt", Document{
			Version: "v0.1.0", PID: 4242, Uptime: 1,
			Network: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Backend: "auto",
			Backends: []string{"vxlan", "udp"}, BackendWhy: "the kernel supports VXLAN",
			Dataplane: &Dataplane{
				Devices: []Device{{Name: "flannel.1", Kind: KindVXLAN, Why: "the kernel supports VXLAN", MTU: 1450}},
				Peers: []Peer{{
					Subnets: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}, PublicIP: netip.MustParseAddr("172.31.9.13"),
					Backend: "vxlan",
				}},
				Unreached: []Unreached{{netip.MustParsePrefix("10.244.4.0/24"), netip.MustParseAddr("172.31.9.14"), `its backend is "wireguard", which this node does not support`}},
			},
			Source: Source{Name: "file /etc/twill/leases.json", Leases: 2},
		}},
	} {
		t.Run(tc.golden, func(t *testing.T) {
			var got bytes.Buffer
			if err := tc.doc.WritePage(&got); err != nil {
				t.Fatal(err)
			}
			testkit.Page(t, tc.golden, got.String())
		})
	}
}

func TestSizeHasThreeDigits(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1 kB", 1472: "1.47 kB", 999_499: "999 kB",
		999_500: "1 MB", 1 << 30: "1.07 GB", 1<<64 - 1: "18.4 EB",
	} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	for v, want := range map[float64]string{0: "0 bit/s", 999.4: "999 bit/s", 1000: "1 kbit/s", 12345: "12.3 kbit/s", 999.6e6: "1 Gbit/s"} {
		if got := Scaled(v, "bit/s"); got != want {
			t.Errorf("Scaled(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestTimesAreShownWhereThereAreAny(t *testing.T) {
	if got := since(" since ", time.Time{}); got != "" {
		t.Errorf("no time gave %q", got)
	}
	at := time.Date(2025, 11, 21, 14, 5, 0, 0, time.Local)
	if got, want := since(" since ", at), " since 2025-11-21 14:05:00"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAgeHasOneUnit(t *testing.T) {
	for seconds, want := range map[float64]string{
		0: "0s", 59.9: "59s", 60: "1m", 3599: "59m", 3600: "1h", 47 * 3600: "47h", 48 * 3600: "2d", 1e18: "365d",
	} {
		if got := Age(seconds); got != want {
			t.Errorf("%g s: %s, want %s", seconds, got, want)
		}
	}
}
