package webui

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// maxPeers is the largest number of rows in the table of peers. Peers with something
// unusual come first, then those with the most traffic.
const maxPeers = 200

// maxFindings is the largest number of doctor's findings that are shown.
const maxFindings = 50

// maxNamed is the largest number of peers that a finding names.
const maxNamed = 5

// writer writes HTML. html/template would make the linker keep every method of the
// program, since templates find methods by name.
type writer struct{ b *bytes.Buffer }

// put writes format, with each value escaped for text and for quoted attributes.
func (w *writer) put(format string, values ...any) {
	for i, v := range values {
		values[i] = html.EscapeString(fmt.Sprint(v))
	}
	fmt.Fprintf(w.b, format, values...)
}

// row writes a row of a table.
func (w *writer) row(cells ...string) {
	w.put("<tr>")
	for _, c := range cells {
		w.put("<td>%s", c)
	}
	w.put("\n")
}

// table writes the head of a table.
func (w *writer) table(columns ...string) {
	w.put("<table><thead><tr>")
	for _, c := range columns {
		w.put("<th scope=\"col\">%s", c)
	}
	w.put("</thead><tbody>\n")
}

// page is the content of one rendering.
type page struct {
	*status.Document
	host    string
	traffic []series
	doctor  *Examination // nil before the first
}

