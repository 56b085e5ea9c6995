package top

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3/vt"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// peer returns the i-th peer of a document.
func peer(i int, backend string, c Counters, idle float64) status.Peer {
	a := netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	p := status.Peer{
		Subnets:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i), 0}), 24)},
		PublicIP: a, Backend: backend,
		TXPackets: c.TXPackets, TXBytes: c.TXBytes, RXPackets: c.RXPackets, RXBytes: c.RXBytes,
	}
	if idle >= 0 {
		p.Idle = &idle
		if p.Counted() {
			p.Heard = &idle
		}
	}
	return p
}

// twoSeconds are samples of a node with peers of all backends, 2 s apart.
func twoSeconds() (before, after Sample) {
	document := func(n uint64) *status.Document {
		return &status.Document{
			Version: "0.1.0",
			Dataplane: &status.Dataplane{
				Devices: []status.Device{{Name: "flannel.1", Kind: status.KindVXLAN, MTU: 1450}, {Name: "flannel0", Kind: status.KindOffload, MTU: 1472}},
				Peers: []status.Peer{
					peer(11, "udp", Counters{1000 + 2*n, 1e6 + 250_000*n, 500, 1e5}, 0),
					peer(12, "udp", Counters{7, 700, 9 + 100_000*n, 9e5 + 125_000_000*n}, 0),
					peer(13, "vxlan", Counters{}, 75),
					peer(14, "udp", Counters{}, -1),
				},
			},
			Drops: status.Drops{TX: map[string]uint64{"no_route": 5}, RX: map[string]uint64{"unknown_peer": 10 + 40*n}},
		}
	}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before = Sample{At: start, Document: document(0), Devices: map[string]Counters{"flannel0": {1000, 1e6, 509, 1e6}}}
	after = Sample{At: start.Add(2 * time.Second), Document: document(1), Devices: map[string]Counters{"flannel0": {1002, 1_250_000, 100_509, 126_000_000}}}
	return before, after
}

func TestRatesAreThoseBetweenTheSamples(t *testing.T) {
	p := Compare(twoSeconds())
	for i, want := range []Rates{{1, 1e6, 0, 0}, {0, 0, 50_000, 5e8}, {}, {}} {
		if got := p.Peers[i].Rates; got != want {
			t.Errorf("peer %d: got %+v, want %+v", i, got, want)
		}
	}
	if p.Peers[2].Counted || !p.Peers[3].Counted {
		t.Errorf("counted: vxlan %t, udp %t", p.Peers[2].Counted, p.Peers[3].Counted)
	}
	if d := p.Devices[1]; d.Peers != 3 || d.Rates != (Rates{1, 1e6, 50_000, 5e8}) {
		t.Errorf("flannel0: %+v", d)
	}
	if d := p.Drops[1]; d.Packets != 50 || d.Rate != 20 {
		t.Errorf("drops: %+v", p.Drops)
	}
}

// TestRestartOfTheDaemonShowsNoRates: its counters start again at zero.
func TestRestartOfTheDaemonShowsNoRates(t *testing.T) {
	after, before := twoSeconds()
	after.At, before.At = before.At, after.At
	p := Compare(before, after)
	for _, peer := range p.Peers {
		if peer.Rates != (Rates{}) {
			t.Errorf("%+v", peer)
		}
	}
}

func TestSamplesOfADaemonThatIsNotReadyMakeAPage(t *testing.T) {
	s := Sample{At: time.Now(), Document: &status.Document{Version: "0.1.0", Waiting: "a lease"}}
	p := Compare(s, s)
	if text := p.Text(80, 24, 0, ByTraffic); !strings.Contains(text, "waiting for a lease") || !strings.Contains(text, "no peers") {
		t.Errorf("got %s", text)
	}
}

// manyPeers is a page of 300 peers of which the last has most traffic.
func manyPeers() Page {
	p := Page{Version: "0.1.0", Interval: 1}
	for i := range 300 {
		p.Peers = append(p.Peers, Peer{
			PublicIP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}),
			Subnets:  []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", 64+i>>8, i&255)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:5:%x::/64", i))},
			Backend:  "udp", Counted: true, Rates: Rates{TXBits: float64(i) * 1e6, TXPackets: float64(300 - i)},
		})
	}
	return p
}

