package tun

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// native is h as struct virtio_net_hdr lies in the memory of this machine.
func native(flags, gsoType byte, hdrLen, gsoSize, csumStart, csumOffset uint16) []byte {
	b := []byte{flags, gsoType}
	for _, v := range []uint16{hdrLen, gsoSize, csumStart, csumOffset} {
		b = binary.NativeEndian.AppendUint16(b, v)
	}
	return b
}

var headers = []struct {
	name string
	wire []byte
	h    Header
}{
	{"plain packet", native(0, 0, 0, 0, 0, 0), Header{}},
	{"partial checksum", native(1, 0, 0, 0, 20, 16), Header{Flags: FlagNeedsCsum, CsumStart: 20, CsumOffset: 16}},
	{"verified", native(2, 0, 0, 0, 0, 0), Header{Flags: 2}},
	{"TCP over IPv4", native(1, 1, 54, 1400, 20, 16),
		Header{Flags: FlagNeedsCsum, GSOType: GSOTCPv4, HdrLen: 54, GSOSize: 1400, CsumStart: 20, CsumOffset: 16}},
	{"TCP over IPv6", native(1, 4, 74, 1380, 40, 16),
		Header{Flags: FlagNeedsCsum, GSOType: GSOTCPv6, HdrLen: 74, GSOSize: 1380, CsumStart: 40, CsumOffset: 16}},
	{"UDP", native(1, 5, 28, 1200, 20, 6),
		Header{Flags: FlagNeedsCsum, GSOType: GSOUDPL4, HdrLen: 28, GSOSize: 1200, CsumStart: 20, CsumOffset: 6}},
	{"all bits", native(0xff, 0x7f, 0xffff, 0xfffe, 0xfffd, 0xfffc),
		Header{Flags: 0xff, GSOType: 0x7f, HdrLen: 0xffff, GSOSize: 0xfffe, CsumStart: 0xfffd, CsumOffset: 0xfffc}},
}

func TestHeaderCodec(t *testing.T) {
	for _, tt := range headers {
		t.Run(tt.name, func(t *testing.T) {
			got := Header{Flags: 9, GSOType: 9, HdrLen: 9, GSOSize: 9, CsumStart: 9, CsumOffset: 9}
			if got.Decode(tt.wire); got != tt.h {
				t.Errorf("decoded %+v, want %+v", got, tt.h)
			}
			wire := bytes.Repeat([]byte{0xaa}, HeaderLen)
			if tt.h.Encode(wire); !bytes.Equal(wire, tt.wire) {
				t.Errorf("encoded % x, want % x", wire, tt.wire)
			}
		})
	}
}

func TestHeaderDecodeMasksECN(t *testing.T) {
	var h Header
	if h.Decode(native(1, 0x80|GSOTCPv4, 0, 1400, 20, 16)); h.GSOType != GSOTCPv4 {
		t.Errorf("GSO type %#x", h.GSOType)
	}
}

// FuzzHeader: what is decoded is encoded to the same bytes, but for the ECN bit,
// and nothing behind the header is touched.
func FuzzHeader(f *testing.F) {
	for _, tt := range headers {
		f.Add(tt.wire)
	}
	f.Add(append(native(1, 0x80|GSOTCPv6, 1, 2, 3, 4), 5, 6))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderLen {
			return
		}
		var h Header
		h.Decode(b)
		out := bytes.Clone(b)
		h.Encode(out)
		want := bytes.Clone(b)
		want[1] &^= gsoECN
		if !bytes.Equal(out, want) {
			t.Errorf("% x became % x by way of %+v", b, out, h)
		}
	})
}

func TestHeaderCodecDoesNotAllocate(t *testing.T) {
	b := native(1, 1, 54, 1400, 20, 16)
	if n := testing.AllocsPerRun(100, func() {
		var h Header
		h.Decode(b)
		h.Encode(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
