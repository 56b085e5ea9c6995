package dataplane

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// onLinkFor is how long a result of onLink.reaches is cached.
const onLinkFor = 10 * time.Second

// onLink finds out which addresses the underlay interface reaches without a
// gateway.
type onLink struct {
	nl    *netlink.Handle
	dev   int
	known map[netip.Addr]bool
	since time.Time
	// broadcast holds the broadcast addresses of the interface's networks.
	broadcast map[netip.Addr]bool
}

func newOnLink(dev int) (*onLink, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	o := &onLink{nl: nl, dev: dev, known: make(map[netip.Addr]bool), since: time.Now(), broadcast: make(map[netip.Addr]bool)}
	addrs, err := nl.AddrList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: dev}}, netlink.FAMILY_V4)
	if err != nil {
		nl.Close()
		return nil, fmt.Errorf("list addresses of interface %d: %w", dev, err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		bits, _ := a.Mask.Size()
		if p := netip.PrefixFrom(ip, bits); ok && bits < 31 { // RFC 3021
			o.broadcast[lastOf(p)] = true
		}
	}
	return o, nil
}

func (o *onLink) close() { o.nl.Close() }

// forget drops the cached results if they have expired, since routes of the
// underlay may have changed. It reports whether it dropped them.
func (o *onLink) forget() bool {
	if time.Since(o.since) < onLinkFor {
		return false
	}
	clear(o.known)
	o.since = time.Now()
	return true
}

// reaches looks up the kernel's route to a.
func (o *onLink) reaches(a netip.Addr) bool {
	if is, ok := o.known[a]; ok {
		return is
	}
	found, err := o.nl.RouteGet(a.AsSlice())
	is := err == nil && len(found) == 1 && found[0].Gw == nil && found[0].Via == nil && found[0].LinkIndex == o.dev
	o.known[a] = is
	return is
}

// lastOf returns the last address of an IPv4 prefix.
func lastOf(p netip.Prefix) netip.Addr {
	last := p.Masked().Addr().As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|host)
	return netip.AddrFrom4(last)
}
