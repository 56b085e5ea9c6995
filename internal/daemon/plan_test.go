package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/tun"
)

// planned returns the inputs of a node at 192.0.2.1 with the subnet 10.5.1.0/24 of a
// network with the given backend, changed by change, and the plan for them.
func planned(t *testing.T, backend string, change func(*inputs)) (inputs, want) {
	t.Helper()
	in := inputsOf(t, backend)
	change(&in)
	w, err := plan(&in)
	if err != nil {
		t.Fatal(err)
	}
	return in, w
}

func inputsOf(t *testing.T, backend string) inputs {
	t.Helper()
	c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": ` + backend + `}`))
	if err != nil {
		t.Fatal(err)
	}
	own := lease.Lease{Attrs: lease.Attrs{PublicIP: eth0.PublicIP}, Subnet: netip.MustParsePrefix("10.5.1.0/24")}
	return inputs{
		options: defaults(), config: c, latest: c, link: eth0, own: own, writable: true,
		leases: lease.NewSet([]lease.Lease{own}),
	}
}

// What others learn from the lease follows from the configuration and from what the
// host has.
func TestAnnouncementFollowsFromConfigurationAndHost(t *testing.T) {
	refused := errors.New("operation not supported")
	for _, tc := range []struct {
		name, backend string
		change        func(*inputs)
		backends      []backend.Kind
		announced     string // type and data
	}{
		{"udp", `{"Type": "udp"}`, func(*inputs) {},
			[]backend.Kind{backend.UDP}, `"" {"PartialChecksums":true}`},
		{"vxlan", `{"Type": "vxlan"}`, func(*inputs) {},
			[]backend.Kind{backend.VXLAN, backend.UDP}, `"vxlan" {"VNI":1,"VtepMAC":`},
		{"auto without VXLAN", `{"Type": "auto"}`, func(in *inputs) { in.failed.Failed = backend.Failed{backend.VXLAN: refused} },
			[]backend.Kind{backend.UDP}, `"" {"PartialChecksums":true}`},
		{"vxlan without udp", `{"Type": "vxlan"}`, func(in *inputs) { in.failed.Failed = backend.Failed{backend.UDP: refused} },
			[]backend.Kind{backend.VXLAN}, `"vxlan" {"VNI":1,"VtepMAC":`},
		{"host-gw", `{"Type": "host-gw"}`, func(*inputs) {},
			[]backend.Kind{backend.HostGW}, `"host-gw" `},
		{"--backend", `{"Type": "vxlan"}`, func(in *inputs) { in.options.backend = "udp" },
			[]backend.Kind{backend.UDP}, `"" {"PartialChecksums":true}`},
		{"alloc", `{"Type": "alloc"}`, func(*inputs) {}, nil, `"" `},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, w := planned(t, tc.backend, tc.change)
			if !slices.Equal(w.node.choice.Kinds, tc.backends) {
				t.Errorf("backends %v, want %v", w.node.choice.Kinds, tc.backends)
			}
			if got := fmt.Sprintf("%q %s", w.attrs.BackendType, w.attrs.BackendData); !strings.HasPrefix(got, tc.announced) {
				t.Errorf("announced %s, want %s", got, tc.announced)
			}
			if w.attrs.PublicIP != eth0.PublicIP {
				t.Errorf("announced at %s", w.attrs.PublicIP)
			}
		})
	}
}

