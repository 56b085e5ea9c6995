//go:build !noetcd

package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

func TestKeyValueAndTTLAreFlannelsByteForByte(t *testing.T) {
	golden, err := os.ReadFile("testdata/flannel-v0.28.9.txt")
	if err != nil {
		t.Fatal(err)
	}
	tests := 0
	for line := range strings.Lines(string(golden)) {
		f := strings.Fields(line)
		if f[0] == "#" {
			continue
		}
		tests++
		t.Run(f[0], func(t *testing.T) {
			a := lease.Attrs{PublicIP: netip.MustParseAddr("172.31.9.11"), BackendType: f[0]}
			config, prev := ipv4Only, []string{"10.5.52.0/24"}
			vtep := json.RawMessage(`{"VNI":1,"VtepMAC":"c6:5d:a3:05:58:f4"}`)
			switch f[0] {
			case "udp":
				a.BackendType = ""
			case "vxlan":
				a.BackendData = vtep
			case "dual-stack":
				a.BackendType, a.BackendData, a.PublicIPv6 = "vxlan", vtep, netip.MustParseAddr("2001:db8::9:11")
				a.BackendV6Data = json.RawMessage(`{"VNI":1,"VtepMAC":"da:08:3b:11:92:6c"}`)
				config, prev = dualStack, append(prev, "fc00:5:0:1::/64")
			}
			n := newNetwork(t, config)
			n.acquire(n.store(), a, prev...)
			got := n.only()
			granted, _ := n.ttl(got.lease)
			if got.key != f[1] || got.value != f[2] || fmt.Sprint(granted) != f[3] {
				t.Errorf("got  %s %s %d\nwant %s", got.key, got.value, granted, strings.Join(f[1:], " "))
			}
		})
	}
	if tests != 4 {
		t.Errorf("%d cases in the golden file, want 4", tests)
	}
}

