//go:build amd64

package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ─┬─ … ─ host c ── pod-c
//
//	└── etcd
func TestTablesAreThoseThatStockFlannelMakes(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	for _, g := range goldens {
		// How many of the hosts run twilld; the others run stock flannel.
		for own := 1; own <= 3; own += 2 {
			t.Run(fmt.Sprintf("%s, %d of 3", g.file, own), func(t *testing.T) {
				t.Parallel()
				c := g.cluster(t)
				kinds := []kind{stock("a", g.backend), stock("b", g.backend), stock("c", g.backend)}
				for i := range own {
					kinds[i] = twill("own")
				}
				c.run(kinds...)
				c.waitTalk()
				want := except(strings.Split(g.read(t), "\n"), linkLocal)
				var got []string
				if !testkit.Within(testkit.Patience, func() bool {
					got = except(strings.Split(stockWords(c.tables()), "\n"), linkLocal)
					return slices.Equal(got, want)
				}) {
					t.Errorf("differences from stock flannel's tables:\n%s", differences(strings.Join(want, "\n"), strings.Join(got, "\n")))
				}
			})
		}
	}
}

// linkLocal marks the addresses that the kernel gives to devices that stock
// flannel makes, and the routes that come with them. They are not used.
const linkLocal = "fe80::"

// stockWords removes the intended differences from stock flannel: twilld's leases
// announce more, and it leaves 70 bytes for VXLAN over IPv6 if the network's
// configuration sets the MTU of the underlay.
func stockWords(tables string) string {
	tables = moreInLeases.ReplaceAllString(tables, "")
	return strings.ReplaceAll(tables, "link flannel-v6.77 vxlan mtu 1330", "link flannel-v6.77 vxlan mtu 1350")
}

var moreInLeases = regexp.MustCompile(`,"Backends":\["vxlan","udp"\],"PartialChecksums":true,"Node":"[0-9a-f]{16}"`)
