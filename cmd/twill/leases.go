package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/textpage"
	"github.com/twillnet/twill/lease"
)

const aboutLeases = `Lists the leases: which node has which pod subnet, and until when. If twilld runs on
this node, its own lease is marked, and the list shows the time of the last packet to
or from each peer, and the traffic since the peer last changed.`

// leaseRow is one row of the list, in the table and in JSON.
type leaseRow struct {
	Own        bool           `json:"own,omitempty"` // this node's
	Subnets    []netip.Prefix `json:"subnets"`
	PublicIP   netip.Addr     `json:"public_ip,omitzero"`
	PublicIPv6 netip.Addr     `json:"public_ipv6,omitzero"`
	Backend    string         `json:"backend"` // "udp" where the lease names none
	// Expiration is absent for a reservation.
	Expiration time.Time `json:"expiration,omitzero"`
	Reserved   bool      `json:"reserved,omitempty"`
	// Traffic is absent if the local daemon does not know the peer or the kernel
	// carries its packets.
	Traffic *traffic `json:"traffic,omitempty"`
	// Idle is the number of seconds since the last packet to the node. It is
	// absent if there was none since the daemon learned of the node, or if it is
	// unknown.
	Idle *float64 `json:"idle_seconds,omitempty"`

	watched bool   // Idle is known
	ends    string // when, if neither an expiration nor a reservation says so
}

// traffic is the traffic between this node and a peer, in bytes of inner
// packets.
type traffic struct {
	TXPackets uint64 `json:"tx_packets"`
	TXBytes   uint64 `json:"tx_bytes"`
	RXPackets uint64 `json:"rx_packets"`
	RXBytes   uint64 `json:"rx_bytes"`
}

func runLeases(ctx context.Context, call *command.Call) error {
	c := newStoreCommand(call)
	asJSON := c.Bool("json", false, "print JSON instead of a table")
	if _, help, err := c.parse(ctx, aboutLeases, ""); help || err != nil {
		return err
	}
	leases, err := c.leases(ctx)
	if err != nil {
		return err
	}
	rows := leaseRows(leases, c.daemon)
	// Only etcd has reservations.
	for i := range rows {
		switch {
		case c.kube.On:
			rows[i].Reserved, rows[i].ends = false, "with the node"
		case c.leaseFile() != "":
			rows[i].Reserved, rows[i].ends = false, "never"
		}
	}
	if *asJSON {
		return writeJSON(c.Stdout, rows)
	}
	_, err = io.WriteString(c.Stdout, leasesPage(rows, time.Now()))
	return err
}

// leaseRows combines leases with the status of the local daemon. local is nil if
// none runs.
func leaseRows(leases []lease.Lease, local *status.Document) []leaseRow {
	peers := make(map[netip.Prefix]status.Peer)
	var own []netip.Prefix
	if local != nil {
		own = local.Lease.Subnets()
		if local.Dataplane != nil {
			for _, p := range local.Dataplane.Peers {
				for _, s := range p.Subnets {
					peers[s] = p
				}
			}
		}
	}
	rows := make([]leaseRow, len(leases))
	for i, l := range leases {
		r := leaseRow{
			Subnets: l.Subnets(), PublicIP: l.PublicIP, PublicIPv6: l.PublicIPv6, Backend: l.BackendType,
			Expiration: l.Expiration, Reserved: l.Expiration.IsZero(),
		}
		if r.Backend == "" {
			r.Backend = "udp" // whose leases name none, as in flannel
		}
		for _, s := range r.Subnets {
			for _, o := range own {
				r.Own = r.Own || s == o
			}
			p, ok := peers[s]
			if ok && p.Counted() {
				r.Traffic = &traffic{p.TXPackets, p.TXBytes, p.RXPackets, p.RXBytes}
			}
			if ok && p.Watched() {
				r.Idle, r.watched = p.Idle, true
			}
		}
		rows[i] = r
	}
	return rows
}

// leasesPage returns a table. Expirations are shown relative to now.
func leasesPage(rows []leaseRow, now time.Time) string {
	if len(rows) == 0 {
		return "no leases\n"
	}
	table := [][]string{{"NODE", "SUBNET", "BACKEND", "EXPIRES", "LAST TRAFFIC", "SENT", "RECEIVED"}}
	for _, r := range rows {
		l := lease.Lease{Attrs: lease.Attrs{PublicIP: r.PublicIP, PublicIPv6: r.PublicIPv6}}
		sent, received := "-", "-"
		if r.Traffic != nil {
			sent, received = status.Size(r.Traffic.TXBytes), status.Size(r.Traffic.RXBytes)
		}
		table = append(table, []string{
			nodeText(l), status.Join(r.Subnets, ", "), r.Backend, expires(r, now), lastTraffic(r), sent, received,
		})
	}
	var p textpage.Page
	p.Rows(table, 1, 2)
	return p.String()
}

// expires returns how much time a lease has left.
func expires(r leaseRow, now time.Time) string {
	left := r.Expiration.Sub(now)
	switch {
	case r.Reserved:
		return "reserved"
	case r.Expiration.IsZero():
		return r.ends
	case left <= 0:
		return "expired"
	case left < time.Minute:
		return fmt.Sprintf("in %s", left.Round(time.Second))
	}
	return fmt.Sprintf("in %dh%02dm", int(left.Hours()), int(left.Minutes())%60)
}

// lastTraffic returns how long ago a packet went to or came from another node.
func lastTraffic(r leaseRow) string {
	switch {
	case r.Own:
		return "(this node)"
	case !r.watched:
		return "-"
	case r.Idle == nil:
		return "never"
	}
	return status.Age(*r.Idle) + " ago"
}
