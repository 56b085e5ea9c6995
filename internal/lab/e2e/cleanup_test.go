package e2e

import (
	"math"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// leaveTUN makes a persistent TUN or TAP device and closes it.
func leaveTUN(t *testing.T, ns *netlab.Namespace, name string, mode netlink.TuntapMode) {
	t.Helper()
	for _, f := range openTUN(t, ns, name, mode) {
		f.Close()
	}
}

// openTUN makes a persistent device of one queue and leaves it open.
func openTUN(t *testing.T, ns *netlab.Namespace, name string, mode netlink.TuntapMode) []*os.File {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	link := &netlink.Tuntap{LinkAttrs: attrs, Mode: mode, Queues: 1, Flags: netlink.TUNTAP_MULTI_QUEUE_DEFAULTS}
	testkit.Must(t, ns.Do(func() error { return netlink.LinkAdd(link) }))
	return link.Fds
}

// TestCleanUpRemovesALeftDeviceAndNothingThatLooksLikeOne: only what the daemon
// would create with that name is removed.
func TestCleanUpRemovesALeftDeviceAndNothingThatLooksLikeOne(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nl := s.NS.Netlink()
	d := newDaemon(t, s.NS, s.leaseFile, "--ip-blackhole-route")
	// Of other programs: a device with a similar name, routes of similar networks,
	// files beside ours.
	leaveTUN(t, s.NS, "flannel1", netlink.TUNTAP_MODE_TUN)
	testkit.Must(t,
		nl.RouteAdd(&netlink.Route{LinkIndex: s.link(t, netlab.UnderlayLink).Attrs().Index, Dst: netlab.IPNet(netlab.Network), Priority: 7}),
		nl.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Dst: &net.IPNet{IP: net.IPv4(10, 5, 9, 0).To4(), Mask: net.CIDRMask(24, 32)}}),
		os.WriteFile(d.subnetFile+".bak", []byte("FLANNEL_SUBNET=10.5.9.1/24\n"), 0o644))
	before := netState(t, s.NS)

	leaveTUN(t, s.NS, "flannel0", netlink.TUNTAP_MODE_TUN)
	testkit.Must(t,
		nl.LinkSetUp(s.link(t, "flannel0")),
		nl.RouteAdd(&netlink.Route{LinkIndex: s.link(t, "flannel0").Attrs().Index, Dst: netlab.IPNet(netlab.Network)}),
		nl.RouteAdd(&netlink.Route{Type: unix.RTN_BLACKHOLE, Priority: math.MaxInt32, Dst: &net.IPNet{IP: net.IPv4(10, 5, 1, 0).To4(), Mask: net.CIDRMask(24, 32)}}),
		os.WriteFile(d.subnetFile, []byte("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"), 0o644))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	testkit.Must(t, err)
	testkit.Must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: d.socket}), unix.Close(fd)) // as a killed daemon leaves it

	out, code := d.cleanUp()
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	removed := []string{"device=flannel0", "subnet=10.5.1.0/24", "path=" + d.subnetFile, "path=" + d.socket}
	for _, what := range removed {
		if !strings.Contains(out, what) {
			t.Errorf("the log lacks %q:\n%s", what, out)
		}
	}
	if after := netState(t, s.NS); after != before {
		t.Errorf("the host was\n%s\nand is\n%s", before, after)
	}
	if got := d.files(); got != "leases.json subnet.env.bak" && got != "subnet.env.bak" {
		t.Errorf("files left: %s", got)
	}
	if out, code := d.cleanUp(); code != 0 || strings.Contains(out, "removed") {
		t.Errorf("the second time: exit code %d, %s", code, out)
	}
}

func TestCleanUpLeavesADeviceOfAnotherKind(t *testing.T) {
	t.Parallel()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel0"
	for _, c := range []struct {
		name string
		make func(t *testing.T, s *site)
	}{
		{"bridge", func(t *testing.T, s *site) {
			testkit.Must(t, s.NS.Netlink().LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		}},
		{"TAP", func(t *testing.T, s *site) { leaveTUN(t, s.NS, "flannel0", netlink.TUNTAP_MODE_TAP) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			c.make(t, s)
			before := netState(t, s.NS)
			out, code := newDaemon(t, s.NS, s.leaseFile).cleanUp()
			if after := netState(t, s.NS); code != 0 || after != before {
				t.Errorf("exit code %d, %s\nthe host was\n%s\nand is\n%s", code, out, before, after)
			}
		})
	}
}

// A device may be open and persistent at once, and down.
func TestCleanUpRefusesWhileADeviceIsOpen(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, f := range openTUN(t, s.NS, "flannel0", netlink.TUNTAP_MODE_TUN) {
		defer f.Close()
	}
	d := newDaemon(t, s.NS, s.leaseFile)
	testkit.Must(t, os.WriteFile(d.subnetFile, []byte("FLANNEL_SUBNET=10.5.1.1/24\n"), 0o644))
	before := netState(t, s.NS)
	out, code := d.cleanUp()
	if code != 1 || !strings.Contains(out, "interface flannel0 is open: stop the flanneld or twilld") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if after := netState(t, s.NS); after != before || d.files() != "subnet.env" {
		t.Errorf("the host was\n%s\nand is\n%s with files %s", before, after, d.files())
	}
}
