package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// hostile is a datagram, or a train of them, that a host sends to the tunnel's port of
// host b. Hosts a and b are nodes.
type hostile struct {
	name    string
	from    int // number of the host
	tos     uint8
	payload []byte
	train   int // bytes of each datagram of a train; 0: one datagram
	// fates are what happens to the packets in it, in order.
	fates []fate
}

// fate is what happens to a packet: passes, stopped by the kernel of the node, or the
// reason for which it is dropped.
type fate string

const (
	passes          fate = "passes"
	stoppedByKernel fate = "stopped by the kernel" // on its way from the tunnel to the pod

	malformed          fate = "malformed"
	unknownPeer        fate = "unknown_peer"
	spoofedSource      fate = "spoofed_source"
	foreignDestination fate = "foreign_destination"
	congestion         fate = "congestion"
)

// dataPathAddrs are addresses of pods on hosts a and b, of one family.
type dataPathAddrs struct {
	family         string
	a, b           netip.Addr
	sources, sinks []string // that no packet from a to b may have
}

var addrsOf4 = dataPathAddrs{
	family: "IPv4", a: netip.MustParseAddr("10.5.1.2"), b: netip.MustParseAddr("10.5.2.2"),
	sources: []string{
		"10.5.2.2", "10.5.2.0", "10.5.2.99", // of host b: the pod itself, the device, another
		"10.5.3.2", "10.5.0.0", "10.5.255.255", "10.6.1.2", // in no lease
		"172.31.9.11", "172.31.9.12", "8.8.8.8", // nodes, the world
		"0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
	},
	sinks: []string{
		"10.5.1.2", "10.5.1.0", // back to the sender
		"10.5.3.2", "10.5.0.0", "10.5.255.255", "10.6.2.2",
		"172.31.9.11", "172.31.9.12", "8.8.8.8",
		"0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255",
	},
}

var addrsOf6 = dataPathAddrs{
	family: "IPv6", a: netip.MustParseAddr("fd00:10:5:1::2"), b: netip.MustParseAddr("fd00:10:5:2::2"),
	sources: []string{
		"fd00:10:5:2::2", "fd00:10:5:2::", "fd00:10:5:3::2", "fd00:10:6:1::2", "fd00:172:31:9::11",
		"::", "::1", "fe80::1", "ff02::1", "2001:db8::1", "2002:a05:102::1",
		"::ffff:10.5.1.2", "::10.5.1.2", "64:ff9b::10.5.1.2", // a's pod of the other family
	},
	sinks: []string{
		"fd00:10:5:1::2", "fd00:10:5:3::2", "fd00:10:6:2::2", "fd00:172:31:9::12",
		"::", "::1", "fe80::1", "ff01::1", "ff02::1", "ff02::1:ff00:2", "ff0e::1", "2001:db8::1",
		"::ffff:10.5.2.2", "::10.5.2.2", "64:ff9b::10.5.2.2",
	},
}

// good is a packet from a pod of host a to a pod of host b. Packets with other ports
// belong to other flows.
func (d dataPathAddrs) good(port uint16) packet {
	return udpPacket(netip.AddrPortFrom(d.a, port), netip.AddrPortFrom(d.b, 9), []byte("inner"))
}

// edited returns b with bytes written at an offset.
func edited(b []byte, at int, v ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], v)
	return b
}

