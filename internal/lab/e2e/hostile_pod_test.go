package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// A pod that sends to addresses that no node holds gets an error for some of its
// packets. This does not limit the errors from which others learn the path MTU.
//
//	pod-a, floods 10.5.99.1 ──┐
//	                          ├── host a ── 1400 ── host b
//	pod-a2, learns ───────────┘
func TestFloodOfOnePodLeavesPathMTUDiscoveryToTheOthers(t *testing.T) {
	t.Parallel()
	opts := labOptions{flags: []string{"--source-ports=off", "--thread-pairs=1"}, Options: netlab.Options{Pods: 2}}
	forEngines(t, opts, func(t *testing.T, l *lab) {
		l.routeToB(0, netip.Addr{}, 1400)
		flooder, learner := l.Hosts[0].Pods[0], l.Hosts[0].Pods[1]
		none := netip.AddrPortFrom(netip.MustParseAddr("10.5.99.1"), 9)
		flood := make([][]byte, 300) // fewer than the device's queue holds
		for i := range flood {
			flood[i] = udpPacket(netip.AddrPortFrom(flooder.Addr, 1000), none, nil).bytes()
		}
		to := l.pod(1).Addr
		big := udpPacket(netip.AddrPortFrom(learner.Addr, 1000), netip.AddrPortFrom(to, 9), make([]byte, 1400))
		big.frag = 1 << 14 // DF
		errs := newTap(t, learner.NS, "eth0")
		for i := range 40 {
			sendRaw(t, flooder.NS, none.Addr(), flood...)
			big.id = uint16(i)
			sendRaw(t, learner.NS, to, big.bytes())
			got := errs.next("fragmentation needed", func(b []byte) bool {
				return b[0]>>4 == 4 && b[9] == unix.IPPROTO_ICMP && b[20] == 3 && b[21] == 4
			})
			if got == nil {
				t.Fatalf("packet %d of 40 that was too big got no answer", i+1)
			}
			if id := binary.BigEndian.Uint16(got[28+4:]); id != uint16(i) {
				t.Errorf("the answer to packet %d is about packet %d", i, id)
			}
		}
	})
}

// A pod whose packets are masqueraded sends with the address of its node, which is a
// peer of the others. Rules keep it away from their tunnels.
//
//	pod-a ── host a, masquerade ──────────── host b ── pod-b
func TestMasqueradedPodCannotSendAsItsNode(t *testing.T) {
	for _, backend := range []struct {
		name, config string
		device, own  string // of host b: over IPv4, and over IPv6
		port         uint16
		underlay6    bool
	}{
		{"udp", `{"Type": "udp"}`, "flannel0", "", 8285, false},
		{"udp over ipv6", `{"Type": "udp"}`, "", "flannel0", 8285, true},
		{"vxlan", `{"Type": "vxlan"}`, "flannel.1", "flannel-v6.1", 8472, false},
	} {
		for _, nftables := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, nftables %t", backend.name, nftables), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, clusterOptions{stack: dualStack, backend: backend.config, ipv6Underlay: backend.underlay6})
				c.put("config", strings.Replace(c.stack.config(backend.config), `"Backend"`, fmt.Sprintf(`"EnableNFTables": %t, "Backend"`, nftables), 1))
				c.runTwill(withRules...)
				for _, way := range []struct {
					device   string
					to       netip.Addr
					src, dst netip.Addr // inner
				}{
					{backend.device, c.nodes[1].Addr, c.pod(0).Addr, c.pod(1).Addr},
					{backend.own, c.nodes[1].Addr6, c.pod(0).Addr6, c.pod(1).Addr6},
				} {
					if way.device == "" {
						continue
					}
					if strings.HasPrefix(backend.name, "udp") {
						way.src, way.dst = c.pod(0).Addr, c.pod(1).Addr
					}
					inner := func(port uint16) []byte {
						b := udpPacket(netip.AddrPortFrom(way.src, port), netip.AddrPortFrom(way.dst, 9), nil).bytes()
						if way.device == "flannel0" {
							return b
						}
						return c.vxlanFrame(1, way.device, b)
					}
					to := netip.AddrPortFrom(way.to, backend.port)
					arrived := newTap(t, c.pod(1).NS, "eth0")
					const forged, real = 1111, 2222
					for range 20 {
						send(t, c.pod(0).NS, to, inner(forged))
					}
					send(t, c.nodes[0].NS, to, inner(real))
					got := arrived.next("packet of the node", func(b []byte) bool {
						at := 20
						if len(b) > 0 && b[0]>>4 == 6 {
							at = 40
						}
						return len(b) == at+8 && binary.BigEndian.Uint16(b[at+2:]) == 9 // not an ICMP error
					})
					if got == nil {
						continue
					}
					if port := binary.BigEndian.Uint16(got[len(got)-8:]); port != real {
						t.Errorf("over %s: a packet that pod-a forged has arrived", way.device)
					}
				}
			})
		}
	}
}

