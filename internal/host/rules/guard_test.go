package rules

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// guarded are the rules of host a, whose peer is host b.
func guarded(fl flavour, a, b *netlab.Host) Wanted {
	w := podsWanted(fl, a)
	w.Guard = Guard{UDPPort: 8285, VXLANPort: 8472, Peers: Blocks([]netip.Addr{b.Addr, b.Addr6}), Underlay: []string{netlab.UnderlayLink}}
	return w
}

// arrival is what a test sends and where it may arrive.
type arrival struct {
	name    string
	from    *netlab.Namespace
	user    uint32
	at      *netlab.Namespace
	to      netip.AddrPort
	arrives bool
}

// arrives sends datagrams until one arrives or, if none is to, until several to another
// port have.
func (l *lab) arrives(a arrival) bool {
	l.t.Helper()
	return l.arrivesBy(a, func(to netip.AddrPort) { l.sendAs(a, to) })
}

// arrivesBy is arrives for datagrams that are sent in another way.
func (l *lab) arrivesBy(a arrival, send func(to netip.AddrPort)) bool {
	l.t.Helper()
	var ends []func() error
	defer func() {
		for _, end := range ends {
			end()
		}
	}()
	listen := func(to netip.AddrPort) func(wait time.Duration) bool {
		if to.Addr().IsLinkLocalUnicast() { // at any link
			to = netip.AddrPortFrom(netip.IPv6Unspecified(), to.Port())
		}
		c, err := a.at.ListenPacket("udp", to.String())
		if err != nil {
			l.t.Fatal(err)
		}
		ends = append(ends, c.Close)
		return func(wait time.Duration) bool {
			_ = c.SetReadDeadline(time.Now().Add(wait))
			_, _, err := c.ReadFrom(make([]byte, 9))
			return err == nil
		}
	}
	other := netip.AddrPortFrom(a.to.Addr(), 7)
	came, witness := listen(a.to), listen(other)
	witnesses := 0
	for range 100 {
		send(a.to)
		if a.arrives {
			if came(time.Second) {
				return true
			}
			continue
		}
		send(other)
		if witness(time.Second) {
			witnesses++
		}
		if came(50 * time.Millisecond) {
			return true
		}
		if witnesses == 3 {
			return false
		}
	}
	if witnesses == 0 {
		l.t.Fatalf("%s: nothing arrives on any port", a.name)
	}
	return false
}

// sendAs sends one datagram as a user. What a process may not send is not an error.
func (l *lab) sendAs(a arrival, to netip.AddrPort) {
	l.t.Helper()
	host := to.Addr().String()
	if to.Addr().IsLinkLocalUnicast() {
		host += "%eth0"
	}
	cmd := a.from.Command(l.t.Context(), "bash", "-c", fmt.Sprintf("echo -n x >/dev/udp/%s/%d", host, to.Port()))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: a.user, Gid: a.user}}
	if out, err := cmd.CombinedOutput(); err != nil && !strings.Contains(string(out), "Operation not permitted") {
		l.t.Fatalf("%s: %v\n%s", a.name, err, out)
	}
}

func TestTunnelsOfOtherNodesAreOutOfReachOfPodsAndUsers(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		r := newRules(t, guarded(fl, a, b))
		l.apply(r)
		podA, podB := a.Pods[0], b.Pods[0]
		at := netip.AddrPortFrom
		elsewhere := netip.MustParseAddr("172.31.9.99") // of host b too, but no peer's
		if out, err := b.NS.Command(t.Context(), "ip", "addr", "add", elsewhere.String()+"/24", "dev", netlab.UnderlayLink).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, tt := range []arrival{
			{"pod to the udp backend of a peer", podA.NS, 0, b.NS, at(b.Addr, 8285), false},
			{"pod to the VXLAN device of a peer", podA.NS, 0, b.NS, at(b.Addr, 8472), false},
			{"pod to the udp backend of a peer, IPv6", podA.NS, 0, b.NS, at(b.Addr6, 8285), false},
			{"pod to the VXLAN device of a peer, IPv6", podA.NS, 0, b.NS, at(b.Addr6, 8472), false},
			{"pod to the VXLAN device of its own node", podA.NS, 0, a.NS, at(a.Addr, 8472), false},
			{"pod to the VXLAN device of its own node, IPv6", podA.NS, 0, a.NS, at(a.Addr6, 8472), false},
			{"pod to the VXLAN device of its own node, link-local", podA.NS, 0, a.NS, at(linkLocalOf(t, a.NS, "cni0"), 8472), false},
			{"pod to another port of a peer", podA.NS, 0, b.NS, at(b.Addr, 8286), true},
			{"pod to these ports of another pod", podA.NS, 0, podB.NS, at(podB.Addr, 8285), true},
			{"pod to these ports of another pod, IPv6", podA.NS, 0, podB.NS, at(podB.Addr6, 8472), true},
			{"pod to these ports elsewhere", podA.NS, 0, b.NS, at(elsewhere, 8285), true},
			{"root to the udp backend of a peer", a.NS, 0, b.NS, at(b.Addr, 8285), true},
			{"user to the udp backend of a peer", a.NS, 1000, b.NS, at(b.Addr, 8285), false},
			{"user to the udp backend of a peer, IPv6", a.NS, 1000, b.NS, at(b.Addr6, 8285), false},
			{"user to another port of a peer", a.NS, 1000, b.NS, at(b.Addr, 8286), true},
			{"user to these ports elsewhere", a.NS, 1000, b.NS, at(elsewhere, 8285), true},
			{"peer to this node", b.NS, 0, a.NS, at(a.Addr, 8472), true},
		} {
			t.Run(tt.name, func(t *testing.T) {
				l := *l
				l.t = t
				if got := l.arrives(tt); got != tt.arrives {
					t.Errorf("arrives: %t, want %t\n%s", got, tt.arrives, l.everything())
				}
			})
		}
	})
}

