package vxlan

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// entries is what the device has of neighbours and FDB entries, and what it is
// to have.
type entries struct {
	// want are the peers by the addresses of their neighbours.
	want map[netip.Addr]peer
	// endpoints says where each MAC of a peer is. Two leases may tell the same
	// MAC, a node's former one and the one it has now; what was told last
	// counts.
	endpoints map[nlbatch.MAC]netip.Addr
	seq       uint64 // of the peer that was told last

	// loaded says that have is filled.
	loaded bool
	have   table
	// ours are the MACs of neighbours that are ours, or were.
	ours map[nlbatch.MAC]bool
	// untidy says that there may be entries of ours that no peer needs.
	untidy bool
}

func newEntries() entries {
	return entries{
		want:      make(map[netip.Addr]peer),
		endpoints: make(map[nlbatch.MAC]netip.Addr),
		ours:      make(map[nlbatch.MAC]bool),
	}
}

// peer is a Peer that has been found sound.
type peer struct {
	subnet   netip.Prefix
	mac      nlbatch.MAC
	endpoint netip.Addr
	seq      uint64 // greater than those of peers that were told before
}

// table is the permanent entries of the device, as the kernel has them.
type table struct {
	neigh map[netip.Addr]nlbatch.MAC
	// fdb has one endpoint a MAC: of a unicast MAC the kernel knows no more
	// (vxlan_fdb_update_existing in drivers/net/vxlan/vxlan_core.c).
	fdb map[nlbatch.MAC]netip.Addr
}

// set makes p the peer of its subnet, told last.
func (e *entries) set(p peer) {
	addr := p.subnet.Addr()
	old, replaced := e.want[addr]
	e.seq++
	p.seq = e.seq
	e.want[addr] = p
	if replaced && old.mac != p.mac {
		e.point(map[nlbatch.MAC]bool{old.mac: true})
		e.untidy = true
	}
	e.endpoints[p.mac] = p.endpoint
}

// unset forgets peers by the addresses of their neighbours.
func (e *entries) unset(addrs []netip.Addr) {
	macs := make(map[nlbatch.MAC]bool, len(addrs))
	for _, addr := range addrs {
		if p, ok := e.want[addr]; ok {
			macs[p.mac] = true
			delete(e.want, addr)
			e.untidy = true
		}
	}
	e.point(macs)
}

// point finds out anew at which endpoints these MACs are.
func (e *entries) point(macs map[nlbatch.MAC]bool) {
	if len(macs) == 0 {
		return
	}
	for mac := range macs {
		delete(e.endpoints, mac)
	}
	last := make(map[nlbatch.MAC]uint64)
	for _, p := range e.want {
		if macs[p.mac] && p.seq > last[p.mac] {
			last[p.mac], e.endpoints[p.mac] = p.seq, p.endpoint
		}
	}
}

// settled reports whether p was told before and the kernel has its entries.
func (e *entries) settled(p Peer) bool {
	addr := p.Subnet.Addr()
	old, ok := e.want[addr]
	return ok && old.subnet == p.Subnet && old.endpoint == p.Endpoint && string(old.mac[:]) == string(p.MAC) &&
		e.have.neigh[addr] == old.mac && e.have.fdb[old.mac] == e.endpoints[old.mac]
}

// load reads what the kernel has. mu is held.
func (d *Device) load() error {
	e := &d.entries
	have, err := d.dump()
	if err != nil {
		return d.gone(err)
	}
	for addr, mac := range have.neigh {
		if d.mine(addr) {
			e.ours[mac] = true
		}
	}
	e.have, e.loaded, e.untidy = have, true, true
	return nil
}

// mine reports whether a permanent neighbour is ours: its address is that of a
// subnet of the cluster.
func (d *Device) mine(a netip.Addr) bool {
	return d.inside(a) && slices.ContainsFunc(d.cfg.Subnets, func(own netip.Prefix) bool {
		return own.Addr().BitLen() == a.BitLen() && netip.PrefixFrom(a, own.Bits()).Masked().Addr() == a
	})
}

// dumpTries bounds how often a dump is asked for again that the kernel says is
// of two states.
const dumpTries = 5

// dump reads the permanent entries of the device from the kernel.
func (d *Device) dump() (table, error) {
	t := table{neigh: make(map[netip.Addr]nlbatch.MAC), fdb: make(map[nlbatch.MAC]netip.Addr)}
	for _, q := range []struct {
		what   string
		header nl.NetlinkRequestData
		add    func(neighMessage)
	}{
		{"neighbours", &netlink.Ndmsg{Family: unix.AF_INET}, t.addNeigh},
		{"neighbours", &netlink.Ndmsg{Family: unix.AF_INET6}, t.addNeigh},
		// With this header the kernel tells of the one device (rtnl_fdb_dump).
		{"FDB entries", &nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Family: unix.AF_BRIDGE, Index: int32(d.index)}}, t.addFDB},
	} {
		messages, err := d.dumpOnce(q.header)
		for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries; try++ {
			messages, err = d.dumpOnce(q.header)
		}
		if err != nil {
			return table{}, fmt.Errorf("list %s of %s: %w", q.what, d.name, err)
		}
		for _, m := range messages {
			if n, ok := parseNeigh(m); ok && n.index == d.index && n.permanent {
				q.add(n)
			}
		}
	}
	return t, nil
}

func (d *Device) dumpOnce(header nl.NetlinkRequestData) ([][]byte, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
	req.AddData(header)
	return d.request(req, unix.RTM_NEWNEIGH)
}

func (t table) addNeigh(n neighMessage) {
	if n.dst.IsValid() {
		t.neigh[n.dst] = n.mac
	}
}

func (t table) addFDB(n neighMessage) {
	if _, err := macOf(n.mac[:]); err == nil && n.dst.IsValid() && n.plain {
		t.fdb[n.mac] = n.dst
	}
}

// sizeofNdmsg is the size of struct ndmsg of linux/neighbour.h.
const sizeofNdmsg = 12

// neighMessage is a neighbour or FDB entry, as the kernel tells it.
type neighMessage struct {
	index     int
	bridge    bool // it is an FDB entry
	permanent bool
	dst       netip.Addr // of a neighbour its address, of an FDB entry the endpoint
	mac       nlbatch.MAC
	plain     bool // an FDB entry with nothing besides: no port, VNI or interface of its own
}

// parseNeigh reads struct ndmsg and its attributes. It
// reports false of what is cut short.
func parseNeigh(b []byte) (n neighMessage, ok bool) {
	if len(b) < sizeofNdmsg {
		return n, false
	}
	state := binary.NativeEndian.Uint16(b[8:])
	n = neighMessage{
		index:     int(binary.NativeEndian.Uint32(b[4:])),
		bridge:    b[0] == unix.AF_BRIDGE,
		permanent: state&unix.NUD_PERMANENT != 0,
		plain:     true,
	}
	attrs, err := nl.ParseRouteAttr(b[sizeofNdmsg:])
	if err != nil {
		return n, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.NDA_DST:
			n.dst, _ = netip.AddrFromSlice(a.Value)
		case unix.NDA_LLADDR:
			if len(a.Value) == len(n.mac) {
				n.mac = nlbatch.MAC(a.Value)
			}
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX:
			n.plain = false
		}
	}
	return n, true
}
