package nlbatch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Request is a change for [Conn.Do] to make. It is a value and may be reused. A
// request made from invalid values is not sent; Do returns its error.
type Request struct {
	op     string
	object fmt.Stringer
	kind   uint16 // RTM_NEWROUTE, …
	flags  uint16 // NLM_F_CREATE, …
	body   []byte // everything after struct nlmsghdr, a multiple of 4 bytes
	err    error
}

// String describes the request: "delete route 10.5.2.0/24 dev 7".
func (r Request) String() string { return r.op + " " + r.object.String() }

const (
	create  = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

// wrong returns a request that fails with err.
func wrong(op string, object fmt.Stringer, err error) Request {
	return Request{op: op, object: object, err: fmt.Errorf("%s %s: %w", op, object, err)}
}

// attr is an attribute of a netlink message.
type attr struct {
	kind int
	data []byte
}

// body encodes a header and attributes. It leaves out attributes without data.
func body(header []byte, attrs ...attr) []byte {
	b := append([]byte(nil), header...)
	for _, a := range attrs {
		if len(a.data) > 0 {
			b = append(b, nl.NewRtAttr(a.kind, a.data).Serialize()...)
		}
	}
	return b
}

// family returns AF_INET or AF_INET6.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

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
		// The kernel would send all frames to Dst that have no entry of their own.
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

// Route is a unicast or blackhole route in table main.
type Route struct {
	Dst       netip.Prefix
	Via       netip.Addr // the gateway; invalid: Dst is on the link of Dev
	Dev       int        // index of the device
	OnLink    bool       // Via is on the link of Dev, whatever addresses Dev has
	Blackhole bool       // packets are dropped; Via and Dev are unset
	Metric    uint32     // 0: the kernel's default, 0 for IPv4 and 1,024 for IPv6
	Protocol  uint8      // RTPROT_BOOT, …; 0: RTPROT_BOOT
}

// String formats the route as ip-route(8) does, with the index of the device
// instead of its name.
func (r Route) String() string {
	s := r.Dst.String()
	if r.Blackhole {
		s = "blackhole " + s
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Dev != 0 {
		s += fmt.Sprintf(" dev %d", r.Dev)
	}
	if r.OnLink {
		s += " onlink"
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	return s
}

// RouteAdd adds a route. The error is unix.EEXIST if there is one to Dst with
// the same metric.
func RouteAdd(r Route) Request { return route("add route", r, create) }

// RouteReplace adds a route, or atomically replaces the existing one to Dst
// with the same metric, so that packets always find one of the two. If there
// are several, the first is replaced for IPv4; for IPv6, where they form one
// multipath route, all are.
func RouteReplace(r Route) Request { return route("replace route", r, replace) }

func route(op string, r Route, flags uint16) Request {
	if err := r.check(); err != nil {
		return wrong(op, r, err)
	}
	if r.Dev <= 0 && !r.Blackhole {
		return wrong(op, r, errNoDevice)
	}
	msg := nl.NewRtMsg() // initially table main, protocol boot, scope universe, unicast
	if r.Protocol != 0 {
		msg.Protocol = r.Protocol
	}
	if r.Blackhole {
		msg.Type = unix.RTN_BLACKHOLE
	}
	return Request{op: op, object: r, kind: unix.RTM_NEWROUTE, flags: flags, body: r.body(msg)}
}

// RouteDel deletes the first route to Dst that matches r: its type, and its
// gateway, device, metric and protocol if they are not zero. The error is
// unix.ESRCH if there is none.
func RouteDel(r Route) Request {
	if err := r.check(); err != nil {
		return wrong("delete route", r, err)
	}
	msg := nl.NewRtDelMsg() // initially table main, any scope, protocol and type
	msg.Protocol = r.Protocol
	if r.Blackhole {
		msg.Type = unix.RTN_BLACKHOLE
	}
	return Request{op: "delete route", object: r, kind: unix.RTM_DELROUTE, body: r.body(msg)}
}

var errNoDevice = errors.New("no device")

func (r Route) check() error {
	switch {
	case !r.Dst.IsValid():
		return errors.New("no destination")
	case r.Via.IsValid() && r.Via.Is4() != r.Dst.Addr().Is4():
		return fmt.Errorf("gateway %s and destination %s are of different address families", r.Via, r.Dst)
	}
	return nil
}

func (r Route) body(msg *nl.RtMsg) []byte {
	dst := r.Dst.Masked()
	msg.Family = family(dst.Addr())
	msg.Dst_len = uint8(dst.Bits())
	if r.OnLink {
		msg.Flags = unix.RTNH_F_ONLINK
	}
	attrs := []attr{{unix.RTA_DST, dst.Addr().AsSlice()}, {unix.RTA_GATEWAY, r.Via.AsSlice()}}
	if r.Metric != 0 {
		attrs = append(attrs, attr{unix.RTA_PRIORITY, nl.Uint32Attr(r.Metric)})
	}
	if r.Dev != 0 {
		attrs = append(attrs, attr{unix.RTA_OIF, nl.Uint32Attr(uint32(r.Dev))})
	}
	return body(msg.Serialize(), attrs...)
}
