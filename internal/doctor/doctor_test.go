package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
)

func TestMain(m *testing.M) { netlabtest.Main(m) }

// patient is a node in a namespace.
type patient struct {
	*testing.T
	ns *netlab.Namespace
	x  examination
}

var (
	network = netip.MustParsePrefix("10.5.0.0/16")
	subnet  = netip.MustParsePrefix("10.5.1.0/24")
	self    = netip.MustParseAddr("192.0.2.1")
	other   = netip.MustParseAddr("192.0.2.2")
)

// newPatient returns a node without faults, as twilld and the store describe it.
func newPatient(t *testing.T, ns *netlab.Namespace) *patient {
	own := lease.Lease{Attrs: lease.Attrs{PublicIP: self}, Subnet: subnet, Expiration: time.Now().Add(23 * time.Hour)}
	peer := lease.Lease{Attrs: lease.Attrs{PublicIP: other}, Subnet: netip.MustParsePrefix("10.5.2.0/24"), Expiration: own.Expiration}
	c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16"}`))
	if err != nil {
		t.Fatal(err)
	}
	return &patient{t, ns, examination{
		Node: Node{
			Daemon: &status.Document{
				Version: "v1", Network: []netip.Prefix{network},
				Lease:    &status.Lease{Subnet: subnet, PublicIP: self},
				Underlay: &status.Underlay{Name: "eth0", IPv4: self, MTU: 1500},
			},
			Env:    lease.SubnetEnv{Network: network, Subnet: subnet, MTU: 1472},
			Config: c, Leases: []lease.Lease{own, peer}, Forward: true,
		},
		host: host{tun: "/dev/net/tun", clock: func(*unix.Timex) (int, error) { return 0, nil }},
	}}
}

// look runs one check in the node's namespace.
func (p *patient) look(check string) (found []Finding) {
	p.Helper()
	i := slices.IndexFunc(checks, func(c struct {
		name string
		run  func(*examination, context.Context) []Finding
	}) bool {
		return c.name == check
	})
	if i < 0 {
		p.Fatalf("there is no check %s", check)
	}
	p.x.reached, p.x.reachErr, p.x.ruleset = nil, nil, nil // each look is an examination of its own
	look := func() error {
		found = checks[i].run(&p.x, p.Context())
		return nil
	}
	if p.ns == nil {
		_ = look()
	} else if err := p.ns.Do(look); err != nil {
		p.Fatal(err)
	}
	return found
}

func (p *patient) isWell(check string) {
	p.Helper()
	if found := p.look(check); Worst(found) != OK || len(found) == 0 {
		p.Errorf("%s: got %+v, want it to be well", check, found)
	}
}

// has looks for a finding of a level with want in its text, and returns it.
func (p *patient) has(check string, level Level, want string) Finding {
	p.Helper()
	found := p.look(check)
	for _, f := range found {
		if f.Level == level && strings.Contains(f.Text, want) {
			return f
		}
	}
	p.Fatalf("%s: got %+v, want one that is %s with %q", check, found, level, want)
	return Finding{}
}

// repairs looks for a finding as has does, runs its remedy, and looks again.
func (p *patient) repairs(check string, level Level, want string) {
	p.Helper()
	f := p.has(check, level, want)
	p.run(f.Remedy)
	p.isWell(check)
}

// run runs a command of the shell on the node.
func (p *patient) run(command string) {
	p.Helper()
	if out, err := p.ns.Command(p.Context(), "sh", "-c", command).CombinedOutput(); err != nil || command == "" {
		p.Fatalf("%q: %v\n%s", command, err, out)
	}
}

func (p *patient) sysctl(key, value string) {
	p.Helper()
	if err := p.ns.Sysctl(key, value); err != nil {
		p.Fatal(err)
	}
}

func TestForwardingIsTurnedOn(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.sysctl("net/ipv4/ip_forward", "0")
	p.repairs("forwarding", Bad, "net/ipv4/ip_forward is 0")

	p.x.Daemon.Network = append(p.x.Daemon.Network, netip.MustParsePrefix("fc00:5::/48"))
	p.sysctl("net/ipv6/conf/all/forwarding", "0")
	p.repairs("forwarding", Bad, "net/ipv6/conf/all/forwarding is 0")

	p.x.Daemon.Dataplane = &status.Dataplane{Devices: []status.Device{{Name: "lo"}}} // any device will do
	p.sysctl("net/ipv4/conf/lo/forwarding", "0")
	p.repairs("forwarding", Bad, "net/ipv4/conf/lo/forwarding is 0")
}

