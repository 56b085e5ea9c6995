package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// ownValue is in the request with which the first node writes its lease, and in no
// other.
const ownValue = `{"PublicIP":"172.31.9.11"`

// A daemon is killed as it acquires its lease, at moments that are visible only on the
// wire, and started again.
//
// host a ── relay ── etcd
func TestDaemonKilledAsItTakesItsLeaseEndsUpWithOne(t *testing.T) {
	t.Parallel()
	for _, when := range moments {
		t.Run(when.name, func(t *testing.T) {
			l, relay := relayedEtcdLab(t, 1)
			d := l.daemons[0]
			reached := when.cut(relay, ownValue)
			d.start()
			l.killWhen(t, reached)
			if when.written { // a request whose connection ends first is not acted on
				testkit.Eventually(t, "etcd has the lease", func() bool { return len(l.entries()) == 1 })
			}
			relay.Break()
			relay.Heal()
			before := l.entries()
			if !when.written && len(before) != 0 {
				t.Errorf("etcd has %v of a request that it never received", before)
			}
			d.start()
			d.waitReady()
			l.hasOne(t, before)
			l.checkHistory()
		})
	}
}

// moments are when a daemon that writes its lease is killed.
var moments = []struct {
	name    string
	cut     func(*etcdtest.Relay, string) <-chan struct{}
	written bool // etcd has it
}{
	{"before etcd has it", (*etcdtest.Relay).CutBefore, false},
	{"before the daemon knows that etcd has it", (*etcdtest.Relay).CutAfter, true},
}

// The same as it renews its lease, which is due a minute after it was taken; so
// all daemons are started first. The last renewal is on the wire for as long as
// it takes the lease to end and another node to get the subnet.
//
//	host a ── relay ── etcd ── host b, in the last
func TestDaemonKilledAmidARenewalLosesNothingAndTakesNothing(t *testing.T) {
	t.Parallel()
	type renewal struct {
		*etcdLab
		relay   *etcdtest.Relay
		reached <-chan struct{}
		held    entry
		env     string
	}
	prepare := func(nodes int, cut func(*etcdtest.Relay, string) <-chan struct{}) *renewal {
		l, relay := relayedEtcdLab(t, nodes)
		if nodes == 2 {
			l.put("config", `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.1.0", "Backend": {"Type": "udp"}}`)
			// Its bridge has an address of that subnet, which it gets only if it
			// had it before.
			l.daemons[0].previous = ipv4Stack.lastSubnets(l.Hosts[0])
		}
		l.daemons[0].start()
		l.daemons[0].waitReady()
		return &renewal{l, relay, cut(relay, ownValue), l.only(), l.daemons[0].env()}
	}
	var due []*renewal
	for _, when := range moments {
		due = append(due, prepare(1, when.cut))
	}
	late := prepare(2, (*etcdtest.Relay).CutBefore)
	for _, l := range append(due, late) {
		l.killWhen(t, l.reached)
	}

	for i, when := range moments {
		t.Run(when.name, func(t *testing.T) {
			l := due[i]
			d := l.daemons[0]
			if when.written {
				testkit.Eventually(t, "etcd has the renewal", func() bool { return l.only().lease != l.held.lease })
			}
			l.relay.Break()
			l.relay.Heal()
			left := l.only()
			if !when.written && left != l.held {
				t.Errorf("etcd has %+v, it had %+v before a renewal that it never received", left, l.held)
			}
			d.start()
			d.waitReady()
			now := l.only()
			if now.key != l.held.key || now.value != l.held.value || now.lease == left.lease {
				t.Errorf("after a restart the lease is %+v, it was %+v", now, left)
			}
			if got := d.env(); got != l.env {
				t.Errorf("subnet.env was\n%s\nand is\n%s", l.env, got)
			}
			l.checkHistory()
		})
	}
	t.Run("before the subnet is another's", func(t *testing.T) {
		l := late
		a, b := l.daemons[0], l.daemons[1]
		_, err := l.client.Revoke(t.Context(), l.held.lease) // as etcd does when it ends
		testkit.Must(t, err)
		b.start()
		b.waitReady()
		theirs := l.only()
		if !strings.Contains(theirs.value, "172.31.9.12") {
			t.Fatalf("the lease is %s, want that of host b", theirs.value)
		}
		decided := l.transactions(t)
		l.relay.Deliver()
		testkit.Eventually(t, "etcd has processed the renewal", func() bool { return l.transactions(t) > decided })
		if now := l.only(); now != theirs {
			t.Errorf("after a late renewal the lease is %+v, it was %+v", now, theirs)
		}
		l.relay.Break()
		l.relay.Heal()
		a.start()
		testkit.Eventually(t, "host a reports that there is no subnet left", func() bool {
			return a.ended() && strings.Contains(a.stderr.String(), "no lease for this node")
		})
		l.checkHistory()
	})
}

