package trace

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

var (
	nodeA, nodeB = netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")
	podA, podB   = netip.MustParseAddr("10.5.1.2"), netip.MustParseAddr("10.5.2.2")
	netA, netB   = netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("10.5.2.0/24")
)

// document is the status of a node with one peer.
func document(own, theirs netip.Prefix, peer netip.Addr, backend string) *status.Document {
	devices := map[string]status.Device{
		"udp":     {Name: "flannel0", Kind: status.KindOffload, MTU: 1472},
		"vxlan":   {Name: "flannel.1", Kind: status.KindVXLAN, MTU: 1450},
		"host-gw": {Name: "eth0", Kind: status.KindHostGW, MTU: 1500},
	}
	return &status.Document{
		Version: "0.1.0", Backends: []string{backend}, BackendWhy: "set in the network config",
		Lease:    &status.Lease{Subnet: own},
		Underlay: &status.Underlay{Name: "eth0", MTU: 1500},
		Dataplane: &status.Dataplane{
			Devices: []status.Device{devices[backend]}, Port: 8285, SourceCheck: "strict",
			Peers: []status.Peer{{Subnets: []netip.Prefix{theirs}, PublicIP: peer, Backend: backend}},
		},
	}
}

// pair returns two nodes without faults, as they are read for a packet from podA to podB.
func pair(backend string) (a, b *Host) {
	forward := "-P FORWARD DROP\n-P INPUT ACCEPT\n-A FORWARD -s 10.5.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n"
	tunnel := map[string]string{"udp": "flannel0", "vxlan": "flannel.1", "host-gw": "eth0"}[backend]
	links := func() map[string]Link {
		return map[string]Link{
			"cni0": {MTU: 1450, Up: true}, "eth0": {MTU: 1500, Up: true},
			"flannel0": {MTU: 1472, Up: true}, "flannel.1": {MTU: 1450, Up: true, Kind: "vxlan", VNI: 1, Port: 8472},
		}
	}
	over := map[string]int{"udp": 28, "vxlan": 50}[backend]
	a = &Host{
		Document: document(netA, netB, nodeB, backend), Firewall: doctor.ParseFirewall(forward, "-P POSTROUTING ACCEPT\n"),
		Other: nodeB, Overhead: over, Links: links(), Tunnel: tunnel,
		Pod: Route{Dev: "cni0", Dst: "10.5.1.0/24"}, Way: Route{Dev: tunnel, Dst: "10.5.2.0/24"}, Underlay: Route{Dev: "eth0"},
	}
	switch backend {
	case "vxlan":
		a.Way.Via, a.Hop = netB.Addr(), Hop{"8e:3b:1c:52:a0:07", nodeB}
	case "host-gw":
		a.Way.Via = nodeB
	}
	b = &Host{
		Document: document(netB, netA, nodeA, backend), Firewall: doctor.ParseFirewall(forward, "-P POSTROUTING ACCEPT\n"),
		Other: nodeA, Overhead: over, Links: links(), Tunnel: tunnel,
		Pod: Route{Dev: "cni0", Dst: "10.5.2.0/24"}, Way: Route{Dev: "cni0", Dst: "10.5.2.0/24"},
		Back: Route{Dev: tunnel, Dst: "10.5.1.0/24"}, Underlay: Route{Dev: "eth0"}, PodState: "known",
	}
	return a, b
}

var syn = Packet{podA, podB, TCP, 80}

// sights are what the taps of both nodes see, up to the named step of the receiver.
func sights(steps []Step, upTo int) (all []Sight) {
	for _, s := range steps[:upTo] {
		if p := s.Proof; p != nil {
			dev := "eth0"
			if len(p.Devices) > 0 {
				dev = p.Devices[0]
			}
			all = append(all, Sight{Device: dev, Out: p.Out, Outer: p.Outer, Answer: p.Answer, Count: smallProbes})
		}
	}
	return all
}

// traced is the report on a packet that was seen at all steps before the first that is
// bad.
func traced(a, b *Host) *Report {
	r := &Report{Packet: syn, From: nodeA, To: nodeB, Backend: "udp", Sent: Sent{Small: smallProbes, InPod: true}}
	r.Sender.Steps, r.Sender.Back = Sending(a, syn), Returning(a, syn)
	r.Receiver = &Part{Steps: Receiving(b, syn)}
	bad := func(steps []Step) int {
		if i := slices.IndexFunc(steps, func(s Step) bool { return s.Level == doctor.Bad }); i >= 0 {
			return i
		}
		return len(steps)
	}
	n := bad(r.Sender.Steps)
	r.Sender.Sights = sights(r.Sender.Steps, n)
	if n < len(r.Sender.Steps) {
		return r
	}
	n = bad(r.Receiver.Steps)
	r.Receiver.Sights = sights(r.Receiver.Steps, n)
	if n == len(r.Receiver.Steps) {
		r.Sender.Sights = append(r.Sender.Sights, sights(r.Sender.Back, len(r.Sender.Back))...)
	}
	return r
}

