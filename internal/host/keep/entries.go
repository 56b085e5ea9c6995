package keep

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

type (
	fdbKey struct {
		dev int
		mac MAC
	}
	neighKey struct {
		dev int
		ip  netip.Addr
	}
)

// tables are what the kernel has, as far as it is known.
type tables struct {
	// fdb are the permanent entries of the devices. Of a unicast MAC the kernel
	// has one (vxlan_fdb_update_existing in drivers/net/vxlan/vxlan_core.c).
	fdb    map[fdbKey]netip.Addr
	neighs map[neighKey]MAC // permanent ones of the devices
	// ours are the FDB entries of neighbours that are ours, or were.
	ours   map[fdbKey]bool
	routes map[routeKey]held // those that are wanted, or ours
}

// readEntries reads the FDB entries and neighbours of the devices.
func (k *Keeper) readEntries() error {
	h := &k.have
	h.fdb, h.neighs = make(map[fdbKey]netip.Addr), make(map[neighKey]MAC)
	if h.ours == nil {
		h.ours = make(map[fdbKey]bool)
	}
	for _, d := range k.devices {
		if d.VXLAN == nil {
			continue
		}
		for _, q := range []struct {
			what   string
			header nl.NetlinkRequestData
		}{
			{"neighbours", &netlink.Ndmsg{Family: unix.AF_INET, Index: uint32(d.index)}},
			{"neighbours", &netlink.Ndmsg{Family: unix.AF_INET6, Index: uint32(d.index)}},
			// With this header the kernel lists the one device (rtnl_fdb_dump).
			{"FDB entries", &nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Family: unix.AF_BRIDGE, Index: int32(d.index)}}},
		} {
			if err := k.dumpEntries(q.header, d.index); err != nil {
				return fmt.Errorf("list %s of %s: %w", q.what, d.Name, err)
			}
		}
	}
	for n, mac := range h.neighs {
		if k.oursByForm(n.ip) {
			h.ours[fdbKey{n.dev, mac}] = true
		}
	}
	return nil
}

// attempts is how often a table is read that changes meanwhile.
const attempts = 10

// dumpEntries adds the permanent entries of the device dev to have.
func (k *Keeper) dumpEntries(header nl.NetlinkRequestData, dev int) error {
	var messages [][]byte
	var err error
	for range attempts {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddData(header)
		if messages, err = k.request(req, unix.RTM_NEWNEIGH); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return err
	}
	for _, m := range messages {
		e, ok := parseEntry(m)
		switch {
		case !ok || e.index != dev || !e.permanent || !e.dst.IsValid():
		case !e.bridge:
			k.have.neighs[neighKey{dev, e.dst}] = e.mac
		case e.plain && e.mac != MAC{} && e.mac[0]&1 == 0:
			k.have.fdb[fdbKey{dev, e.mac}] = e.dst
		}
	}
	return nil
}

// oursByForm reports whether a permanent neighbour of a kept device has the form of
// one of ours: its address is that of a subnet of a network.
func (k *Keeper) oursByForm(a netip.Addr) bool {
	return slices.ContainsFunc(k.networks, func(n network) bool {
		return n.Contains(a) && netip.PrefixFrom(a, n.subnetBits).Masked().Addr() == a
	})
}

// sizeofNdmsg is the size of struct ndmsg of linux/neighbour.h.
const sizeofNdmsg = 12

// entry is a neighbour or FDB entry in a message of the kernel.
type entry struct {
	index     int
	bridge    bool // it is an FDB entry
	permanent bool
	dst       netip.Addr // of a neighbour its address, of an FDB entry the endpoint
	mac       MAC
	plain     bool // an FDB entry without a port, VNI or interface of its own
}