// TestPagesFitTheirTerminals compares with the pages in testdata.
func TestPagesFitTheirTerminals(t *testing.T) {
	few := Compare(twoSeconds())
	many := manyPeers()
	probed := Compare(twoSeconds())
	heard := 3.5
	probed.Peers[1].Probe = &status.Probe{Sent: 20, RTT: 0.00042}
	probed.Peers[2].Probe, probed.Peers[2].Heard = &status.Probe{Sent: 20, Lost: 3, Loss: 0.3, RTT: 0.12}, &heard
	probed.Peers[3].Probe = &status.Probe{Sent: 20, Lost: 20, Loss: 1}
	for _, tt := range []struct {
		name                string
		page                Page
		width, height, from int
		by                  Order
	}{
		{"few-80", few, 80, 0, 0, ByTraffic},
		{"few-80-heard", few, 80, 0, 0, ByHeard},
		{"probed-80", probed, 80, 0, 0, ByHeard},
		{"probed-120", probed, 120, 0, 0, ByTraffic},
		{"many-80x24", many, 80, 24, 0, ByTraffic},
		{"many-80x24-scrolled", many, 80, 24, 295, ByPackets},
		{"many-120x24", many, 120, 24, 0, ByAddress},
	} {
		tt.page.Sort(tt.by)
		got := tt.page.Text(tt.width, tt.height, tt.from, tt.by)
		for i, line := range strings.Split(got, "\n") {
			if len(line) > tt.width {
				t.Errorf("%s, line %d: %d columns", tt.name, i+1, len(line))
			}
		}
		if n := strings.Count(got, "\n"); tt.height > 0 && n > tt.height {
			t.Errorf("%s: %d lines", tt.name, n)
		}
		testkit.Golden(t, tt.name+".txt", got)
	}
}

func TestNumbersHaveThreeDigits(t *testing.T) {
	for n, want := range map[float64]string{
		0: "0", 999: "999", 999.6: "1.00k", 1234: "1.23k", 12_345: "12.3k", 999_400: "999k", 999_600: "1.00M", 5e8: "500M", 1.25e9: "1.25G", 2e12: "2T",
	} {
		if got := number(n); got != want {
			t.Errorf("%g: %s, want %s", n, got, want)
		}
	}
}

// screen is a terminal in memory.
type screen struct {
	vt.MockTerm
	width, height int
}

func newScreen(width, height int) *screen {
	return &screen{vt.NewMockTerm(vt.MockOptSize{X: vt.Col(width), Y: vt.Row(height)}), width, height}
}

// String returns what the terminal shows.
func (s *screen) String() string {
	var b strings.Builder
	for y := range s.height {
		for x := range s.width {
			b.WriteString(cmp.Or(s.GetCell(vt.Coord{X: vt.Col(x), Y: vt.Row(y)}).C, " "))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (s *screen) shows(t *testing.T, what string) {
	t.Helper()
	testkit.Eventually(t, "the page shows "+what, func() bool { return strings.Contains(s.String(), what) }, s.String)
}

// TestWatchFollowsTheDaemonUntilQ lets the page run on a terminal in memory.
func TestWatchFollowsTheDaemonUntilQ(t *testing.T) {
	before, after := twoSeconds()
	terminal := newScreen(80, 24)
	var n, answers atomic.Int32
	ended := make(chan error, 1)
	go func() {
		ended <- Watch(t.Context(), Options{
			Sample: func(context.Context) (Sample, error) {
				switch {
				case n.Add(1) == 1:
					return before, nil
				case answers.Load() == 0:
					return Sample{}, errors.New("connection refused")
				}
				return after, nil
			},
			Interval: time.Millisecond, By: ByTraffic, Terminal: terminal,
		})
	}()
	terminal.shows(t, "connection refused")
	answers.Store(1)
	terminal.shows(t, "192.0.2.12")
	terminal.shows(t, "q quits")
	terminal.KeyTap(vt.KeyS)
	terminal.shows(t, "packets")
	terminal.KeyTap(vt.KeyQ)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Keys show all peers of a large network, and the page follows the size of the terminal.
func TestWatchScrollsToTheLastPeer(t *testing.T) {
	s := Sample{At: time.Now(), Document: &status.Document{Version: "0.1.0", Dataplane: new(status.Dataplane)}}
	for i := range 100 {
		s.Document.Dataplane.Peers = append(s.Document.Dataplane.Peers, peer(100+i, "udp", Counters{}, -1))
	}
	terminal := newScreen(80, 24)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Watch(ctx, Options{
			Sample:   func(context.Context) (Sample, error) { return s, nil },
			Interval: time.Millisecond, By: ByAddress, Terminal: terminal,
		})
	}()
	terminal.shows(t, "192.0.2.100 ")
	terminal.KeyTap(vt.KeyEnd)
	terminal.shows(t, "192.0.2.199 ")
	terminal.KeyTap(vt.KeyHome)
	terminal.KeyTap(vt.KeyDown)
	terminal.shows(t, "192.0.2.101 ")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