func TestReversePathFilterThatDropsAPeerIsLoosened(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	p := newPatient(t, a.NS)
	p.x.Leases[1].PublicIP = b.Addr
	p.x.Daemon.Dataplane = nil
	p.sysctl("net/ipv4/conf/eth0/rp_filter", "1")
	p.isWell("rp-filter") // the answer goes back the same way

	p.run(fmt.Sprintf("ip route add %s dev cni0", b.Addr))
	p.repairs("rp-filter", Bad, "arrive on eth0, but the route back is through cni0")
	p.sysctl("net/ipv4/conf/eth0/rp_filter", "0")
	p.sysctl("net/ipv4/conf/all/rp_filter", "1") // the greater counts
	p.repairs("rp-filter", Bad, "rp_filter")
}

func TestForwardPolicyThatDropsPodsIsRepaired(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.isWell("forward-policy")

	p.x.Forward = false
	p.run("iptables -P FORWARD DROP")
	p.repairs("forward-policy", Bad, "the policy of FORWARD is DROP")
	p.run("iptables -P FORWARD DROP && iptables -A FORWARD -s 10.5.1.0/24 -j ACCEPT")
	p.repairs("forward-policy", Bad, "no rule accepts") // one way only

	// The rule of some cloud images, before which flannel's jump is not.
	p.x.Forward = true
	p.run("iptables -F FORWARD && iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited")
	p.applyRules()
	p.repairs("forward-policy", Bad, "by -A FORWARD -j REJECT --reject-with icmp-host-prohibited")
	p.run("iptables -P FORWARD DROP")
	p.isWell("forward-policy") // flannel's rules accept

	p.x.Forward = false
	p.x.Env.IPv6Network, p.x.Env.IPv6Subnet = netip.MustParsePrefix("fc00:5::/48"), netip.MustParsePrefix("fc00:5:0:1::/64")
	p.run("ip6tables -P FORWARD DROP")
	p.repairs("forward-policy", Bad, "no rule accepts packets from fc00:5::2 to fc00:5:0:1::2")
}

func TestPortThatTheFirewallClosesIsOpened(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.isWell("udp-port")
	for _, rules := range []string{
		"iptables -P INPUT DROP && iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT && iptables -A INPUT -i lo -j ACCEPT",
		"iptables -A INPUT -p udp -m udp --dport 8000:9000 -j DROP",
		"iptables -A INPUT -s 192.0.2.0/24 -j REJECT",
		`iptables -A INPUT -m comment --comment '"x" -j ACCEPT' -j DROP`,
		"iptables -N FIREWALL; iptables -A FIREWALL -m comment --comment 'all others' -j DROP && iptables -A INPUT -j FIREWALL",
	} {
		p.run(rules)
		p.repairs("udp-port", Bad, "UDP port 8285")
		p.run("iptables -P INPUT ACCEPT && iptables -F INPUT")
	}
	for _, rules := range []string{
		"iptables -P INPUT DROP && iptables -A INPUT -s 192.0.2.2/32 -j ACCEPT",
		"iptables -A INPUT -p udp -m udp --dport 53 -j DROP",
		"iptables -A INPUT ! -s 192.0.2.0/24 -j DROP",
		"iptables -A INPUT -p udp --dport 8285 -j ACCEPT && iptables -A INPUT -j DROP",
	} {
		p.run(rules)
		p.isWell("udp-port")
		p.run("iptables -P INPUT ACCEPT && iptables -F INPUT")
	}
	p.x.Leases[1].PublicIP = netip.MustParseAddr("fd00::2")
	p.run("ip6tables -P INPUT DROP")
	p.repairs("udp-port", Bad, "drops datagrams from fd00::2")
	p.x.Leases[1].PublicIP = other
	// What is uncertain is no more than a warning.
	p.run("iptables -A INPUT -m mark --mark 0x1 -j ACCEPT && iptables -A INPUT -j DROP")
	p.repairs("udp-port", Warn, "unless an earlier rule decides: -A INPUT -m mark")
}

func TestChainOfNftablesThatDropsByDefaultIsOpened(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	for _, hook := range []string{"input", "forward"} {
		p.run(fmt.Sprintf("nft 'add table inet fw; add chain inet fw %s { type filter hook %[1]s priority 0; policy drop; }'", hook))
	}
	p.repairs("udp-port", Bad, "the policy drop of the nftables chain inet fw input drops datagrams from 192.0.2.2")
	p.repairs("forward-policy", Bad, "dropped in FORWARD by the policy drop of the nftables chain inet fw forward")
}

