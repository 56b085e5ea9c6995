package top

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/status"
)

// Columns of the smallest terminal for which the tables are made.
const minWidth = 80

// probeWidth is the number of columns that the results of probes take.
const probeWidth = 13

// Text returns the page for a terminal of width columns and height lines. Peers that do
// not fit are counted in the last line of theirs; with a height of 0 all fit. from is
// the first peer to show.
func (p *Page) Text(width, height, from int, by Order) string {
	width = max(width, minWidth)
	var head, tail []string
	state := "ready"
	if p.Waiting != "" {
		state = "waiting for " + p.Waiting
	}
	head = append(head,
		fmt.Sprintf("twilld %s, %s, %d peers by %s, rates over %.1f s", p.Version, state, len(p.Peers), by, p.Interval),
		"",
		fmt.Sprintf("%-15s %-8s %5s  %s", "DEVICE", "BACKEND", "PEERS", rateHeads))
	for _, d := range p.Devices {
		head = append(head, fmt.Sprintf("%-15s %-8s %5d  %s", cut(d.Name, 15), d.Kind, d.Peers, d.text()))
	}
	tail = append(tail, "")
	if len(p.Drops) == 0 {
		tail = append(tail, "no drops")
	} else {
		tail = append(tail, fmt.Sprintf("%-10s %-30s %12s %12s", "DROPPED", "REASON", "PACKETS", "PACKETS/S"))
	}
	for _, d := range p.Drops {
		tail = append(tail, fmt.Sprintf("%-10s %-30s %12d %12s", d.Direction, cut(d.Reason, 30), d.Packets, number(d.Rate)))
	}
	lines := append(head, "")
	lines = append(lines, p.peers(width, height-len(head)-1-len(tail), from)...)
	lines = append(lines, tail...)
	for i := range lines {
		lines[i] = cut(strings.TrimRight(lines[i], " "), width)
	}
	if height > 0 && len(lines) > height {
		lines = lines[:height]
	}
	return strings.Join(lines, "\n") + "\n"
}

const rateHeads = "  SEND b/s  PACKETS/S  RECEIVE b/s  PACKETS/S"

// text returns the cells below rateHeads.
func (r *Rates) text() string {
	return fmt.Sprintf("%10s %10s %12s %10s", number(r.TXBits), number(r.TXPackets), number(r.RXBits), number(r.RXPackets))
}

// peers returns the table of peers in at most room lines if room is more than 2.
func (p *Page) peers(width, room, from int) []string {
	if len(p.Peers) == 0 {
		return []string{"no peers: no other node has a lease"}
	}
	// Wider terminals have room for IPv6 addresses.
	address := 15 + min((width-minWidth)/2, 24)
	subnet := 16 + min((width-minWidth)-(address-15), 40)
	probed := slices.ContainsFunc(p.Peers, func(p Peer) bool { return p.Probe != nil })
	if probed { // its columns take the room of the subnets, if that is all there is
		if subnet -= probeWidth; subnet < 16 {
			subnet = 0
		}
	}
	row := func(peer, subnets, by, send, packets, receive, packets2, heard, rtt, loss string) string {
		line := fmt.Sprintf("%-*s ", address, cut(peer, address))
		if subnet > 0 {
			line += fmt.Sprintf("%-*s ", subnet, cut(subnets, subnet))
		}
		line += fmt.Sprintf("%-7s %7s %6s %7s %6s %5s", cut(by, 7), send, packets, receive, packets2, heard)
		if probed {
			line += fmt.Sprintf(" %7s %4s", rtt, loss)
		}
		return line
	}
	lines := []string{row("PEER", "SUBNETS", "BY", "SND b/s", "PKT/S", "RCV b/s", "PKT/S", "HEARD", "RTT", "LOSS")}
	shown := p.Peers[min(from, len(p.Peers)-1):]
	hidden := 0
	if room > 2 && len(shown) > room-1 {
		hidden = len(shown) - (room - 2)
		shown = shown[:room-2]
	}
	for i := range shown {
		peer := &shown[i]
		cells := [4]string{"-", "-", "-", "-"}
		if peer.Counted {
			cells = [4]string{number(peer.TXBits), number(peer.TXPackets), number(peer.RXBits), number(peer.RXPackets)}
		}
		rtt, loss := peer.Probe.Texts()
		lines = append(lines, row(peer.PublicIP.String(), status.Join(peer.Subnets, ","), peer.Backend, cells[0], cells[1], cells[2], cells[3], status.Ago(heard(*peer)), rtt, loss))
	}
	if hidden > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", hidden))
	}
	return lines
}

// number returns n in at most 6 columns: 0, 12, 1.23k, 45.6M.
func number(n float64) string {
	for _, unit := range []string{"", "k", "M", "G"} {
		switch {
		case n < 999.5 && unit == "":
			return fmt.Sprintf("%.0f", n)
		case n < 9.995:
			return fmt.Sprintf("%.2f%s", n, unit)
		case n < 99.95:
			return fmt.Sprintf("%.1f%s", n, unit)
		case n < 999.5:
			return fmt.Sprintf("%.0f%s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.3gT", n)
}

// cut shortens text to n columns. All text is ASCII.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return text[:n-1] + "~"
}
