//go:build !nobpf

package kernelpath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// The tests here need root. Each has a network namespace of its own.

func TestMain(m *testing.M) { netlabtest.Main(m) }

// What tc returns for a packet that the program leaves alone, and for one that it has
// redirected (linux/pkt_cls.h).
const (
	tcPass     = ^uint32(0) // TC_ACT_UNSPEC
	tcRedirect = 7          // TC_ACT_REDIRECT
)

var (
	here, peerAddr, userPeer = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")
	own4, own6               = netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:1::/64")
	peers                    = []Peer{
		{Endpoint: peerAddr, Kernel: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:5:2::/64")}},
		{Endpoint: userPeer, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.3.0/24")}},
	}
)

// inNamespace opens a Path without pins in a namespace with a TUN device flannel0 and
// an underlay interface eth0, and runs f there.
func inNamespace(t testing.TB, f func(p *Path)) {
	t.Helper()
	withRoom(t, 0, f)
}

// withRoom is inNamespace with maps that hold so many peers; 0: as many as usual.
func withRoom(t testing.TB, room uint32, f func(p *Path)) {
	t.Helper()
	ns := netlabtest.Namespace(t, "host")
	if err := ns.Do(func() error {
		if err := addLinks(); err != nil {
			return err
		}
		p, err := open(Config{Tun: "flannel0", Underlay: "eth0", Local: here, Port: testPort, room: room})
		if err != nil {
			return err
		}
		defer p.Close()
		if _, err := p.Set([]netip.Prefix{own4, own6}, peers); err != nil {
			return err
		}
		f(p)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// addLinks makes a TUN device flannel0 and an underlay interface eth0.
func addLinks() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "wire"
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	attrs = netlink.NewLinkAttrs()
	attrs.Name = "flannel0"
	return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN, Flags: unix.IFF_NO_PI})
}

// inner4 returns a packet of a pod with n bytes behind its header.
func inner4(src, dst string, tos byte, n int) []byte {
	b := make([]byte, 20+n)
	b[0], b[1], b[8], b[9] = 0x45, tos, 64, 253 // a protocol for experiments, RFC 3692
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	copy(b[12:], s[:])
	copy(b[16:], d[:])
	binary.BigEndian.PutUint16(b[10:], ^sumOf(b[:20]))
	return b
}

func inner6(src, dst string, ecn byte, n int) []byte {
	b := make([]byte, 40+n)
	b[0], b[1], b[6], b[7] = 0x60, ecn<<4, 59, 64 // no next header
	binary.BigEndian.PutUint16(b[4:], uint16(n))
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	copy(b[8:], s[:])
	copy(b[24:], d[:])
	return b
}

// frame wraps a packet as a peer with the kernel path does.
func frame(from netip.Addr, tos byte, inner []byte) []byte {
	b := make([]byte, 14+20+8, 14+20+8+len(inner))
	b[12] = 0x08
	ip, s, d := b[14:34], from.As4(), here.As4()
	ip[0], ip[1], ip[8], ip[9] = 0x45, tos, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(inner)))
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	udp := b[34:]
	binary.BigEndian.PutUint16(udp, 49152)
	binary.BigEndian.PutUint16(udp[2:], testPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(inner)))
	b = append(b, inner...)
	sumHeader(b)
	return b
}

// sumHeader writes the checksum of the outer IP header.
func sumHeader(frame []byte) {
	ip := frame[14:34]
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], ^sumOf(ip))
}

