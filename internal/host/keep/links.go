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

// device is a Link that the kernel has.
type device struct {
	Link
	index int
	// learningFixed says that this kernel cannot change VXLAN.Learning.
	learningFixed bool
}

// linkKey names a setting or an address of a device.
type linkKey struct{ dev, what string }

// find looks the device of l up, and makes it if it is one that can be made. made
// says that there was none like it.
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

// applyLink sets what is not as wanted of the device: settings first, then
// addresses. The error is that the device cannot be read, or is gone.
//
// The device is looked up by its index: another of the same name is not ours. mu
// is held.
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
		if err := b.applySetting(d, s.what, s.set); err != nil {
			return err
		}
	}
	return b.applyAddrs(d, link)
}

// applySetting has set change one thing of the device, unless that rests.
func (b *batch) applySetting(d *device, what string, set func() error) error {
	key := linkKey{d.Name, what}
	if b.rests(key) {
		return nil
	}
	err := set()
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("interface %s: %w", d.Name, ErrDeviceGone)
	case err != nil:
		b.o.fail(key, fmt.Errorf("set %s on %s: %w", what, d.Name, err))
		return nil
	}
	b.written(key, what+" dev "+d.Name)
	// With it the kernel may have taken away entries and routes, without a word.
	b.dirty |= entries | routes
	return nil
}

// setting is one thing of a device that can be set.
type setting struct {
	what  string
	right bool
	set   func() error
}

// settings are those of the device, in the order in which they are set.
func (k *Keeper) settings(d *device, link netlink.Link) []setting {
	a := link.Attrs()
	noIPv6 := a.MTU < encap.MinIPv6MTU // the kernel has turned it off
	all := []setting{
		{"MAC " + d.MAC.String(), d.MAC == MAC{} || bytes.Equal(a.HardwareAddr, d.MAC[:]), func() error { return k.nl.LinkSetHardwareAddr(link, d.MAC[:]) }},
		{fmt.Sprintf("MTU %d", d.MTU), a.MTU == d.MTU, func() error { return k.setMTU(link, d.MTU) }},
	}
	if v, ok := link.(*netlink.Vxlan); ok {
		all = append(all, setting{fmt.Sprintf("learning %t", d.VXLAN.Learning), v.Learning == d.VXLAN.Learning || d.learningFixed, func() error { return k.setLearning(d) }})
	}
	if d.NoTxChecksum {
		on, err := txChecksum(d.Name)
		all = append(all, setting{"no checksum offload", err == nil && !on, func() error { return noTxChecksum(d.Name) }})
	}
	up := a.Flags&net.FlagUp != 0
	return append(all,
		setting{"no bridge", !k.bridged(a), func() error { return k.nl.LinkSetNoMaster(link) }},
		// A VXLAN device has no queue. With one of length 0 a TUN device drops all.
		setting{fmt.Sprintf("txqueuelen %d", tunQueueLen), d.VXLAN != nil || a.TxQLen != 0, func() error { return k.nl.LinkSetTxQLen(link, tunQueueLen) }},
		setting{"arp", d.VXLAN == nil || a.RawFlags&unix.IFF_NOARP == 0, func() error { return k.nl.LinkSetARPOn(link) }},
		setting{"carrier", !up || a.RawFlags&unix.IFF_LOWER_UP != 0, func() error { return k.setCarrier(d) }},
		setting{"up", up && !noIPv6, func() error { return k.setUp(d, link) }},
	)
}

// tunQueueLen is the length of the transmit queue that the kernel gives a TUN
// device, in packets (TUN_READQ_SIZE in drivers/net/tun.c).
const tunQueueLen = 500

// bridged reports whether the device is a port of a bridge, which then takes all
// that arrives on it.
func (k *Keeper) bridged(a *netlink.LinkAttrs) bool {
	if a.MasterIndex == 0 {
		return false
	}
	master, err := k.nl.LinkByIndex(a.MasterIndex)
	return err == nil && master.Type() == "bridge"
}

