package lease_test

import (
	"fmt"
	"net/netip"

	"github.com/twillnet/twill/lease"
)

// A network configuration has flannel's keys and defaults.
func ExampleParseConfig() {
	c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`))
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Networks(), c.Backend.Type)

	_, err = lease.ParseConfig([]byte(`{"Network": "10.5.0.0/40"}`))
	fmt.Println(err != nil)
	// Output:
	// [10.5.0.0/16] udp
	// true
}

// A Set is what the updates of a Store add up to.
func ExampleSet() {
	node := func(subnet, public string) lease.Lease {
		return lease.Lease{
			Subnet: netip.MustParsePrefix(subnet),
			Attrs:  lease.Attrs{PublicIP: netip.MustParseAddr(public)},
		}
	}
	a, b := node("10.5.1.0/24", "192.0.2.1"), node("10.5.2.0/24", "192.0.2.2")

	set := lease.NewSet([]lease.Lease{a})
	fmt.Println(set.Apply(lease.Update{Put: []lease.Lease{b}}))
	fmt.Println(set.Apply(lease.Update{Put: []lease.Lease{b}}), "the second time")
	set.Apply(lease.Update{Delete: []lease.Key{a.Key()}})
	for _, l := range set.Leases() {
		fmt.Println(l.Subnet, "at", l.PublicIP)
	}
	// Output:
	// true
	// false the second time
	// 10.5.2.0/24 at 192.0.2.2
}
