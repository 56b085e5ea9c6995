package bench

import (
	"context"
	"fmt"
	"strconv"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// The floor is what TUN and UDP cost any program in user space: bench/floor moves
// packets from one to the other without inspecting them. Any cost beyond that is twill's
// own.

// vnetHeader is the virtio-net header that the floor sends along with a packet.
const vnetHeader = 10

const (
	floorLink = "floor0"
	ipv4UDP   = 28 // bytes that a datagram adds
)

// floor runs bench/floor on both hosts, with offloads or with one packet per call.
func floor(plain bool) func(context.Context, *netlab.Topology, Binaries) (*Connection, error) {
	return func(ctx context.Context, topo *netlab.Topology, bin Binaries) (*Connection, error) {
		if !exists(bin.Floor) {
			return nil, fmt.Errorf("%s does not exist (build it with: make peers)", bin.Floor)
		}
		underlay, err := underlayMTU(topo)
		if err != nil {
			return nil, err
		}
		mtu := underlay - ipv4UDP - vnetHeader
		var extra []string
		if plain {
			mtu, extra = underlay-ipv4UDP, []string{"plain"}
		}
		t := &tunnel{
			program: bin.Floor,
			mtu:     mtu,
			args: func(h *netlab.Host) []string {
				peer := topo.Hosts[0]
				if peer == h {
					peer = topo.Hosts[1]
				}
				return append([]string{floorLink, h.Addr.String(), peer.Addr.String(), strconv.Itoa(underlay)}, extra...)
			},
			raise: func(ctx context.Context, h *netlab.Host, p *process) error {
				err := p.waitUntil(ctx, func() bool {
					_, err := h.NS.Netlink().LinkByName(floorLink)
					return err == nil
				})
				if err != nil {
					return err
				}
				return routeInto(h, topo.Hosts, floorLink, mtu)
			},
		}
		return inTempDir(func(dir string) (*Connection, error) { return t.connect(ctx, topo, dir) })
	}
}
