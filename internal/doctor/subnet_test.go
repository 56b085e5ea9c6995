package doctor

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// newHost returns a node with a bridge for pods, cni0, which has the first address of
// its subnet, and an underlay, eth0.
func newHost(t *testing.T) *patient {
	topo := netlabtest.New(t, netlab.Options{})
	a := topo.Hosts[0]
	p := newPatient(t, a.NS)
	p.x.Daemon.Lease.Subnet, p.x.Daemon.Lease.IPv6Subnet = a.Subnet, a.Subnet6
	p.x.Env = lease.SubnetEnv{Network: netlab.Network, Subnet: a.Subnet, IPv6Network: netlab.Network6, IPv6Subnet: a.Subnet6, MTU: 1450}
	p.x.Daemon.Network = []netip.Prefix{netlab.Network, netlab.Network6}
	return p
}

// TestRouteThatLeadsOwnPodsAwayIsDeleted: a static route, one of a VPN or of another
// network plugin.
func TestRouteThatLeadsOwnPodsAwayIsDeleted(t *testing.T) {
	p := newHost(t)
	p.isWell("own-subnet") // the bridge's own route
	p.run("ip route add blackhole 10.5.1.0/24 metric 2147483647")
	p.run("ip route add 10.5.1.7/32 dev cni0") // of a single pod
	p.isWell("own-subnet")
	p.run("ip link add vpn0 type veth peer name vpn1 && ip link set vpn1 up && ip addr add 198.51.100.1/24 dev vpn0 && ip link set vpn0 up")
	for _, route := range []string{
		"10.5.1.0/24 via 172.31.9.12 dev eth0 metric 5",
		"10.5.1.128/25 dev eth0",
		"10.5.1.0/24 via 172.31.9.12 dev eth0 table 100",
		"unreachable 10.5.1.64/26",
		"10.5.1.128/25 via 198.51.100.7 dev vpn0",
		"fd00:10:5:1::/64 via fd00:172:31:9::12 dev eth0 metric 5",
	} {
		p.run("ip route add " + route)
		p.repairs("own-subnet", Bad, "packets to this node's own pods in")
	}
}

// TestBridgeOfAnotherSubnetIsFound: it has been left from an earlier lease, and the
// packets to its pods go to the node that has the subnet now.
func TestBridgeOfAnotherSubnetIsFound(t *testing.T) {
	p := newHost(t)
	p.run("ip link add br1 type bridge && ip addr add 10.6.0.1/16 dev br1") // not of the pod network
	p.isWell("own-subnet")
	p.run("ip link add old0 type bridge && ip addr add 10.5.7.1/24 dev old0")
	p.repairs("own-subnet", Bad, "the bridge old0 has 10.5.7.1/24, but this node's subnet is 10.5.1.0/24")
	p.run("ip link add docker0 type bridge && ip addr add 10.5.1.1/16 dev docker0") // wider than the subnet
	if f := p.has("own-subnet", Bad, "the bridge docker0 has 10.5.1.1/16"); f.Remedy != "twill docker-opts -c && systemctl restart docker" {
		t.Errorf("got %+v", f)
	}
}

func TestTunnelDeviceUnderABridgeIsReleased(t *testing.T) {
	p := newHost(t)
	p.run("ip link add flannel.1 type veth peer name other && ip link set flannel.1 up")
	p.x.Daemon.Dataplane = &status.Dataplane{Devices: []status.Device{{Name: "flannel.1", Kind: status.KindVXLAN, MTU: 1450}}}
	p.isWell("devices")
	p.run("ip link set flannel.1 master cni0")
	p.repairs("devices", Bad, "flannel.1 is a port of cni0")
	p.run("ip link delete flannel.1")
	p.has("devices", Bad, "find device flannel.1")
}

