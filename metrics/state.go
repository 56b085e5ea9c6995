package metrics

import (
	"slices"
	"time"
)

// State is what the collector reports at each scrape besides the counters.
type State struct {
	// Waiting is what keeps the node from being ready.
	Waiting Wait

	Peers  int // other nodes that packets are sent to
	Narrow int // the number of Peers whose path loses full-size packets without an ICMP error
	Leases int // leases in force, including the node's own

	Source Source
	// LeaseExpiry is when the node's lease ends unless it is renewed; zero: never, or
	// there is none.
	LeaseExpiry time.Time
	Rules       *Rules // nil: none are kept

	// Device describes the TUN device; it is the zero value while there is none.
	Device DeviceInfo
	// Backend describes which backends the node uses for its peers.
	Backend BackendInfo
	// Traffic is what each backend has carried, where that can be counted.
	Traffic []BackendTraffic
	// Restarts is how often the data plane was opened again, by cause.
	Restarts [NumRestarts]uint64
	// Offloads reports for each kernel offload, by name, whether it is in force.
	Offloads map[string]bool
}

// Source is the state of the lease store.
type Source struct {
	// OK is false while the store holds something invalid, for example a broken
	// file, and the last good leases stay in force.
	OK bool
	// Away is for how long the store has not answered or has refused this node;
	// 0: it answers.
	Away time.Duration
	// Watched means that changes in the store reach this node as they happen.
	Watched bool
	Updated time.Time // when the last good update arrived; zero: none has
}

// Rules is the state of the firewall rules.
type Rules struct {
	InForce bool
	Writes  int       // how often they were written
	Checked time.Time // when they were last found correct; zero: never
}

// DeviceInfo describes the TUN device: its name, its kind ("offload",
// "plain") and why it is of this kind.
type DeviceInfo struct{ Name, Kind, Reason string }

// BackendInfo describes the choice of backends: the one that is configured
// ("auto"), the one that the node prefers ("vxlan"), and why.
type BackendInfo struct{ Configured, Backend, Reason string }

// BackendTraffic is what a backend has carried since its devices were made.
type BackendTraffic struct {
	Backend string // "udp", "udp-kernel" for the kernel path, "vxlan"
	TX, RX  Flow
}

// Flow counts the packets of pods in one direction.
type Flow struct{ Packets, Bytes, Dropped uint64 }

// Add adds the counters of a shard.
func (f *Flow) Add(d *Direction) {
	f.Packets += d.Packets.Load()
	f.Bytes += d.Bytes.Load()
	for i := range d.Drops {
		f.Dropped += d.Drops[i].Load()
	}
}

// Wait is what a node waits for before it is ready.
type Wait uint8

const (
	// Ready: the node waits for nothing.
	Ready Wait = iota
	// WaitStore: the lease store has not answered yet, or refuses this node.
	WaitStore
	// WaitConfig: there is no valid network configuration.
	WaitConfig
	// WaitInterface: no interface reaches the other nodes.
	WaitInterface
	// WaitLease: the node has no lease, or the store does not have what the node
	// announces in it.
	WaitLease
	// WaitDataPlane: the devices are not open.
	WaitDataPlane
	// WaitRules: the firewall rules cannot be written.
	WaitRules
	// WaitSubnetFile: subnet.env cannot be written.
	WaitSubnetFile
	// NumWaits is the number of values.
	NumWaits
)

var waitNames = [NumWaits]string{
	WaitStore:      "store",
	WaitConfig:     "config",
	WaitInterface:  "interface",
	WaitLease:      "lease",
	WaitDataPlane:  "data_plane",
	WaitRules:      "rules",
	WaitSubnetFile: "subnet_file",
}

// String returns the metric's "reason" label; it is empty for Ready.
func (w Wait) String() string { return waitNames[w] }

// WaitOf returns the value with that name; Ready if there is none.
func WaitOf(name string) Wait {
	return Wait(max(slices.Index(waitNames[:], name), 0))
}

// Restart is the cause for which the data plane was opened again.
type Restart uint8

const (
	// RestartDevice: a device was deleted, or the data plane failed.
	RestartDevice Restart = iota
	// RestartInterface: the interface to the other nodes was replaced by another one,
	// or its address or MTU has changed.
	RestartInterface
	// RestartLease: the node's subnet has changed.
	RestartLease
	// RestartBackend: the configured or the usable backends have changed.
	RestartBackend
	// NumRestarts is the number of causes.
	NumRestarts
)

var restartNames = [NumRestarts]string{
	RestartDevice:    "device",
	RestartInterface: "interface",
	RestartLease:     "lease",
	RestartBackend:   "backend",
}

// String returns the metric's "cause" label.
func (r Restart) String() string { return restartNames[r] }
