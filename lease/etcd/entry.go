//go:build !noetcd

package etcd

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// entry is a key under subnets/ with its value. Its lease has no Expiration:
// etcd returns that for only one lease per request.
type entry struct {
	lease.Lease
	raw      string // the key as spelled
	revision int64  // of the last write
	leaseID  clientv3.LeaseID
	bad      error // why the value is unusable; the subnets are valid
}

// reserved reports whether the entry is a reservation, which stays until it is
// removed.
func (e *entry) reserved() bool { return e.leaseID == clientv3.NoLease }

// usable reports whether the entry names a node. A reservation may name none, which
// withholds the subnet from all nodes.
func (e *entry) usable() bool { return e.bad == nil && len(e.Addrs()) > 0 }

// subnetsOf returns the subnets that raw names. Its error is for the log.
func (l layout) subnetsOf(raw []byte) (subnet, ipv6Subnet netip.Prefix, err error) {
	name, ok := strings.CutPrefix(string(raw), l.subnets)
	if !ok {
		return subnet, ipv6Subnet, fmt.Errorf("key %q is not under %s", jsonerr.Cut(string(raw), longestKey), l.subnets)
	}
	return lease.ParseKey(lease.Key(name))
}

// parse reads an entry. It fails if the key does not name a subnet; an unusable
// value is recorded in bad.
func (l layout) parse(kv *mvccpb.KeyValue) (e entry, err error) {
	e = entry{raw: string(kv.Key), revision: kv.ModRevision, leaseID: clientv3.LeaseID(kv.Lease)}
	subnet, ipv6Subnet, err := l.subnetsOf(kv.Key)
	if err != nil {
		return e, err
	}
	e.Attrs, e.bad = lease.DecodeAttrs(kv.Value)
	e.Subnet, e.IPv6Subnet = subnet, ipv6Subnet
	return e, nil
}

// parse calls layout.parse, and logs unusable entries once for each version of a
// key.
func (s *Store) parse(kv *mvccpb.KeyValue) (entry, bool) {
	e, err := s.layout.parse(kv)
	fault, remedy := err, "delete it"
	if err == nil {
		fault, remedy = e.bad, `write {"PublicIP":"192.0.2.1"} with the node's address to it, or delete it`
	}
	if fault != nil && s.faults.isNew(e.raw, e.revision) {
		s.log.Warn("cannot read lease in etcd, ignoring it", logging.KeyKey, jsonerr.Cut(e.raw, longestKey), logging.KeyError, fault, logging.KeyRemedy, remedy)
	}
	return e, err == nil
}

// longestKey bounds the bytes of a key that are logged: the prefix and the subnets of
// a lease are shorter.
const longestKey = 250

// faults records which entries have been logged.
type faults struct {
	mu     sync.Mutex
	logged map[[sha256.Size]byte]int64 // hash of the key, which may be long, to revision
}

// most is the number of keys recorded. If there are more unreadable keys, some are
// logged twice.
const most = 1000

func (f *faults) isNew(raw string, revision int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := sha256.Sum256([]byte(raw))
	if f.logged[key] == revision {
		return false
	}
	if f.logged == nil || len(f.logged) >= most {
		f.logged = make(map[[sha256.Size]byte]int64)
	}
	f.logged[key] = revision
	return true
}

// sameNode reports whether a and b describe the same node. As in flannel, the IPv4
// address decides if both have one.
func sameNode(a, b lease.Attrs) bool {
	if a.PublicIP.IsValid() && b.PublicIP.IsValid() {
		return a.PublicIP == b.PublicIP
	}
	return a.PublicIPv6.IsValid() && a.PublicIPv6 == b.PublicIPv6
}