func sumOf(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

const (
	ect1, ect0, ce = 1, 2, 3
	dscp           = 0x28 // AF11, as TOS
)

func TestDatagramsOfPeersAreDecapsulated(t *testing.T) {
	in4, in6 := inner4("10.5.2.9", "10.5.1.7", 0, 33), inner6("fd00:5:2::9", "fd00:5:1::7", 0, 33)
	inNamespace(t, func(p *Path) {
		for _, tt := range []struct {
			name        string
			frame, want []byte // want: of the packet behind the Ethernet header
		}{
			{"IPv4", frame(peerAddr, 0, in4), in4},
			{"IPv6", frame(peerAddr, 0, in6), in6},
			{"padded to the least size of Ethernet", append(frame(peerAddr, 0, inner4("10.5.2.9", "10.5.1.7", 0, 1)), make([]byte, 3)...), append(inner4("10.5.2.9", "10.5.1.7", 0, 1), make([]byte, 3)...)},
			{"congestion over ECT(0)", frame(peerAddr, ce, inner4("10.5.2.9", "10.5.1.7", dscp|ect0, 9)), inner4("10.5.2.9", "10.5.1.7", dscp|ce, 9)},
			{"congestion over ECT(0), IPv6", frame(peerAddr, ce, inner6("fd00:5:2::9", "fd00:5:1::7", ect0, 9)), inner6("fd00:5:2::9", "fd00:5:1::7", ce, 9)},
			{"ECT(1) over ECT(0)", frame(peerAddr, ect1, inner4("10.5.2.9", "10.5.1.7", ect0, 9)), inner4("10.5.2.9", "10.5.1.7", ect1, 9)},
			{"ECT(0) over ECT(1)", frame(peerAddr, ect0, inner4("10.5.2.9", "10.5.1.7", ect1, 9)), inner4("10.5.2.9", "10.5.1.7", ect1, 9)},
			{"a DSCP outside", frame(peerAddr, dscp, inner4("10.5.2.9", "10.5.1.7", 0, 9)), inner4("10.5.2.9", "10.5.1.7", 0, 9)},
		} {
			verdict, out := run(t, p, tt.frame)
			if verdict != tcRedirect || !bytes.Equal(out[14:], tt.want) {
				t.Errorf("%s: verdict %d,\n got % x,\nwant % x", tt.name, int32(verdict), out[14:], tt.want)
			}
			if !bytes.Equal(out[:12], append(bytes.Clone(p.pair.far.HardwareAddr), p.pair.near.HardwareAddr...)) {
				t.Errorf("%s: Ethernet addresses % x", tt.name, out[:12])
			}
			if v6 := tt.want[0]>>4 == 6; v6 != bytes.Equal(out[12:14], []byte{0x86, 0xdd}) {
				t.Errorf("%s: EtherType % x", tt.name, out[12:14])
			}
		}
		traffic, err := p.Traffic()
		if err != nil {
			t.Fatal(err)
		}
		if got := traffic[peerAddr]; got.RXPackets != 8 || got.RXDropped != 0 {
			t.Errorf("counted: %+v", got)
		}
	})
}

// What the kernel must not take goes to the engine as it came: it drops it, and counts
// why.
func TestOtherDatagramsAreLeftToUserSpace(t *testing.T) {
	good := inner4("10.5.2.9", "10.5.1.7", 0, 33)
	change := func(f func(b []byte)) []byte {
		b := frame(peerAddr, 0, good)
		f(b)
		sumHeader(b)
		return b
	}
	const ip, udp, inner = 14, 34, 42
	inNamespace(t, func(p *Path) {
		for _, tt := range []struct {
			name  string
			frame []byte
		}{
			{"unknown peer", frame(netip.MustParseAddr("192.0.2.77"), 0, good)},
			{"inner source of another peer", frame(peerAddr, 0, inner4("10.5.3.9", "10.5.1.7", 0, 33))},
			{"inner source of nobody", frame(peerAddr, 0, inner4("10.9.9.9", "10.5.1.7", 0, 33))},
			{"our own inner source", frame(peerAddr, 0, inner4("10.5.1.8", "10.5.1.7", 0, 33))},
			{"inner source without an address", frame(peerAddr, 0, inner4("0.0.0.0", "10.5.1.7", 0, 33))},
			{"IPv6 source of an IPv4 subnet", frame(peerAddr, 0, inner6("::ffff:10.5.2.9", "fd00:5:1::7", 0, 33))},
			{"IPv6 destination of an IPv4 subnet", frame(peerAddr, 0, inner6("fd00:5:2::9", "::ffff:10.5.1.7", 0, 33))},
			{"inner destination of a peer", frame(peerAddr, 0, inner4("10.5.2.9", "10.5.3.7", 0, 33))},
			{"inner destination elsewhere", frame(peerAddr, 0, inner4("10.5.2.9", "198.51.100.7", 0, 33))},
			{"peer without the kernel path", frame(userPeer, 0, inner4("10.5.3.9", "10.5.1.7", 0, 33))},
			{"checksum", change(func(b []byte) { b[udp+6] = 1 })},
			{"another port", change(func(b []byte) { b[udp+3]++ })},
			{"another destination", change(func(b []byte) { b[ip+19]++ })},
			{"TCP", change(func(b []byte) { b[ip+9] = unix.IPPROTO_TCP })},
			{"first fragment", change(func(b []byte) { b[ip+6] = 0x20 })},
			{"last fragment", change(func(b []byte) { b[ip+7] = 1 })},
			{"header with options", change(func(b []byte) { b[ip] = 0x46 })},
			{"header of version 5", change(func(b []byte) { b[ip] = 0x55 })},
			{"UDP length too great", change(func(b []byte) { b[udp+5]++ })},
			{"UDP length too small", change(func(b []byte) { b[udp+5]-- })},
			{"IP length too great", change(func(b []byte) { b[ip+3]++ })},
			{"both lengths beyond the frame", change(func(b []byte) { b[ip+3], b[udp+5] = b[ip+3]+4, b[udp+5]+4 })},
			{"wrong header checksum", func() []byte { b := frame(peerAddr, 0, good); b[ip+10]++; return b }()},
			{"inner length too great", change(func(b []byte) { b[inner+3]++ })},
			{"inner length too small", change(func(b []byte) { b[inner+3]-- })},
			{"inner header too short", change(func(b []byte) { b[inner] = 0x44 })},
			{"inner header longer than the packet", frame(peerAddr, 0, func() []byte { b := inner4("10.5.2.9", "10.5.1.7", 0, 0); b[0] = 0x46; return b }())},
			{"inner version 0", change(func(b []byte) { b[inner] = 0 })},
			{"inner version 6 in an IPv4 packet", change(func(b []byte) { b[inner] = 0x65 })},
			{"nothing inside", frame(peerAddr, 0, nil)},
			{"half a header inside", frame(peerAddr, 0, good[:10])},
			{"half an IPv6 header inside", frame(peerAddr, 0, inner6("fd00:5:2::9", "fd00:5:1::7", 0, 0)[:39])},
			{"congestion over a packet without ECN", frame(peerAddr, ce, good)},
			{"ARP", func() []byte { b := frame(peerAddr, 0, good); b[13] = 6; return b }()},
		} {
			if verdict, out := run(t, p, tt.frame); verdict != tcPass || !bytes.Equal(out, tt.frame) {
				t.Errorf("%s: verdict %d,\n got % x,\nwant % x", tt.name, int32(verdict), out, tt.frame)
			}
		}
		if traffic, err := p.Traffic(); err != nil || traffic[peerAddr] != (Traffic{}) {
			t.Errorf("counted: %+v, %v", traffic[peerAddr], err)
		}
	})
}

// run passes a frame to the program as if it had been received.
func run(t *testing.T, p *Path, frame []byte) (verdict uint32, out []byte) {
	t.Helper()
	verdict, out, err := p.objects.Decapsulate.Test(frame)
	if err != nil {
		t.Fatal(err)
	}
	return verdict, out
}

func TestSubnetsFollowTheLeases(t *testing.T) {
	moved := []Peer{{Endpoint: userPeer, Kernel: true, Subnets: peers[0].Subnets}}
	packet := inner4("10.5.2.9", "10.5.1.7", 0, 33)
	inNamespace(t, func(p *Path) {
		for _, step := range []struct {
			what     string
			own      []netip.Prefix
			peers    []Peer
			old, now uint32     // verdicts on the packet from either host
			counted  netip.Addr // the peer with the kernel path, if there is one
		}{
			{"the subnet moves", []netip.Prefix{own4}, moved, tcPass, tcRedirect, userPeer},
			{"and back", []netip.Prefix{own4}, peers, tcRedirect, tcPass, peerAddr},
			{"our subnet changes", []netip.Prefix{own6}, peers, tcPass, tcPass, peerAddr},
			{"no peers", []netip.Prefix{own4}, nil, tcPass, tcPass, netip.Addr{}},
			{"again", []netip.Prefix{own4}, peers, tcRedirect, tcPass, peerAddr},
		} {
			if _, err := p.Set(step.own, step.peers); err != nil {
				t.Fatalf("%s: %v", step.what, err)
			}
			for from, want := range map[netip.Addr]uint32{peerAddr: step.old, userPeer: step.now} {
				if got, _ := run(t, p, frame(from, 0, packet)); got != want {
					t.Errorf("%s: verdict on a packet from %s: %d, want %d", step.what, from, int32(got), int32(want))
				}
			}
			traffic, err := p.Traffic()
			if err != nil {
				t.Fatal(err)
			}
			for addr := range traffic {
				if addr != step.counted {
					t.Errorf("%s: counters of %s", step.what, addr)
				}
			}
			if _, ok := traffic[step.counted]; !ok && step.counted.IsValid() {
				t.Errorf("%s: no counters of %s", step.what, step.counted)
			}
		}
	})
}
