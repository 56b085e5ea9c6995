package e2e

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// filtered is how many messages the kernel has dropped for a daemon, and unknown how
// many packets are counted as coming from an unknown peer.
func filtered(d *status.Document) (filtered, unknown uint64) {
	for _, s := range d.Shards {
		filtered += s.Filtered
	}
	return filtered, d.Drops.RX["unknown_peer"]
}

// floodFrom sends n messages from host number from to the tunnel's port on host b,
// each a train of 64 datagrams of one byte.
func (l *lab) floodFrom(from, n int) {
	l.t.Helper()
	conn, err := dialUDP(l.Hosts[from].NS, netip.AddrPortFrom(l.underlay(1), udpPort))
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	testkit.Must(l.t, setInt(conn, unix.SOL_UDP, unix.UDP_SEGMENT, 1))
	train := make([]byte, 64)
	for range n {
		if _, err := conn.Write(train); err != nil {
			l.t.Fatal(err)
		}
	}
}

// A flood of a host without a lease takes neither room in the queues of the sockets
// nor time of the threads, so what peers send is not lost beside it.
//
//	host a, a peer ──────────┐
//	                         ├── host b
//	host c, without a lease ─┘
func TestFloodOfAStrangerNeverReachesTheSockets(t *testing.T) {
	t.Parallel()
	opts := labOptions{flags: []string{"--stranger-filter=on"}, nodes: 2, Options: netlab.Options{Hosts: 3}}
	forUnderlays(t, opts, func(t *testing.T, l *lab) {
		for range 20 {
			l.floodFrom(2, 500)
			if err := l.pingUntil(0, 1, 100); err != nil {
				t.Errorf("beside the flood: %v", err)
			}
		}
		doc := l.daemons[1].status()
		dropped, unknown := filtered(doc)
		if dropped == 0 || dropped != unknown {
			t.Errorf("the kernel dropped %d messages of %d packets from unknown hosts, want all", dropped, unknown)
		}
		for i, s := range doc.Shards {
			if s.SocketOverflows != 0 {
				t.Errorf("shard %d: the socket's queue overflowed by %d datagrams", i, s.SocketOverflows)
			}
		}
	})
}

// Without the filter the daemon drops what strangers send, and counts each packet of
// a train.
func TestWithoutTheFilterStrangersAreDroppedByTheDaemon(t *testing.T) {
	t.Parallel()
	opts := labOptions{flags: []string{"--stranger-filter=off"}, nodes: 2, Options: netlab.Options{Hosts: 3}}
	forEngines(t, opts, func(t *testing.T, l *lab) {
		l.floodFrom(2, 1)
		testkit.Eventually(t, "64 packets of an unknown peer are counted", func() bool {
			dropped, unknown := filtered(l.daemons[1].status())
			return dropped == 0 && unknown == 64
		})
	})
}

// Hosts become peers, and cease to be, while the filter is in force.
func TestFilterFollowsTheLeases(t *testing.T) {
	t.Parallel()
	opts := labOptions{flags: []string{"--stranger-filter=on"}, nodes: 2, Options: netlab.Options{Hosts: 3}}
	forUnderlays(t, opts, func(t *testing.T, l *lab) {
		passed := newTap(t, l.Hosts[1].NS, "flannel0")
		packet := innerPacket("10.5.3.2", "10.5.2.2")
		stranger := func(what string) {
			t.Helper()
			before, _ := filtered(l.daemons[1].status())
			testkit.Eventually(t, "host c is filtered "+what, func() bool {
				l.inject(2, 1, 0, packet)
				now, _ := filtered(l.daemons[1].status())
				return now > before
			})
		}
		stranger("before it has a lease")
		l.setLeases(l.leases())
		testkit.Eventually(t, "host c is a peer", func() bool { return len(l.daemons[1].status().Dataplane.Peers) == 2 })
		l.expectFate(passed, intrusion{"host c, with a lease", 2, packet, ""})
		l.setLeases(l.leases()[:2])
		stranger("after its lease has ended")
	})
}

// The sockets pass to the next process, and the filter with them.
func TestFilterOutlivesATakeover(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{flags: []string{"--stranger-filter=on"}, nodes: 2, Options: netlab.Options{Hosts: 3}})
	l.floodFrom(2, 10)
	next := l.daemons[1].takeOver()
	if code := l.daemons[1].wait(); code != 0 {
		t.Errorf("the old process ends with exit code %d", code)
	}
	next.waitReady()
	l.daemons[1] = next
	before, _ := filtered(next.status())
	l.floodFrom(2, 10)
	if now, unknown := filtered(next.status()); now < before+10 || unknown != now {
		t.Errorf("%d of 10 messages were filtered, %d packets of unknown peers were counted", now-before, unknown)
	}
	testkit.Must(t, l.pingUntil(0, 1, 100))
}
