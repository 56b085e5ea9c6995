package bench

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/status"
)

// routesOf returns the IPv4 routes of a namespace as ip(8) prints them.
func routesOf(ns *netlab.Namespace) finding {
	nl := ns.Netlink()
	routes, err := nl.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return finding{err: fmt.Errorf("%s: read routes: %w", ns, err)}
	}
	var lines []string
	for _, r := range routes {
		link, err := nl.LinkByIndex(r.LinkIndex)
		if err != nil {
			return finding{err: fmt.Errorf("%s: read routes: %w", ns, err)}
		}
		line := "default"
		if ones, _ := r.Dst.Mask.Size(); ones > 0 {
			line = r.Dst.String()
		}
		if r.Gw != nil {
			line += " via " + r.Gw.String()
		}
		line += " dev " + link.Attrs().Name
		if r.Flags&unix.RTNH_F_ONLINK != 0 {
			line += " onlink"
		}
		lines = append(lines, line)
	}
	return listing(ns, "ip route", lines)
}

// neighboursOf returns the neighbours and FDB entries of a device as ip(8) and
// bridge(8) print them.
func neighboursOf(ns *netlab.Namespace, device string) finding {
	nl := ns.Netlink()
	link, err := nl.LinkByName(device)
	if err != nil {
		return finding{err: fmt.Errorf("%s: find %s: %w", ns, device, err)}
	}
	var text strings.Builder
	for _, table := range []struct {
		command string
		family  int
		format  string
	}{
		{"ip neighbour show dev " + device, unix.AF_INET, "%[1]s lladdr %[2]s PERMANENT"},
		{"bridge fdb show dev " + device, unix.AF_BRIDGE, "%[2]s dst %[1]s self permanent"},
	} {
		entries, err := nl.NeighList(link.Attrs().Index, table.family)
		if err != nil {
			return finding{err: fmt.Errorf("%s: read neighbours of %s: %w", ns, device, err)}
		}
		var lines []string
		for _, e := range entries {
			if e.State&netlink.NUD_PERMANENT != 0 && e.IP.To4() != nil {
				lines = append(lines, fmt.Sprintf(table.format, e.IP, e.HardwareAddr))
			}
		}
		text.WriteString(listing(ns, table.command, lines).text)
	}
	return finding{text: text.String()}
}

// peers returns the peers that twilld on a host has.
func (t *tour) peers(h *netlab.Host) finding {
	d, err := status.Fetch(t.ctx, controlSocket(t.conn.dir, h))
	if err != nil {
		return finding{err: err}
	}
	var lines []string
	if d.Dataplane != nil {
		for _, p := range d.Dataplane.Peers {
			for _, s := range p.Subnets {
				lines = append(lines, fmt.Sprintf("%s → %s by %s", s, p.PublicIP, p.Backend))
			}
		}
	}
	return listing(h.NS, "twill status", lines)
}

// listing returns the output of a command on a host.
func listing(ns *netlab.Namespace, command string, lines []string) finding {
	slices.Sort(lines)
	return finding{text: fmt.Sprintf("  %s# %s\n    %s\n", ns, command, strings.Join(lines, "\n    "))}
}