// Facts of a host lead to the cause and the command that removes it.
func TestWhatIsWrongIsTheCause(t *testing.T) {
	route := Route{Dev: "eth0", Dst: "10.5.2.2/32", Via: nodeB}
	for name, tt := range map[string]struct {
		backend       string
		breaks        func(a, b *Host)
		cause, remedy string
		last          string
	}{
		"nothing":             {"udp", func(*Host, *Host) {}, "", "", ""},
		"nothing, vxlan":      {"vxlan", func(*Host, *Host) {}, "", "", ""},
		"nothing, host-gw":    {"host-gw", func(*Host, *Host) {}, "", "", ""},
		"source of others":    {"udp", func(a, _ *Host) { a.Document.Lease.Subnet = netip.MustParsePrefix("10.5.7.0/24") }, "10.5.1.2 is not in this node's subnet (10.5.7.0/24)", "twill doctor", "nowhere"},
		"foreign route":       {"udp", func(a, _ *Host) { a.Way = route }, "10.5.2.2/32 via 192.0.2.12 dev eth0 bypasses flannel0", "ip route delete 10.5.2.2/32 via 192.0.2.12 dev eth0", "on 192.0.2.11, arriving on cni0"},
		"no lease":            {"udp", func(a, _ *Host) { a.Document.Dataplane.Peers = nil }, "no node has a lease for 10.5.2.2", "twill leases", "on 192.0.2.11, arriving on cni0"},
		"device gone":         {"udp", func(a, _ *Host) { delete(a.Links, "flannel0") }, "the device flannel0 does not exist", "systemctl restart twilld", "on 192.0.2.11, arriving on cni0"},
		"underlay down":       {"udp", func(a, _ *Host) { a.Links["eth0"] = Link{MTU: 1500} }, "eth0 is down", "ip link set dev eth0 up", "on 192.0.2.11, leaving on flannel0"},
		"narrow underlay":     {"udp", func(a, _ *Host) { a.Links["eth0"] = Link{MTU: 1400, Up: true} }, "packets of up to 1450 + 28 = 1478 bytes do not fit eth0, MTU 1400", "ip link set dev eth0 mtu 1478", "on 192.0.2.11, leaving on flannel0"},
		"no neighbour":        {"vxlan", func(a, _ *Host) { a.Hop = Hop{} }, "flannel.1 has no neighbour entry for 10.5.2.0", "systemctl restart twilld", "on 192.0.2.11, arriving on cni0"},
		"other FDB entry":     {"vxlan", func(a, _ *Host) { a.Hop.To = nodeA }, "flannel.1 has no FDB entry for 8e:3b:1c:52:a0:07 to 192.0.2.12", "systemctl restart twilld", "on 192.0.2.11, arriving on cni0"},
		"FORWARD":             {"udp", func(a, _ *Host) { a.Firewall = doctor.ParseFirewall("-P FORWARD DROP\n", "") }, "FORWARD drops it: the policy DROP of FORWARD", "iptables -P FORWARD ACCEPT", "on 192.0.2.11, arriving on cni0"},
		"INPUT":               {"udp", func(_, b *Host) { b.Firewall = doctor.ParseFirewall("-P INPUT DROP\n", "") }, "UDP port 8285: INPUT drops it", "iptables -I INPUT -p udp --dport 8285 -j ACCEPT", "on 192.0.2.12, arriving on eth0"},
		"INPUT, vxlan":        {"vxlan", func(_, b *Host) { b.Firewall = doctor.ParseFirewall("-P INPUT DROP\n", "") }, "UDP port 8472: INPUT drops it", "iptables -I INPUT -p udp --dport 8472 -j ACCEPT", "on 192.0.2.12, arriving on eth0"},
		"sender has no lease": {"udp", func(_, b *Host) { b.Document.Dataplane.Peers = nil }, "this node knows no lease for 10.5.1.2", "twill leases", "on 192.0.2.12, arriving on eth0"},
		"source check":        {"udp", func(_, b *Host) { b.Document.Dataplane.Peers[0].PublicIP = netip.MustParseAddr("192.0.2.99") }, "according to the leases here, 10.5.1.2 belongs to 192.0.2.99, not to 192.0.2.11", "twill leases", "on 192.0.2.12, arriving on eth0"},
		"reverse path":        {"udp", func(_, b *Host) { b.Way = Route{Err: unix.EXDEV}; b.Back = Route{Dev: "eth0", Dst: "10.5.1.0/24"} }, "the reverse path filter of flannel0 drops it, because the answer would take the route 10.5.1.0/24 dev eth0", "ip route delete 10.5.1.0/24 dev eth0", "on 192.0.2.12, arriving on flannel0"},
		"way back":            {"udp", func(_, b *Host) { b.Back = Route{Dev: "eth0", Dst: "10.5.1.0/24"} }, "the route 10.5.1.0/24 dev eth0 makes the answer bypass flannel0", "ip route delete 10.5.1.0/24 dev eth0", "on 192.0.2.12, the answer arriving on cni0"},
		"forwarding": {"udp", func(_, b *Host) {
			b.Way = Route{Err: unix.EHOSTUNREACH}
			b.Findings = []doctor.Finding{{Check: "forwarding", Level: doctor.Bad, Text: "net/ipv4/ip_forward is 0", Remedy: "sysctl -w net/ipv4/ip_forward=1"}}
		}, "ip_forward is 0", "sysctl -w net/ipv4/ip_forward=1", "on 192.0.2.12, arriving on flannel0"},
		"bridge down": {"udp", func(_, b *Host) {
			b.Bridge, b.Links["cni0"], b.Pod.Dev = "cni0", Link{MTU: 1450}, "flannel0"
		}, "cni0, the bridge of the pods, is down", "ip link set dev cni0 up", "on 192.0.2.12, arriving on flannel0"},
		"own pods sent out": {"udp", func(_, b *Host) {
			b.Pod.Dev = "eth0"
			b.Findings = []doctor.Finding{{Check: "own-subnet", Level: doctor.Bad, Text: "packets to this node's own pods leave", Remedy: "ip route delete 10.5.2.0/26 dev eth0"}}
		}, "packets to this node's own pods leave", "ip route delete 10.5.2.0/26 dev eth0", "on 192.0.2.12, arriving on flannel0"},
		"pod is gone": {"udp", func(_, b *Host) { b.PodState = "failed" }, "no pod answers for 10.5.2.2 on cni0", "ip neigh show 10.5.2.2 dev cni0", "on 192.0.2.12, arriving on flannel0"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := pair(tt.backend)
			tt.breaks(a, b)
			r := traced(a, b)
			r.Conclude()
			if r.OK != (tt.cause == "") || !strings.Contains(r.Cause, tt.cause) || r.Remedy != tt.remedy || r.LastSeen != tt.last {
				var page bytes.Buffer
				_ = r.WritePage(&page)
				t.Errorf("ok %t, cause %q, remedy %q, last seen %q; want %q, %q, %q\n%s", r.OK, r.Cause, r.Remedy, r.LastSeen, tt.cause, tt.remedy, tt.last, &page)
			}
		})
	}
}

