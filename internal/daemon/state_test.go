package daemon

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// countingPlane is a data plane with one peer.
type countingPlane struct {
	dataPlane // what is not asked here
	shard     metrics.Shard
	asked     atomic.Int32 // calls of Status
}

func (c *countingPlane) Status() status.Dataplane {
	c.asked.Add(1)
	return status.Dataplane{
		Devices: []status.Device{{Name: "flannel0"}},
		Peers:   []status.Peer{{PublicIP: netip.MustParseAddr("192.0.2.2"), TXPackets: c.shard.TX.Packets.Load(), RXPackets: c.shard.RX.Packets.Load()}},
	}
}

func (*countingPlane) SetIdle([]status.Peer) {}

func (c *countingPlane) Counters() []*metrics.Shard { return []*metrics.Shard{&c.shard} }

// TestStatusShowsHowLongAPeerHasBeenIdle also where it was not asked for in
// between. The clock is the test's.
func TestStatusShowsHowLongAPeerHasBeenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dp countingPlane
		s := newState("", "")
		s.publish(status.Document{}, &dp, nil)
		defer s.publish(status.Document{}, nil, nil)
		if idle := s.document().Dataplane.Peers[0].Idle; idle != nil {
			t.Errorf("before the first packet: idle for %v s", *idle)
		}
		testkit.Advance(10 * time.Second)
		dp.shard.TX.Packets.Add(1)
		testkit.Advance(30 * time.Second)
		idle := s.document().Dataplane.Peers[0].Idle
		switch {
		case idle == nil:
			t.Error("half a minute after a packet: never active")
		case *idle > 30 || *idle < 30-samplePeriod.Seconds():
			t.Errorf("half a minute after a packet: idle for %v s", *idle)
		}
	})
}

func TestPeersOfAnIdleDataPlaneAreNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dp countingPlane
		s := newState("", "")
		s.publish(status.Document{}, &dp, nil)
		defer s.publish(status.Document{}, nil, nil)
		testkit.Advance(100 * samplePeriod)
		dp.shard.RX.Packets.Add(1)
		testkit.Advance(100 * samplePeriod)
		if n := dp.asked.Load(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
	})
}

func TestReplacedDataPlaneIsNoLongerQueried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var was, is countingPlane
		s := newState("", "")
		s.publish(status.Document{}, &was, nil)
		s.publish(status.Document{}, &is, nil)
		was.shard.TX.Packets.Add(1)
		is.shard.TX.Packets.Add(1)
		testkit.Advance(3 * samplePeriod)
		s.publish(status.Document{}, nil, nil)
		asked := is.asked.Load()
		testkit.Advance(3 * samplePeriod)
		if n := was.asked.Load(); n != 0 {
			t.Errorf("the one before was asked %d times", n)
		}
		if n := is.asked.Load(); asked == 0 || n != asked {
			t.Errorf("asked %d times while attached, %d in the end", asked, n)
		}
	})
}
