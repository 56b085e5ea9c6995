package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// monitor receives every change of the links, addresses, routes of table
// main, and of the neighbours and forwarding entries of flannel's links in a
// namespace, as ip-monitor(8) does. For an IPv6 route the kernel also reports when
// it is replaced by the same.
type monitor struct {
	t      testing.TB
	ns     *netlab.Namespace
	socket *nl.NetlinkSocket
}

func startMonitor(t testing.TB, ns *netlab.Namespace) *monitor {
	t.Helper()
	m := &monitor{t: t, ns: ns}
	testkit.Must(t, ns.Do(func() (err error) {
		m.socket, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
			unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	}))
	t.Cleanup(m.socket.Close)
	testkit.Must(t, m.socket.SetReceiveBufferSize(bigBuffer, true))
	return m
}

// endMark is an address that marks the end of what has happened.
var endMark = netip.MustParsePrefix("127.7.7.7/32")

// changes returns what has happened since the start, or since it was called
// last.
func (m *monitor) changes() (lines []string) {
	m.t.Helper()
	lo, err := m.ns.Netlink().LinkByName("lo")
	testkit.Must(m.t, err)
	mark := &netlink.Addr{IPNet: netlab.IPNet(endMark)}
	testkit.Must(m.t, m.ns.Netlink().AddrAdd(lo, mark), m.ns.Netlink().AddrDel(lo, mark))
	for {
		messages, _, err := m.socket.Receive()
		testkit.Must(m.t, err)
		for _, msg := range messages {
			line := m.line(msg)
			switch {
			case line == "del address "+endMark.String()+" dev lo":
				return lines
			case line != "" && !strings.Contains(line, endMark.Addr().String()):
				lines = append(lines, line)
			}
		}
	}
}

// line describes a message; it is empty if that is of no interest.
func (m *monitor) line(msg syscall.NetlinkMessage) string {
	b := msg.Data
	switch t := msg.Header.Type; t {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		attrs := m.attrs(b[unix.SizeofIfInfomsg:])
		return fmt.Sprintf("%s link %s", verb(t == unix.RTM_NEWLINK), strings.TrimRight(string(attrs[unix.IFLA_IFNAME]), "\x00"))
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a := nl.DeserializeIfAddrmsg(b)
		return fmt.Sprintf("%s address %s/%d dev %s", verb(t == unix.RTM_NEWADDR), net.IP(m.attrs(b[a.Len():])[unix.IFA_ADDRESS]), a.Prefixlen, m.device(int(a.Index)))
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r := nl.DeserializeRtMsg(b)
		attrs := m.attrs(b[r.Len():])
		if r.Table != unix.RT_TABLE_MAIN || r.Flags&unix.RTM_F_CLONED != 0 || r.Type != unix.RTN_UNICAST {
			return ""
		}
		return fmt.Sprintf("%s route %s/%d via %s", verb(t == unix.RTM_NEWROUTE), net.IP(attrs[unix.RTA_DST]), r.Dst_len, net.IP(attrs[unix.RTA_GATEWAY]))
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := netlink.NeighDeserialize(b)
		testkit.Must(m.t, err)
		what, dev := "neighbour", m.device(n.LinkIndex)
		if n.Family == unix.AF_BRIDGE {
			what = "fdb"
		}
		if !strings.HasPrefix(dev, "flannel") {
			return ""
		}
		return fmt.Sprintf("%s %s %s %s dev %s", verb(t == unix.RTM_NEWNEIGH), what, n.IP, n.HardwareAddr, dev)
	}
	return ""
}

func verb(added bool) string {
	if added {
		return "new"
	}
	return "del"
}

// attrs are a message's attributes by type.
func (m *monitor) attrs(b []byte) map[uint16][]byte {
	m.t.Helper()
	list, err := nl.ParseRouteAttr(b)
	testkit.Must(m.t, err)
	attrs := make(map[uint16][]byte)
	for _, a := range list {
		attrs[a.Attr.Type] = a.Value
	}
	return attrs
}

// device is the name of a link, or its number if it is gone.
func (m *monitor) device(index int) string {
	link, err := m.ns.Netlink().LinkByIndex(index)
	if err != nil {
		return fmt.Sprint(index)
	}
	return link.Attrs().Name
}

// except leaves out the lines that have one of the words.
func except(lines []string, words ...string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) })
	})
}
