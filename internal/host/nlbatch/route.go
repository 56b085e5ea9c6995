package nlbatch

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

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
		return fmt.Errorf("gateway %s is of the other address family", r.Via)
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
