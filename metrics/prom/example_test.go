package prom_test

import (
	"fmt"

	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/metrics/prom"
)

// The data plane counts in a Shard, which a registry shows to Prometheus.
func ExampleNewRegistry() {
	shard := new(metrics.Shard)
	shard.TX.Packets.Add(3)
	shard.TX.Drop(metrics.DropNoRoute, 1)

	registry := prom.NewRegistry(
		func() []*metrics.Shard { return []*metrics.Shard{shard} },
		func() metrics.State { return metrics.State{Peers: 2, Leases: 3, Source: metrics.Source{OK: true}} },
		"v0.1.0")
	families, err := registry.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "twill_peers":
			fmt.Println(f.GetName(), f.GetMetric()[0].GetGauge().GetValue())
		case "twill_packets_total":
			for _, m := range f.GetMetric() {
				fmt.Println(f.GetName(), m.GetLabel()[0].GetValue(), m.GetCounter().GetValue())
			}
		}
	}
	fmt.Println(metrics.DropNoRoute, "means:", metrics.DropNoRoute.Meaning())
	// Output:
	// twill_packets_total rx 0
	// twill_packets_total tx 3
	// twill_peers 2
	// no_route means: no peer holds the destination
}