// What no table explains, counters and the place of the loss do.
func TestCountersAndPlaceNameWhatTablesDoNot(t *testing.T) {
	lostAfter := func(step string) *Report {
		r := traced(pair("udp"))
		i := slices.IndexFunc(r.Receiver.Steps, func(s Step) bool { return s.Name == step })
		r.Receiver.Sights = sights(r.Receiver.Steps, i+1)
		r.Sender.Sights = sights(r.Sender.Steps, len(r.Sender.Steps))
		return r
	}
	r := lostAfter("underlay")
	r.Receiver.Rose = []Counter{{byDevice, "eth0 dropped or failed to receive", 9, ""}, {byTwilld, "spoofed_source receiving", 3, remedies["spoofed_source"]}}
	if r.Conclude(); r.Cause != "twilld dropped 3 packets receiving: spoofed_source (inner source is not in the sending peer's subnets)" || r.Remedy != "twill leases" || r.On != nodeB {
		t.Errorf("%q, %q on %s", r.Cause, r.Remedy, r.On)
	}
	r = lostAfter("device")
	r.Receiver.Rose = []Counter{{byRule, "-A FORWARD -m set --match-set bad src -j DROP", 3, "iptables -D FORWARD -m set --match-set bad src -j DROP"}}
	if r.Conclude(); !strings.HasSuffix(r.Cause, "-j DROP dropped 3 packets") || r.Remedy == "" {
		t.Errorf("%q, %q", r.Cause, r.Remedy)
	}
	r = lostAfter("device")
	r.Receiver.Rose = []Counter{{byRule, "-A FORWARD -s 198.51.100.0/24 -j DROP", 2, ""}} // fewer than are missing
	if r.Conclude(); strings.Contains(r.Cause, " dropped ") {
		t.Errorf("a rule that dropped others: %q", r.Cause)
	}
	if r = lostAfter("pod"); true {
		if r.Conclude(); r.Cause != "the packet was delivered, and 10.5.2.2 does not answer tcp 80" {
			t.Errorf("%q", r.Cause)
		}
	}
	r = lostAfter("underlay")
	r.Receiver.Sights = nil
	if r.Conclude(); r.LastSeen != "on 192.0.2.11, leaving on eth0" || !strings.Contains(r.Cause, "between the nodes") {
		t.Errorf("%q, %q", r.LastSeen, r.Cause)
	}
	r = lostAfter("underlay")
	r.Receiver, r.Missing = nil, "--via must say how to run twill there"
	if r.Conclude(); !strings.Contains(r.Cause, "192.0.2.12 was not examined") || !strings.Contains(r.Remedy, "twill trace --via 'ssh root@{node} twill' 10.5.1.2 10.5.2.2 tcp 80") {
		t.Errorf("%q, %q", r.Cause, r.Remedy)
	}
}

