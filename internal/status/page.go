package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/textpage"
	"github.com/twillnet/twill/metrics"
)

// WritePage writes the document in human-readable form, in 80 columns: what is running
// and why, which peers are reached, and what was dropped.
func (d *Document) WritePage(w io.Writer) error {
	var p page
	p.node(d)
	if d.Dataplane != nil {
		p.dataPlane(d)
	}
	p.Texts(p.facts)
	if d.Dataplane != nil {
		p.offloads(d.Dataplane.Offloads)
		p.peers(d.Dataplane.Peers, d.Dataplane.Unreached)
		p.drops(d.Drops)
	}
	_, err := io.WriteString(w, p.String())
	return err
}

// page is the page being written, and the facts about the node, which follow its first
// lines.
type page struct {
	textpage.Page
	facts [][]string
}

func (p *page) fact(name, text string) { p.facts = append(p.facts, []string{name, text}) }

// note writes a text that is not in a table.
func (p *page) note(format string, args ...any) { p.Text(2, "", fmt.Sprintf(format, args...)) }

func (p *page) node(d *Document) {
	state := "ready"
	if d.Waiting != "" {
		state = "not ready: waiting for " + d.Waiting
	}
	up := time.Duration(d.Uptime * float64(time.Second)).Round(time.Second)
	p.note("twilld %s, pid %d, up %s, %s", d.Version, d.PID, up, state)
	if d.Restart != "" {
		p.note("restart needed: %s", d.Restart)
	}
	if d.AddressConflict != "" {
		p.note("address conflict: %s", d.AddressConflict)
	}
	if len(d.Network) > 0 {
		p.fact("  network", join(d.Network)+", backend "+d.backends())
	}
	if l := d.Lease; l != nil {
		p.fact("  lease", join(l.Subnets())+" at "+join(Valid(l.PublicIP, l.PublicIPv6)))
	}
	if u := d.Underlay; u != nil {
		p.fact("  underlay", fmt.Sprintf("%s, %s, MTU %d (%s)", u.Name, join(Valid(u.IPv4, u.IPv6)), u.MTU, u.Why))
	}
	if r := d.Rules; r != nil {
		p.fact("  rules", r.describe())
	}
	if v := d.Privileges; v != nil {
		p.fact("  privileges", v.String())
	}
	s := d.Source
	p.fact("  leases", fmt.Sprintf("%d from %s%s", s.Leases, s.Name, since(" since ", s.Updated)))
	if s.Conflicts > 0 {
		p.fact("  left out", fmt.Sprintf("%d subnets that overlap others: %s", s.Conflicts, s.ConflictsWhy))
	}
	if s.LastError != "" {
		p.fact("", "refused"+since(" ", s.LastErrorAt)+": "+s.LastError)
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
		text += "; cannot maintain them: " + r.Problem
	}
	for _, m := range r.Missing {
		text += "; without a guard, " + m
	}
	if len(r.Unwritable) > 0 {
		text += fmt.Sprintf("; forged sources are not detected: rules cannot contain the interface name %q", r.Unwritable[0])
	}
	return text
}

// listed is the largest number of capabilities that are listed; a daemon with more has not
// given up any.
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
		text += "; the programs that it runs cannot gain more"
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