// linkLocalOf returns the link-local address of a link, for a pod's side of it.
func linkLocalOf(t *testing.T, ns *netlab.Namespace, link string) netip.Addr {
	t.Helper()
	l, err := ns.Netlink().LinkByName(link)
	testkit.Must(t, err)
	addrs, err := ns.Netlink().AddrList(l, netlink.FAMILY_V6)
	testkit.Must(t, err)
	for _, a := range addrs {
		if ip, _ := netip.AddrFromSlice(a.IP); ip.IsLinkLocalUnicast() {
			return ip
		}
	}
	t.Fatalf("%s has no link-local address", link)
	return netip.Addr{}
}

// content is the lines of a dump in order, without handles and counters.
func content(dump string) string {
	var lines []string
	for line := range strings.Lines(regexp.MustCompile(` # handle [0-9]+|packets [0-9]+ bytes [0-9]+|\[[0-9]+:[0-9]+\]`).ReplaceAllString(dump, "")) {
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// The rules are compared and kept as all others are.
func TestGuardIsWrittenOnceAndRestored(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		w := guarded(fl, a, b)
		r := newRules(t, w)
		l.apply(r)
		all := content(l.everything())
		l.writes()
		l.apply(r)
		if writes := l.writes(); writes != nil {
			t.Errorf("written again: %q", writes)
		}
		if fl.nftables {
			l.sh("nft flush chain ip flannel-ipv4 guard-forward; nft delete chain ip6 flannel-ipv6 guard-input; nft flush chain ip6 flannel-ipv6 guard-spoofed")
		} else {
			l.sh("iptables -F TWILL-GUARD-FWD; iptables -t raw -F TWILL-GUARD-SPOOF; ip6tables -D INPUT -m comment --comment 'twilld guard input' -j TWILL-GUARD-IN")
		}
		l.apply(r)
		if got := content(l.everything()); got != all {
			t.Errorf("not restored:\n%s", changes(all, got))
		}
		// The rules of a peer are removed with it, and added with a new one.
		w.Guard.Peers = Blocks([]netip.Addr{netip.MustParseAddr("172.31.9.77")})
		set(t, r, w)
		l.apply(r)
		if got := l.everything(); !strings.Contains(got, "172.31.9.77") || strings.Contains(got, b.Addr.String()) {
			t.Errorf("after a change of the peers:\n%s", got)
		}
		w.Guard = Guard{}
		set(t, r, w)
		l.apply(r)
		if got := l.everything(); strings.Contains(strings.ToLower(got), "guard") {
			t.Errorf("left:\n%s", got)
		}
		set(t, r, guarded(fl, a, b))
		l.apply(r)
		testkit.Must(t, l.cleanUp())
		if got := l.everything(); strings.Contains(strings.ToLower(got), "guard") {
			t.Errorf("left by the clean-up:\n%s", got)
		}
	})
}

// A kernel without the match for the owner of a packet has all other rules.
func TestNodeWorksWhereTheKernelCannotTellUsersApart(t *testing.T) {
	for _, fl := range []flavour{iptablesNFT, iptablesLegacy} {
		t.Run(fl.name, func(t *testing.T) {
			l, a, b := pods(t, fl)
			for _, f := range families {
				name := f.iptables + "-restore"
				l.program(name, fmt.Sprintf(`sh -c 'in=$(cat); case $in in *uid-owner*) echo "Couldnt load match owner" >&2; exit 2;; esac; echo "$in" | exec %s-%s-restore "$@"' %s "$@"`, f.iptables, fl.kind, name))
			}
			r := newRules(t, guarded(fl, a, b))
			l.apply(r)
			got := l.everything()
			if !strings.Contains(got, "TWILL-GUARD-FWD") || strings.Contains(got, "TWILL-GUARD-OUT") || !strings.Contains(got, "FLANNEL-POSTRTG") {
				t.Errorf("got\n%s", got)
			}
			if s := r.Status(); s.Problem != nil {
				t.Errorf("problem: %v", s.Problem)
			}
		})
	}
}

func TestManyPeersAreGuardedInFewBlocks(t *testing.T) {
	var addrs []netip.Addr
	for i := range 5000 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}))
	}
	blocks := Blocks(addrs)
	if len(blocks) > blocksAtMost {
		t.Errorf("%d blocks", len(blocks))
	}
	for _, a := range addrs {
		found := false
		for _, b := range blocks {
			found = found || b.Contains(a)
		}
		if !found {
			t.Fatalf("%s is in none of %v", a, blocks)
		}
	}
	few := addrs[:20]
	for _, b := range Blocks(few) {
		if !b.IsSingleIP() {
			t.Errorf("%s for few peers", b)
		}
	}
}
