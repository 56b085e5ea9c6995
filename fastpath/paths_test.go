package fastpath

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// end is a node of a pair, as far as it chooses the port that it sends from.
type end struct {
	other     *Peer          // how it sees the other end
	own       netip.AddrPort // where it sends from as a rule
	fixed     netip.AddrPort
	lastFixed int // when it last sent from the network's port
	got       bool
}

// network reports whether a packet from one end, from the network's port or not,
// arrives at the other at a time.
type network func(from, to *end, fixed bool, now int) bool

// conntrackMemory is for how many ticks a firewall remembers a packet.
const conntrackMemory = 30

// Networks between an end a and an end b.
var (
	open network = func(_, _ *end, _ bool, _ int) bool { return true }
	// answersOnly is a firewall at both ends that admits what belongs to
	// traffic of its own host.
	answersOnly network = func(_, to *end, fixed bool, now int) bool {
		return fixed && now-to.lastFixed < conntrackMemory
	}
)

// masquerade hides a, without a port forward.
func masquerade(a *end) network {
	return func(from, to *end, fixed bool, now int) bool {
		return from == a || fixed && now-a.lastFixed < conntrackMemory
	}
}

// ticks lets both ends send for n ticks and returns in how many something was
// lost. With answers b sends only where it got something.
func ticks(a, b *end, carries network, answers bool, from, n int) (lost int) {
	for now := from; now < from+n; now++ {
		a.got, b.got = false, false
		for _, x := range []struct {
			from, to *end
			sends    bool
		}{{a, b, true}, {b, a, true}} {
			fixed := x.from.other.FixedPort()
			sends := x.from == a || !answers || x.from.got
			if !sends {
				continue
			}
			if fixed {
				x.from.lastFixed = now
			}
			if carries(x.from, x.to, fixed, now) {
				source := x.from.own
				if fixed {
					source = x.from.fixed
				}
				x.to.got = true
				x.to.other.heard(source)
			}
		}
		a.other.listen(true, a.got)
		b.other.listen(!answers || b.got, b.got)
		if !a.got || !b.got {
			lost++
		}
	}
	return lost
}

func pairOfEnds() (a, b *end) {
	make := func(own, other string) *end {
		return &end{
			other: NewPeer(nil, netip.MustParseAddrPort(other+":8285")),
			own:   netip.MustParseAddrPort(own + ":49152"), fixed: netip.MustParseAddrPort(own + ":8285"),
			lastFixed: -2 * conntrackMemory,
		}
	}
	return make("192.0.2.1", "192.0.2.2"), make("192.0.2.2", "192.0.2.1")
}

// ports are the ports that both ends use: true is the network's.
func ports(a, b *end) [2]bool { return [2]bool{a.other.FixedPort(), b.other.FixedPort()} }

func TestOwnPortsStayWhereTheyWork(t *testing.T) {
	a, b := pairOfEnds()
	if lost := ticks(a, b, open, false, 0, 1000); lost != 0 || ports(a, b) != [2]bool{} {
		t.Errorf("%d ticks lost, ports %v", lost, ports(a, b))
	}
}

func TestNodesThatNeedTheNetworksPortFindIt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		network func(a *end) network
		answers bool
	}{
		{"masquerade, a asks", masquerade, true},
		{"masquerade, both send", masquerade, false},
		{"firewalls that admit answers", func(*end) network { return answersOnly }, false},
	} {
		a, b := pairOfEnds()
		carries := tt.network(a)
		first := ticks(a, b, carries, tt.answers, 0, 40)
		if first > 10 {
			t.Errorf("%s: %d of the first 40 ticks are lost", tt.name, first)
		}
		if lost := ticks(a, b, carries, tt.answers, 40, 200); lost != 0 || ports(a, b) != [2]bool{true, true} {
			t.Errorf("%s: then %d are lost, ports %v", tt.name, lost, ports(a, b))
		}
		// To try the own ports again costs a few ticks at ever longer intervals.
		if lost := ticks(a, b, carries, tt.answers, 240, 5000); lost > 60 {
			t.Errorf("%s: %d of the next 5000 are lost", tt.name, lost)
		}
	}
}

func TestNodeThatWasAwayIsServedFromOwnPortsInTheEnd(t *testing.T) {
	away := func(*end, *end, bool, int) bool { return false }
	for duration := range 40 {
		a, b := pairOfEnds()
		ticks(a, b, away, true, 0, duration)
		if lost := ticks(a, b, open, true, duration, 4*firstRetry); lost > 2 || ports(a, b) != [2]bool{} {
			t.Errorf("away for %d ticks: %d lost afterwards, ports %v", duration, lost, ports(a, b))
		}
	}
}

// TestNodeWithAForeignPublicAddressBeginsOnTheNetworksPort: if its first packets
// came from other ports, answers of a stock node to the network's port would make
// the masquerading router give that port to nothing else.
func TestNodeWithAForeignPublicAddressBeginsOnTheNetworksPort(t *testing.T) {
	for _, translated := range []bool{false, true} {
		e := &Engine{translated: translated}
		p := NewPeer(nil, netip.MustParseAddrPort("192.0.2.2:8285"))
		e.SetPeers(NewPeers(nil, []*Peer{p}))
		if p.FixedPort() != translated {
			t.Errorf("translated %t: from the network's port %t", translated, p.FixedPort())
		}
		p.path.chosen.Store(false)
		p.heard(netip.MustParseAddrPort("192.0.2.2:49152"))
		e.SetPeers(NewPeers(nil, []*Peer{p})) // another lease has changed
		if p.FixedPort() {
			t.Errorf("translated %t: a new snapshot begins again", translated)
		}
	}
}

func TestStockNodeIsAnsweredFromTheNetworksPort(t *testing.T) {
	p := NewPeer(nil, netip.MustParseAddrPort("192.0.2.2:8285"))
	p.heard(netip.MustParseAddrPort("192.0.2.9:8285"))
	if p.FixedPort() {
		t.Error("for a datagram of another host")
	}
	p.heard(p.Endpoint)
	if !p.FixedPort() {
		t.Error("not for one of its own")
	}
	p.heard(netip.MustParseAddrPort("192.0.2.2:49153"))
	if p.FixedPort() {
		t.Error("still, although it sends from another port now")
	}
}

// TestPacketsWithinTheKernelsLeastPathMTUGoWithoutDF: the kernel learns no path
// MTU below net.ipv4.route.min_pmtu.
func TestPacketsWithinTheKernelsLeastPathMTUGoWithoutDF(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		narrow(t, "203.0.113.1")
		p := NewPeer(nil, netip.MustParseAddrPort("203.0.113.1:8285"))
		x := newPaths(netip.MustParseAddr("127.0.0.1"), testMTU, func() *Peers { return NewPeers(nil, []*Peer{p}) }, nil)
		defer x.close()
		if x.minPMTU != defaultMinPMTU {
			t.Errorf("net.ipv4.route.min_pmtu is %d", x.minPMTU)
		}
		for _, tt := range []struct{ least, want int }{{1299, 0}, {1300, 1272}, {1299, 0}} { // the path has 1300
			x.minPMTU = tt.least
			p.Traffic.TXPackets.Add(1)
			x.look()
			if got := p.path.limits.load().withoutDF(); got != tt.want {
				t.Errorf("with a least MTU of %d: packets of up to %d bytes go without DF, want %d", tt.least, got, tt.want)
			}
		}
		if _, err := unix.GetsockoptInt(x.fd, unix.IPPROTO_IP, unix.IP_MTU); err != nil {
			t.Error(err)
		}
	})
}
