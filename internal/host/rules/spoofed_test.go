package rules

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// forgedDatagram is a packet with a UDP datagram of one byte.
func forgedDatagram(from netip.Addr, to netip.AddrPort) []byte {
	const length = 8 + 1
	udp := []byte{0x30, 0x39, 0, 0, 0, length, 0, 0, 'x'}
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	src, dst := from.AsSlice(), to.Addr().AsSlice()
	if from.Is4() {
		header := []byte{0x45, 0, 0, 20 + length, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		return append(append(append(header, src...), dst...), udp...) // the kernel completes the checksum
	}
	pseudo := append(append(append([]byte{}, src...), dst...), 0, 0, 0, length, 0, 0, 0, unix.IPPROTO_UDP)
	var sum uint32
	for i, b := range append(pseudo, udp...) {
		sum += uint32(b) << (8 * (1 - i%2))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], ^uint16(sum))
	header := []byte{0x60, 0, 0, 0, 0, length, unix.IPPROTO_UDP, 64}
	return append(append(append(header, src...), dst...), udp...)
}

// sendRaw sends a packet as it is.
func (l *lab) sendRaw(from *netlab.Namespace, packet []byte, to netip.Addr) {
	l.t.Helper()
	family := unix.AF_INET
	var addr unix.Sockaddr = &unix.SockaddrInet4{}
	if to.Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Addr: to.As16()}
	} else {
		addr = &unix.SockaddrInet4{Addr: to.As4()}
	}
	testkit.Must(l.t, from.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, addr)
	}))
}

// A pod that may send raw packets cannot be another node, or its own.
func TestPodsCannotForgeTheAddressesOfNodes(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		third := []netip.Addr{netip.MustParseAddr("172.31.9.77"), netip.MustParseAddr("fd00:172:31:9::77")}
		w := guarded(fl, a, b)
		underlay := w.Guard.Underlay
		w.Guard.Underlay = nil
		w.Guard.Peers = Blocks(append(third, b.Addr, b.Addr6))
		r := newRules(t, w)
		l.apply(r)
		pod := a.Pods[0].NS
		at := netip.AddrPortFrom
		cases := []struct {
			name   string
			at     *netlab.Namespace
			to     netip.AddrPort
			forged netip.Addr
		}{
			{"udp backend of its own node, from a peer", a.NS, at(a.Addr, 8285), b.Addr},
			{"udp backend of its own node, from a peer, IPv6", a.NS, at(a.Addr6, 8285), b.Addr6},
			{"VXLAN device of its own node, from a peer", a.NS, at(a.Addr, 8472), b.Addr},
			{"VXLAN device of its own node, from a peer, IPv6", a.NS, at(a.Addr6, 8472), b.Addr6},
			{"udp backend of a peer, from a third node", b.NS, at(b.Addr, 8285), third[0]},
			{"udp backend of a peer, from a third node, IPv6", b.NS, at(b.Addr6, 8285), third[1]},
			{"VXLAN device of a peer, from a third node, IPv6", b.NS, at(b.Addr6, 8472), third[1]},
			{"udp backend of a peer, from its own node, IPv6", b.NS, at(b.Addr6, 8285), a.Addr6},
		}
		for _, guarded := range []bool{false, true} {
			name := "arrive without the rules"
			if guarded {
				w.Guard.Underlay = underlay
				set(t, r, w)
				l.apply(r)
				name = "do not arrive"
			}
			t.Run(name, func(t *testing.T) {
				for _, tt := range cases {
					l := *l
					l.t = t
					send := func(to netip.AddrPort) { l.sendRaw(pod, forgedDatagram(tt.forged, to), to.Addr()) }
					if got := l.arrivesBy(arrival{name: tt.name, at: tt.at, to: tt.to, arrives: !guarded}, send); got == guarded {
						t.Errorf("%s: arrives: %t\n%s", tt.name, got, l.everything())
					}
				}
			})
		}
	})
}

