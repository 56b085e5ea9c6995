// Package lease knows what the nodes of a network agree on: the network
// configuration, which node holds which pod subnet, and how a store of both (a
// file, etcd) is read, written and watched.
//
// It knows nothing of devices, sockets or routes.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"time"
)

// Attrs is what a node announces with its lease.
// The JSON form is flannel's (etcd value and Kubernetes annotations).
type Attrs struct {
	PublicIP      netip.Addr      // IPv4 address at which other nodes reach this one; invalid if it has none
	PublicIPv6    netip.Addr      // the same for IPv6
	BackendType   string          // "udp", "vxlan", …; empty is written by stock flannel's udp backend
	BackendData   json.RawMessage // opaque to this package
	BackendV6Data json.RawMessage
}

// Lease is one node's right to its pod subnets.
type Lease struct {
	Attrs
	Subnet     netip.Prefix // IPv4 pod subnet, masked; invalid if the node has none
	IPv6Subnet netip.Prefix // the same for IPv6
	Expiration time.Time    // zero: never
}

// Key names a lease within its network: flannel's etcd key,
// "10.5.52.0-24" or "10.5.1.0-24&fc00:5:1::-64".
type Key string

// Update is one step in what a store knows.
type Update struct {
	// Config is not nil when the network configuration is sent for the first
	// time or has changed; a store that others write to also sends it when it
	// is good again after a bad one.
	Config *Config
	// Snapshot says that Put is the complete set of leases: what is not in
	// it is gone. The first update of a watch is always a snapshot.
	Snapshot bool
	Put      []Lease
	Delete   []Key
	// Err is not nil when the store refuses something, such as a broken
	// configuration; when the node's own lease is lost, or is not as the node
	// wrote it, which wraps ErrLost and calls for Renew; or when the store
	// refuses this node, which wraps ErrDenied. The rest of the update is then
	// empty, and what was sent before stays in force.
	Err error
}

// ErrNoLease says that the store holds no lease for the asking node and
// cannot make one.
var ErrNoLease = errors.New("no lease for this node")

// ErrLost says that a lease which the node had has expired, was deleted, or has
// become another node's. The node may acquire another.
var ErrLost = errors.New("lease lost")

// ErrConfig says that a store's network configuration is missing, or is not what it
// is meant to be. A text of which a value is wrong is a *ConfigError or *SyntaxError.
var ErrConfig = errors.New("network config")

// ErrPending says that what makes the node's lease is not there yet, or that the
// store cannot be asked now. The same call may succeed later.
var ErrPending = errors.New("no lease yet")

// ErrDenied says that the store refuses the credentials of this node, so that
// what was known may be out of date without notice.
var ErrDenied = errors.New("access denied")

// Store is where the nodes of a network find their configuration and leases.
// lease/static, lease/etcd and lease/kube implement it.
//
// All methods may be called from several goroutines.
type Store interface {
	// Config returns the network configuration. An error names the key that
	// is wrong.
	Config(ctx context.Context) (*Config, error)

	// Acquire returns the lease of the node that a describes, taking a new
	// one where the store can. prev is the subnets the node had before (from
	// subnet.env); either may be invalid. It returns an error that wraps
	// ErrNoLease when there is none to be had, and one that wraps ErrPending
	// when the caller is to ask again.
	Acquire(ctx context.Context, a Attrs, prev Previous) (*Lease, error)

	// Renew extends own before own.Expiration and returns the resulting
	// lease. It fails, and changes nothing, if the lease is no longer
	// this node's: with an error that wraps ErrLost, or ErrNoLease where the
	// store cannot make another. Stores whose leases never expire return own
	// unchanged.
	Renew(ctx context.Context, own *Lease) (*Lease, error)

	// Watch sends what the store knows to updates until ctx is done: first
	// one snapshot with Config set, then changes. It recovers from what
	// is temporary (a store that restarts, a file that is replaced) by itself,
	// and sends a new snapshot where it may have missed something. Put and
	// Snapshot include the node's own lease. It returns ctx.Err().
	Watch(ctx context.Context, updates chan<- Update) error
}

// Previous is what a node was before a restart.
type Previous struct {
	Subnet, IPv6Subnet netip.Prefix // the subnets that it held
	// Addrs are the addresses that the host has. A lease of those subnets under
	// one of them is this node's, though it is announced under another now.
	Addrs []netip.Addr
	// Gateways are next hops of the host's default routes. A new subnet contains
	// none of Addrs and Gateways, since its route would cut them off.
	Gateways []netip.Addr
}
