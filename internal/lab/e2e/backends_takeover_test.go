//go:build amd64

package e2e

import (
	"fmt"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// What stock flannel leaves behind when it ends is taken over or removed,
// whatever backend comes after it.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd
func TestTwilldTakesOverFromEveryBackendOfStockFlannel(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	for _, from := range []struct {
		name, backend string
		stack         stack
	}{
		{"stock vxlan", `{"Type": "vxlan"}`, dualStack},
		{"stock vxlan, another VNI", `{"Type": "vxlan", "VNI": 7}`, dualStack},
		{"stock vxlan, direct", `{"Type": "vxlan", "DirectRouting": true}`, dualStack},
		{"stock host-gw", `{"Type": "host-gw"}`, dualStack},
		{"stock udp", `{"Type": "udp"}`, ipv4Stack},
	} {
		for _, to := range []struct {
			kind
			through devices
			mtu     [2]int
		}{
			{twill("vxlan", "--backend=vxlan"), viaVXLAN, overVXLAN},
			{twill("udp", "--backend=udp"), viaUDP, overUDP},
			{twill("host-gw", "--backend=host-gw"), viaLink, overRoute},
		} {
			t.Run(fmt.Sprintf("%s to %s", from.name, to.name), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: from.stack})
				k := stock(from.name, from.backend)
				c.run(k, k)
				c.waitTalk()
				for i := range 2 {
					c.swap(i, to.kind)
				}
				for i := range 2 {
					if !testkit.Within(testkit.Patience, func() bool { return c.sendsThrough(i, 1-i, to.through) }) {
						c.expectRoutes(t, i, 1-i, to.through)
					}
				}
				c.expectPair(t, 0, 1, to.mtu)
			})
		}
	}
}