// Names of interfaces that a tool would take as patterns are written with an escape if it
// has one.
func TestNamesOfInterfacesAreNeverPatterns(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		w := guarded(fl, a, b)
		w.Guard.Underlay = []string{"eth*", "e*h", "*", "a?[b]", "(a){1,}", "$a;b'c", "-a#|&~", "!", "@a=b", "br.10-x_y", "lanü", "a+b", "a+*"}
		if fl.nftables {
			w.Guard.Underlay = append(w.Guard.Underlay, "eth+", "+")
		}
		r := newRules(t, w)
		l.apply(r)
		if got := strings.Count(strings.ToLower(l.everything()), "lanü"); got != 2 { // once in a family
			t.Errorf("no guard\n%s", l.everything())
		}
		l.writes()
		l.apply(r)
		if writes := l.writes(); writes != nil {
			t.Errorf("written again: %q", writes)
		}
	})
}

// Names that a tool cannot match exactly are reported.
func TestNamesThatRulesCannotContainAreReported(t *testing.T) {
	for _, fl := range []flavour{iptablesNFT, nftTables} {
		w := wanted(fl)
		w.Guard = Guard{UDPPort: 8285, Underlay: []string{"eth0", "eth+", `a"b`, `a\b`, `a\*`, "a\x1bb", "a\xff", "eth*"}}
		want := w.Guard.Underlay[2:7]
		if !fl.nftables {
			want = w.Guard.Underlay[1:7]
		}
		var log strings.Builder
		r, err := New(Config{Wanted: w, Resync: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		testkit.Must(t, err)
		set(t, r, w)
		if got := r.Status().Unwritable; !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", fl.name, got, want)
		}
		if got := log.String(); strings.Count(got, "forged sources are off") != 1 || !strings.Contains(got, "remedy") {
			t.Errorf("%s: log: %s", fl.name, got)
		}
		w.Guard.UDPPort = 0
		set(t, r, w)
		if got := r.Status().Unwritable; got != nil {
			t.Errorf("%s: without a tunnel: %q", fl.name, got)
		}
	}
}

// A pod on an interface that only the pattern matches cannot forge addresses.
func TestInterfaceThatOnlyThePatternMatchesIsGuarded(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		w := guarded(fl, a, b)
		w.Guard.Underlay = []string{netlab.UnderlayLink, "cni*"}
		r := newRules(t, w)
		l.apply(r)
		to := netip.AddrPortFrom(a.Addr, 8285)
		send := func(to netip.AddrPort) { l.sendRaw(a.Pods[0].NS, forgedDatagram(b.Addr, to), to.Addr()) }
		if l.arrivesBy(arrival{name: "by cni0", at: a.NS, to: to}, send) {
			t.Errorf("arrives\n%s", l.everything())
		}
	})
}

// A name that becomes writable, or another interface, turns the guard on.
func TestGuardReturnsWithANameThatCanBeWritten(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		w := guarded(fl, a, b)
		r := newRules(t, w)
		l.apply(r)
		all := content(l.everything())
		w.Guard.Underlay = []string{`wan"1`}
		set(t, r, w)
		l.apply(r)
		if got := strings.ToLower(l.everything()); strings.Contains(got, "spoof") || !strings.Contains(got, "guard-in") {
			t.Errorf("got\n%s", got)
		}
		if s := r.Status(); !slices.Equal(s.Unwritable, []string{`wan"1`}) {
			t.Errorf("unwritable: %q", s.Unwritable)
		}
		set(t, r, guarded(fl, a, b))
		l.apply(r)
		if got := content(l.everything()); got != all || r.Status().Unwritable != nil {
			t.Errorf("unwritable: %q\n%s", r.Status().Unwritable, changes(all, got))
		}
	})
}

