package fastpath

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/tun"
)

// probeMerge reports whether the device accepts TCP super-packets. It writes one of two
// segments, with a source in network zero and without an IP checksum, which the kernel
// accepts from the device and then drops without a reply. Some kernels of the 6.6 and
// 6.10 series refuse it with EINVAL.
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
		return "", fmt.Errorf("write TCP super-packet to the TUN device: %w", errno)
	}
	return "granted: TCP", nil
}

// probeMergeUDP reports whether UDP datagrams may be merged into super-packets. It does
// not write one: a kernel that grants USO accepts them, and whether an older kernel
// handles them correctly later cannot be seen at the device.
func probeMergeUDP(d *tun.Device) (string, error) {
	if !d.Granted.UDP() {
		return "", errors.New("the TUN device carries no UDP super-packets, which need Linux 6.2")
	}
	if tun.Kernel().Before(usoThroughVXLAN) {
		return "", fmt.Errorf("UDP super-packets need Linux %s, since older kernels lose them in VXLAN devices", usoThroughVXLAN)
	}
	return "granted: UDP", nil
}
