package bench

import (
	"context"
	"time"
)

// Load is something that pods do with a path.
type Load struct {
	Name    string // in --loads and JSON
	Title   string
	Metrics []Metric // what tables show of it, in this order
	// run puts the load on the connection, for about the given time where
	// that is up to choice.
	run func(context.Context, *Connection, time.Duration) (Figures, error)
}

// Loads are all loads, in the order in which they run.
var Loads = []Load{
	{"ping", "ping, full MTU, DF", []Metric{pingSize, pingRoundTrip}, fullPing},
	{"tcp1", "TCP, 1 stream", []Metric{throughput, cpuPerGB, retransmits}, streams(1)},
	{"tcp4", "TCP, 4 streams", []Metric{throughput, cpuPerGB, retransmits}, streams(4)},
	{"udp64", "UDP, 64 B", []Metric{packetRate, loss, cpuPerMpkt}, datagrams(64)},
	{"udpmtu", "UDP, full MTU", []Metric{throughput, loss, cpuPerGB}, datagrams(0)},
	{"rr", "requests, 64 B", []Metric{halfRTT50, halfRTT99, halfRTT999}, requests},
}
