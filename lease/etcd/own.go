//go:build !noetcd

package etcd

import (
	"slices"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// own is the lease that this node acquired last. Renewals write it; watches
// compare with it to distinguish a loss from a change.
type own struct {
	mu sync.Mutex
	held
	// renamed is closed when the key changes.
	renamed chan struct{}
}

// held is a version of own.
type held struct {
	key      lease.Key   // empty if there is none yet
	raw      string      // as spelled in etcd
	lease    lease.Lease // with Expiration
	revision int64       // of this node's last write
	leaseID  clientv3.LeaseID
	// claims are the attributes that this node may have written: more than one while
	// a renewal changes them.
	claims []lease.Attrs
}

// mine reports whether e belongs to this node, by its public addresses or, if the
// value was overwritten with something unreadable, by the etcd lease.
func (h *held) mine(e *entry) bool {
	if e.bad != nil {
		return e.leaseID != clientv3.NoLease && e.leaseID == h.leaseID
	}
	return slices.ContainsFunc(h.claims, func(a lease.Attrs) bool { return sameNode(a, e.Attrs) })
}

func (o *own) get() held {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.held
	h.claims = slices.Clone(h.claims)
	return h
}

// renames returns a channel that is closed when the key changes.
func (o *own) renames() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.renamed == nil {
		o.renamed = make(chan struct{})
	}
	return o.renamed
}

// claim records that this node is about to write a.
func (o *own) claim(a lease.Attrs) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.claims = append(slices.Clone(o.claims), a)
}

// set records that this node has held l, under the key raw, since revision.
func (o *own) set(l lease.Lease, raw string, revision int64, leaseID clientv3.LeaseID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := o.key
	o.held = held{l.Key(), raw, l, revision, leaseID, []lease.Attrs{l.Attrs}}
	if was != o.key && o.renamed != nil {
		close(o.renamed)
		o.renamed = nil
	}
}

// rewind clears the revision of the last write, for an etcd whose revisions have
// started over.
func (o *own) rewind() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.revision = 0
}
