package nlbatch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Neigh is a permanent neighbour: the Ethernet address of IP on the link of Dev.
type Neigh struct {
	Dev int // index of the device
	IP  netip.Addr
	MAC MAC
}

// String formats the neighbour as ip-neighbour(8) does, with the index of the
// device instead of its name.
func (n Neigh) String() string { return fmt.Sprintf("%s dev %d lladdr %s", n.IP, n.Dev, n.MAC) }

// NeighReplace adds a neighbour, or replaces the existing one with the same IP.
func NeighReplace(n Neigh) Request {
	if n.MAC == (MAC{}) {
		return wrong("replace neighbour", n, errNoMAC)
	}
	return n.request("replace neighbour", unix.RTM_NEWNEIGH, replace)
}

// NeighDel deletes the neighbour with this IP, whatever its MAC. The error is
// unix.ENOENT if there is none.
func NeighDel(n Neigh) Request { return n.request("delete neighbour", unix.RTM_DELNEIGH, 0) }

func (n Neigh) request(op string, kind, flags uint16) Request {
	if err := check(n.Dev, n.IP); err != nil {
		return wrong(op, n, err)
	}
	msg := netlink.Ndmsg{Family: family(n.IP), Index: uint32(n.Dev), State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST}
	return Request{op: op, object: n, kind: kind, flags: flags, body: neighBody(msg, n.IP, n.MAC)}
}

// FDB is a permanent entry in the forwarding database of a VXLAN device: frames
// to MAC go to the host Dst.
type FDB struct {
	Dev int // index of the device
	MAC MAC
	Dst netip.Addr
}

// String formats the entry as bridge(8) does, with the index of the device
// instead of its name.
func (f FDB) String() string { return fmt.Sprintf("%s dev %d dst %s", f.MAC, f.Dev, f.Dst) }

// FDBReplace adds an entry, or replaces the existing one with the same MAC.
func FDBReplace(f FDB) Request {
	if f.MAC == (MAC{}) {
		// The kernel would send every frame without an entry of its own there.
		return wrong("replace FDB entry", f, errNoMAC)
	}
	return f.request("replace FDB entry", unix.RTM_NEWNEIGH, replace)
}

// FDBDel deletes the entry with this MAC and Dst. The error is unix.ENOENT if
// there is none.
func FDBDel(f FDB) Request { return f.request("delete FDB entry", unix.RTM_DELNEIGH, 0) }

func (f FDB) request(op string, kind, flags uint16) Request {
	if err := check(f.Dev, f.Dst); err != nil {
		return wrong(op, f, err)
	}
	msg := netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(f.Dev), State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF}
	return Request{op: op, object: f, kind: kind, flags: flags, body: neighBody(msg, f.Dst, f.MAC)}
}

var errNoMAC = errors.New("no MAC address")

func check(dev int, addr netip.Addr) error {
	switch {
	case dev <= 0:
		return errNoDevice
	case !addr.IsValid():
		return errors.New("no IP address")
	}
	return nil
}

// neighBody encodes the attributes in the same order as vishvananda/netlink.
func neighBody(msg netlink.Ndmsg, dst netip.Addr, mac MAC) []byte {
	return body(msg.Serialize(), attr{unix.NDA_DST, dst.AsSlice()}, attr{unix.NDA_LLADDR, mac[:]})
}
