package status

import (
	"net/netip"
	"testing"
	"time"
)

// watched is a peer whose activity is watched, on a clock of the test's.
type watched struct {
	*testing.T
	Activity
	now time.Time
}

// notes has the peer looked at after some time with these counters, and compares
// for how long it has been idle; less than 0: it never was anything else.
func (w *watched) notes(after time.Duration, tx, rx uint64, want float64) {
	w.Helper()
	w.now = w.now.Add(after)
	peers := []Peer{{
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, PublicIP: netip.MustParseAddr("192.0.2.2"),
		TXPackets: tx, RXPackets: rx,
	}}
	w.Note(peers, w.now)
	switch idle := peers[0].Idle; {
	case want < 0 && idle != nil:
		w.Errorf("%d sent, %d received: idle for %v s, want never active", tx, rx, *idle)
	case want >= 0 && (idle == nil || *idle != want):
		w.Errorf("%d sent, %d received: idle for %v, want %v s", tx, rx, idle, want)
	}
}

func TestPeerIsIdleSinceItsCountersMovedLast(t *testing.T) {
	w := &watched{T: t, now: time.Now()}
	w.notes(0, 0, 0, -1)
	w.notes(time.Hour, 0, 0, -1)
	w.notes(time.Second, 1, 0, 0)
	w.notes(2*time.Second, 1, 0, 2)
	w.notes(time.Second, 1, 7, 0)
	w.notes(90*time.Second, 1, 7, 90)
}

func TestPeerOfADataPlaneThatWasReplacedIsIdleAsBefore(t *testing.T) {
	w := &watched{T: t, now: time.Now()}
	w.notes(0, 100, 100, 0)
	w.notes(time.Second, 0, 0, 1) // counters of the new one
	w.notes(time.Second, 0, 0, 2)
	w.notes(time.Second, 0, 3, 0)
}

// TestPeerIsHeardOnlyWhenPacketsComeFromIt: what is sent to a peer that is down says
// nothing about it.
func TestPeerIsHeardOnlyWhenPacketsComeFromIt(t *testing.T) {
	now := time.Now()
	var a Activity
	for _, step := range []struct {
		tx, rx uint64
		want   float64 // less than 0: never
	}{{5, 0, -1}, {9, 0, -1}, {9, 1, 0}, {20, 1, 1}, {0, 0, 2}, {0, 7, 0}} {
		now = now.Add(time.Second)
		peers := []Peer{{PublicIP: netip.MustParseAddr("192.0.2.2"), TXPackets: step.tx, RXPackets: step.rx}}
		a.Note(peers, now)
		if heard := peers[0].Heard; (heard == nil) != (step.want < 0) || heard != nil && *heard != step.want {
			t.Errorf("%d sent, %d received: heard %v, want %v s ago", step.tx, step.rx, heard, step.want)
		}
	}
}

func TestPeerThatWasAwayStartsOver(t *testing.T) {
	w := &watched{T: t, now: time.Now()}
	w.notes(0, 5, 5, 0)
	w.Note(nil, w.now.Add(time.Second))
	w.notes(2*time.Second, 0, 0, -1)
}

// Every lease of a network of 5,000 nodes is looked at once a second.
func BenchmarkNote(b *testing.B) {
	peers := make([]Peer, 5000)
	for i := range peers {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		peers[i] = Peer{Subnets: []netip.Prefix{netip.PrefixFrom(a, 24)}, PublicIP: a}
	}
	var a Activity
	for b.Loop() {
		a.Note(peers, time.Now())
	}
}