// TestRulesOfAChainOfNftablesThatDropsByDefaultCount: the policy drops what they do not
// accept, and only a rule that cannot be evaluated leaves that open.
func TestRulesOfAChainOfNftablesThatDropsByDefaultCount(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	for check, hook := range map[string]string{"udp-port": "input", "forward-policy": "forward"} {
		set := func(rule string) {
			p.run(fmt.Sprintf("nft 'table inet fw { chain %s { type filter hook %[1]s priority 0; policy drop; %s; }; }'", hook, rule))
		}
		set("ip saddr { 192.0.2.0/24, 10.5.0.0/16 } accept")
		p.isWell(check)
		p.run("nft delete table inet fw")
		set("ip ttl 1 accept; ip saddr 198.51.100.0/24 accept")
		p.has(check, Warn, "of the nftables chain inet fw "+hook)
		p.run("nft delete table inet fw")
	}
}

func TestBridgedPacketsPassThroughKubeProxysRules(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.sysctl("net/bridge/bridge-nf-call-iptables", "0")
	p.isWell("bridge") // it matters with kube-proxy only
	p.run("iptables -t nat -N KUBE-SERVICES")
	p.repairs("bridge", Warn, "bridge-nf-call-iptables is 0")
}

// applyRules does what a twilld that starts does.
func (p *patient) applyRules() {
	p.Helper()
	err := p.ns.Do(func() error {
		r, err := rules.New(rules.Config{
			Wanted: rules.Wanted{Forward: true, Masquerade: p.x.Env.IPMasq, IPv4: rules.Pods{Network: network, Subnet: subnet}},
			Resync: time.Hour, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		return r.Apply(p.Context())
	})
	if err != nil {
		p.Fatal(err)
	}
}

func TestEachRuleThatIsMissingIsFound(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.x.Env.IPMasq = true
	p.has("rules", Bad, "FLANNEL-POSTRTG")
	p.applyRules()
	p.isWell("rules")
	p.run("iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD")
	if f := p.has("rules", Bad, "FORWARD"); f.Remedy != "systemctl restart twilld" {
		t.Errorf("got %+v", f)
	}
	p.applyRules()
	p.isWell("rules")
}

// TestRulesAreThoseInTheStatusOfTheDaemon: what the flags and the network
// config would ask for counts where no daemon keeps any.
func TestRulesAreThoseInTheStatusOfTheDaemon(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.x.Forward, p.x.Config.EnableNFTables = true, true
	if found := p.look("rules"); Worst(found) != Bad {
		t.Errorf("no rules of nftables: %+v", found)
	}
	p.x.Daemon.Rules = &status.Rules{}
	if found := p.look("rules"); len(found) != 1 || found[0].Level != OK || found[0].Text != "no rules are wanted" {
		t.Errorf("it keeps none: %+v", found)
	}
	p.x.Daemon.Rules = &status.Rules{Forward: true}
	p.has("rules", Bad, "FLANNEL-FWD")
	p.x.Config.EnableNFTables = false
	p.applyRules()
	p.isWell("rules")
	p.x.Daemon.Rules.Problem = "IPv6 rules: out of order"
	if f := p.has("rules", Bad, "cannot maintain them: IPv6 rules: out of order"); f.Remedy == "" {
		t.Errorf("got %+v", f)
	}
	p.x.Daemon.Rules.Missing = []string{"IPv4: pods can do more"}
	if f := p.has("rules", Warn, "lacks a match: IPv4: pods can do more"); f.Remedy == "" {
		t.Errorf("got %+v", f)
	}
	p.x.Daemon.Rules.Unwritable = []string{`wan"1`}
	if f := p.has("rules", Warn, `rules cannot contain the interface name "wan\"1"`); f.Remedy == "" {
		t.Errorf("got %+v", f)
	}
}

func TestDeviceFileOfTUNIsMade(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.isWell("tun")
	p.x.tun = filepath.Join(t.TempDir(), "net", "tun")
	p.repairs("tun", Bad, "no such file")
}

func TestPathThatIsTooNarrowIsMeasured(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	p := newPatient(t, a.NS)
	p.x.Leases[0].PublicIP, p.x.Leases[1].PublicIP = a.Addr, b.Addr
	p.isWell("peers")

	// The far end of the wire takes no more than this.
	link, err := b.NS.Netlink().LinkByName(netlab.UnderlayLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.NS.Netlink().LinkSetMTU(link, 1400); err != nil {
		t.Fatal(err)
	}
	// A veth lets through what is a VLAN tag longer (__is_skb_forwardable in
	// include/linux/netdevice.h).
	const takes = 1400 + 4
	f := p.has("peers", Bad, fmt.Sprintf("the path to %s takes packets of at most %d bytes, but the data plane sends 1500", b.Addr, takes))
	if !f.Narrow {
		t.Error("not said to concern large packets only")
	}
	p.run(f.Remedy)
	p.x.Env.MTU = takes - 28 // twilld follows the interface
	p.isWell("peers")

	if err := b.NS.Netlink().LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	p.has("peers", Warn, fmt.Sprintf("%s does not answer pings", b.Addr))
}

func TestIPv6PathIsMeasuredToo(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	err := a.NS.Do(func() error {
		got, err := echo.Answers(t.Context(), []echo.Ping{{To: b.Addr6, Size: 1500}})
		if err == nil && !got[b.Addr6] {
			err = errors.New("no answer to 1500 bytes")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	err = a.NS.Do(func() error {
		fits, err := echo.Widest(t.Context(), []echo.Ping{{To: b.Addr6, Size: 1600}})
		if err == nil && fits[b.Addr6] != 1500 {
			err = fmt.Errorf("got %d, want the MTU of the wire, 1500", fits[b.Addr6])
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// answersAt gives host to an address of its device, and host from a way there.
func (p *patient) answersAt(from, to *netlab.Host, a netip.Addr) {
	p.Helper()
	lo, err := to.NS.Netlink().LinkByName("lo")
	if err != nil {
		p.Fatal(err)
	}
	at := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	if err := to.NS.Netlink().AddrAdd(lo, &netlink.Addr{IPNet: at, Flags: unix.IFA_F_NODAD}); err != nil {
		p.Fatal(err)
	}
	via := to.Addr
	if a.Is6() {
		via = to.Addr6
	}
	p.run(fmt.Sprintf("ip route add %s via %s", a, via))
}

// host a ─┬─ host b   answers
//
//	└─ host c   does not through the tunnel, and takes small packets only
func TestPeerWithTwoFaultsIsNotCountedAsAnswering(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Hosts: 3})
	a, b, c := topo.Hosts[0], topo.Hosts[1], topo.Hosts[2]
	p := newPatient(t, a.NS)
	p.x.Daemon.Dataplane = &status.Dataplane{
		Devices: []status.Device{{Name: "eth0", MTU: 1472}}, Port: 8285,
		Peers: []status.Peer{
			{Subnets: []netip.Prefix{b.Subnet}, PublicIP: b.Addr},
			{Subnets: []netip.Prefix{c.Subnet}, PublicIP: c.Addr},
		},
	}
	p.answersAt(a, b, b.Subnet.Addr())
	link, err := c.NS.Netlink().LinkByName(netlab.UnderlayLink)
	if err == nil {
		err = c.NS.Netlink().LinkSetMTU(link, 1400)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.has("peers", Bad, c.Addr.String()+" answers, but not through the tunnel")
	p.has("peers", Bad, fmt.Sprintf("the path to %s takes packets of", c.Addr))
	p.has("peers", OK, "1 of 2 answer unfragmentable packets of 1500 bytes")
}

// TestPeersOfIPv6ArePinged: by the leases without a daemon, and each family of a
// node of both through its own device where the backend is vxlan.
func TestPeersOfIPv6ArePinged(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	p := newPatient(t, a.NS)
	p.x.Leases[0].PublicIPv6, p.x.Leases[0].IPv6Subnet = a.Addr6, a.Subnet6
	p.x.Env.IPv6Subnet, p.x.Env.IPv6Network = a.Subnet6, netlab.Network6
	p.x.Leases[1] = lease.Lease{Attrs: lease.Attrs{PublicIPv6: b.Addr6, BackendType: "vxlan"}, IPv6Subnet: b.Subnet6}
	p.x.Env.MTU = 1430
	p.has("peers", OK, "1 of 1 answer unfragmentable packets of 1500 bytes")

	p.x.Leases[1].PublicIP, p.x.Leases[1].Subnet = b.Addr, b.Subnet
	p.x.Daemon.Dataplane = &status.Dataplane{
		Devices: []status.Device{{Name: "eth0", MTU: 1430}},
		Peers:   []status.Peer{{Subnets: []netip.Prefix{b.Subnet, b.Subnet6}, PublicIP: b.Addr, Backend: "vxlan"}},
	}
	p.answersAt(a, b, b.Subnet.Addr())
	p.has("peers", Bad, fmt.Sprintf("%s answers, but not through the tunnel (%s)", b.Addr6, b.Subnet6.Addr()))
	p.answersAt(a, b, b.Subnet6.Addr())
	p.has("peers", OK, "2 of 2 answer unfragmentable packets of 1480 bytes, and through the tunnel")
}

// TestRulesAreReadWherePingsSayNothing: a port that pings come through is open,
// whatever the rules look like, such as those that accept answers only.
func TestRulesAreReadWherePingsSayNothing(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	p := newPatient(t, a.NS)
	p.x.Daemon.Dataplane = &status.Dataplane{
		Devices: []status.Device{{Name: "eth0", MTU: 1472}}, Port: 8285,
		Peers: []status.Peer{{Subnets: []netip.Prefix{b.Subnet}, PublicIP: b.Addr}},
	}
	p.run("iptables -A INPUT -p udp --dport 8285 -j DROP")
	p.has("udp-port", Bad, "drops datagrams from "+b.Addr.String())
	p.answersAt(a, b, b.Subnet.Addr())
	p.isWell("udp-port")
}

// TestTunnelThatCarriesNothingIsReported has a plain route for the tunnel: what
// matters is whether the peer's address on its device answers.
func TestTunnelThatCarriesNothingIsReported(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	a, b := topo.Hosts[0], topo.Hosts[1]
	p := newPatient(t, a.NS)
	p.x.Daemon.Dataplane = &status.Dataplane{
		Devices: []status.Device{{Name: "eth0", MTU: 1472}}, Port: 8285,
		Peers: []status.Peer{{Subnets: []netip.Prefix{b.Subnet}, PublicIP: b.Addr}},
	}
	f := p.has("peers", Bad, "answers, but not through the tunnel")
	if !strings.Contains(f.Remedy, "--dport 8285 -j ACCEPT") || !strings.Contains(f.Remedy, b.Addr.String()) {
		t.Errorf("got %+v", f)
	}
	p.answersAt(a, b, b.Subnet.Addr())
	p.isWell("peers")
	p.x.Daemon.Dataplane.Peers[0].MTU = 1300
	f = p.has("peers", Warn, fmt.Sprintf("the path to %s loses packets of more than 1328 bytes without an ICMP error", b.Addr))
	if f.Remedy != "ip link set dev eth0 mtu 1328" || !f.Narrow {
		t.Errorf("got %+v", f)
	}
}

func TestStatusOfTheDaemonIsReported(t *testing.T) {
	p := newPatient(t, nil)
	for _, check := range []string{"daemon", "offloads", "store", "lease", "subnet-file", "clock"} {
		p.isWell(check)
	}
	p.x.Daemon.Dataplane = &status.Dataplane{Devices: []status.Device{{Name: "flannel0", Kind: status.KindPlain, Why: "refused by the kernel", MTU: 1472}}}
	p.has("tun", Warn, "flannel0 uses the plain engine: refused by the kernel")
	p.x.Daemon.Dataplane.Offloads = []status.Offload{
		{Name: "tun-offload", Mode: "off", Why: "switched off"},
		{Name: "udp-gso", Mode: "auto", Why: "refused by the kernel"},
	}
	p.isWell("tun") // a flag has switched it off
	p.has("offloads", Warn, "udp-gso is not active: refused by the kernel")
	p.x.Daemon.Dataplane.Devices[0].MTU = 1372
	p.has("subnet-file", Bad, "it has MTU 1472, but the device has 1372")
	p.x.Daemon.AddressConflict = "the public address 192.0.2.1 is also that of another host"
	p.has("daemon", Bad, "192.0.2.1 is also that of another host")
	p.x.Daemon.AddressConflict = ""
	p.x.Daemon.Restart = "Backend"
	p.has("daemon", Warn, "needs a restart: Backend")
	p.x.Daemon.Waiting = "a lease"
	p.has("daemon", Bad, "is waiting for a lease")
	p.x.Daemon, p.x.DaemonErr = nil, errors.New("nobody listens")
	if f := p.has("daemon", Bad, "nobody listens"); f.Remedy != "systemctl start twilld" {
		t.Errorf("got %+v", f)
	}
}

func TestExpiredLeaseIsReported(t *testing.T) {
	p := newPatient(t, nil)
	p.x.Leases[0].Expiration = time.Now().Add(5 * time.Minute)
	p.has("lease", Warn, "was not renewed")
	p.x.Leases[0].Expiration = time.Time{}
	if found := p.look("lease"); len(found) != 1 || found[0].Text != "10.5.1.0-24, reserved" {
		t.Errorf("got %+v", found)
	}
	p.x.Leases[0].PublicIP = other
	p.has("lease", Bad, "10.5.1.0-24 is the lease of another node, 192.0.2.2")
	p.has("store", Bad, "both have PublicIP 192.0.2.2")
	p.x.Leases = p.x.Leases[1:]
	p.has("lease", Bad, "10.5.1.0-24 is no longer in the store")
	p.x.StoreErr = &etcd.Error{Op: "read config", Err: errors.New("refused"), Remedy: "see that etcd runs"}
	p.has("lease", Warn, "did not answer whether it is still valid")
	if f := p.has("store", Bad, "read config: refused"); f.Remedy != "see that etcd runs" || strings.Contains(f.Text, f.Remedy) {
		t.Errorf("got %+v", f)
	}
	p.x.Env.Subnet = netip.MustParsePrefix("10.5.7.0/24")
	p.has("subnet-file", Bad, "it has 10.5.7.0/24, but the lease is 10.5.1.0/24")
	p.x.Daemon, p.x.Env, p.x.EnvErr = nil, lease.SubnetEnv{}, fs.ErrNotExist
	p.has("lease", Bad, "no lease yet")
	p.has("subnet-file", Bad, "CNI plugins cannot set up pods")
	p.has("rules", Warn, "cannot determine the wanted rules")
}

func TestClockThatIsNotSynchronisedIsReported(t *testing.T) {
	p := newPatient(t, nil)
	p.x.clock = func(tx *unix.Timex) (int, error) { tx.Status = staUnsync; return 0, nil }
	p.has("clock", Warn, "the clock is not synchronised")
	p.x.clock = func(*unix.Timex) (int, error) { return timeError, nil }
	p.has("clock", Warn, "the clock is not synchronised")
	p.x.clock = func(*unix.Timex) (int, error) { return 0, unix.EPERM }
	p.has("clock", Warn, "adjtimex")
}

func TestNothingIsCheckedAfterTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	found := Examine(ctx, Node{})
	if len(found) != 1 || found[0].Level != Warn || !strings.Contains(found[0].Text, "canceled") {
		t.Errorf("got %+v", found)
	}
}

func TestFindingsAboutThousandsOfPeersAreCutShort(t *testing.T) {
	found := []Finding{{Check: "daemon", Level: OK, Text: "ready"}}
	for i := range 5000 {
		found = append(found, Finding{Check: "peers", Level: Bad, Text: fmt.Sprintf("peer %d is silent", i), Remedy: "ping"})
	}
	found = append(found, Finding{Check: "peers", Level: OK, Text: "one answers"})
	var out strings.Builder
	if err := Write(&out, found); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if n := strings.Count(out.String(), " is silent"); n != alike || len(lines) != 1+2*alike+1+1+1 {
		t.Errorf("%d silent peers in %d lines", n, len(lines))
	}
	if got := lines[1+2*alike]; got != "bad   peers   and 4980 more of these: twill doctor --json lists them" {
		t.Errorf("got %q", got)
	}
}

func TestEachFindingIsWrittenWithItsRemedy(t *testing.T) {
	found := []Finding{{Check: "tun", Level: OK, Text: "there"}, {Check: "forwarding", Level: Bad, Text: "off", Remedy: "sysctl -w a=1"}, {Check: "clock", Level: Warn, Text: "wrong"}}
	var out bytes.Buffer
	if err := Write(&out, found); err != nil {
		t.Fatal(err)
	}
	want := "ok    tun         there\nbad   forwarding  off\n                  → sysctl -w a=1\nwarn  clock       wrong\n"
	if out.String() != want || Worst(found) != Bad || Worst(found[:1]) != OK || Worst(found[2:]) != Warn {
		t.Errorf("got %s\n%s, want\n%s", Worst(found), out.String(), want)
	}
}
