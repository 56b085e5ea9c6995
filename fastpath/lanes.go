package fastpath

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/tun"
)

const (
	// laneBytes and laneWindow define a bulk transfer: a TCP flow of which laneBytes were
	// acknowledged within laneWindow. A flow with less in a whole window is no longer a
	// transfer, and has no waiting packets that later ones could overtake in another queue.
	laneBytes  = 64 << 10
	laneWindow = 100 * time.Millisecond
	// laneFlows is how many flows a thread remembers.
	laneFlows = 1024
	// laneTransfers is how many transfers a thread moves. If there are more, all of them
	// stay spread over all queues: sixteen streams overflowed a queue of 500 super-packets,
	// and no queue would be without a transfer for long.
	laneTransfers = 2
)

// lanes keeps bulk transfers and requests in different queues of the device, and so on
// different sockets, here and at the peer: a request in the same queue as a transfer would
// wait for all queued packets of the transfer, at both ends.
//
// The kernel chooses the queue of a flow by a hash, unless a packet of the other direction
// was written to another attached queue in the last three seconds (tun_flow_update and
// TUN_FLOW_EXPIRE in drivers/net/tun.c). The peer's acknowledgements show which flows are
// transfers. These are moved to the last queue of a pair of threads and, while there are
// any, all other flows with answers are moved to the pair's other queues. A flow moves
// when it becomes a transfer and when it has ceased to be one, so its packets overtake
// each other at most once. If there are many transfers, nothing is moved.
//
// A lanes belongs to one receiving thread. The zero value moves nothing.
type lanes struct {
	light, bulk []tun.Queue
	flows       []laneFlow    // by key
	transfer    *atomic.Int64 // when any thread last found a transfer, since clockStart
	now         time.Duration // of the batch, since clockStart
	transfers   int           // entries of flows that are transfers
	counted     time.Duration // when transfers was last counted
}

// laneFlow holds what the answers reveal about a flow to a peer.
type laneFlow struct {
	key   uint64
	ack   uint32        // at the beginning of the window, if it is TCP
	since time.Duration // the beginning of the window; 0: the entry is free
	bulk  bool
}

// newLanes returns lanes for the queues of e. Each pair of threads has several.
func newLanes(e *Engine) *lanes {
	l := &lanes{flows: make([]laneFlow, laneFlows), transfer: &e.transfer}
	for i, s := range e.shards {
		if i < len(e.shards)-e.pairs {
			l.light = append(l.light, s.queue)
		} else {
			l.bulk = append(l.bulk, s.queue)
		}
	}
	return l
}

// begin is called before the packets of a batch are written.
func (l *lanes) begin() {
	if l.flows == nil {
		return
	}
	if l.now = now(); l.now-l.counted > laneWindow {
		l.count()
	}
}

// count frees the entries of transfers that have ended, and counts the others.
func (l *lanes) count() {
	l.transfers, l.counted = 0, l.now
	for i := range l.flows {
		if f := &l.flows[i]; f.bulk && l.now-f.since > 2*laneWindow {
			*f = laneFlow{}
		} else if f.bulk {
			l.transfers++
		}
	}
}

// write writes a packet to q, or to the queue to which the other direction of its flow
// has to move. vectors are as for tun.Queue.Write; b is the beginning of the packet and
// holds all of its headers.
func (l *lanes) write(q tun.Queue, b []byte, vectors []unix.Iovec) unix.Errno {
	if l.flows != nil {
		if to := l.queue(b); to != nil {
			return to.Steer(vectors)
		}
	}
	return q.Write(vectors)
}

// queue returns the queue to which the other direction of a packet's flow has to move, or
// nil if it stays where it is.
func (l *lanes) queue(b []byte) tun.Queue {
	beside := l.now-time.Duration(l.transfer.Load()) < laneWindow
	key, header := laneKey(b)
	tcp := header != nil
	if !tcp && !beside {
		return nil
	}
	var ack uint32
	if tcp {
		const ackFlag = 0x10
		if header[13]&ackFlag == 0 {
			return nil
		}
		ack = binary.BigEndian.Uint32(header[8:])
	}
	f := &l.flows[key%laneFlows]
	age := l.now - f.since
	switch {
	case f.since == 0, f.key != key && !f.bulk:
		*f = laneFlow{key: key, ack: ack, since: l.now}
		if tcp {
			return nil // it may become a transfer
		}
	case f.key != key:
		return nil // a transfer has the entry
	case tcp && int32(ack-f.ack) >= laneBytes:
		if !f.bulk {
			l.transfers++
		}
		f.ack, f.since, f.bulk = ack, l.now, true
		if l.transfers > laneTransfers {
			return nil
		}
		l.transfer.Store(int64(l.now))
		return l.bulk[key/laneFlows%uint64(len(l.bulk))]
	case age < laneWindow:
		return nil
	default:
		if f.bulk {
			l.transfers--
		}
		f.ack, f.since, f.bulk = ack, l.now, false
	}
	if !beside {
		return nil
	}
	return l.light[key/laneFlows%uint64(len(l.light))]
}

// laneKey returns a hash of the flow of the packet at the beginning of b: of its addresses
// and protocol, and of its TCP or UDP ports unless it is a fragment. header is the TCP
// header, if there is one.
func laneKey(b []byte) (key uint64, header []byte) {
	const mix = 0x9e3779b97f4a7c15 // 2⁶⁴ divided by the golden ratio
	addrs, proto, transport := b[12:20], b[9], b[int(b[0]&0xf)*4:]
	whole := binary.BigEndian.Uint16(b[6:])&^(1<<14) == 0 // no bits except DF
	if b[0]>>4 == 6 {
		addrs, proto, transport, whole = b[8:40], b[6], b[40:], true
	}
	for ; len(addrs) > 0; addrs = addrs[8:] {
		key = (key ^ binary.NativeEndian.Uint64(addrs)) * mix
		key ^= key >> 32
	}
	tcp := proto == unix.IPPROTO_TCP && whole && len(transport) >= 20
	if tcp || proto == unix.IPPROTO_UDP && whole && len(transport) >= 8 {
		key ^= uint64(binary.NativeEndian.Uint32(transport))
	}
	key = (key ^ uint64(proto)<<56) * mix
	key ^= key >> 32
	if !tcp {
		return key, nil
	}
	return key, transport
}
