package keep

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/host/ports"
)

// device is a Link that exists in the kernel.
type device struct {
	Link
	index int
	// learningFixed reports that this kernel cannot change VXLAN.Learning.
	learningFixed bool
}

// linkKey identifies a setting or an address of a device.
type linkKey struct{ dev, what string }

// find looks up the device of l, and creates it if it is missing and is a VXLAN
// device, or replaces it if it differs. made reports whether it did so.
func (k *Keeper) find(l Link) (d *device, made bool, err error) {
	d = &device{Link: l}
	link, err := k.nl.LinkByName(l.Name)
	if errors.As(err, &netlink.LinkNotFoundError{}) && l.VXLAN != nil {
		made, err = true, k.makeVXLAN(d)
	} else if err != nil {
		return d, false, fmt.Errorf("look up interface %s: %w", l.Name, err)
	} else {
		d.index = link.Attrs().Index
		if l.VXLAN != nil {
			made, err = k.takeOver(d, link)
		}
	}
	if err != nil {
		return d, false, err
	}
	quietIPv6(l.Name)
	return d, made, nil
}

// applyLink corrects the device: settings first, then addresses. The error
// reports that the device cannot be read, or is gone.
//
// The device is looked up by index, since another one with the same name would
// not be ours. mu is held.
func (b *batch) applyLink(d *device) error {
	k := b.Keeper
	link, err := k.nl.LinkByIndex(d.index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return fmt.Errorf("interface %s: %w", d.Name, ErrDeviceGone)
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", d.Name, err)
	}
	if d.VXLAN != nil {
		if diffs := differences(link, d.VXLAN); len(diffs) > 0 {
			return fmt.Errorf("interface %s: %w: %s", d.Name, ErrDeviceGone, diffs[0])
		}
	}
	for _, s := range k.settings(d, link) {
		if s.right {
			continue
		}
		if err := b.applySetting(d, "set", s.what, s.set); err != nil {
			return err
		}
	}
	return b.applyAddrs(d, link)
}

// applySetting calls set to correct one setting, unless it must not be written
// yet. op is the operation for messages: "set" or "delete".
func (b *batch) applySetting(d *device, op, what string, set func() error) error {
	key := linkKey{d.Name, what}
	if b.rests(key) {
		return nil
	}
	err := set()
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("interface %s: %w", d.Name, ErrDeviceGone)
	case err != nil:
		b.o.fail(key, fmt.Errorf("%s %s on %s: %w", op, what, d.Name, err))
		return nil
	}
	if op == "delete" {
		what = "no " + what
	}
	b.written(key, what+" dev "+d.Name)
	// The kernel may have removed entries and routes along with it, without
	// notice.
	b.dirty |= entries | routes
	return nil
}

// setting is one setting of a device.
type setting struct {
	what  string
	right bool
	set   func() error
}

// settings returns the settings of the device in the order in which they are
// written.
func (k *Keeper) settings(d *device, link netlink.Link) []setting {
	a := link.Attrs()
	noIPv6 := a.MTU < encap.MinIPv6MTU // the kernel has disabled IPv6 on the device
	all := []setting{
		{"name " + d.Name, a.Name == d.Name, func() error { return k.rename(d, link) }}, // first, since other settings need it
		{"MAC " + d.MAC.String(), d.MAC == MAC{} || bytes.Equal(a.HardwareAddr, d.MAC[:]), func() error { return k.nl.LinkSetHardwareAddr(link, d.MAC[:]) }},
		{fmt.Sprintf("MTU %d", d.MTU), a.MTU == d.MTU, func() error { return k.setMTU(link, d.MTU) }},
	}
	if v, ok := link.(*netlink.Vxlan); ok {
		all = append(all, setting{fmt.Sprintf("learning %t", d.VXLAN.Learning), v.Learning == d.VXLAN.Learning || d.learningFixed, func() error { return k.setLearning(d) }})
	}
	if d.NoTxChecksum {
		on, err := txChecksum(d.Name)
		all = append(all, setting{"checksum offload off", err == nil && !on, func() error { return noTxChecksum(d.Name) }})
	}
	up := a.Flags&net.FlagUp != 0
	return append(all,
		setting{"nomaster", !k.bridged(a), func() error { return k.nl.LinkSetNoMaster(link) }},
		// A TUN device with a queue of length 0 drops everything.
		setting{fmt.Sprintf("txqueuelen %d", d.QueueLen),
			d.QueueLen == 0 || a.TxQLen == d.QueueLen || a.TxQLen != 0 && a.TxQLen != kernelQueueLen,
			func() error { return k.nl.LinkSetTxQLen(link, d.QueueLen) }},
		setting{"arp", d.VXLAN == nil || a.RawFlags&unix.IFF_NOARP == 0, func() error { return k.nl.LinkSetARPOn(link) }},
		setting{"carrier", !up || a.RawFlags&unix.IFF_LOWER_UP != 0, func() error { return k.setCarrier(d) }},
		setting{"up", up && !noIPv6, func() error { return k.setUp(d, link) }},
	)
}

