package underlay

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestInterfacesOfContainersDoNotLeadToOtherHosts(t *testing.T) {
	n := namespace(t)
	bridge := func(name, addr string, ports ...netlink.Link) {
		a := netlink.NewLinkAttrs()
		a.Name = name
		b := &netlink.Bridge{LinkAttrs: a}
		n.must("add "+name, netlink.LinkAdd(b))
		n.addr(b, addr, nil)
		for _, p := range ports {
			n.must("add a port to "+name, netlink.LinkSetMaster(p, b))
		}
	}
	// Any kind that is not a container's is suitable; not all kernels have VLANs.
	tunnel := func(name string, id int, addrs ...string) netlink.Link {
		a := netlink.NewLinkAttrs()
		a.Name = name
		v := &netlink.Vxlan{LinkAttrs: a, VxlanId: id, Port: 4789}
		n.must("add "+name, netlink.LinkAdd(v))
		for _, addr := range addrs {
			n.addr(v, addr, nil)
		}
		return v
	}
	n.link("eth0", "192.0.2.1/24")
	n.link("eth1", "2001:db8:1::1/64")
	tunnel("storage", 5, "198.51.100.1/24")
	bridge("br-lan", "203.0.113.1/24", tunnel("uplink", 6), n.link("guest"))

	n.link("pod1")                                       // of a plugin that routes to each pod
	n.link("pod2", "10.5.1.1/32")                        // the gateway of a pod
	bridge("cni0", "10.5.1.1/24", n.link("veth1"))       // by its name
	bridge("pods", "10.5.1.1/24", tunnel("v7", 7))       // by its address
	bridge("lxcbr9", "10.0.3.1/24", n.link("container")) // by its ports
	bridge("idle", "10.0.4.1/24")

	got, err := Outside("eth1", []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")})
	n.must("list", err)
	for _, port := range []string{"uplink", "v7"} { // no packet arrives by the port of a bridge
		got = slices.DeleteFunc(got, func(name string) bool { return name == port })
	}
	if want := []string{"eth1", "eth0", "storage", "br-lan"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
