package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// Checksums of TCP and UDP are left to that of the datagram only where both
// nodes announce it, and whatever is announced, pods get what was sent.
//
// pod-a ── host a ────── tap ─ host b ── pod-b
func TestChecksumsAreLeftToTheDatagramWhereBothNodesAnnounceIt(t *testing.T) {
	t.Parallel()
	for _, a := range []bool{true, false} {
		for _, b := range []bool{true, false} {
			for _, e := range []engine{offloadEngine, mixedEngine} {
				t.Run(fmt.Sprintf("%s, a %v, b %v", e.name, a, b), func(t *testing.T) {
					t.Parallel()
					l := newLab(t, labOptions{
						engine: e, idle: true, Options: netlab.Options{Wire: netlab.MTU},
						flags: []string{"--udp-gro=off"}, // the tap must see each datagram
					})
					leases := l.leases()
					for i, announces := range []bool{a, b} {
						if !announces {
							leases[i].BackendData = json.RawMessage(`{}`)
						}
					}
					l.setLeases(leases)
					l.start()
					tap := newTap(t, l.Hosts[1].NS, netlab.UnderlayLink)
					forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
						stream := l.load(addr)
						segments, lefts := 0, 0
						// The checksum of a segment that the pod sends alone is complete in any
						// case; those of a super-packet are left.
						for segments < 20 || a && b && lefts == 0 {
							if tap.next("full TCP segment from pod-a", func(b []byte) bool {
								inner, _, ok := tunnelled(b)
								if !ok || len(inner) < 1000 || source(inner) != ofFamily(l.pod(0), addr) || !isTCP(inner) {
									return false
								}
								segments++
								if leftPartial(inner) {
									lefts++
								} else if transportSumOf(inner) != 0xffff {
									t.Errorf("neither partial nor correct: % x", inner[:60])
								}
								return true
							}) == nil {
								break
							}
						}
						if lefts > 0 && !(a && b) {
							t.Errorf("%[2]d of %[1]d checksums were left partial", segments, lefts)
						}
						stream()
						if err := (streams{flows: 2, up: 8 << 20, down: 4 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
							t.Errorf("TCP: %v", err)
						}
						d := datagrams{flows: 4, count: 200, window: 8, sizes: []int{8, 1400, 700}}
						if err := d.run(l.pod(0), l.pod(1), addr); err != nil {
							t.Errorf("UDP: %v", err)
						}
						if err := segmented(l.pod(0), l.pod(1), addr); err != nil {
							t.Errorf("UDP GSO: %v", err)
						}
					})
				})
			}
		}
	}
}

// The lease file announces them all the same, so they are still understood: the other
// node may not have the option yet.
func TestPartialChecksumsCanBeTurnedOff(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{flags: []string{"--partial-checksums=off"}, idle: true})
	l.start()
	for _, d := range l.daemons {
		for _, o := range d.status().Dataplane.Offloads {
			if o.Name == "partial-checksums" && o.InForce {
				t.Errorf("in force: %s", o.Why)
			}
		}
	}
	if err := (streams{flows: 4, up: 8 << 20, down: 8 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
		t.Error(err)
	}
}

// Stock nodes announce nothing, those of other backends something else.
func TestAnnouncementOfAnotherFormIsNotUnderstood(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	leases := l.leases()
	leases[1].BackendData = json.RawMessage(`{"VNI":1,"VtepMAC":"00:00:00:00:00:01","PartialChecksums":"yes"}`)
	l.setLeases(leases)
	l.start()
	tap := newTap(t, l.Hosts[1].NS, netlab.UnderlayLink)
	go func() { _ = streams{flows: 1, up: 1 << 20}.run(l.pod(0), l.pod(1), l.pod(1).Addr) }()
	tap.next("TCP from pod-a", func(b []byte) bool {
		inner, _, ok := tunnelled(b)
		if !ok || source(inner) != l.pod(0).Addr || !isTCP(inner) {
			return false
		}
		// On a super wire several segments follow one another: the first.
		inner = inner[:min(len(inner), int(binary.BigEndian.Uint16(inner[2:])))]
		if leftPartial(inner) {
			t.Error("checksum left partial for a node that does not accept it")
		}
		return len(inner) > 1000
	})
}

func isTCP(b []byte) bool {
	if b[0]>>4 == 4 {
		return b[9] == unix.IPPROTO_TCP
	}
	return b[6] == unix.IPPROTO_TCP
}

// leftPartial reports whether the checksum of a TCP packet without options or
// extension headers is the pseudo header's.
func leftPartial(b []byte) bool {
	src, dst, tcp := parts(b)
	return binary.BigEndian.Uint16(tcp[16:]) == pseudoOf(src, dst, len(tcp))
}

// transportSumOf is the sum of a TCP packet with its pseudo header: 0xffff if the
// checksum is right.
func transportSumOf(b []byte) uint16 {
	src, dst, tcp := parts(b)
	return transportSum(src, dst, unix.IPPROTO_TCP, tcp)
}

func pseudoOf(src, dst netip.Addr, n int) uint16 {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(n))
	return onesSum(append(pseudo, 0, 0, 0, unix.IPPROTO_TCP))
}

func parts(b []byte) (src, dst netip.Addr, transport []byte) {
	if b[0]>>4 == 4 {
		return source(b), netip.AddrFrom4([4]byte(b[16:20])), b[20:]
	}
	return source(b), netip.AddrFrom16([16]byte(b[24:40])), b[40:]
}
