package fastpath

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func native32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// layout names the C data model of this machine.
func layout() string {
	order := "big"
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		order = "little"
	}
	return strconv.Itoa(strconv.IntSize) + " bits, " + order + " endian"
}

func TestMessageHeadersHaveTheSizesOfC(t *testing.T) {
	want := map[int][3]uintptr{64: {64, 56, 16}, 32: {32, 28, 12}}[strconv.IntSize]
	got := [3]uintptr{unsafe.Sizeof(mmsghdr{}), unsafe.Offsetof(mmsghdr{}.len), unix.SizeofCmsghdr}
	if got != want {
		t.Errorf("mmsghdr, its msg_len, cmsghdr: %v, want %v", got, want)
	}
}

func TestSendControlWritesWhatTheKernelReads(t *testing.T) {
	golden := map[string]string{ // UDP_SEGMENT 1400, IP_TOS 2
		"64 bits, little endian": "1200000000000000 11000000 67000000 7805 000000000000" +
			"1400000000000000 00000000 01000000 02000000 00000000",
		"64 bits, big endian": "0000000000000012 00000011 00000067 0578 000000000000" +
			"0000000000000014 00000000 00000001 00000002 00000000",
		"32 bits, little endian": "0e000000 11000000 67000000 7805 0000" +
			"10000000 00000000 01000000 02000000",
		"32 bits, big endian": "0000000e 00000011 00000067 0578 0000" +
			"00000010 00000000 00000001 00000002",
	}
	want, err := hex.DecodeString(strings.ReplaceAll(golden[layout()], " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	dirty := bytes.Repeat([]byte{0xee}, sendControlLen)
	got := sendControl(dirty[:0], 1400, 2, false)
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n% x, want\n% x", layout(), got, want)
	}
}

func TestSendControlHoldsOnlyWhatIsAskedFor(t *testing.T) {
	for _, tt := range []struct {
		name       string
		segment    int
		tos        uint8
		ipv6       bool
		level, typ int32 // of the last message
		messages   int
	}{
		{"nothing", 0, 0, false, 0, 0, 0},
		{"segment", 1400, 0, false, unix.SOL_UDP, unix.UDP_SEGMENT, 1},
		{"TOS", 0, 1, false, unix.IPPROTO_IP, unix.IP_TOS, 1},
		{"traffic class", 0, 1, true, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 1},
		{"both", 65535, 3, true, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 2},
	} {
		b := sendControl(make([]byte, 0, sendControlLen), tt.segment, tt.tos, tt.ipv6)
		if len(b) == 0 {
			if tt.messages != 0 {
				t.Errorf("%s: nothing", tt.name)
			}
			continue
		}
		msgs, err := unix.ParseSocketControlMessage(b)
		if err != nil || len(msgs) != tt.messages {
			t.Errorf("%s: %d messages, %v", tt.name, len(msgs), err)
			continue
		}
		if last := msgs[len(msgs)-1].Header; last.Level != tt.level || last.Type != tt.typ {
			t.Errorf("%s: %+v", tt.name, last)
		}
	}
}

// raw is a control message whose length field says n.
func raw(n int, level, typ int32, data []byte) []byte {
	b := appendControl(make([]byte, 0, 256), level, typ, data)
	(*unix.Cmsghdr)(unsafe.Pointer(&b[0])).SetLen(n)
	return b
}

func TestParseControl(t *testing.T) {
	const h = unix.SizeofCmsghdr
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	gro := raw(h+4, unix.SOL_UDP, unix.UDP_GRO, native32(1400))
	tos := raw(h+1, unix.IPPROTO_IP, unix.IP_TOS, []byte{3})
	class := raw(h+4, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, native32(2))
	overflow := raw(h+4, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, native32(0xfffffff0))
	strange := raw(h+5, unix.SOL_SOCKET, 999, []byte{1, 2, 3, 4, 5})
	for _, tt := range []struct {
		name string
		b    []byte
		ok   bool
		want recvInfo
	}{
		{"nothing", nil, true, recvInfo{}},
		{"GRO", gro, true, recvInfo{segment: 1400}},
		{"TOS of one byte", tos, true, recvInfo{tos: 3}},
		{"traffic class", class, true, recvInfo{tos: 2}},
		{"overflows", overflow, true, recvInfo{overflows: 0xfffffff0, hasOverflow: true}},
		{"all, in another order", join(overflow, strange, tos, gro), true,
			recvInfo{segment: 1400, tos: 3, overflows: 0xfffffff0, hasOverflow: true}},
		{"last one without padding", join(gro, tos[:h+1]), true, recvInfo{segment: 1400, tos: 3}},
		{"unknown only", strange, true, recvInfo{}},
		{"half a header", gro[:h-1], false, recvInfo{}},
		{"half a second header", join(tos, gro[:h/2]), false, recvInfo{tos: 3}},
		{"length 0", raw(0, unix.SOL_UDP, unix.UDP_GRO, native32(1400)), false, recvInfo{}},
		{"length below the header", raw(h-1, unix.SOL_UDP, unix.UDP_GRO, native32(1400)), false, recvInfo{}},
		{"length one beyond the buffer", raw(cmsgSpace(4)+1, unix.SOL_UDP, unix.UDP_GRO, native32(1400)), false, recvInfo{}},
		{"length beyond the buffer", raw(h+200, unix.SOL_UDP, unix.UDP_GRO, native32(1400)), false, recvInfo{}},
		{"largest length", raw(-1, unix.SOL_UDP, unix.UDP_GRO, native32(1400)), false, recvInfo{}},
		{"GRO of two bytes", raw(h+2, unix.SOL_UDP, unix.UDP_GRO, []byte{1, 2}), false, recvInfo{}},
		{"GRO 0", raw(h+4, unix.SOL_UDP, unix.UDP_GRO, native32(0)), false, recvInfo{}},
		{"GRO -1", raw(h+4, unix.SOL_UDP, unix.UDP_GRO, native32(0xffffffff)), false, recvInfo{}},
		{"TOS without data", raw(h, unix.IPPROTO_IP, unix.IP_TOS, nil), false, recvInfo{}},
		{"traffic class of one byte", raw(h+1, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, []byte{1}), false, recvInfo{}},
		{"overflows of one byte", raw(h+1, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, []byte{1}), false, recvInfo{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := recvInfo{segment: 9, tos: 9, overflows: 9, hasOverflow: true}
			if ok := parseControl(tt.b, &got); ok != tt.ok || got != tt.want {
				t.Errorf("%t %+v, want %t %+v", ok, got, tt.ok, tt.want)
			}
		})
	}
}

// FuzzParseControl looks for control messages that make the parser panic or read
// behind the buffer: that ends, but for its alignment, where a page begins that
// must not be read.
func FuzzParseControl(f *testing.F) {
	for _, a := range []arrival{{}, {tos: 3}, {segment: 1400}, {segment: 1, tos: 1, overflow: 1 << 31}} {
		b := received(a)
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(b[:len(b)/2])
	}
	page := unix.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { unix.Munmap(mem) })
	if err := unix.Mprotect(mem[page:], unix.PROT_NONE); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > page {
			return
		}
		from := (page - len(b)) &^ 7
		at := mem[from : from+len(b) : from+len(b)]
		copy(at, b)
		var info recvInfo
		ok := parseControl(at, &info)
		if info.segment < 0 || info.overflows != 0 && !info.hasOverflow {
			t.Errorf("%t, %+v", ok, info)
		}
		// What is well-formed for x/sys/unix is for us, unless a value is bad.
		if _, err := unix.ParseSocketControlMessage(bytes.Clone(b)); ok && err != nil && len(b) > 0 {
			t.Errorf("accepted what is malformed: %v", err)
		}
	})
}
