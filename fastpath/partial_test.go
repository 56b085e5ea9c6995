package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/twillnet/twill/tun"
)

// unfinished is pkts with the checksums that only the pseudo header is in.
func unfinished(pkts [][]byte) (all [][]byte) {
	for _, p := range pkts {
		p = bytes.Clone(p)
		ipLen := 20
		binary.BigEndian.PutUint16(p[checksumAt(p, ipLen):], sum(pseudo(p, ipLen)))
		all = append(all, p)
	}
	return all
}

// able is the nodes of the tests, where peerB announces partial checksums if it
// is to.
func able(announced bool) *Peers {
	b := NewPeer(peerB.Subnets, peerB.Endpoint)
	b.Partial = announced
	return NewPeers(own, []*Peer{b, peerC})
}

func TestPartialChecksumsAreFinishedWhereTheyAreAnnounced(t *testing.T) {
	for _, here := range []bool{true, false} {
		for _, there := range []bool{true, false} {
			for _, vnet := range []bool{true, false} {
				for name, pkts := range map[string][][]byte{
					"TCP": tcpTrain(10, 1400, 700), "UDP": udpTrain(10, 1200, 3), "one": udpTrain(1, 9, 9),
				} {
					t.Run(fmt.Sprintf("%s, here %v, there %v, virtio header %v", name, here, there, vnet), func(t *testing.T) {
						q := new(fakeQueue)
						s := newShard(q, discard{})
						s.takesPartial, s.vnet = here, vnet
						if !vnet {
							s.superTCP, s.mergeTCP, s.mergeUDP = false, false, false
						}
						s.peers.Store(able(there))
						r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
						arrive(t, r, train(unfinished(pkts)))
						if err := r.write(); err != nil {
							t.Fatal(err)
						}
						if here { // whether or not it is known yet that the peer can
							samePackets(t, q.packets(t), pkts)
							if !vnet && slices.ContainsFunc(q.writes, func(w []byte) bool { return w[0] != 0 }) {
								t.Error("a plain device has to complete a checksum")
							}
							return
						}
						// Taken for what they say they are: damaged.
						for i, p := range q.packets(t) {
							if verify(p) == nil {
								t.Errorf("packet %d was given a good checksum", i)
							}
						}
					})
				}
			}
		}
	}
}

func TestRefusedSuperPacketOfPartialPacketsIsWrittenSingly(t *testing.T) {
	q := &fakeQueue{refuse: refuseSuper}
	s := newShard(q, discard{})
	s.takesPartial, s.vnet = true, true
	s.peers.Store(able(true))
	r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
	pkts := tcpTrain(5, 1000, 1000)
	arrive(t, r, train(unfinished(pkts)))
	if err := r.write(); err != nil {
		t.Fatal(err)
	}
	samePackets(t, q.packets(t), pkts)
}

func TestChecksumsAreLeftToPeersThatTakeThem(t *testing.T) {
	for _, here := range []bool{true, false} {
		for _, there := range []bool{true, false} {
			q := new(fakeQueue)
			x, k := newTestTX(t, q)
			x.shard.leavesPartial = here
			x.shard.peers.Store(able(there))
			transmit(t, x, q, superPacket(toB(5000), 1400), read(tun.Header{}, toB(100).bytes()))
			if len(k.wire) != 5 {
				t.Fatalf("%d packets", len(k.wire))
			}
			for i, d := range k.wire {
				p := []byte(d.b)
				left := binary.BigEndian.Uint16(p[checksumAt(p, 20):]) == sum(pseudo(p, 20))
				if want := here && there && i < 4; left != want || !left && verify(p) != nil {
					t.Errorf("here %v, there %v: packet %d left partial: %v; %v", here, there, i, left, verify(p))
				}
			}
		}
	}
}

func TestPartialPacketsDoNotAllocate(t *testing.T) {
	q := &fakeQueue{forget: true}
	s := newShard(q, discard{})
	s.takesPartial, s.vnet = true, true
	s.peers.Store(able(true))
	r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
	place(t, r, 0, train(unfinished(tcpTrain(40, 1400, 700))))
	place(t, r, 1, train(unfinished(udpTrain(40, 1200, 1200))))
	again := arriveAgain(r)
	noAllocs(t, func() {
		again()
		r.check.use(s.peers.Load())
		for i := range 2 {
			if err := r.datagram(i); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.write(); err != nil {
			t.Fatal(err)
		}
	})
	if n := dropped(r.c); n != 0 {
		t.Errorf("%v", drops(r.c))
	}
}