func TestConfigurationThatTheHostCannotFollowHasNoPlan(t *testing.T) {
	for name, tc := range map[string]struct {
		backend string
		failed  backend.Failed
		want    string
	}{
		"of stock flannel only": {`{"Type": "wireguard"}`, nil, "is not supported by twilld, only by flannel"},
		"without VXLAN":         {`{"Type": "vxlan"}`, backend.Failed{backend.VXLAN: errors.New("no such module")}, "vxlan: no such module"},
		"without anything":      {`{"Type": "auto"}`, backend.Failed{backend.VXLAN: errors.New("no module"), backend.UDP: errors.New("no /dev/net/tun")}, "no /dev/net/tun"},
	} {
		in := inputsOf(t, tc.backend)
		in.failed.Failed = tc.failed
		if _, err := plan(&in); err == nil || !configFault(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

// A data plane is opened for what the peers know of the node: what it announces, or
// what the operator's file says.
func TestDataPlaneIsThatOfTheLeaseThatPeersKnow(t *testing.T) {
	listed := lease.Lease{
		Attrs:  lease.Attrs{PublicIP: eth0.PublicIP, BackendType: "vxlan", BackendData: []byte(`{"VNI":1,"VtepMAC":"02:11:22:33:44:55"}`)},
		Subnet: netip.MustParsePrefix("10.5.1.0/24"),
	}
	_, w := planned(t, `{"Type": "vxlan"}`, func(in *inputs) { in.leases.Apply(lease.Update{Put: []lease.Lease{listed}}) })
	if !w.node.own.Attrs.Equal(w.attrs) {
		t.Errorf("opened as %s, announced as %s", w.node.own.BackendData, w.attrs.BackendData)
	}
	_, w = planned(t, `{"Type": "vxlan"}`, func(in *inputs) {
		in.leases.Apply(lease.Update{Put: []lease.Lease{listed}})
		in.writable = false
	})
	if !w.node.own.Attrs.Equal(listed.Attrs) {
		t.Errorf("opened as %s, the file says %s", w.node.own.BackendData, listed.BackendData)
	}
}

func TestRulesRoutesAndSubnetFileFollowFromNetworkAndFlags(t *testing.T) {
	network, subnet := netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("10.5.1.0/24")
	_, w := planned(t, `{"Type": "udp"}`, func(*inputs) {})
	pods := rules.Pods{Network: network, Subnet: subnet}
	if want := (rules.Wanted{RandomFully: true, Forward: true, IPv4: pods, Guard: rules.Guard{UDPPort: 8285}}); !w.rules.Equal(want) {
		t.Errorf("rules %+v, want %+v", w.rules, want)
	}
	if want := (lease.SubnetEnv{Network: network, Subnet: subnet}); w.env != want {
		t.Errorf("subnet.env %+v, want %+v", w.env, want)
	}
	_, w = planned(t, `{"Type": "udp"}`, func(in *inputs) {
		o := in.options
		o.ipMasq, o.ipMasqOrderly, o.forwardRules = true, true, false
		latest := *in.latest
		latest.EnableNFTables = true
		in.latest = &latest // which rules are made with is the same for every network
	})
	if want := (rules.Wanted{NFTables: true, Masquerade: true, IPv4: pods, Guard: rules.Guard{UDPPort: 8285}}); !w.rules.Equal(want) {
		t.Errorf("rules %+v, want %+v", w.rules, want)
	}
	if !w.env.IPMasq {
		t.Errorf("subnet.env %+v", w.env)
	}
}

// Only another interface, MTU, subnet or backend takes another data plane, during
// which packets are lost.
func TestWhatTakesAnotherDataPlane(t *testing.T) {
	_, was := planned(t, `{"Type": "auto"}`, func(*inputs) {})
	double := lease.Lease{Attrs: was.attrs, Subnet: netip.MustParsePrefix("10.5.9.0/24")}
	double.PublicIP = netip.MustParseAddr("192.0.2.9")
	for name, tc := range map[string]struct {
		backend string
		change  func(*inputs)
		another bool
	}{
		"nothing":              {`{"Type": "auto"}`, func(*inputs) {}, false},
		"a reason":             {`{"Type": "auto"}`, func(in *inputs) { in.link.Why = "named" }, false},
		"a peer":               {`{"Type": "auto"}`, func(in *inputs) { in.peers.version++ }, false},
		"the lease's end":      {`{"Type": "auto"}`, func(in *inputs) { in.own.Expiration = in.own.Expiration.AddDate(1, 0, 0) }, false},
		"what is announced":    {`{"Type": "auto"}`, func(in *inputs) { in.options.switches.PartialChecksums = tun.Off }, false},
		"an MTU":               {`{"Type": "auto"}`, func(in *inputs) { in.link = narrower() }, true},
		"an address":           {`{"Type": "auto"}`, func(in *inputs) { in.link = moved() }, true},
		"a subnet":             {`{"Type": "auto"}`, func(in *inputs) { in.own.Subnet = netip.MustParsePrefix("10.5.2.0/24") }, true},
		"its MAC elsewhere":    {`{"Type": "auto"}`, func(in *inputs) { in.peers.leases = []lease.Lease{double} }, true},
		"a port":               {`{"Type": "auto", "UDPPort": 9000}`, func(*inputs) {}, true},
		"a backend that fails": {`{"Type": "auto"}`, func(in *inputs) { in.failed.Failed = backend.Failed{backend.VXLAN: errors.New("gone")} }, true},
	} {
		if _, is := planned(t, tc.backend, tc.change); is.node.opensLike(&was.node) == tc.another {
			t.Errorf("%s: another data plane: %v", name, !tc.another)
		}
	}
}

func TestPlanOfTheSameInputsIsTheSame(t *testing.T) {
	in, first := planned(t, `{"Type": "auto"}`, func(*inputs) {})
	before := in
	again, err := plan(&in)
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("%v: %+v, then %+v", err, first, again)
	}
	if !reflect.DeepEqual(in, before) {
		t.Errorf("planning has changed its inputs: %+v, were %+v", in, before)
	}
}

// The rules keep pods away from the tunnels of all other nodes, on the ports of the
// backends in use.
func TestTunnelsOfTheOtherNodesAreGuarded(t *testing.T) {
	other := func(ip, subnet string) lease.Lease {
		return lease.Lease{Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(ip)}, Subnet: netip.MustParsePrefix(subnet)}
	}
	for backend, want := range map[string]rules.Guard{
		`{"Type": "udp", "Port": 9000}`: {UDPPort: 9000},
		`{"Type": "vxlan"}`:             {UDPPort: 8285, VXLANPort: 8472},
		`{"Type": "host-gw"}`:           {},
	} {
		want.Peers = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/32"), netip.MustParsePrefix("192.0.2.3/32")}
		want.Underlay = []string{"eth0", "eth1"}
		_, w := planned(t, backend, func(in *inputs) {
			own := in.own
			own.PublicIP = eth0.PublicIP
			in.outside = []string{"eth0", "eth1"}
			in.peers.leases = []lease.Lease{other("192.0.2.3", "10.5.3.0/24"), own, other("192.0.2.2", "10.5.2.0/24")}
		})
		if got := (rules.Wanted{Guard: w.rules.Guard}); !got.Equal(rules.Wanted{Guard: want}) {
			t.Errorf("%s: %+v, want %+v", backend, w.rules.Guard, want)
		}
	}
}
