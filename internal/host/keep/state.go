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

// State is what the kernel should have. Its objects refer to devices by name.
// It must not be changed after it was passed to a Keeper.
type State struct {
	Links  []Link
	FDB    []FDB
	Neighs []Neigh
	Routes []Route
}

// Link is a device with its addresses. The Keeper keeps it up.
type Link struct {
	Name string
	// VXLAN describes how to create the device. It is nil for a device such as
	// TUN that this process created and holds open; it goes away with the
	// process.
	VXLAN *VXLAN
	Port  int          // UDP port that the process binds for a device without VXLAN; 0: none
	MTU   int          // bytes
	MAC   MAC          // zero: the device has none
	Addrs []netip.Addr // each is added as a single address (/32, /128)
	// NoTxChecksum turns off the device's checksum offload (ethtool -K tx off).
	NoTxChecksum bool
	// QueueLen is the length of the transmit queues of a TUN device, in packets or
	// super-packets. A device that has neither the kernel's default nor 0 keeps its own,
	// an administrator's choice.
	QueueLen int
}

// equal reports whether two links have the same settings and addresses.
func (l Link) equal(o Link) bool {
	return l.MTU == o.MTU && l.MAC == o.MAC && l.NoTxChecksum == o.NoTxChecksum && l.QueueLen == o.QueueLen && slices.Equal(l.Addrs, o.Addrs) &&
		(l.VXLAN == nil || o.VXLAN == nil || *l.VXLAN == *o.VXLAN)
}

// VXLAN holds the attributes of a VXLAN device. The kernel cannot change any of
// them except Learning, so a device that differs is replaced.
type VXLAN struct {
	VNI, Port     int
	Underlay      int    // index of the interface
	UnderlayName  string // name of the interface, for messages
	Local         netip.Addr
	Learning, GBP bool
}

// FDB is a permanent forwarding entry of a VXLAN device: frames to MAC go to
// the host Dst. Each MAC has one entry.
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

// Route is a route in table main with the kernel's default metric. Each
// destination has at most one, besides a blackhole.
type Route struct {
	Dst    netip.Prefix
	Via    netip.Addr // the gateway; invalid: Dst is on the link of Dev
	Dev    string
	OnLink bool // Via is on the link of Dev, whatever addresses Dev has
	// Blackhole drops packets to Dst that no other route takes, by having the
	// highest metric. It has neither gateway nor device.
	Blackhole bool
	// Yield leaves any existing route to Dst alone.
	Yield bool
}

// String formats the route as ip-route(8) does.
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

// parseRoute parses the output of String.
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

// outlives reports whether the route stays when all devices of twill are
// deleted, and cannot be recognized as ours by its form.
func (r Route) outlives() bool { return r.Blackhole || r.Via.IsValid() && !r.OnLink }
