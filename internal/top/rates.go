// Package top shows the traffic of a node as it flows: by backend, by peer, and what is
// dropped. It compares two documents of the daemon, and shows them as a table on
// a terminal, which follows the daemon, or once.
package top

import (
	"cmp"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/status"
)

// Sample is what is known of a node at a time.
type Sample struct {
	At       time.Time
	Document *status.Document
	// Devices are the kernel's counters of the devices that carry packets of pods, by
	// name, with TX from pods to other nodes.
	Devices map[string]Counters
}

// Counters are packets and bytes in both directions. For peers they are of inner
// packets.
type Counters struct {
	TXPackets, TXBytes, RXPackets, RXBytes uint64
}

// Rates are packets and bits per second in both directions.
type Rates struct {
	TXPackets float64 `json:"tx_packets_per_second"`
	TXBits    float64 `json:"tx_bits_per_second"`
	RXPackets float64 `json:"rx_packets_per_second"`
	RXBits    float64 `json:"rx_bits_per_second"`
}

func (r *Rates) total() float64 { return r.TXBits + r.RXBits }

// Page is what is shown.
type Page struct {
	Version  string   `json:"version"`
	Waiting  string   `json:"waiting,omitempty"` // see status.Document
	Interval float64  `json:"interval_seconds"`
	Devices  []Device `json:"devices"`
	Peers    []Peer   `json:"peers"`
	Drops    []Drop   `json:"drops"`
}

// Device is a device that carries packets of pods.
type Device struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Peers int    `json:"peers"` // reached by way of it
	Rates
}

// Peer is another node.
type Peer struct {
	PublicIP netip.Addr     `json:"public_ip"`
	Subnets  []netip.Prefix `json:"subnets"`
	Backend  string         `json:"backend"`
	Counted  bool           `json:"counted"` // the rates are known
	Rates
	Idle  *float64      `json:"idle_seconds,omitempty"`
	Heard *float64      `json:"heard_seconds,omitempty"`
	Probe *status.Probe `json:"probe,omitempty"`
	Notes []string      `json:"notes,omitempty"`
}

// Drop is a reason for which packets were dropped.
type Drop struct {
	Direction string  `json:"direction"` // sending, receiving
	Reason    string  `json:"reason"`
	Packets   uint64  `json:"packets"` // since the daemon started
	Rate      float64 `json:"packets_per_second"`
}

// Compare returns the rates between two samples. Where a counter went back, as with a
// daemon that was restarted, the rate is 0.
func Compare(before, after Sample) Page {
	d := after.Document
	seconds := after.At.Sub(before.At).Seconds()
	p := Page{Version: d.Version, Waiting: d.Waiting, Interval: seconds}
	rate := func(was, is uint64) float64 {
		if is < was || seconds <= 0 {
			return 0
		}
		return float64(is-was) / seconds
	}
	rates := func(was, is Counters) Rates {
		return Rates{
			TXPackets: rate(was.TXPackets, is.TXPackets), TXBits: 8 * rate(was.TXBytes, is.TXBytes),
			RXPackets: rate(was.RXPackets, is.RXPackets), RXBits: 8 * rate(was.RXBytes, is.RXBytes),
		}
	}
	known := make(map[string]Counters)
	if dp := before.Document.Dataplane; dp != nil {
		for _, peer := range dp.Peers {
			known[identity(&peer)] = countersOf(&peer)
		}
	}
	if dp := d.Dataplane; dp != nil {
		byKind := make(map[string]int)
		for _, peer := range dp.Peers {
			row := Peer{
				PublicIP: peer.PublicIP, Subnets: peer.Subnets, Backend: peer.BackendName(),
				Counted: peer.Counted(), Idle: peer.Idle, Heard: peer.Heard, Probe: peer.Probe, Notes: peer.Notes,
			}
			if was, ok := known[identity(&peer)]; ok && row.Counted {
				row.Rates = rates(was, countersOf(&peer))
			}
			byKind[row.Backend]++
			p.Peers = append(p.Peers, row)
		}
		for _, dev := range dp.Devices {
			kind := dev.Kind
			if kind == status.KindOffload || kind == status.KindPlain {
				kind = "udp"
			}
			p.Devices = append(p.Devices, Device{
				Name: dev.Name, Kind: kind, Peers: byKind[kind], Rates: rates(before.Devices[dev.Name], after.Devices[dev.Name]),
			})
		}
	}
	for _, dir := range []struct {
		name    string
		was, is map[string]uint64
	}{{"sending", before.Document.Drops.TX, d.Drops.TX}, {"receiving", before.Document.Drops.RX, d.Drops.RX}} {
		for _, reason := range slices.Sorted(maps.Keys(dir.is)) {
			n := dir.is[reason]
			p.Drops = append(p.Drops, Drop{dir.name, reason, n, rate(dir.was[reason], n)})
		}
	}
	return p
}

func countersOf(p *status.Peer) Counters {
	return Counters{p.TXPackets, p.TXBytes, p.RXPackets, p.RXBytes}
}

// identity distinguishes peers across documents.
func identity(p *status.Peer) string {
	subnet := ""
	if len(p.Subnets) > 0 {
		subnet = p.Subnets[0].String()
	}
	return p.PublicIP.String() + " " + subnet
}

// Order is what peers are sorted by.
type Order string

// The orders. Peers that are equal in one are sorted by address.
const (
	ByTraffic Order = "traffic" // bits per second, both directions
	ByPackets Order = "packets" // packets per second, both directions
	ByHeard   Order = "heard"   // the last packet, most recent first
	ByAddress Order = "address"
)

// Orders are all orders.
var Orders = []Order{ByTraffic, ByPackets, ByHeard, ByAddress}

// Sort sorts the peers of the page, and the drops by rate.
func (p *Page) Sort(by Order) {
	slices.SortStableFunc(p.Peers, func(a, b Peer) int {
		c := 0
		switch by {
		case ByTraffic:
			c = cmp.Compare(b.total(), a.total())
		case ByPackets:
			c = cmp.Compare(b.TXPackets+b.RXPackets, a.TXPackets+a.RXPackets)
		case ByHeard:
			c = cmp.Compare(secondsOf(heard(a)), secondsOf(heard(b)))
		}
		return cmp.Or(c, a.PublicIP.Compare(b.PublicIP))
	})
	slices.SortStableFunc(p.Drops, func(a, b Drop) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(b.Packets, a.Packets), strings.Compare(a.Reason, b.Reason))
	})
}

// heard returns the seconds since the last packet from a peer. Where only packets to it
// are known of, as with vxlan without probes, it is those since the last of them.
func heard(p Peer) *float64 {
	if p.Heard != nil || p.Probe != nil || p.Counted {
		return p.Heard
	}
	return p.Idle
}

// secondsOf returns a time to sort by: nil comes last.
func secondsOf(ago *float64) float64 {
	if ago == nil {
		return math.Inf(1)
	}
	return *ago
}