// hostileKinds are the ways in which a datagram can be wrong, and a few in which it only
// looks so. The data path that receives it, whichever it is, must treat it as the
// table says.
func hostileKinds() []hostile {
	const a, c = 0, 2
	var all []hostile
	add := func(from int, f fate, name string, payload []byte) {
		all = append(all, hostile{name: name, from: from, payload: payload, fates: []fate{f}})
	}
	for _, d := range []dataPathAddrs{addrsOf4, addrsOf6} {
		good := d.good(1).bytes()
		named := func(format string, args ...any) string { return d.family + " " + fmt.Sprintf(format, args...) }

		// Of the wrong length.
		for _, n := range []int{1, 2, 4, 8, 12, 19, 20, 21, 27, len(good) - 2, len(good) - 1} {
			if d.family == "IPv4" || n > 20 { // shorter ones are the same
				add(a, malformed, named("cut to %d bytes", n), good[:n])
			}
		}
		for _, n := range []int{1, 2, 40, 1000} {
			add(a, malformed, named("with %d bytes more", n), append(bytes.Clone(good), make([]byte, n)...))
		}
		at, headers := 2, 0 // where the length is, and what it does not count
		if d.family == "IPv6" {
			at, headers = 4, 40
		}
		for _, n := range []int{0, 1, 20, len(good) - headers - 1, len(good) - headers + 1, 1500, 65535} {
			if n != len(good)-headers {
				add(a, malformed, named("that claims %d bytes", n), edited(good, at, byte(n>>8), byte(n)))
			}
		}
		for v := range 16 {
			if was := int(good[0] >> 4); v != was {
				add(a, malformed, named("as version %d", v), edited(good, 0, byte(v)<<4|good[0]&0xf))
			}
		}

		// From or to where it must not.
		for _, addr := range d.sources {
			p := d.good(1)
			p.src = netip.MustParseAddr(addr)
			add(a, spoofedSource, named("from %s", addr), p.bytes())
		}
		for _, addr := range d.sinks {
			p := d.good(1)
			p.dst = netip.MustParseAddr(addr)
			add(a, foreignDestination, named("to %s", addr), p.bytes())
		}

		// From a host without a lease, whatever it is.
		p := d.good(1)
		add(c, unknownPeer, named("of a stranger"), good)
		p.src = netip.MustParseAddr(d.sinks[1])
		add(c, unknownPeer, named("of a stranger, from an address of no lease"), p.bytes())
		add(c, unknownPeer, named("of a stranger, cut"), good[:9])

		// In a train.
		all = append(all, d.trains()...)

		// On a congested path, without ECN inside.
		all = append(all, hostile{name: named("marked as congestion experienced"), from: a, tos: ce, payload: good, fates: []fate{congestion}})

		// Right for the tunnel. Routers stop some of it.
		for ttl, f := range []fate{stoppedByKernel, stoppedByKernel, passes} {
			p := d.good(1)
			b := p.bytes()
			b[map[string]int{"IPv4": 8, "IPv6": 7}[d.family]] = byte(ttl)
			if d.family == "IPv4" {
				b[10], b[11] = 0, 0
				binary.BigEndian.PutUint16(b[10:], ^onesSum(b[:20]))
			}
			add(a, f, named("with %d hops left", ttl), b)
		}
		none := d.good(1)
		none.proto, none.payload = 59, nil
		add(a, passes, named("without content"), none.bytes())
		odd := d.good(1)
		odd.proto = 253
		add(a, passes, named("of an unknown protocol"), odd.bytes())
		add(a, passes, named("with a wrong UDP checksum"), edited(good, len(good)-1, good[len(good)-1]+1))
	}
	add(a, malformed, "nothing", nil)
	add(c, unknownPeer, "nothing of a stranger", nil)
	add(a, malformed, "text", []byte("GET / HTTP/1.1\r\nHost: 10.5.2.2\r\n\r\n"))
	add(a, malformed, "zeros", make([]byte, 1472))
	add(a, malformed, "ones", bytes.Repeat([]byte{0xff}, 1472))
	return slices.Concat(all, headers4(), headers6())
}

// headers4 are kinds of IPv4 headers.
func headers4() (all []hostile) {
	add := func(f fate, name string, b []byte) {
		all = append(all, hostile{name: "IPv4 " + name, payload: b, fates: []fate{f}})
	}
	good := addrsOf4.good(1).bytes()
	for words := range 5 {
		add(malformed, fmt.Sprintf("with a header of %d bytes", 4*words), edited(good, 0, 0x40|byte(words)))
	}
	add(malformed, "with a header past the end", edited(good, 0, 0x4f))
	add(stoppedByKernel, "with a wrong header checksum", edited(good, 10, good[10]+1))
	broadcast := addrsOf4.good(1)
	broadcast.dst = netip.MustParseAddr("10.5.2.255")
	add(stoppedByKernel, "to all pods of the node", broadcast.bytes())
	for _, o := range []struct {
		name    string
		options []byte
		fate    fate
	}{
		{"loose source route", []byte{131, 7, 4, 8, 8, 8, 8, 0}, stoppedByKernel},
		{"strict source route", []byte{137, 7, 4, 8, 8, 8, 8, 0}, stoppedByKernel},
		{"an option longer than the header", []byte{7, 99, 4, 0}, stoppedByKernel},
		{"an option without length", []byte{7, 0, 4, 0}, stoppedByKernel},
		{"options that do nothing", []byte{1, 1, 1, 0}, passes},
	} {
		p := addrsOf4.good(1)
		p.options = o.options
		add(o.fate, "with "+o.name, p.bytes())
	}
	for _, f := range []struct {
		name string
		frag uint16
	}{
		{"first fragment", 0x2000}, {"middle fragment", 0x2001}, {"last fragment", 1},
		{"fragment that ends past 65,535", 0x1fff}, {"fragment with DF", 0x6000}, {"packet with the evil bit", 0x8000},
	} {
		p := addrsOf4.good(1)
		p.frag = f.frag
		add(passes, f.name, p.bytes())
	}
	return all
}

