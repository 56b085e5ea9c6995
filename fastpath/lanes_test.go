package fastpath

import (
	"encoding/binary"
	"math"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/tun"
)

// newTestLanes returns lanes on three queues for requests and one for transfers, at a time
// at which there is no transfer.
func newTestLanes() (l *lanes, bulk *fakeQueue) {
	bulk = new(fakeQueue)
	l = &lanes{bulk: []tun.Queue{bulk}, flows: make([]laneFlow, laneFlows), transfer: new(atomic.Int64), now: time.Hour}
	for range 3 {
		l.light = append(l.light, new(fakeQueue))
	}
	return l, bulk
}

// acknowledged is a packet that came from a peer and acknowledges the bytes before ack.
func acknowledged(port uint16, ack uint32) []byte {
	b := segment{src: "10.5.2.9", dst: "10.5.1.9", flags: tcpACK}.bytes()
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint32(b[28:], ack)
	return b
}

// transfer is a flow of which much is acknowledged.
type transfer struct {
	l   *lanes
	ack uint32
}

// more acknowledges another laneBytes, and returns the queue that the flow is moved to.
func (f *transfer) more() tun.Queue {
	f.ack += laneBytes
	return f.l.queue(acknowledged(1, f.ack))
}

func TestTCPFlowThatCarriesMuchIsMoved(t *testing.T) {
	for _, tt := range []struct {
		name  string
		from  uint32
		steps []uint32 // bytes acknowledged, each 10 ms after the one before
		bulk  bool
	}{
		{"at once", 7, []uint32{laneBytes}, true},
		{"bit by bit", 7, slices.Repeat([]uint32{laneBytes / 8}, 8), true},
		{"across the end of the numbers", math.MaxUint32 - 10, []uint32{laneBytes / 2, laneBytes / 2}, true},
		{"slowly", 7, slices.Repeat([]uint32{laneBytes / 20}, 100), false},
		{"requests", 7, slices.Repeat([]uint32{64}, 100), false},
		{"an old acknowledgement", 1 << 31, []uint32{math.MaxUint32 - 2*laneBytes}, false},
	} {
		l, bulk := newTestLanes()
		ack := tt.from
		l.queue(acknowledged(1, ack))
		moved := false
		for _, n := range tt.steps {
			ack += n
			l.now += 10 * time.Millisecond
			moved = moved || l.queue(acknowledged(1, ack)) == bulk
		}
		if moved != tt.bulk {
			t.Errorf("%s: moved: %t", tt.name, moved)
		}
	}
}

func TestRequestsAreMovedOnlyBesideATransfer(t *testing.T) {
	answers := map[string][]byte{
		"UDP":             segment{src: "10.5.2.9", dst: "10.5.1.9"}.bytes(),
		"UDP over IPv6":   segment{src: "fd00:5:2::9", dst: "fd00:5:1::9"}.bytes(),
		"ICMP":            {9: unix.IPPROTO_ICMP, 0: 0x45, 12: 10, 19: 9, 27: 0},
		"TCP":             acknowledged(2, 1),
		"fragment of UDP": append(segment{src: "10.5.2.9", dst: "10.5.1.9"}.bytes()[:20:20], 1, 2, 3),
	}
	answers["fragment of UDP"][7] = 1
	for name, b := range answers {
		l, bulk := newTestLanes()
		l.queue(b)
		l.now += 2 * laneWindow
		if q := l.queue(b); q != nil {
			t.Errorf("%s: moved with no transfer", name)
		}
		beside := &transfer{l: l}
		for range 3 { // of TCP the first answer only shows where the flow is
			beside.more()
			l.queue(b)
			l.now += laneWindow / 2
		}
		if beside.more() != bulk {
			t.Fatal("no transfer was found")
		}
		l.now += laneWindow / 2
		if q := l.queue(b); !slices.Contains(l.light, q) {
			t.Errorf("%s: not moved beside a transfer", name)
		}
		if q := l.queue(b); q != nil {
			t.Errorf("%s: moved again at once", name)
		}
	}
}

