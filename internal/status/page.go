package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/twillnet/twill/metrics"
)

// WritePage writes the document in human-readable form: what is running and
// why, which peers are reached, and what was dropped. It returns the first
// error of w.
func (d *Document) WritePage(w io.Writer) error {
	p := page{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	p.node(d)
	if d.Dataplane != nil {
		p.dataPlane(d)
		p.offloads(d.Dataplane.Offloads)
		p.peers(d.Dataplane.Peers, d.Dataplane.Unreached)
		p.drops(d.Drops)
	}
	return p.Flush()
}

// page writes sections of tab-separated columns. A tabwriter keeps its first
// error and returns it from Flush, so that the sections need not check for
// errors.
type page struct{ *tabwriter.Writer }

// row writes one line of columns; a column is aligned with those above it.
func (p page) row(cells ...string) { fmt.Fprintln(p, strings.Join(cells, "\t")) }

func (p page) node(d *Document) {
	state := "ready"
	if d.Waiting != "" {
		state = "not ready: waiting for " + d.Waiting
	}
	up := time.Duration(d.Uptime * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(p, "twilld %s, pid %d, up %s, %s\n", d.Version, d.PID, up, state)
	if d.Restart != "" {
		fmt.Fprintf(p, "restart needed: %s\n", d.Restart)
	}
	if d.AddressConflict != "" {
		fmt.Fprintf(p, "address conflict: %s\n", d.AddressConflict)
	}
	if len(d.Network) > 0 {
		p.row("  network", join(d.Network)+", backend "+d.backends())
	}
	if l := d.Lease; l != nil {
		p.row("  lease", join(valid(l.Subnet, l.IPv6Subnet))+" at "+join(validAddrs(l.PublicIP, l.PublicIPv6)))
	}
	if u := d.Underlay; u != nil {
		p.row("  underlay", fmt.Sprintf("%s, %s, MTU %d (%s)", u.Name, join(validAddrs(u.IPv4, u.IPv6)), u.MTU, u.Why))
	}
	if r := d.Rules; r != nil {
		p.row("  rules", r.describe())
	}
	if v := d.Privileges; v != nil {
		p.row("  privileges", v.String())
	}
	s := d.Source
	p.row("  leases", fmt.Sprintf("%d from %s%s", s.Leases, s.Name, since(" since ", s.Updated)))
	if s.Conflicts > 0 {
		p.row("  left out", fmt.Sprintf("%d subnets that overlap others: %s", s.Conflicts, s.ConflictsWhy))
	}
	if s.LastError != "" {
		p.row("", "refused"+since(" ", s.LastErrorAt)+": "+s.LastError)
	}
}

func (r *Rules) describe() string {
	var kept []string
	switch {
	case r.Masquerade && r.RandomFully:
		kept = append(kept, "masquerade with random ports")
	case r.Masquerade:
		kept = append(kept, "masquerade")
	}
	if r.Forward {
		kept = append(kept, "forward")
	}
	if kept == nil {
		return "none wanted"
	}
	tool := "iptables"
	if r.NFTables {
		tool = "nftables"
	}
	text := tool + ": " + strings.Join(kept, ", ")
	if r.Problem != "" {
		text += "; not kept: " + r.Problem
	}
	return text
}

// listed is how many capabilities are listed; a daemon that keeps more has given up none.
const listed = 10

// String describes them in one line.
func (v *Privileges) String() string {
	text := strings.Join(v.Capabilities, " ")
	switch n := len(v.Capabilities); {
	case n == 0:
		text = "none"
	case n > listed:
		text = fmt.Sprintf("%d capabilities", n)
	}
	if v.NoNewPrivileges {
		text += "; no others for programs that it runs"
	}
	return text
}

// backends describes the configured backend and the resulting ones.
func (d *Document) backends() string {
	if d.BackendWhy == "" {
		return d.Backend
	}
	return fmt.Sprintf("%s: %s (%s)", d.Backend, strings.Join(d.Backends, ", "), d.BackendWhy)
}

func (p page) dataPlane(d *Document) {
	dp := d.Dataplane
	for _, dev := range dp.Devices {
		p.row("  device", fmt.Sprintf("%s, %s, MTU %d (%s)", dev.Name, dev.Kind, dev.MTU, dev.Why))
	}
	if dp.Port == 0 {
		return // the kernel does everything
	}
	p.row("  socket", fmt.Sprintf("UDP port %d, source check %s", dp.Port, dp.SourceCheck))
	if dp.Memory != "" {
		p.row("  memory", dp.Memory)
	}
	var tx, rx Direction
	var overflows uint64
	for _, s := range d.Shards {
		tx.add(s.TX)
		rx.add(s.RX)
		overflows += s.SocketOverflows
	}
	engine := slices.DeleteFunc(slices.Clone(d.Shards), func(s Shard) bool { return s.Name != "" })
	p.row("  shards", fmt.Sprint(len(engine)))
	p.row("  sent", tx.describe())
	p.row("  received", rx.describe())
	if overflows > 0 {
		p.row("  overflows", fmt.Sprintf("%d datagrams came faster than they were read", overflows))
	}
}

func (d *Direction) add(o Direction) {
	d.Packets += o.Packets
	d.Bytes += o.Bytes
	d.Datagrams += o.Datagrams
	d.TunCalls += o.TunCalls
	d.SockCalls += o.SockCalls
}

// describe describes the amount of traffic and how well it was batched: packets per
// system call on the socket and on the TUN device.
func (d *Direction) describe() string {
	s := fmt.Sprintf("%d packets, %s", d.Packets, size(d.Bytes))
	if d.Packets > 0 && d.SockCalls > 0 && d.TunCalls > 0 {
		s += fmt.Sprintf(" (packets per call: %.1f socket, %.1f tun)",
			float64(d.Packets)/float64(d.SockCalls), float64(d.Packets)/float64(d.TunCalls))
	}
	return s
}

func (p page) offloads(offloads []Offload) {
	if len(offloads) == 0 {
		return
	}
	fmt.Fprintln(p)
	p.row("OFFLOAD", "ASKED", "IN FORCE", "WHY")
	for _, o := range offloads {
		inForce := "no"
		if o.InForce {
			inForce = "yes"
		}
		p.row(o.Name, o.Mode, inForce, o.Why)
	}
}

func (p page) peers(peers []Peer, unreached []Unreached) {
	fmt.Fprintln(p)
	switch {
	case len(peers) > 0:
		p.peerTable(peers)
	case len(unreached) == 0:
		p.row("no peers: no other node has a lease")
	}
	for _, u := range unreached {
		fmt.Fprintf(p, "%s: no packets are sent to %s: %s\n", u.PublicIP, u.Subnet, u.Why)
	}
}

func (p page) peerTable(peers []Peer) {
	heads := []string{"PEER", "BACKEND", "SUBNETS", "SENT", "PACKETS", "RECEIVED", "PACKETS"}
	probed := Probed(peers)
	if probed {
		heads = append(heads, "HEARD", "RTT", "LOSS")
	}
	p.row(heads...)
	byAddr := func(a, b Peer) int { return a.PublicIP.Compare(b.PublicIP) }
	for _, peer := range slices.SortedFunc(slices.Values(peers), byAddr) {
		by := peer.Backend
		if peer.Kernel {
			by += ", kernel"
		}
		cells := []string{peer.PublicIP.String(), by, join(peer.Subnets)}
		if peer.Counted() {
			cells = append(cells, size(peer.TXBytes), fmt.Sprint(peer.TXPackets), size(peer.RXBytes), fmt.Sprint(peer.RXPackets))
		} else {
			cells = append(cells, "-", "-", "-", "-")
		}
		if probed {
			rtt, loss := peer.Probe.Texts()
			cells = append(cells, Ago(peer.Heard), rtt, loss)
		}
		p.row(cells...)
	}
	for _, peer := range peers { // below the table, whose columns they would widen
		if peer.KernelWhy != "" {
			fmt.Fprintf(p, "%s: carried in user space: %s\n", peer.PublicIP, peer.KernelWhy)
		}
		for _, note := range peer.Notes {
			fmt.Fprintf(p, "%s: %s\n", peer.PublicIP, note)
		}
	}
}

func (p page) drops(d Drops) {
	fmt.Fprintln(p)
	if len(d.TX)+len(d.RX) == 0 {
		p.row("no drops")
		return
	}
	p.row("DROPPED", "REASON", "PACKETS", "MEANING")
	p.dropped("sending", d.TX)
	p.dropped("receiving", d.RX)
}

// dropped writes the drops of one direction, the most frequent first.
func (p page) dropped(direction string, byReason map[string]uint64) {
	mostFirst := func(a, b string) int {
		return cmp.Or(cmp.Compare(byReason[b], byReason[a]), cmp.Compare(a, b))
	}
	for _, reason := range slices.SortedFunc(maps.Keys(byReason), mostFirst) {
		p.row(direction, reason, fmt.Sprint(byReason[reason]), meaning(reason))
	}
}

func meaning(reason string) string {
	d, _ := metrics.DropNamed(reason)
	return d.Meaning() // empty for one of a daemon of another version
}

// size returns n bytes with a decimal unit and three digits.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n)/1000, "kMGTPE"
	for f >= 999.5 && len(units) > 1 {
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.3g %cB", f, units[0])
}

// since returns prefix and the local time of t, or "" for the zero time.
func since(prefix string, t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return prefix + t.Local().Format(time.DateTime)
}

func join[T fmt.Stringer](list []T) string { return Join(list, ", ") }

// Join returns the texts of list with sep between them.
func Join[T fmt.Stringer](list []T, sep string) string {
	s := make([]string, len(list))
	for i, v := range list {
		s[i] = v.String()
	}
	return strings.Join(s, sep)
}

// Probed reports whether any of the peers is probed.
func Probed(peers []Peer) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool { return p.Probe != nil })
}