// A pod that may send raw packets can send with any source. Rules keep packets with
// that of a node, which do not come from the node, away from the tunnels; the kernel's
// rp_filter is off, as it is for IPv6 everywhere.
//
//	host b, a peer ──────────── host a ── pod-a, sends as host b
func TestPodThatForgesAddressesCannotSendAsANode(t *testing.T) {
	for _, backend := range []struct {
		name, config, device string
		port                 uint16
		ipv6                 bool
	}{
		{"udp", `{"Type": "udp"}`, "flannel0", 8285, false},
		{"udp over ipv6", `{"Type": "udp"}`, "flannel0", 8285, true},
		{"vxlan", `{"Type": "vxlan"}`, "flannel.1", 8472, false},
		{"vxlan over ipv6", `{"Type": "vxlan"}`, "flannel-v6.1", 8472, true},
	} {
		for _, nftables := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, nftables %t", backend.name, nftables), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, clusterOptions{stack: dualStack, backend: backend.config, ipv6Underlay: backend.ipv6 && backend.device == "flannel0"})
				c.put("config", strings.Replace(c.stack.config(backend.config), `"Backend"`, fmt.Sprintf(`"EnableNFTables": %t, "Backend"`, nftables), 1))
				c.runTwill(withRules...)
				for _, link := range []string{"all", "cni0"} {
					testkit.Must(t, c.nodes[0].NS.Sysctl("net/ipv4/conf/"+link+"/rp_filter", "0"))
				}
				src, dst := c.pod(1).Addr, c.pod(0).Addr
				to, peer := c.nodes[0].Addr, c.nodes[1].Addr
				if backend.ipv6 {
					to, peer = c.nodes[0].Addr6, c.nodes[1].Addr6
				}
				if backend.device == "flannel-v6.1" {
					src, dst = c.pod(1).Addr6, c.pod(0).Addr6
				}
				inner := func(port uint16) []byte {
					b := udpPacket(netip.AddrPortFrom(src, port), netip.AddrPortFrom(dst, 9), nil).bytes()
					if backend.device == "flannel0" {
						return b
					}
					return c.vxlanFrame(0, backend.device, b)
				}
				arrived := newTap(t, c.pod(0).NS, "eth0")
				const forged, real = 1111, 2222
				tunnel := netip.AddrPortFrom(to, backend.port)
				outer := udpPacket(netip.AddrPortFrom(peer, backend.port), tunnel, inner(forged)).bytes()
				for range 20 {
					sendRaw(t, c.pod(0).NS, to, outer)
				}
				header := 20
				if src.Is6() {
					header = 40
				}
				for range 5 {
					send(t, c.nodes[1].NS, tunnel, inner(real))
				}
				got := arrived.next("packet of the peer", func(b []byte) bool {
					return len(b) == header+8 && source(b) == src && binary.BigEndian.Uint16(b[header+2:]) == 9
				})
				if got == nil {
					return
				}
				if port := binary.BigEndian.Uint16(got[header:]); port != real {
					t.Error("a packet that pod-a forged has arrived")
				}
			})
		}
	}
}

// send sends a datagram from ns. It is not an error if the kernel refuses.
func send(t *testing.T, ns *netlab.Namespace, to netip.AddrPort, payload []byte) {
	t.Helper()
	conn, err := dialUDP(ns, to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(payload); err != nil && !errors.Is(err, unix.EPERM) {
		t.Fatal(err)
	}
}

// vxlanFrame is a packet in an Ethernet frame to a VXLAN device of node number i, with
// a VXLAN header before it (RFC 7348 §5).
func (c *cluster) vxlanFrame(i int, device string, packet []byte) []byte {
	c.t.Helper()
	link, err := c.nodes[i].NS.Netlink().LinkByName(device)
	if err != nil {
		c.t.Fatal(err)
	}
	b := []byte{8, 0, 0, 0, 0, 0, 1, 0}
	b = append(append(b, link.Attrs().HardwareAddr...), 2, 0, 0, 0, 0, 9)
	etherType := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		etherType = unix.ETH_P_IPV6
	}
	return append(binary.BigEndian.AppendUint16(b, etherType), packet...)
}
