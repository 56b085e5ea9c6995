//go:build !nobpf

package kernelpath

import (
	"errors"
	"fmt"
	"net/netip"
)

// Set replaces the subnets of this node and the peers. Subnets must not overlap. In the
// kernel each subnet changes atomically, one after the other; those that do not change
// are not touched.
func (p *Path) Set(own []netip.Prefix, peers []Peer) error {
	want := make(map[pathSubnetKey]pathSubnet)
	for _, s := range own {
		want[keyOf(s)] = pathSubnet{Kind: pathSubnetKindSUBNET_OWN}
	}
	endpoints := make(map[uint32]bool)
	for _, peer := range peers {
		v := pathSubnet{Kind: pathSubnetKindSUBNET_USER, Endpoint: endpointOf(peer.Endpoint), Mtu: uint16(peer.MTU)}
		if peer.Kernel {
			v.Kind = pathSubnetKindSUBNET_KERNEL
			endpoints[v.Endpoint] = true
		}
		if peer.SourcePort != 0 {
			v.SourcePort = networkOrder(peer.SourcePort)
		}
		for _, s := range peer.Subnets {
			want[keyOf(s)] = v
		}
	}
	// The programs carry nothing for a peer without counters.
	gone, err := p.countFor(endpoints)
	if err != nil {
		return fmt.Errorf("update BPF map of peers: %w", err)
	}
	if err := p.setSubnets(want); err != nil {
		return fmt.Errorf("update BPF map of subnets: %w", err)
	}
	if err := discard(p.objects.Peers, gone); err != nil {
		return fmt.Errorf("update BPF map of peers: %w", err)
	}
	return nil
}

// keyOf returns the key of a subnet. IPv4 addresses are mapped into IPv6.
func keyOf(s netip.Prefix) pathSubnetKey {
	k := pathSubnetKey{PrefixLen: uint32(128 - s.Addr().BitLen() + s.Bits())}
	k.Addr.In6U.U6Addr8 = s.Masked().Addr().As16()
	return k
}

func (p *Path) setSubnets(want map[pathSubnetKey]pathSubnet) error {
	m := p.objects.Subnets
	var gone []pathSubnetKey
	same := make(map[pathSubnetKey]bool)
	if err := each(m, 1, func(k pathSubnetKey, have []pathSubnet) {
		if v, ok := want[k]; !ok {
			gone = append(gone, k)
		} else if v == have[0] {
			same[k] = true
		}
	}); err != nil {
		return err
	}
	var keys []pathSubnetKey
	var values []pathSubnet
	for k, v := range want {
		if !same[k] {
			keys, values = append(keys, k), append(values, v)
		}
	}
	// Unconditionally: part of it may have succeeded, or another process may have changed
	// the map.
	return errors.Join(put(m, keys, values), discard(m, gone), p.nextGeneration())
}

// nextGeneration makes the programs forget which packets they have admitted.
func (p *Path) nextGeneration() error {
	p.generation++
	return p.objects.Generation.Set(p.generation)
}

// countFor creates counters for the endpoints that have none. gone are the addresses that
// have counters but are not among the endpoints.
func (p *Path) countFor(endpoints map[uint32]bool) (gone []uint32, err error) {
	counted := make(map[uint32]bool)
	if err := each(p.objects.Peers, p.cpus, func(e uint32, _ []pathTraffic) {
		counted[e] = true
		if !endpoints[e] {
			gone = append(gone, e)
		}
	}); err != nil {
		return nil, err
	}
	var added []uint32
	for e := range endpoints {
		if !counted[e] {
			added = append(added, e)
		}
	}
	return gone, put(p.objects.Peers, added, make([]pathTraffic, len(added)*p.cpus))
}

// Traffic returns the traffic with each peer that has the kernel path.
func (p *Path) Traffic() (map[netip.Addr]Traffic, error) {
	all := make(map[netip.Addr]Traffic)
	if err := each(p.objects.Peers, p.cpus, func(endpoint [4]byte, counters []pathTraffic) {
		var sum Traffic
		for _, c := range counters {
			sum.TXPackets += c.TxPackets
			sum.TXBytes += c.TxBytes
			sum.RXPackets += c.RxPackets
			sum.RXBytes += c.RxBytes
			sum.TXDropped += c.TxDropped
			sum.RXDropped += c.RxDropped
		}
		all[netip.AddrFrom4(endpoint)] = sum
	}); err != nil {
		return nil, fmt.Errorf("read BPF map of peers: %w", err)
	}
	return all, nil
}