// parseEntry reads struct ndmsg and its attributes. It reports false of what is
// cut short.
func parseEntry(b []byte) (e entry, ok bool) {
	if len(b) < sizeofNdmsg {
		return e, false
	}
	state := binary.NativeEndian.Uint16(b[8:])
	e = entry{
		index:     int(binary.NativeEndian.Uint32(b[4:])),
		bridge:    b[0] == unix.AF_BRIDGE,
		permanent: state&unix.NUD_PERMANENT != 0,
		plain:     true,
	}
	attrs, err := nl.ParseRouteAttr(b[sizeofNdmsg:])
	if err != nil {
		return e, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.NDA_DST:
			e.dst, _ = netip.AddrFromSlice(a.Value)
		case unix.NDA_LLADDR:
			if len(a.Value) == len(e.mac) {
				e.mac = MAC(a.Value)
			}
		case unix.NDA_PORT, unix.NDA_VNI, unix.NDA_IFINDEX:
			e.plain = false
		}
	}
	return e, true
}

// putEntries writes FDB entries, then neighbours. A neighbour waits for the FDB
// entry of its MAC.
func (b *batch) putEntries() {
	k := b.Keeper
	for key, dst := range k.want.fdb {
		k.have.ours[key] = true
		if k.have.fdb[key] == dst || b.rests(key) {
			continue
		}
		f := nlbatch.FDB{Dev: key.dev, MAC: key.mac, Dst: dst}
		b.add(step{key: key, op: "write FDB entry", object: f, request: nlbatch.FDBReplace(f), done: func() { k.have.fdb[key] = dst }})
	}
	b.do()
	for key, mac := range k.want.neighs {
		if k.have.neighs[key] == mac || b.rests(key) {
			continue
		}
		if f := (fdbKey{key.dev, mac}); k.want.fdb[f] != k.have.fdb[f] {
			continue
		}
		n := nlbatch.Neigh{Dev: key.dev, IP: key.ip, MAC: mac}
		b.add(step{key: key, op: "write neighbour", object: n, request: nlbatch.NeighReplace(n), done: func() { k.have.neighs[key] = mac }, remedy: neighRemedy(key.ip)})
	}
	b.do()
}

// dropEntries deletes the entries of ours that are not wanted, FDB entries first:
// if it is cut short, their neighbours are still there to show whose they are.
func (b *batch) dropEntries() {
	k := b.Keeper
	for key := range k.have.ours {
		if _, wanted := k.want.fdb[key]; wanted {
			continue
		}
		dst, there := k.have.fdb[key]
		if !there {
			delete(k.have.ours, key)
			continue
		}
		f := nlbatch.FDB{Dev: key.dev, MAC: key.mac, Dst: dst}
		b.add(step{key: key, op: "delete FDB entry", object: f, request: nlbatch.FDBDel(f), gone: unix.ENOENT, done: func() { delete(k.have.fdb, key) }})
	}
	for key, mac := range k.have.neighs {
		if _, wanted := k.want.neighs[key]; wanted || !k.oursByForm(key.ip) {
			continue
		}
		n := nlbatch.Neigh{Dev: key.dev, IP: key.ip, MAC: mac}
		b.add(step{key: key, op: "delete neighbour", object: n, request: nlbatch.NeighDel(n), gone: unix.ENOENT, done: func() { delete(k.have.neighs, key) }})
	}
	b.do()
}

// neighRemedy says what to do about an error of the kernel. Before Linux 5.0
// permanent neighbours counted among those that the table may have (commit
// 58956317c8de), of which there are 1,024 by default.
func neighRemedy(ip netip.Addr) func(error) string {
	return func(err error) string {
		if !errors.Is(err, unix.ENOBUFS) {
			return ""
		}
		version := 6
		if ip.Is4() {
			version = 4
		}
		return fmt.Sprintf("; the table of neighbours may be full: raise net.ipv%d.neigh.default.gc_thresh3", version)
	}
}

// ready reports whether the device knows the gateway of a route, if it is to.
func (k *Keeper) ready(r nlbatch.Route) bool {
	if !r.OnLink {
		return true
	}
	key := neighKey{r.Dev, r.Via}
	mac, wanted := k.want.neighs[key]
	return !wanted || k.have.neighs[key] == mac
}

// sortSteps puts requests into the order of their objects: maps have none.
func sortSteps(steps []step) {
	slices.SortStableFunc(steps, func(a, b step) int { return compareKeys(a.key, b.key) })
}
