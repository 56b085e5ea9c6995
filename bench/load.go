package bench

import (
	"context"
	"time"

	"github.com/twillnet/twill/bench/report"
)

// Load is a kind of traffic between the pods.
type Load struct {
	Name  string // in --loads and JSON
	Title string
	// run puts the load on the connection, for about the given time if its
	// duration can be chosen.
	run func(context.Context, *Connection, time.Duration) (report.Figures, error)
	// A run of duration d takes fixed + factor·d.
	fixed  time.Duration
	factor float64
}

// Loads are all loads, in the order in which they run.
var Loads = []Load{
	{"ping", "ping, full MTU, DF", fullPing, 20 * time.Millisecond, 0},
	{"tcp1", "TCP, 1 stream", streams(1, 0), warmUp, 1},
	{"tcp4", "TCP, 4 streams", streams(4, 0), warmUp, 1},
	{"tcp16", "TCP, 16 streams", streams(16, 0), warmUp, 1},
	{"tcp1r", "TCP, 1 stream back", streams(0, 1), warmUp, 1},
	{"tcp4r", "TCP, 4 streams back", streams(0, 4), warmUp, 1},
	{"tcp16r", "TCP, 16 streams back", streams(0, 16), warmUp, 1},
	{"tcp2way", "TCP, 1 stream each way", streams(1, 1), warmUp, 1},
	{"udp64", "UDP, 64 B", datagrams(64, severalFlows), searchTime, 1.3},
	{"udp64-1", "UDP, 64 B, one sender", datagrams(64, 1), searchTime, 1.3},
	{"udp512", "UDP, 512 B", datagrams(512, severalFlows), searchTime, 1.3},
	{"udpmtu", "UDP, full MTU", datagrams(0, severalFlows), searchTime, 1.3},
	{"rr", "requests, 64 B", requests, warmUp, 1},
	{"rr-load", "requests beside a stream", requestsUnderLoad, warmUp, 1},
	{"connect", "TCP connections", connections, warmUp, 1},
}

// took estimates how long a run of d takes.
func (l Load) took(d time.Duration) time.Duration {
	return l.fixed + time.Duration(l.factor*float64(d))
}
