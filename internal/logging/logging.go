// Package logging makes the daemon's logger and defines the list of log keys.
//
// Messages are constant sentences without values; values are attributes under a
// key of the list, so that lines of all packages can be searched and joined in
// the same way. Nothing is logged per packet.
package logging

import (
	"fmt"
	"io"
	"log/slog"
)

// Keys of log attributes.
const (
	KeyAddress     = "address"     // IP address and port
	KeyAway        = "away"        // how long an outage lasted
	KeyBackends    = "backends"    // backends, best first: [vxlan udp]
	KeyDescriptors = "descriptors" // number of open files that pass between processes
	KeyDevice      = "device"      // TUN device: flannel0
	KeyDuration    = "duration"    // for how long something holds
	KeyEndpoints   = "endpoints"   // URLs of etcd
	KeyError       = "error"       // what failed
	KeyInterface   = "interface"   // underlay interface: eth0
	KeyKey         = "key"         // in etcd: /coreos.com/network/config
	KeyConflicts   = "conflicts"   // number of subnets that overlap those of other leases
	KeyKnown       = "known"       // the time of last-known data that is in use
	KeyLeases      = "leases"      // number of leases in force
	KeyMTU         = "mtu"         // bytes
	KeyNode        = "node"        // name of a Node object
	KeyNow         = "now"         // the new value of a change
	KeyOf          = "of"          // part of the data plane
	KeyOffload     = "offload"     // whether the offload device runs
	KeyOperation   = "operation"   // request to etcd
	KeyOther       = "other"       // the second of two that are in conflict
	KeyPID         = "pid"         // of another process
	KeyPath        = "path"        // file
	KeyQueues      = "queues"      // number of TUN queues
	KeyRemedy      = "remedy"      // what to do about it
	KeyRoute       = "route"       // a route in the syntax of ip-route(8)
	KeySetting     = "setting"     // flag or environment variable, as given
	KeyShard       = "shard"       // number of a shard, from 0
	KeySubnet      = "subnet"      // pod subnets of a lease
	KeyVersion     = "version"     // of the running binary
	KeyWas         = "was"         // the old value of a change
	KeyWhat        = "what"        // the kind of object: lease file
	KeyWhy         = "why"         // the reason
)

// Format is the format of log lines. It is a flag value.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Format) UnmarshalText(text []byte) error {
	switch v := Format(text); v {
	case Text, JSON:
		*f = v
		return nil
	default:
		return fmt.Errorf("want %s or %s", Text, JSON)
	}
}

// MarshalText implements encoding.TextMarshaler.
func (f Format) MarshalText() ([]byte, error) { return []byte(f), nil }

// New returns a logger that writes lines of at least level to w, which it
// locks for each line. Errors are written as Explain returns them.
func New(w io.Writer, f Format, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level, ReplaceAttr: explained}
	if f == JSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