// relayedEtcdLab is an idleEtcdLab with a relay between the first node and etcd.
// A node renews its lease a minute after it has acquired it.
func relayedEtcdLab(t *testing.T, nodes int) (*etcdLab, *etcdtest.Relay) {
	t.Helper()
	l := idleEtcdLab(t, nodes, "--subnet-lease-renew-margin=1439")
	ns := l.Hosts[0].NS
	listener, err := ns.Listen("tcp", "127.0.0.1:0")
	testkit.Must(t, err)
	server := strings.TrimPrefix(l.endpoint(), "http://")
	relay := etcdtest.NewRelayOn(t, listener, func() (net.Conn, error) {
		return ns.Dial(context.Background(), "tcp", server)
	})
	l.daemons[0].args = append(l.daemons[0].args, "--etcd-endpoints="+relay.Endpoint)
	return l, relay
}

// killWhen kills the daemon of the first node at a moment, which may be that of
// its next renewal.
func (l *etcdLab) killWhen(t *testing.T, reached <-chan struct{}) {
	t.Helper()
	select {
	case <-reached:
	case <-time.After(2 * testkit.Patience):
		t.Fatal("no write of the lease within three minutes; it is due after one")
	}
	if code := l.daemons[0].stop(syscall.SIGKILL); code != -1 {
		t.Fatalf("the daemon had exited before: %d", code)
	}
}

// hasOne fails the test unless etcd has one lease, and that of before if there
// was one.
func (l *etcdLab) hasOne(t *testing.T, before map[string]string) {
	t.Helper()
	now := l.only()
	for key, value := range before {
		if now.key != key || now.value != value {
			t.Errorf("the lease is %+v, it was %s %s", now, key, value)
		}
	}
}

// transactions returns how many transactions etcd has processed.
func (l *etcdLab) transactions(t *testing.T) (n int) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return l.host.NS.Dial(ctx, network, addr)
		},
	}}
	resp, err := client.Get("http://127.0.0.1:" + l.port + "/metrics")
	testkit.Must(t, err)
	defer resp.Body.Close()
	const line = `grpc_server_handled_total{grpc_code="OK",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} `
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if count, ok := strings.CutPrefix(lines.Text(), line); ok {
			_, err := fmt.Sscan(count, &n)
			testkit.Must(t, err)
			return n
		}
	}
	t.Fatal("etcd's metrics have no count of transactions")
	return 0
}

// entry is a lease as stored in etcd.
type entry struct {
	key, value string
	version    int64 // how often it was written since it was created
	lease      clientv3.LeaseID
}

// entry returns the lease of host number i, which it must have.
func (l *etcdLab) entry(i int) entry {
	l.t.Helper()
	return l.one(l.key(i))
}

// only returns the only lease.
func (l *etcdLab) only() entry {
	l.t.Helper()
	return l.one(etcdPrefix+"/subnets/", clientv3.WithPrefix())
}

// tryEntry is entry for a host that may have no lease.
func (l *etcdLab) tryEntry(i int) (entry, bool) {
	l.t.Helper()
	kvs := l.get(l.key(i))
	if len(kvs) == 0 {
		return entry{}, false
	}
	return entryOf(kvs[0]), true
}

func (l *etcdLab) one(key string, options ...clientv3.OpOption) entry {
	l.t.Helper()
	kvs := l.get(key, options...)
	if len(kvs) != 1 {
		l.t.Fatalf("etcd has %v at %s, want one lease", kvs, key)
	}
	return entryOf(kvs[0])
}

func entryOf(kv *mvccpb.KeyValue) entry {
	return entry{string(kv.Key), string(kv.Value), kv.Version, clientv3.LeaseID(kv.Lease)}
}

func (l *etcdLab) get(key string, options ...clientv3.OpOption) []*mvccpb.KeyValue {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	resp, err := l.client.Get(ctx, key, options...)
	testkit.Must(l.t, err)
	return resp.Kvs
}