func TestFullSizeProbesThatGetLostAreTheCause(t *testing.T) {
	a, b := pair("udp")
	r := traced(a, b)
	a.Findings = []doctor.Finding{
		{Check: "daemon", Level: doctor.Warn, Text: "12 packets of pods were dropped"},
		{Check: "peers", Level: doctor.Bad, Text: "the path to 192.0.2.12 takes at most 1400 bytes", Remedy: "ip link set dev eth0 mtu 1400", Narrow: true},
	}
	r.Sender.Steps = Sending(a, syn)
	r.Packet.Proto, r.Packet.Port = ICMP, 0
	r.Sent.Full, r.Sent.Size = fullProbes, 1450
	r.Sender.Sights = append(r.Sender.Sights, Sight{Device: "eth0", Out: true, Outer: true, Full: true, Count: fullProbes})
	if r.Conclude(); r.OK || !strings.Contains(r.Cause, "takes at most 1400 bytes") || r.LastSeen != "on 192.0.2.11, leaving on eth0" {
		t.Errorf("ok %t, %q, %q", r.OK, r.Cause, r.LastSeen)
	}
}

func TestPagesFitIn80Columns(t *testing.T) {
	dropped, droppedB := pair("vxlan")
	droppedB.Firewall = doctor.ParseFirewall("-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-A FORWARD -s 10.5.0.0/16 -p tcp -m tcp --dport 80 -m comment --comment \"no web between pods\" -j REJECT --reject-with icmp-port-unreachable\n", "")
	rule := traced(dropped, droppedB)
	rule.Receiver.Rose = []Counter{{byRule, "-A FORWARD -s 10.5.0.0/16 -p tcp -m tcp --dport 80 -j REJECT", 3, ""}}
	good := traced(pair("udp"))
	alone := traced(pair("udp"))
	alone.Receiver, alone.Missing = nil, "--via must say how to run twill there"
	alone.Sender.Sights = sights(alone.Sender.Steps, len(alone.Sender.Steps))
	alone.Sent.InPod, alone.Sent.Full, alone.Sent.Size = false, 2, 1450
	for name, r := range map[string]*Report{"good": good, "dropped": rule, "alone": alone} {
		r.Conclude()
		var page bytes.Buffer
		testkit.Must(t, r.WritePage(&page))
		testkit.Page(t, name+".txt", page.String())
	}
}

func TestWhatTheOtherNodeSaysDoesNotControlTheTerminal(t *testing.T) {
	r := traced(pair("udp"))
	r.Receiver.Steps[0].Text = "\x1b[2J\r\n"
	r.Conclude()
	var page bytes.Buffer
	testkit.Must(t, r.WritePage(&page))
	if strings.ContainsAny(page.String(), "\x1b\r") {
		t.Errorf("%q", page.String())
	}
}

func TestKernelCountersAreReadByName(t *testing.T) {
	text := "TcpExt: SyncookiesSent IPReversePathFilter TW\nTcpExt: 0 7 9\nIp: Forwarding OutNoRoutes\nIp: 1 3\nbroken\n"
	got := Rose([]Counter{{Kind: byKernel, Name: "OutNoRoutes", Count: 3}}, kernelCounters([]byte(text)))
	if want := []Counter{{Kind: byKernel, Name: "IPReversePathFilter", Count: 7}}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
