package keep

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// MAC is an Ethernet address.
type MAC = nlbatch.MAC

// State is what the kernel is to have. Its objects name their devices. It must
// not be changed after it was handed over.
type State struct {
	Links  []Link
	FDB    []FDB
	Neighs []Neigh
	Routes []Route
}

// Link is a device with its addresses. It is up.
type Link struct {
	Name string
	// VXLAN is how the device is made. Nil: the process has made it and has it
	// open, as a TUN device; it goes with the process.
	VXLAN *VXLAN
	MTU   int          // bytes
	MAC   MAC          // zero: the device has none
	Addrs []netip.Addr // each a network of its own (/32, /128)
	// NoTxChecksum turns the device's checksum offload off (ethtool -K tx off).
	NoTxChecksum bool
}

// equal reports whether two links are the same in all that can be set of them.
func (l Link) equal(o Link) bool {
	return l.MTU == o.MTU && l.MAC == o.MAC && l.NoTxChecksum == o.NoTxChecksum && slices.Equal(l.Addrs, o.Addrs) &&
		(l.VXLAN == nil || o.VXLAN == nil || *l.VXLAN == *o.VXLAN)
}

// VXLAN is what makes a VXLAN device the one it is. But for Learning the kernel
// changes none of it, so a device that differs is replaced.
type VXLAN struct {
	VNI, Port     int
	Underlay      int    // index of the interface
	UnderlayName  string // of the interface, for messages
	Local         netip.Addr
	Learning, GBP bool
}

// FDB is a permanent forwarding entry of a VXLAN device: frames to MAC go to the
// host Dst. There is one for each MAC.
type FDB struct {
	Dev string
	MAC MAC
	Dst netip.Addr
}

// Neigh is a permanent neighbour: the Ethernet address of IP on a device.
type Neigh struct {
	Dev string
	IP  netip.Addr
	MAC MAC
}

// Route is a route in table main with the kernel's default metric. There is one
// for each destination, besides a blackhole.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // the gateway; invalid: Dst is on the link of Dev
	Dev    string
	OnLink bool // Via is on the link of Dev, whatever its addresses say
	// Blackhole drops what no other route to Dst takes: its metric is the last.
	// It has neither gateway nor device.
	Blackhole bool
	// Yield leaves alone any other route to Dst that is there.
	Yield bool
}

// String writes the route as ip-route(8) does.
func (r Route) String() string {
	if r.Blackhole {
		return "blackhole " + r.Dst.String()
	}
	s := r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	s += " dev " + r.Dev
	if r.OnLink {
		s += " onlink"
	}
	return s
}

// parseRoute is the reverse of String.
func parseRoute(s string) (r Route, err error) {
	f := strings.Fields(s)
	switch {
	case len(f) == 2 && f[0] == "blackhole":
		r.Blackhole = true
		r.Dst, err = netip.ParsePrefix(f[1])
	case len(f) == 5 && f[1] == "via" && f[3] == "dev":
		r.Dev = f[4]
		if r.Dst, err = netip.ParsePrefix(f[0]); err == nil {
			r.Via, err = netip.ParseAddr(f[2])
		}
	default:
		err = fmt.Errorf("%q is not a route", s)
	}
	return r, err
}

// outlives reports whether the route stays when all devices that twill makes are
// deleted, and does not show whose it is.
func (r Route) outlives() bool { return r.Blackhole || r.Via.IsValid() && !r.OnLink }