// setCarrier turns on the carrier that another program has turned off: of a TUN
// device with "ip link set carrier off", of a VXLAN device with "protodown on".
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

// setMTU leaves a device without IPv6 down: if it were up, IPv6 would come back
// with a link-local address.
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
	// Or else the kernel makes a link-local address. Without IPv6 there is none.
	_ = k.nl.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	err := k.nl.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) && d.VXLAN != nil {
		return fmt.Errorf("%w; UDP port %d is taken: %s, or set another Backend.Port in the network configuration",
			err, d.VXLAN.Port, ports.Holder(d.VXLAN.Port))
	}
	return err
}

// applyAddrs gives the device its addresses, and takes away those that a former
// subnet of the node had.
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
		if err := b.applySetting(d, "address "+own.String(), func() error { return k.addAddr(link, own) }); err != nil {
			return err
		}
	}
	for p, a := range has {
		if !p.IsSingleIP() || !k.inside(p) {
			continue
		}
		if err := b.applySetting(d, "no address "+p.String(), func() error {
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
		return fmt.Errorf("%w; IPv6 is turned off here: set net.ipv6.conf.all.disable_ipv6=0, or leave IPv6 out of the network configuration", err)
	default:
		return err
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// quietIPv6 turns router solicitations off, as stock flannel does: where nobody
// answers they only count as drops. It must run in the network namespace of the
// device: /proc shows a thread the files of its own.
func quietIPv6(name string) {
	path := "/proc/sys/net/ipv6/conf/" + name + "/accept_ra"
	value, err := os.ReadFile(path)
	if err != nil || string(bytes.TrimSpace(value)) == "0" {
		return // there is no IPv6, or they are off
	}
	// A container may not be allowed to; that does no harm.
	_ = os.WriteFile(path, []byte("0"), 0o644)
}

// deleteLink deletes a device, with which its addresses, its entries and the
// routes over it go. One that is gone already is no error.
func (k *Keeper) deleteLink(index int, name string) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}
	if err := k.nl.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// linkIdle returns, for each host that forwarding entries of the device lead to,
// for how long the kernel has sent nothing there. It may be called from any
// goroutine.
func (k *Keeper) linkIdle(index int) (map[netip.Addr]time.Duration, error) {
	list, err := k.nl.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return nil, err
	}
	idle := make(map[netip.Addr]time.Duration)
	for _, e := range list {
		// An entry begins as if it was used when it was made.
		to, ok := netip.AddrFromSlice(e.IP)
		if !ok || e.Used == e.Updated {
			continue
		}
		since := time.Duration(e.Used) * time.Second / userHZ
		if before, twice := idle[to.Unmap()]; !twice || since < before {
			idle[to.Unmap()] = since
		}
	}
	return idle, nil
}

// userHZ is how many ticks of the clock the kernel counts in a second towards
// user space, time(7).
const userHZ = 100

// Idle returns, for each host that forwarding entries of kept VXLAN devices lead
// to, for how long the kernel has sent nothing there. The kernel counts no packets
// by entry, but notes when each was used last (vxlan_find_mac in
// drivers/net/vxlan/vxlan_core.c). Hosts that were never sent to are not in it.
func (k *Keeper) Idle() map[netip.Addr]time.Duration {
	k.mu.Lock()
	var indexes []int
	for _, d := range k.devices {
		if d.VXLAN != nil {
			indexes = append(indexes, d.index)
		}
	}
	k.mu.Unlock()
	slices.Sort(indexes)
	all := make(map[netip.Addr]time.Duration)
	for _, index := range indexes {
		idle, err := k.linkIdle(index)
		if err != nil {
			continue // the device is gone, which Run finds out
		}
		for to, since := range idle {
			if before, twice := all[to]; !twice || since < before {
				all[to] = since
			}
		}
	}
	return all
}