// A node may have interfaces that packets of its peers arrive by although those to them
// leave by others, and peers of its own host, such as virtual machines.
//
//	host a ── eth0 ◄─── to b ─── host b
//	       └─ eth1 ─── from b ──►
func TestPeersMaySendByOtherInterfacesOfTheUnderlay(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		wire(t, a, b, "eth1")
		// b sends by the second wire, from the address that a knows it by.
		run(t, b.NS, "ip route add "+a.Addr.String()+"/32 via 192.0.2.1 src "+b.Addr.String(),
			"ip -6 route add "+a.Addr6.String()+"/128 via 2001:db8::1 src "+b.Addr6.String())
		w := guarded(fl, a, b)
		w.Guard.Underlay = []string{netlab.UnderlayLink, "eth1"}
		r := newRules(t, w)
		l.apply(r)
		from := func(what string, arrives bool) {
			t.Helper()
			for _, to := range []netip.Addr{a.Addr, a.Addr6} {
				for _, port := range []uint16{8285, 8472} {
					tt := arrival{name: what, from: b.NS, at: a.NS, to: netip.AddrPortFrom(to, port), arrives: arrives}
					if got := l.arrives(tt); got != arrives {
						t.Errorf("%s: to %s: arrives: %t\n%s", what, tt.to, got, l.everything())
					}
				}
			}
		}
		from("by another interface of the underlay", true)
		w.Guard.Underlay = []string{netlab.UnderlayLink}
		set(t, r, w)
		l.apply(r)
		from("by an interface that neither is of the underlay nor leads to the peer", false)
		run(t, a.NS, "ip route add "+b.Addr.String()+"/32 via 192.0.2.2", "ip -6 route add "+b.Addr6.String()+"/128 via 2001:db8::2")
		from("by an interface that leads to the peer", true)
	})
}

// wire makes a veth between two hosts, with the addresses 192.0.2.1 and 2001:db8::1 at a, .2
// and ::2 at b.
func wire(t *testing.T, a, b *netlab.Host, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	testkit.Must(t, a.NS.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(b.NS.FD())}))
	for i, h := range []*netlab.Host{a, b} {
		run(t, h.NS, "ip link set "+name+" up", fmt.Sprintf("ip addr add 192.0.2.%d/24 dev %s", i+1, name),
			fmt.Sprintf("ip addr add 2001:db8::%d/64 dev %s nodad", i+1, name))
	}
}

func run(t *testing.T, ns *netlab.Namespace, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if out, err := ns.Command(t.Context(), "sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
}

// Where the kernel or the tool lacks the match for forged sources, everything else is
// there, and the status says what is not.
func TestNodeWorksWhereForgedSourcesCannotBeMatched(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		refuse := func(program, args, what string) {
			l.program(program, `sh -c 'case "$*" in `+args+`) in=$(cat); case $in in *"`+what+`"*) echo "no such match" >&2; exit 2;; esac
				printf "%s\n" "$in" | exec `+l.find(strings.Replace(program, "tables", "tables-"+fl.kind, 1))+` "$@";;
				*) exec `+l.find(strings.Replace(program, "tables", "tables-"+fl.kind, 1))+` "$@";; esac' sh "$@"`)
		}
		w := guarded(fl, a, b)
		if fl.nftables {
			refuse("nft", `*"-f -"*`, "fib saddr")
		} else {
			for _, f := range families {
				refuse(f.iptables+"-restore", "*", "rpfilter")
			}
		}
		r := newRules(t, w)
		l.apply(r)
		got := strings.ToLower(l.everything())
		if strings.Contains(got, "spoof") || !strings.Contains(got, "guard-in") || !strings.Contains(got, "postrtg") {
			t.Errorf("got\n%s", got)
		}
		s := r.Status()
		if s.Problem != nil || len(s.Missing) != 2 || !strings.HasPrefix(s.Missing[0], "IPv4: pods with CAP_NET_RAW") {
			t.Errorf("status: problem %v, missing %q", s.Problem, s.Missing)
		}
		l.writes()
		l.apply(r)
		if writes := l.writes(); writes != nil {
			t.Errorf("tried again: %q", writes)
		}
	})
}
