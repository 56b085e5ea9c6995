package fastpath

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"unsafe"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

// Peer is another node, as the data plane sees it. Once it is part of Peers it is
// immutable except for its counters and path state.
type Peer struct {
	Subnets  []netip.Prefix  // inner addresses behind it
	Endpoint netip.AddrPort  // where its datagrams go; also the address they must come from
	Partial  bool            // it accepts packets whose TCP or UDP checksum is left partial
	Traffic  metrics.Traffic // written by all shards

	path path // state of the path to it

	name    unix.RawSockaddrInet6 // Endpoint for the kernel; room for either family
	nameLen uint32
}

// path is what an engine has learnt about the path to a peer.
type path struct {
	limits limits
	// fixedPort is set while packets are sent from the UDP port of the network.
	fixedPort atomic.Bool
	// chosen is set while fixedPort is this node's own choice, see listen; otherwise
	// this node follows the peer.
	chosen atomic.Bool

	begun   bool    // see begin
	watched watched // by paths
}

// FixedPort reports whether packets to the peer are sent from the UDP port of the
// network, because the peer sends from there or did not answer otherwise.
func (p *Peer) FixedPort() bool { return p.path.fixedPort.Load() }

// PathNotes returns what is unusual about the path to the peer, in words for an
// operator. separated reports whether the engine has source ports of its own.
func (p *Peer) PathNotes(separated bool) (notes []string) {
	switch port := p.Endpoint.Port(); {
	case !separated || !p.FixedPort():
	case p.path.chosen.Load():
		notes = append(notes, fmt.Sprintf("sent from port %d: no answer to packets from other ports, or masquerade is expected, since this node's public address is not its own", port))
	default:
		notes = append(notes, fmt.Sprintf("sent from port %d, as the peer does", port))
	}
	if n := p.Widest(); n > 0 {
		notes = append(notes, fmt.Sprintf("packets limited to %d bytes: larger ones are lost without an ICMP error; let \"fragmentation needed\" pass on the underlay, or set the MTU of the Backend", n))
	}
	if p.path.limits.load().kernel() == refuted {
		notes = append(notes, "an ICMP error that claimed a narrower path is ignored: probes show that larger packets arrive")
	}
	if n := p.path.limits.load().withoutDF(); n > 0 {
		notes = append(notes, fmt.Sprintf("packets of up to %d bytes sent without DF: the path may be narrower than net.ipv4.route.min_pmtu", n))
	}
	return notes
}

// Widest returns the size in bytes of the largest packet that reaches the peer, if that is
// less than the kernel knows, see prober; otherwise 0.
func (p *Peer) Widest() int { return p.path.limits.load().widest() }

// Fragmented reports whether datagrams to the peer may be fragmented even if the packets
// in them may not, because the path is narrower than the kernel can learn.
func (p *Peer) Fragmented() bool { return p.path.limits.load().withoutDF() > 0 }

// tunnelAddrs returns the addresses of this node and of the peer on their tunnel
// devices, in a family that both have, or invalid addresses if there is none. own are the
// subnets of this node.
func (p *Peer) tunnelAddrs(own []netip.Prefix) (here, there netip.Addr) {
	for _, from := range own {
		for _, to := range p.Subnets {
			if from.Addr().Is4() == to.Addr().Is4() {
				return from.Masked().Addr(), to.Masked().Addr()
			}
		}
	}
	return netip.Addr{}, netip.Addr{}
}

// limits packs two sizes of inner packets, in bytes, into one word: the size up to which
// packets are sent in datagrams without DF even if they have DF, see paths.clamped, and the
// size of the largest packet that arrives, see prober. Each is 0 if there is no such limit.
// The word also holds the verdict on the kernel's path MTU. One goroutine writes it.
type limits struct{ word atomic.Uint64 }

type loadedLimits uint64

func (l *limits) load() loadedLimits { return loadedLimits(l.word.Load()) }

func (l loadedLimits) withoutDF() int  { return int(l & 0xffff) }
func (l loadedLimits) widest() int     { return int(l >> 16 & 0xffff) }
func (l loadedLimits) kernel() verdict { return verdict(l >> 32) }

func (l *limits) setWithoutDF(size int) { l.word.Store(l.word.Load()&^0xffff | uint64(size)) }
func (l *limits) setWidest(size int)    { l.word.Store(l.word.Load()&^0xffff0000 | uint64(size)<<16) }
func (l *limits) setKernel(v verdict)   { l.word.Store(l.word.Load()&0xffffffff | uint64(v)<<32) }

// begin chooses the first port for a peer that is new to the engine.
func (p *Peer) begin(translated bool) {
	if p.path.begun {
		return
	}
	p.path.begun = true
	p.path.chosen.Store(translated)
	p.path.fixedPort.Store(translated)
}

// heard records where a datagram from the peer came from. A node that sends from the
// network's port may be reachable only from that port: behind masquerade, or with
// a firewall that admits only replies. Stock flannel's nodes send from there.
func (p *Peer) heard(from netip.AddrPort) {
	fixed := from == p.Endpoint
	if fixed != p.path.fixedPort.Load() && from.Addr() == p.Endpoint.Addr() && !p.path.chosen.Load() {
		p.path.fixedPort.Store(fixed)
	}
}

// addr returns the public address of the peer, or the zero Addr for a nil one.
func (p *Peer) addr() netip.Addr {
	if p == nil {
		return netip.Addr{}
	}
	return p.Endpoint.Addr()
}

// NewPeer returns the peer that holds subnets and is reached at endpoint.
func NewPeer(subnets []netip.Prefix, endpoint netip.AddrPort) *Peer {
	endpoint = netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port())
	p := &Peer{Subnets: subnets, Endpoint: endpoint}
	p.nameLen = encodeSockaddr(&p.name, endpoint)
	return p
}

// encodeSockaddr writes a to sa in the kernel's format and returns its length.
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

// decodeSockaddr returns the address in sa, or the zero AddrPort if it is of neither
// family.
func decodeSockaddr(sa *unix.RawSockaddrInet6) netip.AddrPort {
	b := (*[2]byte)(unsafe.Pointer(&sa.Port)) // at the same offset in both families
	port := uint16(b[0])<<8 | uint16(b[1])
	switch sa.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(sa)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}

// Peers is an immutable snapshot of all peers and of the node's own subnets. A change
// makes a new Peers that shares the Peer values that did not change.
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
