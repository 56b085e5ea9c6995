package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend"
)

// knownPeer is another node.
type knownPeer struct {
	public netip.Addr
	subnet netip.Prefix // the first, invalid if none is known
	way    backend.Way
	port   int // of UDP, where its packets come in; 0: they are not in datagrams
}

// known returns the peers, from the daemon or else from the leases.
func (x *examination) known() []knownPeer {
	var peers []knownPeer
	if dp := x.dataplane(); dp != nil {
		for _, p := range dp.Peers {
			if len(p.Subnets) > 0 {
				peers = append(peers, x.peerOf(p.PublicIP, p.Subnets[0], backend.Way(p.Backend)))
			}
		}
		return peers
	}
	for _, l := range x.Leases {
		own := l.Subnet == x.Env.Subnet && l.IPv6Subnet == x.Env.IPv6Subnet
		if subnets := l.Subnets(); !own && l.PublicIP.IsValid() && len(subnets) > 0 {
			peers = append(peers, x.peerOf(l.PublicIP, subnets[0], backend.Way(l.BackendType)))
		}
	}
	return peers
}

// smallest is the size of a packet that every path takes, bytes.
const smallest = 64

// peers pings each peer: at its public address with packets as large as the
// data plane's, which must not be fragmented, and through the tunnel, if there is
// one.
func (x *examination) peers(ctx context.Context) []Finding {
	all := x.known()
	if len(all) == 0 {
		return []Finding{okf("there are none")}
	}
	inner := x.Env.MTU
	dp := x.dataplane()
	if dp != nil && (inner == 0 || dp.Device.MTU < inner) {
		inner = dp.Device.MTU
	}
	var small, full, tunnel []ping
	for _, p := range all {
		small = append(small, ping{p.public, smallest})
		full = append(full, ping{p.public, p.outerSize(inner)})
		if p.tunnelled() {
			tunnel = append(tunnel, ping{p.subnet.Addr(), smallest})
		}
	}
	near, err := answers(ctx, small)
	if err != nil {
		return []Finding{warnf("", "%v", err)}
	}
	large, err := answers(ctx, onlyOf(full, near))
	if err != nil {
		return []Finding{warnf("", "%v", err)}
	}
	through := map[netip.Addr]bool{}
	if dp != nil {
		if through, err = answers(ctx, tunnel); err != nil {
			return []Finding{warnf("", "%v", err)}
		}
	}
	var found []Finding
	var narrow []ping
	good := 0
	for i, p := range all {
		before := len(found)
		lost := dp != nil && p.tunnelled() && !through[p.subnet.Addr()]
		if near[p.public] && !large[p.public] && inner > 0 {
			narrow = append(narrow, full[i])
		}
		switch {
		case lost && near[p.public]:
			found = append(found, badf(fmt.Sprintf("ssh %s 'systemctl start twilld; iptables -I INPUT -p udp --dport %d -j ACCEPT'", p.public, p.port),
				"%s answers, but not through the tunnel (%s): UDP port %d is blocked, or no daemon runs there", p.public, p.subnet.Addr(), p.port))
		case lost:
			found = append(found, badf(fmt.Sprintf("ip route get %s", p.public), "%s answers neither at that address nor through the tunnel (%s)", p.public, p.subnet.Addr()))
		case !near[p.public]:
			found = append(found, warnf(fmt.Sprintf("ping -M do -s %d %s", full[i].size-headers(p.public)-echoHeader, p.public),
				"%s answers no pings, so nothing is known about the path there", p.public))
		}
		if len(found) == before {
			good++
		}
	}
	fits, err := widest(ctx, narrow)
	if err != nil {
		return append(found, warnf("", "%v", err))
	}
	for _, n := range narrow {
		link := "eth0"
		if x.Daemon != nil && x.Daemon.Underlay != nil {
			link = x.Daemon.Underlay.Name
		} else if out := linkTo(n.to); out != "none" {
			link = out
		}
		good--
		found = append(found, badf(fmt.Sprintf("ip link set dev %s mtu %d", link, fits[n.to]),
			"the path to %s takes packets of %d bytes, and the data plane sends %d", n.to, fits[n.to], n.size))
	}
	if good > 0 {
		what := fmt.Sprintf("%d of %d answer packets of %d bytes that must not be fragmented", good, len(all), full[0].size)
		if dp != nil && len(tunnel) > 0 {
			what += ", and through the tunnel"
		}
		found = append(found, okf("%s", what))
	}
	return found
}

// headers is the size of the IP header of packets to an address, bytes.
func headers(to netip.Addr) int {
	if to.Is6() {
		return 40 // RFC 8200
	}
	return 20 // RFC 791
}

func onlyOf(pings []ping, answered map[netip.Addr]bool) []ping {
	return slices.DeleteFunc(slices.Clone(pings), func(p ping) bool { return !answered[p.to] })
}

// widest finds, for addresses that answer small packets and not those of the
// given sizes, the largest size that they do answer.
func widest(ctx context.Context, pings []ping) (map[netip.Addr]int, error) {
	low, high := map[netip.Addr]int{}, map[netip.Addr]int{}
	for _, p := range pings {
		low[p.to], high[p.to] = smallest, p.size
	}
	for {
		var next []ping
		for a := range low {
			if high[a]-low[a] > 1 {
				next = append(next, ping{a, (low[a] + high[a]) / 2})
			}
		}
		if len(next) == 0 {
			return low, nil
		}
		slices.SortFunc(next, func(a, b ping) int { return strings.Compare(a.to.String(), b.to.String()) })
		got, err := answers(ctx, next)
		if err != nil {
			return nil, err
		}
		for _, p := range next {
			if got[p.to] {
				low[p.to] = p.size
			} else {
				high[p.to] = p.size
			}
		}
	}
}
