package daemon

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/status"
)

// userHZ is how many ticks of the clock the kernel counts in a second towards
// user space, time(7).
const userHZ = 100

// vxlanIdle fills in for how long the kernel has sent nothing to the peers that it
// carries packets to by VXLAN. It counts no packets by peer, but each forwarding
// entry knows when it was used last (vxlan_find_mac of drivers/net/vxlan). nl is
// of the devices' network namespace. It returns an error where the entries could not
// be read; peers are then without.
func vxlanIdle(nl *netlink.Handle, dp *status.Dataplane) error {
	idle := make(map[netip.Addr]float64)
	for _, d := range dp.Devices {
		if d.Kind != status.KindVXLAN {
			continue
		}
		link, err := nl.LinkByName(d.Name)
		if err != nil {
			return fmt.Errorf("find %s: %w", d.Name, err)
		}
		entries, err := nl.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
		if err != nil {
			return fmt.Errorf("list forwarding entries of %s: %w", d.Name, err)
		}
		for _, e := range entries {
			// An entry begins as if it was used when it was made.
			to, ok := netip.AddrFromSlice(e.IP)
			if !ok || e.Used == e.Updated {
				continue
			}
			to = to.Unmap()
			seconds := float64(e.Used) / userHZ
			if before, twice := idle[to]; !twice || seconds < before {
				idle[to] = seconds
			}
		}
	}
	for i := range dp.Peers {
		p := &dp.Peers[i]
		if seconds, ok := idle[p.PublicIP]; ok && p.Backend == status.KindVXLAN {
			p.Idle = &seconds
		}
	}
	return nil
}
