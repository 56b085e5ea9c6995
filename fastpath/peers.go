package fastpath

import (
	"net/netip"
	"unsafe"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

// Peer is another node, as the data plane sees it. Once it is part of Peers it is
// immutable but for its counters.
type Peer struct {
	Subnets  []netip.Prefix  // inner addresses behind it
	Endpoint netip.AddrPort  // where its datagrams go; the address is also where they must come from
	Partial  bool            // it takes packets whose TCP or UDP checksum is left partial
	Traffic  metrics.Traffic // written by all shards

	name    unix.RawSockaddrInet6 // Endpoint for the kernel; room for either family
	nameLen uint32
}

// NewPeer returns the peer that holds subnets and is reached at endpoint.
func NewPeer(subnets []netip.Prefix, endpoint netip.AddrPort) *Peer {
	endpoint = netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port())
	p := &Peer{Subnets: subnets, Endpoint: endpoint}
	p.nameLen = encodeSockaddr(&p.name, endpoint)
	return p
}

// encodeSockaddr writes a to sa as the kernel wants it and returns its length.
func encodeSockaddr(sa *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	port := [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	if a.Addr().Is4() {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		sa4.Family = unix.AF_INET
		sa4.Port = *(*uint16)(unsafe.Pointer(&port))
		sa4.Addr = a.Addr().As4()
		return unix.SizeofSockaddrInet4
	}
	sa.Family = unix.AF_INET6
	sa.Port = *(*uint16)(unsafe.Pointer(&port))
	sa.Addr = a.Addr().As16()
	return unix.SizeofSockaddrInet6
}

// decodeSockaddr returns the address in sa, without its port; the zero Addr if
// it is of neither family.
func decodeSockaddr(sa *unix.RawSockaddrInet6) netip.Addr {
	switch sa.Family {
	case unix.AF_INET:
		return netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr)
	case unix.AF_INET6:
		return netip.AddrFrom16(sa.Addr).Unmap()
	}
	return netip.Addr{}
}

// Peers is an immutable snapshot of all peers and of what is ours. A change is
// a new Peers that shares the Peer values that did not change.
type Peers struct {
	own      []netip.Prefix
	bySub    bart.Fast[*Peer]
	subnets6 int // IPv6 subnets in bySub
	byAddr   map[netip.Addr]*Peer
	all      []*Peer
}

// NewPeers makes a snapshot. own are the subnets of this node. A subnet that
// occurs twice belongs to the later peer; lease.Set refuses such leases.
func NewPeers(own []netip.Prefix, peers []*Peer) *Peers {
	t := &Peers{own: own, all: peers, byAddr: make(map[netip.Addr]*Peer, len(peers))}
	for _, p := range peers {
		t.byAddr[p.Endpoint.Addr()] = p
		for _, s := range p.Subnets {
			t.bySub.Insert(s, p)
		}
	}
	t.subnets6 = t.bySub.Size6()
	return t
}

// All returns the peers, in the order they were given.
func (t *Peers) All() []*Peer { return t.all }

// lookup returns the peer that holds a in the longest of the matching subnets,
// or nil.
func (t *Peers) lookup(a netip.Addr) *Peer {
	p, _ := t.bySub.Lookup(a)
	return p
}

// owns reports whether a is in a subnet of this node.
func (t *Peers) owns(a netip.Addr) bool {
	for _, p := range t.own {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