// Texts returns the round-trip time of the last probe and the loss of the last ten, in at
// most seven and four columns. They are dashes if nothing is known; p may be nil.
func (p *Probe) Texts() (rtt, loss string) {
	rtt, loss = "-", "-"
	if p == nil {
		return rtt, loss
	}
	switch ms := p.RTT * 1000; {
	case ms == 0:
	case ms < 9.995:
		rtt = fmt.Sprintf("%.2f ms", ms)
	case ms < 99.95:
		rtt = fmt.Sprintf("%.1f ms", ms)
	default:
		rtt = fmt.Sprintf("%.0f ms", ms)
	}
	return rtt, fmt.Sprintf("%.0f%%", 100*p.Loss)
}

// Ago returns how long ago something was, in seconds, as Age does; a dash for nil.
func Ago(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return Age(*seconds)
}

// Age returns a number of seconds in at most five columns: "3s", "59m", "47h", "12d".
func Age(seconds float64) string {
	// Capped at a year, which exceeds any uptime, to avoid overflow.
	d := time.Duration(min(seconds, 365*24*3600) * float64(time.Second))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

func valid(list ...netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(list, func(p netip.Prefix) bool { return !p.IsValid() })
}

func validAddrs(list ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(list, func(a netip.Addr) bool { return !a.IsValid() })
}