// TestSourceOfPodsIsKept: what others masquerade hides the pods of this node from
// those of other nodes, whether it comes before flannel's rules or after them.
func TestSourceOfPodsIsKept(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.x.Env.IPMasq = true
	p.x.Daemon.Dataplane = &status.Dataplane{Devices: []status.Device{{Name: "flannel0", Kind: status.KindOffload, MTU: 1472}}}
	p.applyRules()
	p.isWell("masquerade")
	// kube-proxy's, for what it has marked.
	p.run("iptables -t nat -N KUBE-POSTROUTING && iptables -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN && " +
		"iptables -t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully && iptables -t nat -I POSTROUTING -j KUBE-POSTROUTING")
	p.isWell("masquerade")
	for _, rule := range []string{
		"-I POSTROUTING -s 10.5.0.0/16 -j MASQUERADE",
		"-I POSTROUTING -s 10.5.1.0/24 ! -o docker0 -j MASQUERADE",
		"-A POSTROUTING -s 10.5.1.0/24 ! -o docker0 -j MASQUERADE", // as Docker without --ip-masq=false
		"-A POSTROUTING -o flannel0 -j SNAT --to-source 192.0.2.1",
	} {
		p.run("iptables -t nat " + rule)
		p.repairs("masquerade", Warn, "get this node's address")
	}
	for _, rule := range []string{
		"-A POSTROUTING -s 10.5.1.0/24 -o eth0 -j MASQUERADE",
		"-I POSTROUTING -s 192.0.2.0/24 -j MASQUERADE",
		"-I POSTROUTING -s 10.5.1.0/24 ! -d 10.5.0.0/16 -j MASQUERADE",
	} {
		p.run("iptables -t nat " + rule)
		p.isWell("masquerade")
	}
	p.x.Env.IPv6Network, p.x.Env.IPv6Subnet = netip.MustParsePrefix("fc00:5::/48"), netip.MustParsePrefix("fc00:5:0:1::/64")
	p.run(fmt.Sprintf("ip6tables -t nat -A POSTROUTING -s %s -j MASQUERADE", p.x.Env.IPv6Subnet))
	p.repairs("masquerade", Warn, "packets from fc00:5:0:1::2")
}

// The same for rules of nftables: each chain of its own is asked, before and after
// those of others.
func TestSourceOfPodsIsKeptByNFTables(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.x.Env.IPMasq = true
	p.x.Env.IPv6Network, p.x.Env.IPv6Subnet = netip.MustParsePrefix("fc00:5::/48"), netip.MustParsePrefix("fc00:5:0:1::/64")
	p.x.Daemon.Dataplane = &status.Dataplane{Devices: []status.Device{{Name: "flannel0", Kind: status.KindOffload, MTU: 1472}}}
	p.applyRules()
	for _, table := range []string{"ip", "ip6", "inet"} {
		p.run("nft 'table " + table + " site { chain early { type nat hook postrouting priority 90; }; " +
			"chain late { type nat hook postrouting priority 110; }; chain sub { }; chain out { type filter hook postrouting priority 0; }; }'")
	}
	// kube-proxy's, for what it has marked.
	p.run("nft 'add rule ip site early meta mark & 0x4000 == 0x4000 masquerade fully-random'")
	p.isWell("masquerade")
	for _, rule := range []string{
		"ip site early ip saddr 10.5.0.0/16 masquerade",
		"ip site late ip saddr 10.5.1.0/24 masquerade",
		"inet site late ip saddr 10.5.1.0/24 counter masquerade",
		"inet site late oifname != docker0 masquerade",
		"inet site late ip saddr { 192.0.2.1, 10.5.1.0/24 } oifname flannel* snat ip to 192.0.2.1",
		"ip site early ip saddr 10.5.1.2-10.5.1.9 masquerade",
		"ip6 site early ip6 saddr fc00:5::/48 masquerade",
	} {
		p.run("nft 'add rule " + rule + "'")
		p.repairs("masquerade", Warn, "get this node's address")
	}
	p.run("nft 'add rule ip site early jump sub'; nft 'add rule ip site sub ip daddr 10.5.0.0/16 masquerade'")
	p.repairs("masquerade", Warn, "of the nftables chain ip site sub")
	for _, rule := range []string{
		"ip site early ip daddr 10.5.0.0/16 return",
		"ip site early ip saddr 10.5.0.0/16 masquerade", // behind the one before
		"inet site late ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 masquerade",
		"inet site late oifname eth0 masquerade",
		"inet site late ip saddr 192.0.2.0/24 masquerade",
		"inet site late ip6 saddr fc00:6::/48 masquerade",
		"inet site late meta l4proto tcp ip saddr 10.5.1.0/24 masquerade", // not of every packet
		"ip site out ip saddr 10.5.0.0/16 accept",
	} {
		p.run("nft 'add rule " + rule + "'")
		p.isWell("masquerade")
	}
}
