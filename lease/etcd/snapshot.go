//go:build !noetcd

package etcd

import (
	"context"
	"net/netip"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// snapshot is the complete state of the network at one revision.
type snapshot struct {
	header   *etcdserverpb.ResponseHeader
	revision int64
	config   configValue
	entries  []entry // in the order of their keys, including unusable ones
}

// configValue is the value of the config key.
type configValue struct {
	text     []byte
	revision int64         // of the last write; 0 if the key does not exist
	parsed   *lease.Config // nil if err is not
	err      error         // ErrNoConfig, or that of lease.ParseConfig
}

func parseConfig(text []byte, revision int64) configValue {
	v := configValue{text: text, revision: revision, err: ErrNoConfig}
	if revision > 0 {
		v.parsed, v.err = lease.ParseConfig(text)
	}
	return v
}

// read returns the config and leases at one revision.
func (s *Store) read(ctx context.Context, retryable func(error) bool) (*snapshot, error) {
	var resp *clientv3.TxnResponse
	err := s.retry(ctx, "read config and leases under "+s.layout.subnets, retryable, func(ctx context.Context) (err error) {
		resp, err = s.client.Txn(ctx).Then(
			clientv3.OpGet(s.layout.config),
			clientv3.OpGet(s.layout.subnets, clientv3.WithPrefix()),
		).Commit()
		return err
	})
	if err != nil {
		return nil, err
	}
	snap := &snapshot{
		header:   resp.Header,
		revision: resp.Header.Revision,
		config:   parseConfig(nil, 0),
	}
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		snap.config = parseConfig(kv.Value, kv.ModRevision)
	}
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		if e, ok := s.parse(kv); ok {
			snap.entries = append(snap.entries, e)
		}
	}
	return snap, nil
}

// taken returns the subnets that have an owner or are reserved, of both families.
func (snap *snapshot) taken() []netip.Prefix {
	var t []netip.Prefix
	for _, e := range snap.entries {
		t = append(t, e.Subnets()...)
	}
	return t
}

// overlapping returns an entry whose subnets overlap those of l.
func (snap *snapshot) overlapping(l lease.Lease) (entry, bool) {
	for _, e := range snap.entries {
		for _, a := range e.Subnets() {
			for _, b := range l.Subnets() {
				if a.Overlaps(b) {
					return e, true
				}
			}
		}
	}
	return entry{}, false
}