// headers6 are kinds of chains of IPv6 headers.
func headers6() (all []hostile) {
	for _, h := range []struct {
		name  string
		first byte // next header
		chain []byte
		fate  fate
	}{
		{"hop-by-hop options that do nothing", unix.IPPROTO_HOPOPTS, []byte{59, 0, 1, 4, 0, 0, 0, 0}, passes},
		{"a hop-by-hop option to discard", unix.IPPROTO_HOPOPTS, []byte{59, 0, 0x7e, 4, 0, 0, 0, 0}, stoppedByKernel},
		{"hop-by-hop options past the end", unix.IPPROTO_HOPOPTS, []byte{59, 9, 1, 4, 0, 0, 0, 0}, stoppedByKernel},
		{"a jumbo payload option", unix.IPPROTO_HOPOPTS, []byte{59, 0, 0xc2, 4, 0, 1, 0, 0}, stoppedByKernel},
		{"a source route", unix.IPPROTO_ROUTING, append([]byte{59, 2, 0, 1, 0, 0, 0, 0}, netip.MustParseAddr("fd00:10:5:3::2").AsSlice()...), passes},
		{"a first fragment", unix.IPPROTO_FRAGMENT, []byte{59, 0, 0, 1, 0, 0, 0, 9}, passes},
		{"a last fragment", unix.IPPROTO_FRAGMENT, []byte{59, 0, 0, 8, 0, 0, 0, 9}, passes},
		{"a fragment header cut short", unix.IPPROTO_FRAGMENT, []byte{59, 0}, passes},
		{"destination options past the end", unix.IPPROTO_DSTOPTS, []byte{59, 99, 1, 4, 0, 0, 0, 0}, passes},
	} {
		p := addrsOf6.good(1)
		p.proto, p.payload = h.first, h.chain
		all = append(all, hostile{name: "IPv6 with " + h.name, payload: p.bytes(), fates: []fate{h.fate}})
	}
	return all
}

// trains are trains of good and bad datagrams of one size. Each is judged by itself.
func (d dataPathAddrs) trains() (all []hostile) {
	good := func(port uint16) []byte { return d.good(port).bytes() }
	spoofed, foreign := d.good(100), d.good(101)
	spoofed.src, foreign.dst = netip.MustParseAddr(d.sources[3]), netip.MustParseAddr(d.sinks[2])
	version := edited(good(102), 0, 0x50)
	length := edited(good(103), map[string]int{"IPv4": 3, "IPv6": 5}[d.family], 1)
	for _, tt := range []struct {
		name   string
		from   int
		pieces [][]byte
		fates  []fate
	}{
		{"of good packets", 0, [][]byte{good(1), good(2), good(3)}, []fate{passes, passes, passes}},
		{"with a spoofed source inside", 0, [][]byte{good(1), spoofed.bytes(), good(3)}, []fate{passes, spoofedSource, passes}},
		{"with a foreign destination inside", 0, [][]byte{good(1), foreign.bytes(), good(3)}, []fate{passes, foreignDestination, passes}},
		{"with a packet of no version inside", 0, [][]byte{good(1), version, good(3)}, []fate{passes, malformed, passes}},
		{"with a packet of a wrong length inside", 0, [][]byte{good(1), length, good(3)}, []fate{passes, malformed, passes}},
		{"that begins badly", 0, [][]byte{spoofed.bytes(), foreign.bytes(), good(3)}, []fate{spoofedSource, foreignDestination, passes}},
		{"that ends in half a packet", 0, [][]byte{good(1), good(2), good(3)[:30]}, []fate{passes, passes, malformed}},
		{"of nothing good", 0, [][]byte{version, spoofed.bytes(), length, foreign.bytes()}, []fate{malformed, spoofedSource, malformed, foreignDestination}},
	} {
		all = append(all, hostile{
			name: "train " + tt.name + ", " + d.family, from: tt.from,
			payload: slices.Concat(tt.pieces...), train: len(tt.pieces[0]), fates: tt.fates,
		})
	}
	return all
}
