// Fou sets up a node of flannel's udp backend with kernel modules alone, without BPF and
// without a daemon, for tests of how twilld interoperates with such a node:
//
//	fou LOCAL PORT MTU PEER=SUBNET[,SUBNET...]...
//
// LOCAL and the PEERs are IPv4 addresses on the underlay, and the SUBNETs are those of the
// peers' pods. Datagrams to the port are received as variant 1 of GUE, which is an inner
// packet without a header before it (draft-ietf-intarea-gue-09 §4), and sent as foo over
// UDP, which is the same on the wire. There is a device for each peer and each family: the
// module ipip carries inner IPv4, and sit carries inner IPv6.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "fou:", err)
		os.Exit(1)
	}
}

// node is what the devices have in common.
type node struct {
	local netip.Addr
	port  uint16
	mtu   int
}

func run(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: fou LOCAL PORT MTU PEER=SUBNET[,SUBNET...]")
	}
	var n node
	var err error
	if n.local, err = netip.ParseAddr(args[0]); err != nil {
		return err
	}
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return err
	}
	n.port = uint16(port)
	if n.mtu, err = strconv.Atoi(args[2]); err != nil {
		return err
	}
	if err := n.receive(); err != nil {
		return fmt.Errorf("receive GUE on port %d: %w", n.port, err)
	}
	for i, arg := range args[3:] {
		if err := n.addPeer(i, arg); err != nil {
			return fmt.Errorf("%s: %w", arg, err)
		}
	}
	return nil
}

// receive makes the module fou receive datagrams as GUE. netlink.FouAdd always sends an
// attribute for the inner protocol, which newer kernels refuse for GUE.
func (n *node) receive() error {
	family, err := netlink.GenlFamilyGet(netlink.FOU_GENL_NAME)
	if err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(&nl.Genlmsg{Command: netlink.FOU_CMD_ADD, Version: 1})
	req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_PORT, binary.BigEndian.AppendUint16(nil, n.port)))
	req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_TYPE, []byte{netlink.FOU_ENCAP_GUE}))
	req.AddData(nl.NewRtAttr(netlink.FOU_ATTR_AF, []byte{unix.AF_INET}))
	_, err = req.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

// addPeer creates the devices for peer number i, and the routes to its subnets.
func (n *node) addPeer(i int, arg string) error {
	addr, subnets, _ := strings.Cut(arg, "=")
	peer, err := netip.ParseAddr(addr)
	if err != nil {
		return err
	}
	for _, s := range strings.Split(subnets, ",") {
		subnet, err := netip.ParsePrefix(s)
		if err != nil {
			return err
		}
		link := n.device(i, peer, subnet.Addr().Is6())
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("add interface %s: %w", link.Attrs().Name, err)
		}
		if err := errors.Join(netlink.LinkSetMTU(link, n.mtu), netlink.LinkSetUp(link)); err != nil {
			return fmt.Errorf("configure interface %s: %w", link.Attrs().Name, err)
		}
		to := &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), subnet.Addr().BitLen())}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to, Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("add route to %s: %w", subnet, err)
		}
	}
	return nil
}

// ttl is the TTL of datagrams.
const ttl = 64

// device returns the device that carries packets of one family to peer number i. Datagrams
// have checksums, and DF if the inner packet has it.
func (n *node) device(i int, peer netip.Addr, ipv6 bool) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	local, remote := net.IP(n.local.AsSlice()), net.IP(peer.AsSlice())
	fou, checksum := uint16(netlink.FOU), uint16(netlink.CSum)
	if ipv6 {
		attrs.Name = fmt.Sprintf("fou6-%d", i)
		return &netlink.Sittun{
			LinkAttrs: attrs, Local: local, Remote: remote, Ttl: ttl, Proto: unix.IPPROTO_IPV6, PMtuDisc: 1,
			EncapType: fou, EncapFlags: checksum, EncapDport: n.port,
		}
	}
	attrs.Name = fmt.Sprintf("fou4-%d", i)
	return &netlink.Iptun{
		LinkAttrs: attrs, Local: local, Remote: remote, Ttl: ttl, Proto: unix.IPPROTO_IPIP,
		EncapType: fou, EncapFlags: checksum, EncapDport: n.port,
	}
}
