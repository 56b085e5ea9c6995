package kernelpath

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/ethtool"
)

// pair is a veth pair through which decapsulated packets reach the kernel's network
// stack. Packets sent through the near end arrive at the far end, where GRO joins the
// packets of a flow. This requires GRO on the far end and no TSO on the near end
// (veth_skb_is_eligible_for_gro in drivers/net/veth.c).
type pair struct{ near, far *net.Interface }

const (
	macLen = 6
	// pairMTU is the largest MTU of a veth: packets already fit the path.
	pairMTU = 65535
	// maxPairQueues bounds the queues, over which flows are spread by their hash.
	maxPairQueues = 16
)

func nearName(tun string) string { return tun + "-feed" }

// makePair creates the pair for the TUN device, or takes over the one that an earlier
// process created, and configures it.
func makePair(tun string) (*pair, error) {
	near, far := nearName(tun), backend.KernelInput(tun)
	if len(near) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("interface name %s is too long: choose a shorter --tun-name", near)
	}
	if _, err := net.InterfaceByName(far); err != nil {
		if err := addPair(near, far); err != nil {
			return nil, fmt.Errorf("create interfaces %s and %s: %w", near, far, err)
		}
	}
	p := new(pair)
	var err error
	if p.near, err = net.InterfaceByName(near); err == nil {
		p.far, err = net.InterfaceByName(far)
	}
	if err != nil {
		return nil, fmt.Errorf("look up interfaces %s and %s: %w", near, far, err)
	}
	return p, errors.Join(configure(far, unix.ETHTOOL_SGRO, 1), configure(near, unix.ETHTOOL_STSO, 0),
		inheritForwarding(tun, far), admitSources(far))
}

func addPair(near, far string) error {
	queues := min(runtime.NumCPU(), maxPairQueues)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.NumTxQueues, attrs.NumRxQueues = near, pairMTU, queues, queues
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = far, pairMTU
	veth.PeerNumTxQueues, veth.PeerNumRxQueues = uint32(queues), uint32(queues)
	return netlink.LinkAdd(veth)
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1

// configure sets a feature of one end, and sets the end up without addresses.
func configure(name string, command, value uint32) error {
	if _, err := ethtool.Value(name, command, value); err != nil {
		return fmt.Errorf("set features of interface %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		_ = netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone) // fails if there is no IPv6
		err = errors.Join(netlink.LinkSetARPOff(link), netlink.LinkSetUp(link))
	}
	if err != nil {
		return fmt.Errorf("configure interface %s: %w", name, err)
	}
	return nil
}

// inheritForwarding gives the interface name the forwarding settings of the TUN device,
// since it receives in place of that device.
func inheritForwarding(tun, name string) error {
	for _, conf := range []string{confIPv4, "/proc/sys/net/ipv6/conf/"} {
		const forwarding = "/forwarding"
		value, err := os.ReadFile(conf + tun + forwarding)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err == nil {
			err = writeSetting(conf+name+forwarding, string(value))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

const confIPv4 = "/proc/sys/net/ipv4/conf/"

// dummyAddr is the IPv4 dummy address (RFC 7600 §7), which no packet has as its destination.
var dummyAddr = &netlink.Addr{
	IPNet: &net.IPNet{IP: net.IPv4(192, 0, 0, 8), Mask: net.CIDRMask(32, 32)},
	Scope: unix.RT_SCOPE_HOST,
	Flags: unix.IFA_F_NOPREFIXROUTE,
}

// admitSources keeps the reverse path filter from dropping what arrives on the interface
// name, since routes to the peers lead through the TUN device. The kernel applies the
// greater of the interface's value and the value for "all", where loose is greater than
// strict (Documentation/networking/ip-sysctl.rst). A loose filter admits such a packet
// only on an interface with an address (__fib_validate_source in
// net/ipv4/fib_frontend.c).
func admitSources(name string) error {
	const off, loose = "0", "2"
	own := confIPv4 + name + "/rp_filter"
	if hasSetting(confIPv4+"all/rp_filter", off) {
		return writeSetting(own, off)
	}
	if err := writeSetting(own, loose); err != nil {
		return err
	}
	link, err := netlink.LinkByName(name)
	if err == nil {
		if err = netlink.AddrAdd(link, dummyAddr); errors.Is(err, unix.EEXIST) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("add address %s to interface %s: %w", dummyAddr.IP, name, err)
	}
	return nil
}

// writeSetting writes a file of /proc/sys unless it already has that value, since
// /proc/sys may be read-only.
func writeSetting(path, value string) error {
	if hasSetting(path, value) {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

// hasSetting reports whether a file of /proc/sys has the value.
func hasSetting(path, value string) bool {
	text, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(text)) == strings.TrimSpace(value)
}

// header returns the addresses of an Ethernet header from the near end to the far end.
func (p *pair) header() (b [2 * macLen]byte) {
	copy(b[:], p.far.HardwareAddr)
	copy(b[macLen:], p.near.HardwareAddr)
	return b
}

// removePair deletes the pair, if there is one.
func removePair(tun string) error {
	link, err := netlink.LinkByName(backend.KernelInput(tun))
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err == nil && link.Type() == "veth" {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", backend.KernelInput(tun), err)
	}
	return nil
}