// kernelQueueLen is the kernel's default for the queues of a TUN device (TUN_READQ_SIZE in
// drivers/net/tun.c).
const kernelQueueLen = 500

// bridged reports whether the device is a port of a bridge, which then receives all
// packets that arrive on it.
func (k *Keeper) bridged(a *netlink.LinkAttrs) bool {
	if a.MasterIndex == 0 {
		return false
	}
	master, err := k.nl.LinkByIndex(a.MasterIndex)
	return err == nil && master.Type() == "bridge"
}

// setCarrier turns the carrier back on after another program turned it off:
// with "ip link set carrier off" for a TUN device, with "protodown on" for a
// VXLAN device.
func (k *Keeper) setCarrier(d *device) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(d.index)
	req.AddData(msg)
	if d.VXLAN != nil {
		req.AddData(nl.NewRtAttr(unix.IFLA_PROTO_DOWN, nl.Uint8Attr(0)))
	} else {
		req.AddData(nl.NewRtAttr(unix.IFLA_CARRIER, nl.Uint8Attr(1)))
	}
	_, err := k.request(req, 0)
	return err
}

// rename restores the name of a device, by which other programs, rules and routes refer to
// it.
func (k *Keeper) rename(d *device, link netlink.Link) error {
	err := k.nl.LinkSetName(link, d.Name)
	if errors.Is(err, unix.EBUSY) { // it is up, which matters before Linux 6.2
		if err := k.nl.LinkSetDown(link); err != nil {
			return err
		}
		err = errors.Join(k.nl.LinkSetName(link, d.Name), k.setUp(d, link))
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	switch holder, lookup := k.nl.LinkByName(d.Name); {
	case lookup != nil:
		return err
	case holder.Attrs().Index == d.index: // as an alternative name
		return errors.Join(k.nl.LinkDelAltName(link, d.Name), k.nl.LinkSetName(link, d.Name))
	default:
		return fmt.Errorf("%w; the device is now named %s, and interface %d has its old name: rename or delete that interface", err, link.Attrs().Name, holder.Attrs().Index)
	}
}

// setMTU sets a device without IPv6 down first: if it stayed up, IPv6 would
// come back with a link-local address.
func (k *Keeper) setMTU(link netlink.Link, mtu int) error {
	if link.Attrs().MTU < encap.MinIPv6MTU {
		if err := k.nl.LinkSetDown(link); err != nil {
			return err
		}
	}
	return k.nl.LinkSetMTU(link, mtu)
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1

func (k *Keeper) setUp(d *device, link netlink.Link) error {
	// Otherwise the kernel adds a link-local address. It fails if there is no
	// IPv6.
	_ = k.nl.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	err := k.nl.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) && d.VXLAN != nil {
		return fmt.Errorf("%w; UDP port %d is in use: %s, or set another Backend.Port in the network configuration",
			err, d.VXLAN.Port, ports.Holder(d.VXLAN.Port))
	}
	return err
}

// applyAddrs adds the addresses of the device, and removes those of earlier
// subnets of the node.
func (b *batch) applyAddrs(d *device, link netlink.Link) error {
	k := b.Keeper
	list, err := k.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", d.Name, err)
	}
	has := make(map[netip.Prefix]netlink.Addr, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.IPNet != nil {
			bits, _ := a.Mask.Size()
			has[netip.PrefixFrom(addr.Unmap(), bits)] = a
		}
	}
	for _, addr := range d.Addrs {
		own := single(addr)
		if _, ok := has[own]; ok {
			delete(has, own)
			continue
		}
		if err := b.applySetting(d, "set", "address "+own.String(), func() error { return k.addAddr(link, own) }); err != nil {
			return err
		}
	}
	for p, a := range has {
		if !p.IsSingleIP() || !k.inside(p) {
			continue
		}
		if err := b.applySetting(d, "delete", "address "+p.String(), func() error {
			if err := k.nl.AddrDel(link, &a); !errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (k *Keeper) addAddr(link netlink.Link, own netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(own)}
	if own.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // no other host is on this link
	}
	switch err := k.nl.AddrAdd(link, a); {
	case errors.Is(err, unix.EEXIST):
		return nil
	case errors.Is(err, unix.EACCES) && own.Addr().Is6():
		return fmt.Errorf("%w; IPv6 is disabled on this host: set net.ipv6.conf.all.disable_ipv6=0, or leave IPv6 out of the network configuration", err)
	default:
		return err
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// quietIPv6 turns off router solicitations, as stock flannel does: no router
// answers them, and they are only counted as drops. It must run in the network
// namespace of the device, since /proc shows a thread the files of its own
// namespace.
func quietIPv6(name string) {
	path := "/proc/sys/net/ipv6/conf/" + name + "/accept_ra"
	value, err := os.ReadFile(path)
	if err != nil || string(bytes.TrimSpace(value)) == "0" {
		return // no IPv6, or already off
	}
	// A container may lack permission, which is harmless.
	_ = os.WriteFile(path, []byte("0"), 0o644)
}

// deleteLink deletes a device, and with it its addresses, entries and routes.
// It returns no error if the device is already gone.
func (k *Keeper) deleteLink(index int, name string) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if err := k.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// vxlanIndexes returns the indexes of the kept VXLAN devices, in order.
func (k *Keeper) vxlanIndexes() (indexes []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, d := range k.devices {
		if d.VXLAN != nil {
			indexes = append(indexes, d.index)
		}
	}
	slices.Sort(indexes)
	return indexes
}

// linkIdle returns, for each host that is the destination of a forwarding entry
// of the device, how long ago the kernel last sent to it. It may be called from
// any goroutine.
func (k *Keeper) linkIdle(index int) (map[netip.Addr]time.Duration, error) {
	list, err := k.neighbours.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return nil, err
	}
	idle := make(map[netip.Addr]time.Duration)
	for _, e := range list {
		// Ages, in ticks. A new entry counts as used when it was created; writing it again
		// later does not count as use.
		to, ok := netip.AddrFromSlice(e.IP)
		if !ok || e.Used >= e.Updated {
			continue
		}
		since := time.Duration(e.Used) * time.Second / userHZ
		if before, twice := idle[to.Unmap()]; !twice || since < before {
			idle[to.Unmap()] = since
		}
	}
	return idle, nil
}

// userHZ is the number of clock ticks per second in values that the kernel
// reports to user space, time(7).
const userHZ = 100

// Idle returns, for each host that is the destination of a forwarding entry of
// a kept VXLAN device, how long ago the kernel last sent to it. The kernel does
// not count packets for each entry, but records when each was last used
// (vxlan_find_mac in drivers/net/vxlan/vxlan_core.c). Hosts to which nothing
// was ever sent are not in the map.
func (k *Keeper) Idle() map[netip.Addr]time.Duration {
	all := make(map[netip.Addr]time.Duration)
	for _, index := range k.vxlanIndexes() {
		idle, err := k.linkIdle(index)
		if err != nil {
			continue // Run finds out that the device is gone
		}
		for to, since := range idle {
			if before, twice := all[to]; !twice || since < before {
				all[to] = since
			}
		}
	}
	return all
}
