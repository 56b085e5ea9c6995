package underlay

import (
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// namespace puts the test into a network namespace of its own, with another one
// as the far end of its links. The goroutine keeps its thread, which ends with
// it, so no other test gets to run in the namespace.
func namespace(t *testing.T) *namespaced {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	runtime.LockOSThread()
	far, err := netns.New()
	if err != nil {
		t.Fatalf("create network namespace: %v", err)
	}
	here, err := netns.New()
	if err != nil {
		t.Fatalf("create network namespace: %v", err)
	}
	here.Close() // the thread keeps it
	t.Cleanup(func() { far.Close() })
	// No link-local addresses: the kernel makes them some time after a link is
	// up, from random hardware addresses.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	return &namespaced{t, far}
}

type namespaced struct {
	*testing.T
	far netns.NsHandle
}

func (n *namespaced) must(what string, err error) {
	n.Helper()
	if err != nil {
		n.Fatalf("%s: %v", what, err)
	}
}

// link makes a link that is up, with addresses in CIDR form.
func (n *namespaced) link(name string, addrs ...string) netlink.Link {
	n.Helper()
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU = name, 1500
	veth := &netlink.Veth{LinkAttrs: a, PeerName: "far", PeerNamespace: netlink.NsFd(n.far)}
	n.must("add link "+name, netlink.LinkAdd(veth))
	far, err := netlink.NewHandleAt(n.far)
	n.must("open far namespace", err)
	defer far.Close()
	peer, err := far.LinkByName("far")
	n.must("find far end of "+name, err)
	n.must("rename far end of "+name, far.LinkSetName(peer, name))
	n.must("set far end of "+name+" up", far.LinkSetUp(peer))
	l, err := netlink.LinkByName(name)
	n.must("find "+name, err)
	n.must("set "+name+" up", netlink.LinkSetUp(l))
	testkit.Eventually(n, name+" is up", func() bool {
		l, err = netlink.LinkByName(name)
		n.must("find "+name, err)
		return l.Attrs().OperState == netlink.OperUp
	})
	for _, addr := range addrs {
		n.addr(l, addr, nil)
	}
	return l
}

// addr adds an address, as modified by change.
func (n *namespaced) addr(l netlink.Link, cidr string, change func(*netlink.Addr)) {
	n.Helper()
	a, err := netlink.ParseAddr(cidr)
	n.must("parse "+cidr, err)
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	if change != nil {
		change(a)
	}
	n.must("add "+cidr, netlink.AddrAdd(l, a))
}

// route adds a route.
func (n *namespaced) route(dst, gateway string, l netlink.Link, metric int) {
	n.Helper()
	_, to, err := net.ParseCIDR(dst)
	n.must("parse "+dst, err)
	n.must("add route to "+dst, netlink.RouteAdd(&netlink.Route{
		Dst: to, Gw: net.ParseIP(gateway), LinkIndex: l.Attrs().Index, Priority: metric}))
}
