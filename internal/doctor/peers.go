package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/internal/echo"
)

// peers reports peers that do not answer pings: at their public address, with
// unfragmentable packets as large as the data plane's, and through the tunnel, if
// there is one.
func (x *examination) peers(ctx context.Context) []Finding {
	paths := x.paths()
	if len(paths) == 0 {
		return []Finding{okf("there are none")}
	}
	r, err := x.reach(ctx)
	if err != nil {
		return []Finding{warnf("", "%v", err)}
	}
	var found []Finding
	unwell := map[netip.Addr]bool{}
	for _, p := range paths {
		if f, ok := r.silent(p); ok && !(unwell[p.public] && !r.near[p.public]) {
			found = append(found, f)
			unwell[p.public] = true
		}
	}
	smaller := r.narrow()
	fits, err := echo.Widest(ctx, smaller)
	if err != nil {
		return append(found, warnf("", "%v", err))
	}
	for _, n := range smaller {
		found = append(found, narrow(badf(fmt.Sprintf("ip link set dev %s mtu %d", x.underlayTo(n.To), fits[n.To]),
			"the path to %s takes packets of at most %d bytes, but the data plane sends %d", n.To, fits[n.To], n.Size)))
		unwell[n.To] = true
	}
	found = append(found, x.limited(smaller)...)
	if good := len(r.full) - len(unwell); good > 0 {
		found = append(found, r.summary(good, paths))
	}
	return found
}

// narrow marks a finding as one about large packets only.
func narrow(f Finding) Finding {
	f.Narrow = true
	return f
}

// limited reports the peers to which the daemon keeps packets smaller, since larger
// ones do not arrive and no ICMP error says so. Those in known were found to be narrow
// by pings on the underlay, which routers that filter ICMP do not let pass.
func (x *examination) limited(known []echo.Ping) (found []Finding) {
	dp := x.dataplane()
	if dp == nil {
		return nil
	}
	for _, p := range dp.Peers {
		if p.MTU == 0 || slices.ContainsFunc(known, func(k echo.Ping) bool { return k.To == p.PublicIP }) {
			continue
		}
		outer := p.MTU + echo.IPHeaderLen(p.PublicIP) + udpHeader
		found = append(found, narrow(warnf(fmt.Sprintf("ip link set dev %s mtu %d", x.underlayTo(p.PublicIP), outer),
			"the path to %s loses packets of more than %d bytes without an ICMP error; twilld keeps packets to it smaller, but the underlay should let \"fragmentation needed\" and \"packet too big\" pass", p.PublicIP, outer)))
	}
	return found
}

// silent reports whether no packets come back from the far end of a path, and
// why.
func (r *reach) silent(p path) (Finding, bool) {
	switch {
	case !r.answered(p) && r.near[p.public]:
		return badf(fmt.Sprintf("ssh %s 'systemctl start twilld; iptables -I INPUT -p udp --dport %d -j ACCEPT'", p.public, p.port),
			"%s answers, but not through the tunnel (%s): UDP port %d is blocked, or no daemon runs there", p.public, p.subnet.Addr(), p.port), true
	case !r.answered(p) && r.tunnel && p.tunnelled():
		return badf(fmt.Sprintf("ip route get %s", p.public), "%s answers neither at that address nor through the tunnel (%s)", p.public, p.subnet.Addr()), true
	case !r.near[p.public]:
		return warnf(fmt.Sprintf("ping -M do -s %d %s", r.sizeTo(p.public)-echo.IPHeaderLen(p.public)-echo.HeaderLen, p.public),
			"%s does not answer pings, so nothing is known about the path to it", p.public), true
	}
	return Finding{}, false
}

// summary describes what the peers without a finding answered.
func (r *reach) summary(good int, paths []path) Finding {
	what := fmt.Sprintf("%d of %d answer unfragmentable packets of %d bytes", good, len(r.full), r.full[0].Size)
	for _, p := range paths {
		if r.tunnel && p.tunnelled() {
			return okf("%s, and through the tunnel", what)
		}
	}
	return okf("%s", what)
}

// underlayTo returns the name of the interface by which packets of the data
// plane reach an address.
func (x *examination) underlayTo(a netip.Addr) string {
	if x.Daemon != nil && x.Daemon.Underlay != nil {
		return x.Daemon.Underlay.Name
	}
	return linkTo(a)
}