func TestANodeGetsARandomFreeSubnetWithinBounds(t *testing.T) {
	n := newNetwork(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.9.0"}`)
	n.put("subnets/10.5.8.0-24", value(8))
	var got []string
	for i := range 2 {
		l := n.acquire(n.store(), node(i))
		got = append(got, l.Subnet.String())
		if left := time.Until(l.Expiration); left < 23*time.Hour || left > 24*time.Hour {
			t.Errorf("lease expires in %s, want a day", left)
		}
	}
	slices.Sort(got)
	if want := []string{"10.5.7.0/24", "10.5.9.0/24"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	_, err := n.store().Acquire(n.ctx(), node(3), lease.Previous{})
	if want := "no lease for this node: all /24 subnets from 10.5.7.0 to 10.5.9.0 are taken; release"; !errors.Is(err, lease.ErrNoLease) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestARestartedNodeGetsItsLeaseBack(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	first := n.acquire(n.store(), node(1))
	before := n.only()
	again := n.acquire(n.store(), node(1), "10.5.200.0/24") // whatever subnet.env says
	after := n.only()
	if !again.Equal(*first) || after.key != before.key || after.lease == before.lease {
		t.Errorf("got %v of %v, want %v on a new etcd lease of a day", after, again, before)
	}
}

func TestANodeWhoseLeaseExpiredGetsItsPreviousSubnetBackIfItIsFree(t *testing.T) {
	for _, tt := range []struct {
		name, config string
		taken        string
		prev         []string
		back         []bool // for IPv4, IPv6
	}{
		{"free", ipv4Only, "", []string{"10.5.52.0/24"}, []bool{true}},
		{"taken", ipv4Only, "10.5.52.0-24", []string{"10.5.52.0/24"}, []bool{false}},
		{"a part taken", ipv4Only, "10.5.52.64-26", []string{"10.5.52.0/24"}, []bool{false}},
		{"within a wider one", ipv4Only, "10.5.48.0-20", []string{"10.5.52.0/24"}, []bool{false}},
		{"of another network", ipv4Only, "", []string{"10.6.52.0/24"}, []bool{false}},
		{"of another length", ipv4Only, "", []string{"10.5.52.0/25"}, []bool{false}},
		{"the first of the network", ipv4Only, "", []string{"10.5.0.0/24"}, []bool{false}},
		{"dual-stack", dualStack, "", []string{"10.5.52.0/24", "fc00:5:0:1::/64"}, []bool{true, true}},
		{"dual-stack, IPv6 taken", dualStack, "10.5.3.0-24&fc00:5:0:1::-64", []string{"10.5.52.0/24", "fc00:5:0:1::/64"}, []bool{true, false}},
		{"IPv6 is new", dualStack, "", []string{"10.5.52.0/24"}, []bool{true, false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, tt.config)
			if tt.taken != "" {
				n.put("subnets/"+tt.taken, value(9))
			}
			l := n.acquire(n.store(), node(1), tt.prev...)
			prev := previous(tt.prev...)
			for i, p := range []netip.Prefix{prev.Subnet, prev.IPv6Subnet}[:len(tt.back)] {
				got := []netip.Prefix{l.Subnet, l.IPv6Subnet}[i]
				if !got.IsValid() || (got == p) != tt.back[i] {
					t.Errorf("got %v, had %v, want it back: %t", got, p, tt.back[i])
				}
			}
		})
	}
}

func TestALeaseThatDoesNotFitTheNetworkIsReplaced(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.acquire(n.store(), node(1), "10.5.52.0/24")
	n.put("config", `{"Network":"10.5.0.0/16","SubnetLen":26}`)
	l := n.acquire(n.store(), node(1))
	if got := n.only(); l.Subnet.Bits() != 26 || got.key != "/subnets/"+string(l.Key()) {
		t.Errorf("got lease %s, etcd has %v", l.Key(), got)
	}
}

// A host may have several addresses, and choose another after a restart.
func TestANodeKeepsItsSubnetUnderAnotherOfItsAddresses(t *testing.T) {
	for _, tt := range []struct {
		name string
		prev lease.Previous
		kept bool
	}{
		{"its own", lease.Previous{Addrs: []netip.Addr{node(2).PublicIP, node(1).PublicIP}}, true},
		{"another node's", lease.Previous{Addrs: []netip.Addr{node(2).PublicIP}}, false},
		// An address that moves from host to host does not bring a lease along.
		{"its address, but not its subnet", lease.Previous{Subnet: netip.MustParsePrefix("10.5.200.0/24"), Addrs: []netip.Addr{node(1).PublicIP}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, ipv4Only)
			first := n.acquire(n.store(), node(1))
			if !tt.prev.Subnet.IsValid() {
				tt.prev.Subnet = first.Subnet
			}
			l, err := n.store().Acquire(n.ctx(), node(2), tt.prev)
			if err != nil {
				t.Fatal(err)
			}
			if kept := l.Subnet == first.Subnet; kept != tt.kept || kept != (len(n.all()) == 1) {
				t.Errorf("got %v, had %v, want it kept: %t; etcd has %v", l.Subnet, first.Subnet, tt.kept, n.all())
			}
			if l.PublicIP != node(2).PublicIP {
				t.Errorf("at %s, want %s", l.PublicIP, node(2).PublicIP)
			}
			if renewed, err := n.store().Renew(n.ctx(), l); err != nil || !renewed.Equal(*l) {
				t.Errorf("renewed: %v, %v", renewed, err)
			}
		})
	}
}

// What an operator has reserved for an address stays with the address.
func TestAReservationIsNotKeptUnderAnotherAddress(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.5.7.0-24", value(1))
	prev := previous("10.5.7.0/24")
	prev.Addrs = []netip.Addr{node(1).PublicIP}
	l, err := n.store().Acquire(n.ctx(), node(2), prev)
	if err != nil || l.Subnet == prev.Subnet {
		t.Errorf("got %v, %v", l, err)
	}
}

func TestAReservationStaysOneWhenItsNodeStarts(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.5.7.0-24", `{"PublicIP":"192.0.2.1"}`) // as by hand
	s := n.store()
	a := node(1)
	a.BackendType = "host-gw"
	l := n.acquire(s, a, "10.5.52.0/24")
	got := n.only()
	want := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}`
	if l.Subnet.String() != "10.5.7.0/24" || !l.Expiration.IsZero() || got.lease != clientv3.NoLease || got.value != want {
		t.Errorf("got %+v, etcd has %+v, want a reservation with what the node says", l, got)
	}
	if l, err := s.Renew(n.ctx(), l); err != nil || !l.Expiration.IsZero() || n.only() != got {
		t.Errorf("renewed: %+v, %v, etcd has %+v", l, err, n.only())
	}
}

func TestAReservationThatDoesNotFitIsLeftAlone(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.9.7.0-24", value(1))
	l := n.acquire(n.store(), node(1))
	all := n.all()
	if len(all) != 2 || all[1].key != "/subnets/10.9.7.0-24" || len(n.log.Lines("reservation for this node does not fit")) == 0 {
		t.Errorf("got %v, etcd has %v", l, all)
	}
}

func TestASubnetUnderAnUnreadableValueIsTaken(t *testing.T) {
	n := newNetwork(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.8.0"}`)
	n.put("subnets/10.5.7.0-24", "rubbish")
	n.put("subnets/also-rubbish", value(5))
	if l := n.acquire(n.store(), node(1), "10.5.7.0/24"); l.Subnet.String() != "10.5.8.0/24" {
		t.Errorf("got %s", l.Subnet)
	}
	n.oneOwner()
}

