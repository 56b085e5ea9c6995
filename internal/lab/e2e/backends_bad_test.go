package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// badLeases are values that no correct node writes, each of a subnet of its own.
var badLeases = []string{
	`{`, `null`, `[]`, `""`, `{}`,
	`{"PublicIP":"172.31.9.80","BackendType":"vxlan"}`,
	`{"PublicIP":"172.31.9.81","BackendType":"vxlan","BackendData":null}`,
	`{"PublicIP":"172.31.9.82","BackendType":"vxlan","BackendData":"VNI"}`,
	`{"PublicIP":"172.31.9.83","BackendType":"vxlan","BackendData":{"VNI":1}}`,
	`{"PublicIP":"172.31.9.84","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":""}}`,
	`{"PublicIP":"172.31.9.85","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}}`,
	`{"PublicIP":"172.31.9.86","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}}`,
	`{"PublicIP":"172.31.9.87","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:5e:10:00:00:00:01"}}`,
	`{"PublicIP":"172.31.9.88","BackendType":"vxlan","BackendData":{"VNI":2,"VtepMAC":"02:77:77:77:77:88"}}`,
	`{"PublicIP":"172.31.9.89","BackendType":"vxlan","BackendData":{"VNI":-1,"VtepMAC":"02:77:77:77:77:89"}}`,
	`{"PublicIP":"172.31.9.90","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:90","Backends":"vxlan"}}`,
	`{"PublicIP":"172.31.9.91","BackendType":"vxlan","BackendData":{"Backends":["","no such thing",7]}}`,
	`{"PublicIP":"0.0.0.0","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:92"}}`,
	`{"PublicIP":"224.0.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:93"}}`,
	`{"PublicIP":"127.0.0.1","BackendType":"host-gw"}`,
	`{"PublicIP":"255.255.255.255","BackendType":"host-gw"}`,
	`{"PublicIP":"172.31.9.11","BackendType":"host-gw"}`,                                                                                       // of host a
	`{"PublicIP":"192.0.2.1","BackendType":"host-gw"}`,                                                                                         // not on the link
	`{"PublicIP":"10.5.1.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:97","Backends":["vxlan","udp","host-gw"]}}`, // in host a's pods
	`{"PublicIP":"10.5.2.7","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:98","Backends":["vxlan","udp","host-gw"]}}`, // in host b's
	`{"PublicIP":"172.31.9.94","BackendType":"wireguard","BackendData":{"PublicKey":"x"}}`,
	`{"PublicIP":"172.31.9.95","BackendType":7}`,
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, with invalid leases
func TestLeasesThatMakeNoSenseDisturbNoOtherPeer(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{
		`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`, `{"Type": "auto"}`, `{"Type": "udp"}`,
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: backend})
			c.runTwill()
			before, flows := c.tables(), c.steadyBetween(0, 1)
			for i, value := range badLeases {
				c.put(fmt.Sprintf("subnets/10.5.%d.0-24", 100+i), value)
			}
			for _, key := range []string{"rubbish", "10.5.1.128-25", "10.6.0.0-24", "10.5.0.0-16", "0.0.0.0-0", "10.5.1.1-24"} {
				c.put("subnets/"+key, `{"PublicIP":"172.31.9.96","BackendType":"host-gw"}`)
			}
			// A valid one, after them.
			c.put("subnets/10.5.77.0-24", `{"PublicIP":"172.31.9.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:04","Backends":["vxlan","udp","host-gw"]}}`)
			for i := range 2 {
				testkit.Eventually(t, fmt.Sprintf("host %s has a route to the valid lease", c.nodes[i].Letter), func() bool { return c.sendsTo(i, "10.5.77.2") })
			}
			flows.pass(t, 500)
			flows.stop(t)
			for i := range 2 {
				if d := c.running[i].(*daemon); d.ended() || d.status().Waiting != "" {
					t.Errorf("host %s: no longer ready", c.nodes[i].Letter)
				}
			}
			for key := range c.entries() {
				if key = strings.TrimPrefix(key, etcdPrefix+"/"); !strings.Contains(before, key) {
					c.remove(key)
				}
			}
			c.becomes(before, "the leases are gone")
		})
	}
}

// sendsTo reports whether host number i has a route to an address.
func (c *cluster) sendsTo(i int, addr string) bool {
	c.t.Helper()
	found, err := c.nodes[i].NS.Netlink().RouteGet(netip.MustParseAddr(addr).AsSlice())
	return err == nil && len(found) == 1
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, the network's configuration
func TestBackendMayBeChangedFasterThanNodesFollow(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: dualStack})
	c.runTwill()
	before, talk := c.tables(), c.talk()
	all := []string{
		`{"Type": "udp"}`, `{"Type": "vxlan", "VNI": 7}`, `{"Type": "host-gw"}`, `{"Type": "auto"}`, `{"Type": "alloc"}`,
		`{"Type": "vxlan", "Port": 4789}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "no such thing"}`, `{"Type": "vxlan", "MTU": 1400}`,
	}
	for round := range 6 {
		for _, backend := range all {
			c.configure(backend)
		}
		// In every other round, one of the nodes has followed the changes.
		if i := round / 2 % 2; round%2 == 0 && !testkit.Within(testkit.Patience, func() bool { return c.sendsThrough(i, 1-i, viaVXLAN) }) {
			t.Fatalf("host %s did not follow the last change", c.nodes[i].Letter)
		}
	}
	c.configure(`{"Type": "vxlan"}`)
	// flannel0, once opened for a peer that was late, may stay.
	rest := func(tables string) string { return strings.Join(except(strings.Split(tables, "\n"), "flannel0"), "\n") }
	var now string
	if !testkit.Within(testkit.Patience, func() bool {
		now = rest(c.tables())
		return now == before
	}) {
		t.Errorf("after the last change:\n%s", differences(before, now))
	}
	c.waitTalk()
	talk.goesOn(t)
	for i := range 2 {
		c.running[i].(*daemon).waitReady()
	}
}
