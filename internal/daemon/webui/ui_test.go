package webui

import (
	"fmt"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

func nothing() []metrics.BackendTraffic { return nil }

// examined is a node on which doctor has found something.
func examined() *Examination {
	return &Examination{At: time.Unix(1_700_000_000, 0), Findings: []Finding{
		{Check: "tun", Level: "ok", Text: "/dev/net/tun"},
		{Check: "forwarding", Level: "bad", Text: "net/ipv4/ip_forward is 0", Remedy: "sysctl -w net/ipv4/ip_forward=1"},
		{Check: "store", Level: "bad", Text: "https://192.0.2.1:2379 does not answer"},
	}}
}

// get returns the page of a node in this state.
func get(t *testing.T, d status.Document) *httptest.ResponseRecorder {
	t.Helper()
	u := New(Config{Host: "board-1", Document: func() status.Document { return d }, Traffic: nothing, Examination: examined})
	t.Cleanup(u.Close)
	w := httptest.NewRecorder()
	u.ServeHTTP(w, httptest.NewRequest("GET", "/ui/", nil))
	return w
}

func running() status.Document {
	idle := 3.0
	return status.Document{
		Version: "0.1.0", Uptime: 90, Network: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, Backends: []string{"vxlan", "udp"},
		Lease:  &status.Lease{Subnet: netip.MustParsePrefix("10.5.1.0/24")},
		Source: status.Source{Name: "etcd https://192.0.2.1:2379 /coreos.com/network", Leases: 3},
		Drops:  status.Drops{RX: map[string]uint64{"spoofed_source": 7}},
		Dataplane: &status.Dataplane{
			Offloads: []status.Offload{{Name: "udp-gso", Why: "refused by the kernel"}},
			Peers: []status.Peer{
				{PublicIP: netip.MustParseAddr("192.0.2.12"), Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, Backend: "udp", TXBytes: 2_840_000, Idle: &idle},
				{PublicIP: netip.MustParseAddr("192.0.2.13"), Backend: "vxlan", Probe: &status.Probe{Sent: 10, Lost: 5, Loss: 0.5}},
			},
		},
	}
}

func TestPageShowsNodePeersAndDrops(t *testing.T) {
	text := get(t, running()).Body.String()
	for _, want := range []string{
		"<h1>board-1 ", `<p class="state ok">ready`, "10.5.1.0/24", "3 from etcd", "1m30s",
		"<td>192.0.2.12<td>10.5.2.0/24<td>udp<td>2.84 MB<td>0 B<td>3s ago",
		"<li>Peer 192.0.2.13: 50 % of the last probes were lost",
		"<td>receiving<td>spoofed_source<td>7<td>" + metrics.DropSpoofedSource.Meaning()[:20],
		"<td>udp-gso<td>no<td>refused by the kernel",
		"<h2>Doctor <small>as of 22:13:20 UTC</small></h2>",
		`<tr class="bad"><td>bad<td>forwarding<td>net/ipv4/ip_forward is 0<td><code>sysctl -w net/ipv4/ip_forward=1</code>`,
		"Good results: 1.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if a, b := strings.Index(text, "<td>192.0.2.13"), strings.Index(text, "<td>192.0.2.12"); a > b {
		t.Error("the peer with a problem does not come first")
	}
	if strings.Contains(text, "192.0.2.1:2379") {
		t.Error("it shows every pod where etcd is")
	}
}

func TestPageShowsWhatTheNodeWaitsForAndWhatIsWrong(t *testing.T) {
	d := running()
	d.Waiting = "a lease: no free subnet"
	d.Rules = &status.Rules{Problem: "iptables: exit status 4"}
	d.Source.Away, d.Source.AwaySince = "etcd does not answer", time.Unix(1_700_000_000, 0)
	text := get(t, d).Body.String()
	for _, want := range []string{
		`<p class="state bad">waiting for a lease: no free subnet`,
		"<li>Firewall rules are not correct: iptables: exit status 4",
		"<li>The lease store has not answered since 22:13:20 UTC.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

// Text of peers and of the kernel is not markup, and the page may load and run nothing
// but its own files.
func TestPageRunsNothingOfOthers(t *testing.T) {
	d := running()
	const attack = `<script>alert("1")</script>`
	d.Waiting, d.Version = attack, attack
	d.Dataplane.Peers[0].Notes = []string{attack}
	d.Drops.TX = map[string]uint64{attack: 1}
	d.Dataplane.Offloads[0].Why = attack
	w := get(t, d)
	if text := w.Body.String(); strings.Contains(text, "<script>") || strings.Count(text, "<script") != 1 {
		t.Errorf("foreign text is markup in\n%s", text)
	}
	policy := w.Header().Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy %q has no %s", policy, want)
		}
	}
	all := w.Body.String() + string(style) + string(script)
	if m := regexp.MustCompile(`(?i)(https?:|//[a-z]|@import|url\(| style=| on\w+=)`).FindString(strings.ReplaceAll(all, "// Replaces", "")); m != "" {
		t.Errorf("it has %q, which leads elsewhere or which the policy forbids", m)
	}
	if !strings.Contains(string(style), "prefers-color-scheme: dark") {
		t.Error("there is no dark form")
	}
}

func TestTableOfPeersIsBounded(t *testing.T) {
	d := running()
	for i := range 5000 {
		d.Dataplane.Peers = append(d.Dataplane.Peers, status.Peer{
			PublicIP: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), Notes: []string{"no answer"}, Backend: "udp",
		})
	}
	text := get(t, d).Body.String()
	if n := strings.Count(text, "no answer"); n > maxPeers+maxNamed {
		t.Errorf("%d peers are shown, want %d at most", n, maxPeers+maxNamed)
	}
	if !strings.Contains(text, fmt.Sprintf("and %d more", 5002-maxPeers)) {
		t.Error("it does not say how many are left out")
	}
}

func TestHistoryHasRatesAndALength(t *testing.T) {
	var h history
	now := time.Unix(1_700_000_000, 0)
	bytes := uint64(1 << 40)
	traffic := func() []metrics.BackendTraffic {
		return []metrics.BackendTraffic{{Backend: "udp", TX: metrics.Flow{Bytes: bytes}, RX: metrics.Flow{Bytes: 7}}}
	}
	h.add(now, traffic())
	if len(h.series()) != 0 {
		t.Error("one sample makes a rate")
	}
	for range 2 * points {
		now = now.Add(interval)
		bytes += 5000
		h.add(now, traffic())
	}
	s := h.series()
	if len(s) != 1 || len(s[0].tx) != points || s[0].tx[points-1] != 8000 || s[0].rx[points-1] != 0 {
		t.Errorf("%d series, the first %+v; want one of %d points with 8000 bit/s", len(s), s, points)
	}
	bytes = 0 // another data plane
	h.add(now.Add(interval), traffic())
	if s := h.series(); s[0].tx[points-1] != 0 {
		t.Errorf("%v bit/s after the counter was reset", s[0].tx[points-1])
	}
	for i := range points {
		h.add(now.Add(time.Duration(i+2)*interval), nil)
	}
	if s := h.series(); len(s) != 0 {
		t.Errorf("%d series of backends that are gone for long", len(s))
	}
}

func TestLineEndsAtTheRightEdge(t *testing.T) {
	if got, want := line([]float64{0, 5, 10}, 10), "117,98.0 118,50.0 119,2.0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := line([]float64{0}, 0), "119,98.0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
