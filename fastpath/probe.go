package fastpath

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/tun"
)

// probeMerge reports which super-packets the device accepts. It writes one of two
// TCP segments from network zero and without an IP checksum, which the kernel
// accepts from the device and then drops without a reply: kernels of the 6.6
// and 6.10 series refuse it with EINVAL.
func probeMerge(d *tun.Device) (string, error) {
	if !d.Granted.TCP() {
		return "", errors.New("the TUN device carries no super-packets")
	}
	const headers, size = 40, 16
	pkt := make([]byte, headers+2*size)
	copy(pkt, []byte{
		0x45, 0, 0, byte(len(pkt)), 0, 0, 0x40, 0, 0 /* TTL */, 6, 0, 0,
		0, 0, 0, 1, 192, 0, 2, 1,
		0, 9, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, // discard port, ACK
	})
	v := headerOf(&encap.Super{
		Kind: encap.SegTCP, Size: size, HeaderLen: headers,
		Partial: true, CsumStart: 20, CsumOffset: 16,
	}, false)
	var hdr [tun.HeaderLen]byte
	v.Encode(hdr[:])
	if errno := d.Queues[0].Write([]unix.Iovec{vector(hdr[:]), vector(pkt)}); errno != 0 {
		return "", fmt.Errorf("write of a TCP super-packet to the TUN device: %w", errno)
	}
	if mergesUDP(d) {
		return "granted: TCP and UDP", nil
	}
	return "granted: TCP; UDP needs USO on the device and Linux " + usoThroughVXLAN.String(), nil
}

// mergesUDP reports whether UDP datagrams may be merged into super-packets.
func mergesUDP(d *tun.Device) bool { return d.Granted.UDP() && !tun.Kernel().Before(usoThroughVXLAN) }
