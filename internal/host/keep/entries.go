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

// tables hold what the kernel has, as far as known.
type tables struct {
	// fdb holds the permanent entries of the devices. The kernel has at most
	// one for a unicast MAC (vxlan_fdb_update_existing in
	// drivers/net/vxlan/vxlan_core.c).
	fdb    map[fdbKey]netip.Addr
	neighs map[neighKey]MAC // the permanent ones of the devices
	// ours holds the FDB entries of neighbours that are or were ours.
	ours   map[fdbKey]bool
	routes map[routeKey]held // those that are wanted or ours
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
			// With this header the kernel dumps only this device
			// (rtnl_fdb_dump).
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

// attempts bounds how often a dump is repeated because the table changed
// meanwhile.
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

// oursByForm reports whether a permanent neighbour of a kept device with the
// address a is ours: a is the address of a subnet of a network.
func (k *Keeper) oursByForm(a netip.Addr) bool {
	return slices.ContainsFunc(k.networks, func(n network) bool {
		return n.Contains(a) && netip.PrefixFrom(a, n.subnetBits).Masked().Addr() == a
	})
}

// sizeofNdmsg is the size of struct ndmsg of linux/neighbour.h.
const sizeofNdmsg = 12

// entry is a neighbour or FDB entry in a message from the kernel.
type entry struct {
	index     int
	bridge    bool // an FDB entry, not a neighbour
	permanent bool
	dst       netip.Addr // the address of a neighbour, the endpoint of an FDB entry
	mac       MAC
	plain     bool // an FDB entry that does not override the port, VNI or interface
}

// parseEntry parses struct ndmsg and its attributes. It returns false if the
// message is truncated.
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