func (p *page) dataPlane(d *Document) {
	dp := d.Dataplane
	for _, dev := range dp.Devices {
		p.fact("  device", fmt.Sprintf("%s, %s, MTU %d (%s)", dev.Name, dev.Kind, dev.MTU, dev.Why))
	}
	if dp.Port == 0 {
		return // the kernel carries everything
	}
	p.fact("  socket", fmt.Sprintf("UDP port %d, source check %s", dp.Port, dp.SourceCheck))
	if dp.Memory != "" {
		p.fact("  memory", dp.Memory)
	}
	var tx, rx Direction
	var overflows uint64
	for _, s := range d.Shards {
		tx.add(s.TX)
		rx.add(s.RX)
		overflows += s.SocketOverflows
	}
	engine := slices.DeleteFunc(slices.Clone(d.Shards), func(s Shard) bool { return s.Name != "" })
	p.fact("  shards", fmt.Sprint(len(engine)))
	p.fact("  sent", tx.describe())
	p.fact("  received", rx.describe())
	if overflows > 0 {
		p.fact("  overflows", fmt.Sprintf("%d datagrams arrived faster than they were read", overflows))
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
	s := fmt.Sprintf("%d packets, %s", d.Packets, Size(d.Bytes))
	if d.Packets > 0 && d.SockCalls > 0 && d.TunCalls > 0 {
		s += fmt.Sprintf(" (packets per call: %.1f socket, %.1f tun)",
			float64(d.Packets)/float64(d.SockCalls), float64(d.Packets)/float64(d.TunCalls))
	}
	return s
}

func (p *page) offloads(offloads []Offload) {
	if len(offloads) == 0 {
		return
	}
	p.Line("")
	rows := [][]string{{"OFFLOAD", "SETTING", "ACTIVE", "WHY"}}
	for _, o := range offloads {
		inForce := "no"
		if o.InForce {
			inForce = "yes"
		}
		rows = append(rows, []string{o.Name, o.Mode, inForce, o.Why})
	}
	p.Texts(rows)
}

func (p *page) peers(peers []Peer, unreached []Unreached) {
	p.Line("")
	switch {
	case len(peers) > 0:
		p.peerTable(peers)
	case len(unreached) == 0:
		p.Line("no peers: no other node has a lease")
	}
	for _, u := range unreached {
		p.note("%s: no packets are sent to %s: %s", u.PublicIP, u.Subnet, u.Why)
	}
}

func (p *page) peerTable(peers []Peer) {
	heads := []string{"PEER", "BACKEND", "SUBNETS", "SENT", "PACKETS", "RECEIVED", "PACKETS"}
	probed := Probed(peers)
	if probed {
		heads = append(heads, "HEARD", "RTT", "LOSS")
	}
	rows := [][]string{heads}
	byAddr := func(a, b Peer) int { return a.PublicIP.Compare(b.PublicIP) }
	for _, peer := range slices.SortedFunc(slices.Values(peers), byAddr) {
		by := peer.Backend
		if peer.Kernel {
			by += ", kernel"
		}
		cells := []string{peer.PublicIP.String(), by, join(peer.Subnets)}
		if peer.Counted() {
			cells = append(cells, Size(peer.TXBytes), fmt.Sprint(peer.TXPackets), Size(peer.RXBytes), fmt.Sprint(peer.RXPackets))
		} else {
			cells = append(cells, "-", "-", "-", "-")
		}
		if probed {
			rtt, loss := peer.Probe.Texts()
			cells = append(cells, Ago(peer.Heard), rtt, loss)
		}
		rows = append(rows, cells)
	}
	p.Rows(rows, 2, 3)
	for _, peer := range peers { // notes come below the table, whose columns they would widen
		if peer.KernelWhy != "" {
			p.note("%s: carried in user space: %s", peer.PublicIP, peer.KernelWhy)
		}
		for _, note := range peer.Notes {
			p.note("%s: %s", peer.PublicIP, note)
		}
	}
}

func (p *page) drops(d Drops) {
	p.Line("")
	if len(d.TX)+len(d.RX) == 0 {
		p.Line("no drops")
		return
	}
	rows := [][]string{{"DROPPED", "REASON", "PACKETS", "MEANING"}}
	rows = append(rows, dropped("sending", d.TX)...)
	p.Texts(append(rows, dropped("receiving", d.RX)...))
}

// dropped returns rows for the drops of one direction, the most frequent first.
func dropped(direction string, byReason map[string]uint64) (rows [][]string) {
	mostFirst := func(a, b string) int {
		return cmp.Or(cmp.Compare(byReason[b], byReason[a]), cmp.Compare(a, b))
	}
	for _, reason := range slices.SortedFunc(maps.Keys(byReason), mostFirst) {
		rows = append(rows, []string{direction, reason, fmt.Sprint(byReason[reason]), meaning(reason)})
	}
	return rows
}

func meaning(reason string) string {
	d, _ := metrics.DropNamed(reason)
	return d.Meaning() // empty for a reason that only another version of the daemon has
}

// Size formats n bytes as Scaled does.
func Size(n uint64) string { return Scaled(float64(n), "B") }

// Scaled returns v with a decimal prefix of its unit and three digits.
func Scaled(v float64, unit string) string {
	if v < 999.5 {
		return fmt.Sprintf("%.0f %s", v, unit)
	}
	v, prefixes := v/1000, "kMGTPE"
	for v >= 999.5 && len(prefixes) > 1 {
		v, prefixes = v/1000, prefixes[1:]
	}
	return fmt.Sprintf("%.3g %c%s", v, prefixes[0], unit)
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

// Valid returns those of addresses or prefixes that are valid.
func Valid[T interface{ IsValid() bool }](all ...T) []T {
	return slices.DeleteFunc(all, func(v T) bool { return !v.IsValid() })
}