// TestTransferStaysWhereItIsUntilItEnds: a move in the middle would have its
// packets overtake each other.
func TestTransferStaysWhereItIsUntilItEnds(t *testing.T) {
	l, bulk := newTestLanes()
	f := &transfer{l: l}
	f.more()
	if f.more() != bulk {
		t.Fatal("not moved")
	}
	ack := f.ack
	for range 1000 {
		l.now += time.Millisecond
		ack += 2000
		if q := l.queue(acknowledged(1, ack)); q != nil && q != bulk {
			t.Fatal("moved in the middle")
		}
	}
	for port := range uint16(5000) { // flows that take all other entries
		l.queue(acknowledged(2+port, 1))
	}
	l.now += time.Millisecond
	if q := l.queue(acknowledged(1, ack+laneBytes)); q != bulk {
		t.Error("forgotten beside other flows")
	}
	l.now += 2 * laneWindow
	l.transfer.Store(int64(l.now)) // of another flow
	if q := l.queue(acknowledged(1, ack+laneBytes)); !slices.Contains(l.light, q) {
		t.Error("a flow that was a transfer is not moved back")
	}
}

func TestManyTransfersAreLeftToAllQueues(t *testing.T) {
	l, bulk := newTestLanes()
	request := segment{src: "10.5.2.9", dst: "10.5.1.9"}.bytes()
	acknowledge := func(flows int, ack uint32) (moved int) {
		for port := range uint16(flows) {
			if l.queue(acknowledged(1+port, ack)) == bulk {
				moved++
			}
		}
		return moved
	}
	const many = 8 * laneTransfers
	acknowledge(many, 1)
	if n := acknowledge(many, 1+laneBytes); n != laneTransfers {
		t.Errorf("%d of %d transfers that begin at once are moved, want %d", n, many, laneTransfers)
	}
	l.now += laneWindow
	if n := acknowledge(many, 1+2*laneBytes); n != 0 {
		t.Errorf("%d of %d transfers are moved", n, many)
	}
	if l.queue(request) != nil {
		t.Error("requests are moved where every queue has a transfer")
	}
	for i := range uint32(10) { // the others have ended
		l.now += laneWindow
		l.count()
		if n := acknowledge(1, 1+(3+i)*laneBytes); i > 3 && n != 1 {
			t.Error("a transfer is not moved although the others have ended")
		}
	}
	if q := l.queue(request); !slices.Contains(l.light, q) {
		t.Error("requests are not moved although most transfers have ended")
	}
}

func TestFlowBeginsWithoutAnAcknowledgement(t *testing.T) {
	l, _ := newTestLanes()
	syn := acknowledged(1, 0)
	syn[33] = 0x02
	if l.queue(syn) != nil || l.queue(acknowledged(1, 1<<20)) != nil {
		t.Error("a new connection is treated as a transfer")
	}
}

func TestPacketsAreWrittenToTheQueueOfTheirLane(t *testing.T) {
	l, bulk := newTestLanes()
	own := new(fakeQueue)
	for _, ack := range []uint32{1, 1 + laneBytes} {
		b := acknowledged(1, ack)
		hdr := make([]byte, tun.HeaderLen)
		if errno := l.write(own, b, []unix.Iovec{vector(hdr), vector(b)}); errno != 0 {
			t.Fatal(errno)
		}
	}
	if len(own.writes) != 1 || own.steered != 0 || len(bulk.writes) != 1 || bulk.steered != 1 {
		t.Errorf("own queue: %d writes, %d of them to move a flow; queue of transfers: %d, %d; want 1, 0; 1, 1",
			len(own.writes), own.steered, len(bulk.writes), bulk.steered)
	}
	none := new(lanes)
	none.begin()
	if errno := none.write(own, acknowledged(1, 1+2*laneBytes), nil); errno != 0 || own.steered != 0 {
		t.Errorf("lanes without queues: %v, moved %d", errno, own.steered)
	}
}

// FuzzLanes: whatever packet is written, no header is read that it does not have.
func FuzzLanes(f *testing.F) {
	f.Add(acknowledged(1, 1))
	f.Add(segment{src: "fd00:5:2::9", dst: "fd00:5:1::9", flags: tcpACK, payload: pattern(9)}.bytes())
	f.Add(segment{src: "10.5.2.9", dst: "10.5.1.9"}.bytes()[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		var h encap.Header
		if !encap.Parse(b, &h) {
			return
		}
		l, _ := newTestLanes()
		l.transfer.Store(int64(l.now))
		l.queue(b)
	})
}
