package e2e

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// A pod that sends to addresses that no node holds gets an error for some of its
// packets. What the others need to find the path MTU is apart from that.
//
//	pod-a, floods 10.5.99.1 ──┐
//	                          ├── host a ── 1400 ── host b
//	pod-a2, learns ───────────┘
func TestFloodOfOnePodLeavesPathMTUDiscoveryToTheOthers(t *testing.T) {
	t.Parallel()
	opts := labOptions{flags: []string{"--source-ports=off", "--thread-pairs=1"}, Options: netlab.Options{Pods: 2}}
	forEngines(t, opts, func(t *testing.T, l *lab) {
		l.routeToB(0, netip.Addr{}, 1400)
		flooder, learner := l.Hosts[0].Pods[0], l.Hosts[0].Pods[1]
		none := netip.AddrPortFrom(netip.MustParseAddr("10.5.99.1"), 9)
		flood := make([][]byte, 300) // fewer than the device's queue holds
		for i := range flood {
			flood[i] = udpPacket(netip.AddrPortFrom(flooder.Addr, 1000), none, nil).bytes()
		}
		to := l.pod(1).Addr
		big := udpPacket(netip.AddrPortFrom(learner.Addr, 1000), netip.AddrPortFrom(to, 9), make([]byte, 1400))
		big.frag = 1 << 14 // DF
		errs := newTap(t, learner.NS, "eth0")
		for i := range 40 {
			sendRaw(t, flooder.NS, none.Addr(), flood...)
			big.id = uint16(i)
			sendRaw(t, learner.NS, to, big.bytes())
			got := errs.next("fragmentation needed", func(b []byte) bool {
				return b[0]>>4 == 4 && b[9] == unix.IPPROTO_ICMP && b[20] == 3 && b[21] == 4
			})
			if got == nil {
				t.Fatalf("packet %d of 40 that was too big got no answer", i+1)
			}
			if id := binary.BigEndian.Uint16(got[28+4:]); id != uint16(i) {
				t.Errorf("the answer to packet %d is about packet %d", i, id)
			}
		}
	})
}
