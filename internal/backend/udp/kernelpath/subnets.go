//go:build !nobpf

package kernelpath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Set replaces the subnets of this node and the peers. Subnets must not overlap. In the
// kernel each subnet changes atomically, one after the other; those that do not change
// are not touched.
//
// User space carries the packets of a subnet that the maps do not have. left are the peers
// with the kernel path for which the maps have no room, the last ones in the order of peers.
// If there is an error, the same is true of more peers; but no subnet keeps a former peer,
// unless it cannot be deleted.
func (p *Path) Set(own []netip.Prefix, peers []Peer) (left []netip.Addr, err error) {
	w := wanted{subnets: make(map[pathSubnetKey]pathSubnet), endpoints: make(map[uint32]bool)}
	for _, s := range own {
		w.add(s, pathSubnet{Kind: pathSubnetKindSUBNET_OWN})
	}
	for _, peer := range peers {
		if !w.addPeer(&peer, int(p.objects.Subnets.MaxEntries()), int(p.objects.Peers.MaxEntries())) && peer.Kernel {
			left = append(left, peer.Endpoint)
		}
	}
	// Both continue after an error, so that nothing that is no longer wanted stays.
	// The programs carry nothing for a peer without counters.
	if err = p.countFor(w.endpoints); err != nil {
		err = fmt.Errorf("update BPF map of peers: %w", err)
	}
	if e := p.setSubnets(&w); e != nil {
		err = errors.Join(err, fmt.Errorf("update BPF map of subnets: %w", e))
	}
	return left, err
}

// wanted is what the maps should have.
type wanted struct {
	subnets   map[pathSubnetKey]pathSubnet
	order     []pathSubnetKey // the keys of subnets, in the order in which they are written
	endpoints map[uint32]bool // of the peers with the kernel path
}

func (w *wanted) add(s netip.Prefix, v pathSubnet) {
	k := keyOf(s)
	if _, ok := w.subnets[k]; !ok {
		w.order = append(w.order, k)
	}
	w.subnets[k] = v
}

// addPeer returns false if there are too many subnets or endpoints.
func (w *wanted) addPeer(peer *Peer, maxSubnets, maxEndpoints int) bool {
	v := pathSubnet{Kind: pathSubnetKindSUBNET_USER, Endpoint: endpointOf(peer.Endpoint), Mtu: uint16(peer.MTU)}
	if len(w.order)+len(peer.Subnets) > maxSubnets {
		return false
	}
	if peer.Kernel {
		if !w.endpoints[v.Endpoint] && len(w.endpoints) == maxEndpoints {
			return false
		}
		v.Kind = pathSubnetKindSUBNET_KERNEL
		w.endpoints[v.Endpoint] = true
	}
	if peer.SourcePort != 0 {
		v.SourcePort = networkOrder(peer.SourcePort)
	}
	for _, s := range peer.Subnets {
		w.add(s, v)
	}
	return true
}

// keyOf returns the key of a subnet. IPv4 addresses are mapped into IPv6.
func keyOf(s netip.Prefix) pathSubnetKey {
	k := pathSubnetKey{PrefixLen: uint32(128 - s.Addr().BitLen() + s.Bits())}
	k.Addr.In6U.U6Addr8 = s.Masked().Addr().As16()
	return k
}

// setSubnets deletes before it writes: the map may have no room for both sets.
func (p *Path) setSubnets(w *wanted) error {
	m := p.objects.Subnets
	var gone []pathSubnetKey
	have := make(map[pathSubnetKey]pathSubnet)
	if err := each(m, 1, func(k pathSubnetKey, v []pathSubnet) {
		if _, ok := w.subnets[k]; ok {
			have[k] = v[0]
		} else {
			gone = append(gone, k)
		}
	}); err != nil {
		return err
	}
	var keys []pathSubnetKey
	var values []pathSubnet
	for _, k := range w.order {
		if v, ok := have[k]; !ok || v != w.subnets[k] {
			keys, values = append(keys, k), append(values, w.subnets[k])
		}
	}
	errs := []error{discard(m, gone)}
	done, err := put(m.BatchUpdate, keys, values)
	if err != nil {
		var former []pathSubnetKey
		for _, k := range keys[done:] {
			if _, ok := have[k]; ok {
				former = append(former, k)
			}
		}
		errs = append(errs, err, discard(m, former))
	}
	// Unconditionally: part of it may have succeeded, or another process may have changed
	// the map.
	return errors.Join(append(errs, p.nextGeneration())...)
}

// nextGeneration makes the programs forget which packets they have admitted.
func (p *Path) nextGeneration() error {
	p.generation++
	return p.objects.Generation.Set(p.generation)
}

// countFor creates counters for the endpoints that have none, after it has deleted those of
// other addresses.
func (p *Path) countFor(endpoints map[uint32]bool) error {
	m := p.objects.Peers
	var gone, added []uint32
	counted := make(map[uint32]bool)
	if err := each(m, p.cpus, func(e uint32, _ []pathTraffic) {
		counted[e] = true
		if !endpoints[e] {
			gone = append(gone, e)
		}
	}); err != nil {
		return err
	}
	for e := range endpoints {
		if !counted[e] {
			added = append(added, e)
		}
	}
	errs := []error{discard(m, gone)}
	zero := make([]pathTraffic, min(len(added), batch)*p.cpus)
	for part := range slices.Chunk(added, batch) {
		if _, err := put(m.BatchUpdate, part, zero[:len(part)*p.cpus]); err != nil {
			errs = append(errs, err)
			break
		}
	}
	return errors.Join(errs...)
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