// TestNodesThatStartAtOnceGetDistinctSubnets is where stock flannel lets some of
// the nodes fail.
func TestNodesThatStartAtOnceGetDistinctSubnets(t *testing.T) {
	for name, config := range map[string]string{
		"IPv4":       ipv4Only,
		"dual-stack": dualStack,
		// As many subnets as nodes: the last one has no choice left.
		"just enough subnets": `{"Network":"10.5.0.0/16","SubnetMin":"10.5.101.0","SubnetMax":"10.5.150.0"}`,
	} {
		t.Run(name, func(t *testing.T) {
			const nodes = 50
			n := newNetwork(t, config)
			stores := make([]*Store, nodes)
			for i := range stores {
				stores[i] = n.store()
			}
			var (
				all     sync.WaitGroup
				leases  [nodes]*lease.Lease
				errs    [nodes]error
				started = make(chan struct{})
				ctx     = n.ctx()
			)
			for i, s := range stores {
				all.Go(func() {
					<-started
					// All want the same, as after a copied disk image.
					leases[i], errs[i] = s.Acquire(ctx, node(i), previous("10.5.120.0/24", "fc00:5:0:7::/64"))
				})
			}
			close(started)
			all.Wait()
			seen := make(map[netip.Prefix]int)
			for i := range nodes {
				if errs[i] != nil {
					t.Fatalf("node %d: %v", i, errs[i])
				}
				for _, p := range leases[i].Subnets() {
					if j, twice := seen[p]; twice {
						t.Errorf("nodes %d and %d both got %s", i, j, p)
					}
					seen[p] = i
				}
			}
			if got := len(n.all()); got != nodes {
				t.Errorf("etcd has %d leases, want %d", got, nodes)
			}
			n.oneOwner()
		})
	}
}

