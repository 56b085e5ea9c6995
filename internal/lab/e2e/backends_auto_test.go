package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// occupy makes a foreign VXLAN device on host number i that has the VNI
// and port of flannel's, so that the kernel refuses another. flannel.1 is
// removed if it exists.
func (c *cluster) occupy(i int) netlink.Link {
	c.t.Helper()
	nl := c.nodes[i].NS.Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "occupier"
	other := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472, VtepDevIndex: c.underlayLink(i).Attrs().Index}
	// The daemon must not recreate flannel.1 before the other device is there.
	if d, ok := c.running[i].(*daemon); ok {
		testkit.Must(c.t, d.cmd.Process.Signal(unix.SIGSTOP))
		defer func() { testkit.Must(c.t, d.cmd.Process.Signal(unix.SIGCONT)) }()
	}
	if link, err := nl.LinkByName("flannel.1"); err == nil {
		testkit.Must(c.t, nl.LinkDel(link))
	}
	testkit.Must(c.t, nl.LinkAdd(other))
	return other
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	flannel.1 refused   └── etcd
func TestAutomaticNodeFallsBackToUDPWithoutLosingItsLease(t *testing.T) {
	t.Parallel()
	for _, when := range []string{"at the start", "later"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: `{"Type": "auto"}`})
			if when == "at the start" {
				c.occupy(0)
			}
			c.runTwill()
			talk := c.talk()
			if when == "later" {
				c.expectRoutes(t, 0, 1, viaVXLAN)
				c.occupy(0)
			}
			for i := range 2 {
				testkit.Eventually(t, fmt.Sprintf("host %s sends through flannel0", c.nodes[i].Letter), func() bool { return c.sendsThrough(i, 1-i, viaUDP) })
			}
			talk.goesOn(t)
			c.waitTalk()
			d := c.running[0].(*daemon)
			d.waitReady()
			if got := d.status().Lease.Subnet; got != c.nodes[0].Subnet {
				t.Errorf("the lease is for %s, want %s as before", got, c.nodes[0].Subnet)
			}
			if got := c.entries()[c.key(0)]; strings.Contains(got, `"vxlan"`) {
				t.Errorf("the lease still announces VXLAN: %s", got)
			}
			c.checkHistory()
		})
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	port 8472 in use   └── etcd
func TestTakenPortOfVXLANIsNamedAndPassedOverByAnAutomaticNode(t *testing.T) {
	t.Parallel()
	take := func(c *cluster) *net.UDPConn {
		conn, err := listenUDP(c.nodes[0].NS, netip.MustParseAddrPort("0.0.0.0:8472"))
		testkit.Must(t, err)
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	t.Run("auto", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, clusterOptions{backend: `{"Type": "auto"}`})
		take(c)
		c.runTwill()
		c.expectRoutes(t, 0, 1, viaUDP)
		c.expectRoutes(t, 1, 0, viaUDP)
		if log := c.running[0].(*daemon).stderr.String(); !strings.Contains(log, "UDP port 8472 is in use") {
			t.Errorf("the log does not say that the port is in use:\n%s", log)
		}
	})
	t.Run("vxlan", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`})
		other, d := take(c), c.daemon(0)
		d.start()
		if code := d.wait(); code != 1 || !strings.Contains(d.stderr.String(), "UDP port 8472 is in use") {
			t.Errorf("exit code %d; the log does not say that the port is in use:\n%s", code, d.stderr)
		}
		if left := flannelLinks(t, c.nodes[0].NS); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		other.Close()
		c.runTwill()
		c.expectRoutes(t, 0, 1, viaVXLAN)
	})
}
