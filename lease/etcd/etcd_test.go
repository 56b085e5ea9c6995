//go:build !noetcd

package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// shared is an etcd for all tests that do it no harm. Each has a prefix of its
// own there.
var shared *etcdtest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "twill-etcd-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		servers, err := etcdtest.Launch(dir, 1, etcdtest.Options{})
		defer func() {
			for _, s := range servers {
				s.Kill()
			}
		}()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		shared = servers[0]
		return m.Run()
	}())
}

// network is a prefix in an etcd, with a client that is not under test.
type network struct {
	*testing.T
	endpoints []string
	prefix    string
	client    *clientv3.Client
	log       *testkit.Log
}

// networks counts prefixes.
var networks atomic.Int64

// newNetwork makes a network in the shared etcd; config may be empty for none.
func newNetwork(t *testing.T, config string) *network {
	t.Helper()
	return networkOn(t, shared, config)
}

func networkOn(t *testing.T, s *etcdtest.Server, config string) *network {
	t.Helper()
	n := &network{t, []string{s.Endpoint}, fmt.Sprintf("/test/%d/network", networks.Add(1)), s.Client(t), new(testkit.Log)}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", n.log)
		}
	})
	if config != "" {
		n.put("config", config)
	}
	return n
}

const (
	ipv4Only  = `{"Network":"10.5.0.0/16"}`
	dualStack = `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00:5::/48"}`
)

func (n *network) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	n.Cleanup(cancel)
	return ctx
}

// store opens a store, as a node would that has just started.
func (n *network) store(changes ...func(*Options)) *Store {
	n.Helper()
	o := Options{Endpoints: n.endpoints, Prefix: n.prefix, Logger: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, change := range changes {
		change(&o)
	}
	s, err := Open(n.ctx(), o)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { s.Close() })
	return s
}

// acquire is Acquire that must succeed.
func (n *network) acquire(s *Store, a lease.Attrs, prev ...string) *lease.Lease {
	n.Helper()
	l, err := s.Acquire(n.ctx(), a, previous(prev...))
	if err != nil {
		n.Fatal(err)
	}
	return l
}

// put writes a value as etcdctl does.
func (n *network) put(key, value string, options ...clientv3.OpOption) {
	n.Helper()
	if _, err := n.client.Put(n.ctx(), n.prefix+"/"+key, value, options...); err != nil {
		n.Fatal(err)
	}
}

func (n *network) delete(key string) {
	n.Helper()
	if _, err := n.client.Delete(n.ctx(), n.prefix+"/"+key); err != nil {
		n.Fatal(err)
	}
}

// found is a key as etcd has it.
type found struct {
	key, value string // the key without the prefix
	lease      clientv3.LeaseID
	revision   int64
}

// all returns the keys under subnets.
func (n *network) all() []found {
	n.Helper()
	resp, err := n.client.Get(n.ctx(), n.prefix+"/subnets", clientv3.WithPrefix())
	if err != nil {
		n.Fatal(err)
	}
	var all []found
	for _, kv := range resp.Kvs {
		all = append(all, found{strings.TrimPrefix(string(kv.Key), n.prefix), string(kv.Value), clientv3.LeaseID(kv.Lease), kv.ModRevision})
	}
	return all
}

// cutOff returns what Config says when its context ends while it still tries to
// reach etcd: the error that has all these causes in it, or the last one if none
// has. How long an attempt to connect takes is the machine's affair.
func (n *network) cutOff(s *Store, causes ...string) (err error) {
	n.Helper()
	for timeout := 300 * time.Millisecond; timeout < testkit.Patience; timeout *= 2 {
		ctx, cancel := context.WithTimeout(n.ctx(), timeout)
		_, err = s.Config(ctx)
		cancel()
		if err == nil || !slices.ContainsFunc(causes, func(c string) bool { return !strings.Contains(err.Error(), c) }) {
			break
		}
	}
	return err
}

// only returns the one key under subnets.
func (n *network) only() found {
	n.Helper()
	all := n.all()
	if len(all) != 1 {
		n.Fatalf("etcd has %v, want one lease", all)
	}
	return all[0]
}

// ttl returns what a lease was granted for and has left, seconds.
func (n *network) ttl(id clientv3.LeaseID) (granted, left int64) {
	n.Helper()
	resp, err := n.client.TimeToLive(n.ctx(), id)
	if err != nil {
		n.Fatal(err)
	}
	return resp.GrantedTTL, resp.TTL
}

// revoke ends an etcd lease, as its expiry does.
func (n *network) revoke(id clientv3.LeaseID) {
	n.Helper()
	if _, err := n.client.Revoke(n.ctx(), id); err != nil {
		n.Fatal(err)
	}
}

// oneOwner proves that no subnet ever had two.
func (n *network) oneOwner() {
	n.Helper()
	etcdtest.CheckHistory(n, n.client, n.prefix)
}

// node is the attributes of the i-th node of a network.
func node(i int) lease.Attrs {
	return lease.Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, byte(2 + i/256), byte(i % 256)})}
}

// value is what the i-th node writes.
func value(i int) string {
	return fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, node(i).PublicIP)
}

func previous(subnets ...string) (p lease.Previous) {
	for _, s := range subnets {
		if q := netip.MustParsePrefix(s); q.Addr().Is4() {
			p.Subnet = q
		} else {
			p.IPv6Subnet = q
		}
	}
	return p
}
