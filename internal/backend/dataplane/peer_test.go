package dataplane

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

var eth0 = underlay.Interface{
	Name: "eth0", Index: 2, MTU: 1500,
	IPv4: netip.MustParseAddr("192.0.2.1"), PublicIP: netip.MustParseAddr("192.0.2.1"),
	IPv6: netip.MustParseAddr("2001:db8::1"), PublicIPv6: netip.MustParseAddr("2001:db8::1"),
}

// peerWith is the lease of node 2 with what it says of its backends.
func peerWith(kind, data, v6data string) lease.Lease {
	raw := func(s string) json.RawMessage {
		if s == "" {
			return nil
		}
		return json.RawMessage(s)
	}
	return lease.Lease{
		Attrs: lease.Attrs{
			PublicIP: netip.MustParseAddr("192.0.2.2"), PublicIPv6: netip.MustParseAddr("2001:db8::2"),
			BackendType: kind, BackendData: raw(data), BackendV6Data: raw(v6data),
		},
		Subnet:     netip.MustParsePrefix("10.5.2.0/24"),
		IPv6Subnet: netip.MustParsePrefix("fd00:5:0:2::/64"),
	}
}

const (
	vtep1  = `{"VNI":1,"VtepMAC":"8e:3b:1c:52:a0:07"}`
	vtep7  = `{"VNI":7,"VtepMAC":"8e:3b:1c:52:a0:07"}`
	twill  = `{"VNI":1,"VtepMAC":"8e:3b:1c:52:a0:07","Backends":["vxlan","udp"],"PartialChecksums":true}`
	future = `{"Backends":["quic","udp"]}`
)

// families is what nodes of each kind know, and of which families their
// underlay is.
func families(ways []backend.Kind, direct, onLink bool) (v4, v6 family) {
	f := family{vni: 1, gateway: true, direct: direct, onLink: func(netip.Addr) bool { return onLink }}
	for _, w := range ways {
		switch w {
		case backend.UDP:
			f.udp = eth0.IPv4
		case backend.HostGW:
			f.plain, f.direct = true, true
		}
	}
	v4, v6 = f, f
	if slices.Contains(ways, backend.VXLAN) {
		v4.vtep, v6.vtep = device(eth0.IPv4), device(eth0.IPv6)
	}
	return v4, v6
}

// device is a VXLAN device of node 1 at local.
func device(local netip.Addr) *vxlan.Device {
	return &vxlan.Device{
		Options: vxlan.Options{VNI: 1}, Local: local, MAC: vxlan.MAC(local, 1, false),
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:0:1::/64")},
	}
}