func TestAnUnusedEtcdLeaseIsRevoked(t *testing.T) {
	n := newNetwork(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0"}`)
	s := n.store()
	g := grant{store: s}
	id, err := g.get(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	never := clientv3.Compare(clientv3.ModRevision(s.layout.config), "=", 0)
	if _, err := g.commit(n.ctx(), "try", []clientv3.Cmp{never}, clientv3.OpPut(s.layout.subnets+"10.5.7.0-24", "x", clientv3.WithLease(id))); !errors.Is(err, errConflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	g.drop(n.ctx())
	if _, left := n.ttl(id); left != -1 {
		t.Errorf("the etcd lease has %d s left, want it gone", left)
	}
}

func TestANodeWithoutAnAddressGetsNoLease(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	if l, err := n.store().Acquire(n.ctx(), lease.Attrs{}, lease.Previous{}); !errors.Is(err, lease.ErrNoLease) {
		t.Errorf("got %v, %v", l, err)
	}
}

func TestANodeIsKnownByItsIPv4AddressOrElseByIPv6(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	other := netip.MustParseAddr("192.0.2.2")
	for _, tt := range []struct {
		was, is lease.Attrs
		same    bool
	}{
		{lease.Attrs{PublicIP: v4}, lease.Attrs{PublicIP: v4, PublicIPv6: v6}, true},
		{lease.Attrs{PublicIP: v4, PublicIPv6: v6}, lease.Attrs{PublicIPv6: v6}, true},
		{lease.Attrs{PublicIPv6: v6}, lease.Attrs{PublicIPv6: v6}, true},
		{lease.Attrs{PublicIP: v4, PublicIPv6: v6}, lease.Attrs{PublicIP: other, PublicIPv6: v6}, false},
		{lease.Attrs{PublicIP: v4}, lease.Attrs{PublicIPv6: v6}, false},
	} {
		n := newNetwork(t, ipv4Only)
		was := n.acquire(n.store(), tt.was)
		if is := n.acquire(n.store(), tt.is); (is.Key() == was.Key()) != tt.same {
			t.Errorf("%+v had %s, %+v gets %s, want the same: %t", tt.was, was.Key(), tt.is, is.Key(), tt.same)
		}
	}
}

// Keys written by hand may spell IPv6 in ways of their own.
func TestAKeyStaysAsItIsSpelt(t *testing.T) {
	const raw = "/subnets/10.5.1.0-24&FC00:5:0:0001::-64"
	n := newNetwork(t, dualStack)
	id, err := n.client.Grant(n.ctx(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	n.put(raw[1:], value(1), clientv3.WithLease(id.ID))
	s := n.store()
	own := n.acquire(s, node(1))
	if _, err := s.Renew(n.ctx(), own); err != nil || own.Key() != "10.5.1.0-24&fc00:5:0:1::-64" || n.only().key != raw {
		t.Errorf("got %s, %v, etcd has %+v", own.Key(), err, n.only())
	}
	w := n.watch(s)
	w.snapshot()
	w.until("10.5.1.0-24&fc00:5:0:1::-64 of 192.0.2.1")
	n.delete(raw[1:])
	w.untilErr("lease lost")
}

func TestKeysStandUnderThePrefixHoweverItEnds(t *testing.T) {
	for prefix, want := range map[string]layout{
		"/coreos.com/network":  {"/coreos.com/network/config", "/coreos.com/network/subnets/"},
		"/coreos.com/network/": {"/coreos.com/network/config", "/coreos.com/network/subnets/"},
		"network":              {"network/config", "network/subnets/"},
		"/":                    {"/config", "/subnets/"},
	} {
		if got := newLayout(prefix); got != want {
			t.Errorf("%q: got %v, want %v", prefix, got, want)
		}
	}
}

// TestNoNodeGetsASubnetThatSwallowsAnAddressItNeeds: the route of such a subnet would
// lead to the node's own pods.
func TestNoNodeGetsASubnetThatSwallowsAnAddressItNeeds(t *testing.T) {
	addr := netip.MustParseAddr
	// Subnets 1 to 3; 3 is free.
	const config = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.3.0"}`
	for _, tt := range []struct {
		name  string
		attrs lease.Attrs
		prev  lease.Previous
		put   map[string]string
	}{
		{"its gateways", node(1), lease.Previous{Gateways: []netip.Addr{addr("10.5.1.1"), addr("10.5.2.254")}}, nil},
		{"its own addresses", lease.Attrs{PublicIP: addr("10.5.1.11")}, lease.Previous{Addrs: []netip.Addr{addr("10.5.1.11"), addr("10.5.2.7")}}, nil},
		{"those of other nodes", lease.Attrs{PublicIP: addr("10.5.1.11")}, lease.Previous{},
			map[string]string{"subnets/10.5.9.0-24": `{"PublicIP":"10.5.2.12"}`}},
		{"a previous subnet that has them", node(1),
			lease.Previous{Subnet: netip.MustParsePrefix("10.5.1.0/24"), Gateways: []netip.Addr{addr("10.5.1.1"), addr("10.5.2.1")}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t, config)
			for key, value := range tt.put {
				n.put(key, value)
			}
			l, err := n.store().Acquire(n.ctx(), tt.attrs, tt.prev)
			if err != nil || l.Subnet.String() != "10.5.3.0/24" {
				t.Errorf("got %v, %v, want 10.5.3.0/24", l, err)
			}
		})
	}
	t.Run("those of etcd", func(t *testing.T) {
		n := newNetwork(t, config)
		s := n.store()
		s.endpoints = append(s.endpoints, "http://10.5.1.9:2379", "http://10.5.2.9:2379")
		if l, err := s.Acquire(n.ctx(), node(1), lease.Previous{}); err != nil || l.Subnet.String() != "10.5.3.0/24" {
			t.Errorf("got %v, %v, want 10.5.3.0/24", l, err)
		}
	})
	// The bridge and the tunnel of a node that restarts have addresses of its subnet.
	t.Run("but its own subnet is kept", func(t *testing.T) {
		n := newNetwork(t, config)
		prev := previous("10.5.2.0/24")
		prev.Addrs = []netip.Addr{addr("10.5.2.0"), addr("10.5.2.1")}
		if l, err := n.store().Acquire(n.ctx(), node(1), prev); err != nil || l.Subnet != prev.Subnet {
			t.Errorf("got %v, %v, want %v", l, err, prev.Subnet)
		}
	})
}

func TestANodeNeedsAnAddressThatOthersCanReach(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	for _, a := range []string{"127.0.0.1", "224.0.0.1", "255.255.255.255"} {
		_, err := n.store().Acquire(n.ctx(), lease.Attrs{PublicIP: netip.MustParseAddr(a)}, lease.Previous{})
		if !errors.Is(err, lease.ErrNoLease) || !strings.Contains(err.Error(), a+" is ") || !strings.Contains(err.Error(), "--public-ip") {
			t.Errorf("%s: got %v", a, err)
		}
	}
}

// TestALeaseAtAnAddressOfNoNodeIsNoPeer: what an operator or a broken node has written
// would send packets to this host itself, or to all.
func TestALeaseAtAnAddressOfNoNodeIsNoPeer(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.5.1.0-24", `{"PublicIP":"127.0.0.1"}`)
	n.put("subnets/10.5.2.0-24", `{"PublicIP":"255.255.255.255","BackendType":"host-gw"}`)
	n.put("subnets/10.5.3.0-24", `{"PublicIP":"224.0.0.1"}`)
	n.put("subnets/10.5.4.0-24", value(4))
	w := n.watch(n.store())
	w.snapshot()
	w.until("10.5.4.0-24 of 192.0.2.4")
	n.put("subnets/10.5.5.0-24", `{"PublicIP":"127.0.0.1"}`)
	n.put("subnets/10.5.6.0-24", value(6))
	w.until("10.5.4.0-24 of 192.0.2.4", "10.5.6.0-24 of 192.0.2.6")
	if lines := n.log.Lines("cannot read lease in etcd"); len(lines) < 4 {
		t.Errorf("logged: %q", lines)
	}
}
