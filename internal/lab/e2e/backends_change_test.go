package e2e

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The nodes do not change at the same moment. What a former backend needs stays until
// all have changed, and is then removed.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd, the network's configuration
func TestNoPacketIsLostWhileANetworkChangesItsBackend(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	for _, h := range c.nodes {
		// For a moment the paths of the two directions differ.
		testkit.Must(t, h.NS.Sysctl("net/ipv4/conf/all/rp_filter", "0"))
	}
	c.runTwill()
	pings := []*pingLoop{startPingLoop(t, c.pod(0), c.pod(1)), startPingLoop(t, c.pod(1), c.pod(0))}
	for _, backend := range []string{"vxlan", "udp", "host-gw", "vxlan", "host-gw", "udp"} {
		c.configure(fmt.Sprintf(`{"Type": %q}`, backend))
		for i, h := range c.nodes {
			testkit.Eventually(t, "host "+h.Letter+" has "+backend, func() bool {
				d := c.running[i].(*daemon).status()
				return d.Waiting == "" && len(d.Backends) > 0 && d.Backends[0] == backend
			})
		}
		for i, p := range pings {
			if err := p.failed(); err != nil {
				t.Fatalf("to %s: from host %s: %v", backend, c.nodes[i].Letter, err)
			}
		}
	}
	for _, h := range c.nodes {
		testkit.Eventually(t, "host "+h.Letter+" no longer has a VXLAN device", func() bool {
			_, err := h.NS.Netlink().LinkByName("flannel.1")
			return errors.As(err, &netlink.LinkNotFoundError{})
		})
	}
	for i, p := range pings {
		if err := p.stop(); err != nil {
			t.Errorf("from host %s: %v", c.nodes[i].Letter, err)
		}
	}
}

// pingLoop sends one ping after the other, each once the one before has been answered:
// so few are under way that no queue overflows.
type pingLoop struct {
	end   chan struct{}
	ended chan error
}

func startPingLoop(t *testing.T, from, to *netlab.Pod) *pingLoop {
	t.Helper()
	testkit.Must(t, acquaint(from, to.Addr))
	p := &pingLoop{make(chan struct{}), make(chan error, 1)}
	go func() {
		pace := time.NewTicker(steadyPace)
		defer pace.Stop()
		for {
			select {
			case <-p.end:
				p.ended <- nil
				return
			case <-pace.C:
			}
			if err := ping(from, to.Addr, 100); err != nil {
				p.ended <- err
				return
			}
		}
	}()
	return p
}

// failed returns why the loop has ended; nil while it runs.
func (p *pingLoop) failed() error {
	select {
	case err := <-p.ended:
		return err
	default:
		return nil
	}
}

// stop ends the loop. It returns an error unless each ping was answered.
func (p *pingLoop) stop() error {
	close(p.end)
	return <-p.ended
}

// What an earlier backend left holds the port until it is gone.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd, the network's configuration
func TestBackendMayTakeTheUDPPortOfTheOneBefore(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	c.runTwill()
	for _, change := range []struct{ kind, backend string }{
		{"vxlan", `{"Type": "vxlan", "Port": 8285, "UDPPort": 9999}`},
		{"udp", `{"Type": "udp"}`},
		{"vxlan", `{"Type": "vxlan"}`},
		{"udp", `{"Type": "udp", "Port": 8472}`},
	} {
		c.configure(change.backend)
		for i, h := range c.nodes {
			testkit.Eventually(t, "host "+h.Letter+" has "+change.backend, func() bool {
				d := c.running[i].(*daemon).status()
				return d.Waiting == "" && len(d.Backends) > 0 && d.Backends[0] == change.kind
			})
		}
		c.waitTalk()
	}
	// So does a start.
	for i := range c.nodes {
		d := c.running[i].(*daemon)
		if code := d.stop(syscall.SIGTERM); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	}
	c.configure(`{"Type": "vxlan", "Port": 8285, "UDPPort": 9999}`)
	c.runTwill()
	for i := range c.nodes {
		c.running[i].(*daemon).stop(syscall.SIGTERM)
	}
	c.configure(`{"Type": "udp"}`)
	c.runTwill()
}

// What is left of a kernel path would take datagrams of former peers.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd, the network's configuration
func TestKernelPathGoesWithItsBackend(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	c.runTwill("--kernel-path=tc")
	lacks := func(ns *netlab.Namespace, device string) bool {
		_, err := ns.Netlink().LinkByName(device)
		return errors.As(err, &netlink.LinkNotFoundError{})
	}
	for _, h := range c.nodes {
		testkit.Eventually(t, "host "+h.Letter+" has the kernel path", func() bool { return !lacks(h.NS, "flannel0-rx") && len(pinned(t, h.NS)) > 0 })
	}
	c.configure(`{"Type": "vxlan"}`)
	for _, h := range c.nodes {
		testkit.Eventually(t, "host "+h.Letter+" has VXLAN, and nothing of the udp backend", func() bool {
			return !lacks(h.NS, "flannel.1") && lacks(h.NS, "flannel0") && lacks(h.NS, "flannel0-rx") && len(pinned(t, h.NS)) == 0
		})
	}
	c.waitTalk()
}
