package dataplane

import (
	"net"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// The plane may be in a network namespace of its own, while those who ask for the
// status are answered by other goroutines.
func TestIdleTimesAreThoseOfThePlanesNamespace(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "vxlan"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(3, "vxlan", vtepOf("3"))})
		conn, err := net.Dial("udp", "10.5.2.7:9")
		n.must(err)
		defer conn.Close()
		known := make(chan [2]bool)
		ask := func() [2]bool {
			go func() { // in the namespace of the test's process
				peers := p.Status().Peers
				p.SetIdle(peers)
				known <- [2]bool{peers[0].Idle != nil, peers[1].Idle != nil}
			}()
			return <-known
		}
		testkit.Eventually(t, "it is known when the kernel has sent to the peer", func() bool {
			_, _ = conn.Write([]byte("?"))
			return ask() == [2]bool{true, false}
		})
	})
}