func TestEachPeerIsReachedInTheBestWayThatBothHave(t *testing.T) {
	auto, udpOnly, gw := []backend.Kind{backend.VXLAN, backend.UDP}, []backend.Kind{backend.UDP}, []backend.Kind{backend.HostGW}
	stockUDP := peerWith("", "", "")
	stockVXLAN := peerWith("vxlan", vtep1, vtep1)
	stockGW := peerWith("host-gw", "", "")
	both := peerWith("vxlan", twill, vtep1)
	twillUDP := peerWith("", `{"PartialChecksums":true}`, "")
	directUDP := peerWith("", `{"DirectRouting":true,"PartialChecksums":true}`, "")
	noMAC := peerWith("vxlan", `{"Backends":["vxlan","udp"]}`, "")
	for _, tt := range []struct {
		name   string
		own    []backend.Kind
		direct bool
		onLink bool
		peer   lease.Lease
		v4, v6 backend.Kind // empty: none
		says   string       // why not
	}{
		{"auto to auto", auto, false, true, both, backend.VXLAN, backend.VXLAN, ""},
		{"auto to udp", auto, false, true, twillUDP, backend.UDP, backend.UDP, ""},
		{"auto to stock udp", auto, false, true, stockUDP, backend.UDP, backend.UDP, ""},
		{"auto to stock vxlan", auto, false, true, stockVXLAN, backend.VXLAN, backend.VXLAN, ""},
		{"udp to auto", udpOnly, false, true, both, backend.UDP, backend.UDP, ""},
		{"udp to stock vxlan", udpOnly, false, true, stockVXLAN, "", "", "its backends are [vxlan], of which this node uses none"},
		{"vxlan without udp to udp", []backend.Kind{backend.VXLAN}, false, true, stockUDP, "", "", "its backends are [udp]"},
		{"direct on the link", auto, true, true, both, backend.HostGW, backend.HostGW, ""},
		{"direct behind a router", auto, true, false, both, backend.VXLAN, backend.VXLAN, ""},
		{"direct udp on the link", udpOnly, true, true, directUDP, backend.HostGW, backend.HostGW, ""},
		{"direct udp behind a router", udpOnly, true, false, directUDP, backend.UDP, backend.UDP, ""},
		{"direct vxlan to udp on the link", auto, true, true, directUDP, backend.HostGW, backend.HostGW, ""},
		{"direct to stock udp, which has it not", udpOnly, true, true, stockUDP, backend.UDP, backend.UDP, ""},
		{"direct to udp of a file", udpOnly, true, true, peerWith("udp", "", ""), backend.HostGW, backend.HostGW, ""},
		{"host-gw to host-gw", gw, false, true, stockGW, backend.HostGW, backend.HostGW, ""},
		{"host-gw to vxlan", gw, false, true, both, backend.HostGW, backend.HostGW, ""},
		{"host-gw behind a router", gw, false, false, stockGW, "", "", "this one is behind a gateway"},
		{"vxlan to host-gw", auto, false, true, stockGW, backend.HostGW, backend.HostGW, ""},
		{"vxlan to host-gw behind a router", auto, false, false, stockGW, "", "", "this one is behind a gateway"},
		{"another VNI", []backend.Kind{backend.VXLAN}, false, true, peerWith("vxlan", vtep7, vtep7), "", "", "its VNI is 7, this node's is 1"},
		{"another VNI, and udp", auto, false, true, peerWith("vxlan", `{"VNI":7,"VtepMAC":"8e:3b:1c:52:a0:07","Backends":["vxlan","udp"]}`, vtep7), backend.UDP, backend.UDP, ""},
		{"VXLAN for IPv4 only", auto, false, true, peerWith("vxlan", twill, ""), backend.VXLAN, backend.UDP, ""},
		{"no MAC, as in a file", auto, false, true, noMAC, backend.VXLAN, backend.VXLAN, ""},
		{"a backend that only flannel has", auto, false, true, peerWith("wireguard", `{"PublicKey":"x"}`, ""), "", "", `its backend is "wireguard", which this node does not support`},
		{"a backend of a later version", auto, false, true, peerWith("quic", future, ""), backend.UDP, backend.UDP, ""},
		{"VXLAN data of another form", []backend.Kind{backend.VXLAN}, false, true, peerWith("vxlan", `[]`, ""), "", "", "decode VXLAN data"},
		{"data of another form", auto, false, true, peerWith("", `"?"`, ""), backend.UDP, backend.UDP, ""},
	} {
		v4, v6 := families(tt.own, tt.direct, tt.onLink)
		for _, c := range []struct {
			family
			subnet netip.Prefix
			want   backend.Kind
		}{{v4, tt.peer.Subnet, tt.v4}, {v6, tt.peer.IPv6Subnet, tt.v6}} {
			h, err := c.pathTo(decode(tt.peer, 1), c.subnet)
			switch {
			case c.want == "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
				t.Errorf("%s, %s: %v, want %q", tt.name, c.subnet, err, tt.says)
			case c.want != "" && (err != nil || h.kind != c.want):
				t.Errorf("%s, %s: %q (%v), want %q", tt.name, c.subnet, h.kind, err, c.want)
			}
		}
	}
}

// Both ends of a pair have to come to the same, or packets come back another
// way than they went.
func TestBothEndsChooseTheSameWay(t *testing.T) {
	kinds := map[string][]backend.Kind{"auto": {backend.VXLAN, backend.UDP}, "vxlan": {backend.VXLAN}, "udp": {backend.UDP}, "host-gw": {backend.HostGW}}
	for a, aWays := range kinds {
		for b, bWays := range kinds {
			for _, direct := range []bool{false, true} {
				for _, onLink := range []bool{false, true} {
					there, back := way(aWays, bWays, direct, onLink), way(bWays, aWays, direct, onLink)
					if there != back {
						t.Errorf("%s to %s %q, %s to %s %q (direct %v, on link %v)", a, b, there, b, a, back, direct, onLink)
					}
				}
			}
		}
	}
}

// One end has an IPv4 underlay only and carries both families over it, the other
// has a device for each.
func TestEndsWithUnderlaysOfDifferentFamiliesChooseTheSameWay(t *testing.T) {
	a, b := peerWith("vxlan", twill, vtep1), peerWith("vxlan", twill, vtep1)
	a.PublicIPv6 = netip.Addr{}
	onLink := func(netip.Addr) bool { return true }
	fromA := family{vni: 1, vtep: device(a.PublicIP), udp: a.PublicIP, onLink: onLink}
	fromB := family{vni: 1, vtep: device(b.PublicIPv6), udp: b.PublicIP, onLink: onLink}
	there, err := fromA.pathTo(decode(b, 1), b.IPv6Subnet)
	back, err2 := fromB.pathTo(decode(a, 1), a.IPv6Subnet)
	if err != nil || err2 != nil || there.kind != backend.UDP || back.kind != backend.UDP {
		t.Errorf("there %q (%v), back %q (%v), want udp", there.kind, err, back.kind, err2)
	}

	// The socket of udp is at one address, IPv4 where there is one.
	c := peerWith("", "", "")
	c.PublicIP = netip.Addr{}
	dual := peerWith("", "", "")
	for from, to := range map[*lease.Lease]lease.Lease{&c: dual, &dual: c} {
		local, _ := udp.LocalAddr(underlayOf(*from))
		if h, err := (family{udp: local}).pathTo(decode(to, 1), to.Subnet); err == nil || !strings.Contains(err.Error(), "different address families") {
			t.Errorf("from %s: %q (%v)", local, h.kind, err)
		}
	}
}

