package encap_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/twillnet/twill/encap"
)

// superPacket returns a UDP super-packet from 10.5.1.9 to 10.5.2.9 with n bytes of
// payload, as the kernel passes it on: with the checksum left to be completed.
func superPacket(n int) []byte {
	b := make([]byte, 28+n)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{10, 5, 1, 9, 10, 5, 2, 9})
	copy(b[20:], []byte{0x9c, 0x40, 0x1b, 0x58}) // ports 40000 and 7000
	binary.BigEndian.PutUint16(b[24:], uint16(8+n))
	sum := 17 + 8 + n // of the pseudo header (RFC 768)
	for i := 12; i < 20; i += 2 {
		sum += int(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[26:], uint16(sum>>16+sum&0xffff))
	return b
}

// A super-packet leaves as the packets that it stands for. Each consists of a
// header in memory of the caller and a view of the payload where it lies.
func ExampleSplitter() {
	pkt := superPacket(2500)
	var h encap.Header
	if !encap.Parse(pkt, &h) {
		panic("malformed packet")
	}
	var s encap.Splitter
	err := s.Reset(pkt, &h, encap.Super{
		Kind: encap.SegUDP, Size: 1000,
		Partial: true, CsumStart: h.IPLen, CsumOffset: encap.ChecksumOffset(h.Proto),
	})
	if err != nil {
		panic(err)
	}
	for s.Remaining() > 0 {
		header := make([]byte, s.HeaderLen())
		payload := s.Next(header)
		fmt.Println(h.Src, "→", h.Dst, len(header), "+", len(payload), "bytes")
	}
	// Output:
	// 10.5.1.9 → 10.5.2.9 28 + 1000 bytes
	// 10.5.1.9 → 10.5.2.9 28 + 1000 bytes
	// 10.5.1.9 → 10.5.2.9 28 + 500 bytes
}

// Packets of one flow that arrive together are written as one super-packet.
func ExampleCoalescer() {
	c := encap.NewCoalescer(64, true, true)
	var s encap.Splitter
	var h encap.Header
	pkt := superPacket(2500)
	encap.Parse(pkt, &h)
	_ = s.Reset(pkt, &h, encap.Super{Kind: encap.SegUDP, Size: 1000, Partial: true, CsumStart: 20, CsumOffset: 6})
	for s.Remaining() > 0 {
		segment := make([]byte, s.HeaderLen())
		segment = append(segment, s.Next(segment)...)
		encap.Parse(segment, &h)
		c.Add(segment, &h)
	}
	for _, run := range c.Runs() {
		fmt.Println(run.Segments, "packets of", run.Super.Size, "bytes in", len(c.Vectors(&run, nil)), "vectors")
	}
	c.Reset()
	// Output:
	// 3 packets of 1000 bytes in 4 vectors
}

// The MTU of the TUN device follows from that of the underlay.
func ExampleUnderlayMTU_Tunnel() {
	fmt.Println(encap.UnderlayMTU(1500).Tunnel(netip.MustParseAddr("192.0.2.1")))
	fmt.Println(encap.UnderlayMTU(1500).Tunnel(netip.MustParseAddr("2001:db8::1")))
	// Output:
	// 1472
	// 1452
}
