package tun

import "encoding/binary"

// HeaderLen is the length in bytes of the virtio-net header before each
// packet: struct virtio_net_hdr of include/uapi/linux/virtio_net.h, without
// num_buffers.
const HeaderLen = 10

// FlagNeedsCsum is the only flag of Header that matters on a TUN device:
// VIRTIO_NET_HDR_F_NEEDS_CSUM means that the checksum at CsumStart+CsumOffset is
// partial.
const FlagNeedsCsum = 1

// GSO types of Header.
const (
	GSONone  = 0 // VIRTIO_NET_HDR_GSO_NONE
	GSOTCPv4 = 1 // VIRTIO_NET_HDR_GSO_TCPV4
	GSOTCPv6 = 4 // VIRTIO_NET_HDR_GSO_TCPV6
	GSOUDPL4 = 5 // VIRTIO_NET_HDR_GSO_UDP_L4, Linux 6.2

	gsoECN = 0x80 // VIRTIO_NET_HDR_GSO_ECN: the first segment has CWR set
)

// Header is the virtio-net header: what the kernel left undone on a packet that
// was read, and what it must do to a packet that is written.
type Header struct {
	Flags      uint8
	GSOType    uint8  // one of the GSO constants; the ECN bit is masked out
	HdrLen     uint16 // of all headers; unreliable on read
	GSOSize    uint16 // payload bytes of each segment
	CsumStart  uint16
	CsumOffset uint16
}

// Decode reads the header from b, which must have HeaderLen bytes. The fields
// are in the byte order of the machine unless TUNSETVNETLE was called
// (drivers/net/tun.c, tun_legacy_is_little_endian).
func (h *Header) Decode(b []byte) {
	_ = b[HeaderLen-1]
	h.Flags = b[0]
	h.GSOType = b[1] &^ gsoECN
	h.HdrLen = binary.NativeEndian.Uint16(b[2:])
	h.GSOSize = binary.NativeEndian.Uint16(b[4:])
	h.CsumStart = binary.NativeEndian.Uint16(b[6:])
	h.CsumOffset = binary.NativeEndian.Uint16(b[8:])
}

// Encode writes the header to b, which must have HeaderLen bytes.
func (h *Header) Encode(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = h.Flags
	b[1] = h.GSOType
	binary.NativeEndian.PutUint16(b[2:], h.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.GSOSize)
	binary.NativeEndian.PutUint16(b[6:], h.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], h.CsumOffset)
}