func (p *page) write(w *writer) {
	state, class := "ready", "ok"
	if p.Waiting != "" {
		state, class = "waiting for "+p.Waiting, "bad"
	}
	w.put(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>%s – twill</title>
<link rel="stylesheet" href="style.css"><script src="script.js" defer></script>
<main>
<h1>%s <small>twilld %s</small></h1>
<p class="state %s">%s</p>
`, p.host, p.host, p.Version, class, state)
	p.node(w)
	p.findings(w)
	p.charts(w)
	p.peers(w)
	p.drops(w)
	p.offloads(w)
	w.put("<footer>As of %s. <span id=\"stale\"></span></footer>\n</main></html>\n", time.Now().UTC().Format("15:04:05 UTC"))
}

// node writes the section about the node itself.
func (p *page) node(w *writer) {
	w.put("<dl>")
	entry := func(name, value string) {
		if value != "" {
			w.put("<div><dt>%s<dd>%s</div>\n", name, value)
		}
	}
	entry("network", status.Join(p.Network, ", "))
	if l := p.Lease; l != nil {
		entry("subnet", status.Join(l.Subnets(), ", "))
	}
	if u := p.Underlay; u != nil {
		entry("underlay", fmt.Sprintf("%s, %s, MTU %d", u.Name, status.Join(status.Valid(u.IPv4, u.IPv6), ", "), u.MTU))
	}
	entry("backend", strings.Join(p.Backends, ", then "))
	entry("leases", fmt.Sprintf("%d from %s", p.Source.Leases, kindOf(p.Source.Name)))
	entry("up for", (time.Duration(p.Uptime) * time.Second).String())
	w.put("</dl>\n")
}

// kindOf returns the kind of a store without its address, which pods must not see.
func kindOf(source string) string {
	for _, kind := range []string{"embedded etcd", "etcd", "Kubernetes"} {
		if strings.HasPrefix(source, kind) {
			return kind
		}
	}
	return "a file"
}

// findings writes the faults that the daemon itself knows about.
func (p *page) findings(w *writer) {
	var all []string
	add := func(format string, values ...any) { all = append(all, fmt.Sprintf(format, values...)) }
	if p.Restart != "" {
		add("A restart is needed: %s", p.Restart)
	}
	if p.AddressConflict != "" {
		add("%s", p.AddressConflict)
	}
	if p.Source.Away != "" {
		add("The lease store has not answered since %s. What was known stays in force.", p.Source.AwaySince.UTC().Format("15:04:05 UTC"))
	}
	if p.Source.LastError != "" {
		add("The newest version in the lease store is invalid; the last valid one stays in force.")
	}
	if p.Source.Conflicts > 0 {
		add("%d leases are left out because they overlap others.", p.Source.Conflicts)
	}
	if r := p.Rules; r != nil && r.Problem != "" {
		add("Firewall rules are not correct: %s", r.Problem)
	}
	if dp := p.Dataplane; dp != nil {
		named, more := 0, 0
		for i := range dp.Peers {
			peer := &dp.Peers[i]
			what := unusual(peer)
			switch {
			case what == nil:
			case named < maxNamed:
				named++
				add("Peer %s: %s", peer.PublicIP, strings.Join(what, "; "))
			default:
				more++
			}
		}
		if more > 0 {
			add("%d more peers have something unusual; see the table below.", more)
		}
	}
	w.put("<h2>Findings</h2>\n<ul class=\"findings\">\n")
	for _, f := range all {
		w.put("<li>%s\n", f)
	}
	if len(all) == 0 {
		w.put("<li class=\"none\">None from the daemon itself.\n")
	}
	w.put("</ul>\n")
	p.examination(w)
}

// examination writes doctor's findings: firewall, routes, sysctls, the paths to the peers.
func (p *page) examination(w *writer) {
	w.put("<h2>Doctor")
	x := p.doctor
	switch {
	case x == nil:
		w.put("</h2>\n<p class=\"hint\">twill doctor is examining the node.</p>\n")
		return
	case x.Problem != "":
		w.put("</h2>\n<p class=\"hint\">No findings: %s.</p>\n", x.Problem)
		return
	}
	w.put(" <small>as of %s</small></h2>\n", x.At.UTC().Format("15:04:05 UTC"))
	good := 0
	var wrong []Finding
	for _, f := range x.Findings {
		switch {
		case f.Check == "store": // included in the daemon's own findings, without an address
		case f.Level == "ok":
			good++
		default:
			wrong = append(wrong, f)
		}
	}
	if len(wrong) > 0 {
		w.table("", "check", "finding", "remedy")
		for _, f := range wrong[:min(len(wrong), maxFindings)] {
			w.put("<tr class=\"%s\"><td>%s<td>%s<td>%s<td><code>%s</code>\n", f.Level, f.Level, f.Check, f.Text, f.Remedy)
		}
		w.put("</tbody></table>\n")
	}
	if more := len(wrong) - maxFindings; more > 0 {
		w.put("<p class=\"hint\">and %v more: <code>twill doctor</code></p>\n", more)
	}
	w.put("<p class=\"hint\">Good results: %v.</p>\n", good)
}

// charts writes the traffic of each backend.
func (p *page) charts(w *writer) {
	w.put("<h2>Traffic</h2>\n")
	if len(p.traffic) == 0 {
		w.put("<p class=\"hint\">Nothing to show yet. Plain routes (host-gw) are not counted.</p>\n")
	}
	for i := range p.traffic {
		s := &p.traffic[i]
		most := s.most()
		now := len(s.tx) - 1
		w.put("<figure><figcaption><b>%s</b> <span class=\"tx\">sent %s</span> <span class=\"rx\">received %s</span> <small>at most %s in ten minutes</small></figcaption>\n",
			s.backend, status.Scaled(s.tx[now], "bit/s"), status.Scaled(s.rx[now], "bit/s"), status.Scaled(most, "bit/s"))
		w.put("<svg viewBox=\"0 0 %v 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"%s over ten minutes\">", points-1, s.backend)
		w.put("<polyline class=\"tx\" points=\"%s\"/><polyline class=\"rx\" points=\"%s\"/></svg></figure>\n", line(s.tx, most), line(s.rx, most))
	}
}

// line returns the points of a line that ends at the right edge, 100 high.
func line(values []float64, most float64) string {
	var b strings.Builder
	for i, v := range values {
		y := 98.0
		if most > 0 {
			y -= 96 * v / most
		}
		fmt.Fprintf(&b, "%d,%.1f ", points-len(values)+i, y)
	}
	return strings.TrimSpace(b.String())
}

// peers writes the table of the other nodes.
func (p *page) peers(w *writer) {
	var all []status.Peer
	if p.Dataplane != nil {
		all = slices.Clone(p.Dataplane.Peers)
	}
	w.put("<h2>Peers <small>%v</small></h2>\n", len(all))
	if len(all) == 0 {
		return
	}
	slices.SortStableFunc(all, func(a, b status.Peer) int {
		return cmp.Or(cmp.Compare(min(len(unusual(&b)), 1), min(len(unusual(&a)), 1)), cmp.Compare(b.TXBytes+b.RXBytes, a.TXBytes+a.RXBytes))
	})
	w.table("node", "subnets", "backend", "sent", "received", "last traffic", "round trip", "lost", "notes")
	for i := range all[:min(len(all), maxPeers)] {
		peer := &all[i]
		by := peer.BackendName()
		if peer.Kernel {
			by += ", in the kernel"
		}
		sent, received := "–", "–"
		if peer.Counted() {
			sent, received = status.Size(peer.TXBytes), status.Size(peer.RXBytes)
		}
		rtt, lost := "–", "–"
		if probe := peer.Probe; probe != nil {
			lost = fmt.Sprintf("%.0f %%", 100*probe.Loss)
			if probe.RTT > 0 {
				rtt = fmt.Sprintf("%.2f ms", 1000*probe.RTT)
			}
		}
		w.row(peer.PublicIP.String(), status.Join(peer.Subnets, ", "), by, sent, received, ago(peer.Idle), rtt, lost, strings.Join(unusual(peer), "; "))
	}
	w.put("</tbody></table>\n")
	if more := len(all) - maxPeers; more > 0 {
		w.put("<p class=\"hint\">and %v more: <code>twill status</code></p>\n", more)
	}
}

// unusual describes what is unusual about the path to a peer.
func unusual(p *status.Peer) []string {
	what := slices.Clone(p.Notes)
	if p.MTU > 0 {
		what = append(what, fmt.Sprintf("packets of at most %d bytes arrive", p.MTU))
	}
	if p.Probe != nil && p.Probe.Loss > 0 {
		what = append(what, fmt.Sprintf("%.0f %% of the last probes were lost", 100*p.Probe.Loss))
	}
	return what
}

// drops writes the numbers of dropped packets by reason.
func (p *page) drops(w *writer) {
	w.put("<h2>Drops</h2>\n")
	if len(p.Drops.TX)+len(p.Drops.RX) == 0 {
		w.put("<p class=\"hint\">None by the udp backend.</p>\n")
		return
	}
	meanings := make(map[string]string)
	for d := range metrics.NumDrops {
		meanings[d.String()] = d.Meaning()
	}
	w.table("direction", "reason", "packets", "")
	for _, dir := range []struct {
		name  string
		drops map[string]uint64
	}{{"sending", p.Drops.TX}, {"receiving", p.Drops.RX}} {
		for _, reason := range slices.Sorted(maps.Keys(dir.drops)) {
			w.row(dir.name, reason, fmt.Sprint(dir.drops[reason]), meanings[reason])
		}
	}
	w.put("</tbody></table>\n")
}

// offloads writes the state of the offloads.
func (p *page) offloads(w *writer) {
	if p.Dataplane == nil || len(p.Dataplane.Offloads) == 0 {
		return
	}
	w.put("<h2>Offloads of the udp backend</h2>\n")
	w.table("offload", "active", "why")
	for _, o := range p.Dataplane.Offloads {
		inForce := "no"
		if o.InForce {
			inForce = "yes"
		}
		w.row(o.Name, inForce, o.Why)
	}
	w.put("</tbody></table>\n")
}

// ago returns a number of seconds as text.
func ago(seconds *float64) string {
	if seconds == nil {
		return "–"
	}
	return status.Age(*seconds) + " ago"
}