func TestWhatOthersWroteIsCutInTheLog(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	v4, _ := families([]backend.Kind{backend.VXLAN}, false, false)
	for _, l := range []lease.Lease{peerWith(long, "", ""), peerWith("vxlan", `{"Backends":["`+long+`"]}`, "")} {
		if _, err := v4.pathTo(decode(l, 1), l.Subnet); err == nil || len(err.Error()) > 300 {
			t.Errorf("a message of %d bytes", len(err.Error()))
		}
	}
}

// way returns how a node of the ways own reaches one of the ways of, as this
// package announces them.
func way(own, of []backend.Kind, direct, onLink bool) backend.Kind {
	l := peerWith("", "", "")
	var v vteps
	if slices.Contains(of, backend.VXLAN) {
		v = vteps{dataOf(vtep1), dataOf(vtep1)}
	}
	a := attrs(backend.Settings{DirectRouting: direct}, backend.Choice{Kinds: of}, eth0, v, partial, "")
	l.BackendType, l.BackendData, l.BackendV6Data = a.BackendType, a.BackendData, a.BackendV6Data
	v4, _ := families(own, direct, onLink)
	h, err := v4.pathTo(decode(l, 1), l.Subnet)
	if err != nil {
		return ""
	}
	return h.kind
}

// TestStateIsStockFlannels: devices, entries and routes of each backend, from the
// leases alone.
func TestStateIsStockFlannels(t *testing.T) {
	p := decode(peerWith("vxlan", twill, vtep1), 1)
	vtep := ownVTEP{*device(eth0.IPv4), plannedVTEP{ipv4: true, local: eth0.IPv4}}
	vtep.Underlay, vtep.Subnets = eth0, vtep.Subnets[:1]
	mac := keep.MAC{0x8e, 0x3b, 0x1c, 0x52, 0xa0, 0x07}
	tun := &keep.Link{Name: "flannel0", MTU: 1472, Addrs: []netip.Addr{netip.MustParseAddr("10.5.1.0")}}
	networks := []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}
	device := keep.Link{
		Name: "flannel.1", MTU: 1450, MAC: keep.MAC(vtep.MAC), Addrs: []netip.Addr{netip.MustParseAddr("10.5.1.0")},
		VXLAN: &keep.VXLAN{VNI: 1, Port: 8472, Underlay: 2, UnderlayName: "eth0", Local: eth0.IPv4},
	}
	subnet := p.lease.Subnet
	for _, tt := range []struct {
		name   string
		layout layout
		kind   backend.Kind
		want   keep.State
	}{
		{"vxlan", layout{vteps: []ownVTEP{vtep}}, backend.VXLAN, keep.State{
			Links:  []keep.Link{device},
			FDB:    []keep.FDB{{Dev: "flannel.1", MAC: mac, Dst: p.lease.PublicIP}},
			Neighs: []keep.Neigh{{Dev: "flannel.1", IP: subnet.Addr(), MAC: mac}},
			Routes: []keep.Route{{Dst: subnet, Via: subnet.Addr(), Dev: "flannel.1", OnLink: true}},
		}},
		{"udp beside vxlan", layout{vteps: []ownVTEP{vtep}, tun: tun}, backend.UDP, keep.State{
			Links: []keep.Link{*tun, device}, Routes: []keep.Route{{Dst: subnet, Dev: "flannel0"}},
		}},
		{"udp", layout{tun: tun, wholeUDP: true, networks: networks}, backend.UDP, keep.State{
			Links: []keep.Link{*tun}, Routes: []keep.Route{{Dst: networks[0], Dev: "flannel0", Yield: true}},
		}},
		{"host-gw", layout{underlay: "eth0"}, backend.HostGW, keep.State{
			Routes: []keep.Route{{Dst: subnet, Via: p.lease.PublicIP, Dev: "eth0"}},
		}},
		{"blackhole", layout{underlay: "eth0", blackhole: networks}, backend.HostGW, keep.State{
			Routes: []keep.Route{{Dst: subnet, Via: p.lease.PublicIP, Dev: "eth0"}, {Dst: networks[0], Blackhole: true}},
		}},
	} {
		to := &path{peer: p, subnet: subnet, kind: tt.kind, via: p.lease.PublicIP}
		if tt.kind == backend.VXLAN {
			to.vtep = vxlan.Peer{Subnet: subnet, MAC: mac[:], Endpoint: p.lease.PublicIP}
		}
		tt.layout.release = "6.1.0"
		if got, _ := tt.layout.state([]*path{to}); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\n%+v\nwant\n%+v", tt.name, got, tt.want)
		}
	}
}
