// Package lease defines what the nodes of a network share: the network
// configuration, which node holds which pod subnet, and how a store of both (a
// file, etcd) is read, written and watched.
//
// It does not deal with devices, sockets or routes.
package lease

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
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
	Expiration time.Time    // zero for never
}

// Key names a lease within its network: flannel's etcd key,
// "10.5.52.0-24" or "10.5.1.0-24&fc00:5:1::-64".
type Key string

// Addrs returns the public addresses that a has, IPv4 first.
func (a Attrs) Addrs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{a.PublicIP, a.PublicIPv6}, func(ip netip.Addr) bool { return !ip.IsValid() })
}

// Equal reports whether two nodes announce the same attributes.
func (a Attrs) Equal(b Attrs) bool {
	return a.PublicIP == b.PublicIP && a.PublicIPv6 == b.PublicIPv6 && a.BackendType == b.BackendType &&
		string(a.BackendData) == string(b.BackendData) && string(a.BackendV6Data) == string(b.BackendV6Data)
}

// Equal reports whether two leases give the same subnets to the same node. Expiration
// is ignored.
func (l Lease) Equal(o Lease) bool {
	return l.Subnet == o.Subnet && l.IPv6Subnet == o.IPv6Subnet && l.Attrs.Equal(o.Attrs)
}

// Subnets returns the subnets that l has, IPv4 first.
func (l Lease) Subnets() []netip.Prefix {
	return slices.DeleteFunc([]netip.Prefix{l.Subnet, l.IPv6Subnet}, func(p netip.Prefix) bool { return !p.IsValid() })
}

// Update is one change in the content of a store.
type Update struct {
	// Config is not nil when the network configuration is sent for the first
	// time or has changed; a store that others write to also sends it when it is
	// valid again after an invalid one.
	Config *Config
	// Snapshot means that Put is the complete set of leases: any other lease is
	// gone. The first update of a watch is always a snapshot.
	Snapshot bool
	Put      []Lease
	Delete   []Key
	// Err is not nil when the store refuses something, such as an invalid
	// configuration; or when the node's own lease is lost, or differs from what the
	// node wrote (it then wraps ErrLost and calls for Renew). The rest of the update
	// is then empty, and what was sent before stays in force.
	//
	// An Err that wraps ErrDenied means that the store refuses this node. It holds
	// until an update arrives without it. Since the store may refuse one request and
	// grant others, an update with this Err may have changes too, and so may later
	// ones with the same Err.
	Err error
}

// Changes reports whether u has a configuration or leases.
func (u *Update) Changes() bool {
	return u.Config != nil || u.Snapshot || len(u.Put) > 0 || len(u.Delete) > 0
}

// ErrNoLease reports that the store holds no lease for the requesting node and
// cannot create one.
var ErrNoLease = errors.New("no lease for this node")

// ErrLost reports that a lease of the node has expired, was deleted, or now
// belongs to another node. The node may acquire another.
var ErrLost = errors.New("lease lost")

// ErrConfig reports that a store's network configuration is missing or is not the
// expected kind of object. An invalid text is a *ConfigError or *SyntaxError.
var ErrConfig = errors.New("network config")

// ErrPending reports that the prerequisites of the node's lease do not exist
// yet, or that the store cannot be reached now. The same call may succeed later.
var ErrPending = errors.New("no lease yet")

// ErrDenied reports that the store refuses the credentials of this node, so
// known data may become outdated without further notice.
var ErrDenied = errors.New("access denied")

// Store provides the nodes of a network with their configuration and leases.
// lease/static, lease/etcd and lease/kube implement it.
//
// All methods may be called from several goroutines.
type Store interface {
	// Config returns the network configuration. An error names the invalid key.
	Config(ctx context.Context) (*Config, error)

	// Acquire returns the lease of the node that a describes, taking a new one if
	// the store supports that. prev holds the subnets the node had before (from
	// subnet.env); either may be invalid. It returns an error that wraps
	// ErrNoLease when no lease is available, and one that wraps ErrPending when
	// the caller should retry.
	Acquire(ctx context.Context, a Attrs, prev Previous) (*Lease, error)

	// Renew extends own before own.Expiration and returns the resulting
	// lease. It fails, and changes nothing, if the lease no longer belongs to this
	// node: with an error that wraps ErrLost, or ErrNoLease if the store cannot
	// create another. Stores whose leases never expire return own unchanged.
	Renew(ctx context.Context, own *Lease) (*Lease, error)

	// Watch sends the content of the store to updates until ctx is done: first one
	// snapshot with Config set, then changes. It recovers from temporary failures
	// (a store that restarts, a file that is replaced) by itself, and sends a new
	// snapshot if it may have missed something. Put and Snapshot include the
	// node's own lease. It returns ctx.Err().
	Watch(ctx context.Context, updates chan<- Update) error
}

// Previous is the state of a node before a restart.
type Previous struct {
	Subnet, IPv6Subnet netip.Prefix // the subnets that it held
	// Addrs are the addresses of the host. A lease of those subnets with one of
	// them belongs to this node, even if the node now announces another.
	Addrs []netip.Addr
	// Gateways are the next hops of the host's default routes. A new subnet
	// contains none of Addrs and Gateways, since its route would cut them off.
	Gateways []netip.Addr
}
