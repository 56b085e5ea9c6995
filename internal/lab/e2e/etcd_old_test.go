package e2e

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The etcd of the distribution, as old as one in use may be: 3.4.23 in
// Debian 12.
//
// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd of Debian
func TestNodesShareANetworkOnAnOldEtcd(t *testing.T) {
	t.Parallel()
	old := filepath.Join("..", "..", "..", "bin", "peers", "etcd-old", "etcd")
	if _, err := os.Stat(old); err != nil {
		t.Fatalf("%v: run make etcd-old in the root of the repository", err)
	}
	l := serveEtcdCluster(t, newLab(t, labOptions{Options: netlab.Options{Hosts: 3}, nodes: 2, idle: true}), 1, etcdtest.Options{Program: old})
	server, err := l.client.Status(t.Context(), l.endpoint())
	testkit.Must(t, err)
	t.Logf("etcd %s", server.Version)
	if strings.HasPrefix(server.Version, "3.7.") {
		t.Error("this etcd is not older than that of the other tests")
	}
	l.put("config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`)
	for _, d := range l.daemons {
		d.readEtcd(l.endpoint())
	}
	l.grantAll()
	l.start()
	flows := l.steady(0, 1)
	before := l.entry(0)
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472), ping(l.pod(1), l.pod(0).Addr, 1472))

	// Changes are reported before and after a crash of etcd.
	l.putLease("10.5.77.0/24", "172.31.9.77")
	l.seesInTheEnd(0, 3)
	l.server.Kill()
	l.server.Restart(t)
	l.persist(t, func(ctx context.Context) error {
		_, err := l.client.Delete(ctx, etcdPrefix+"/subnets/10.5.77.0-24")
		return err
	})
	l.seesInTheEnd(0, 2)

	flows.stop(t)
	l.checkHistory() // in which a node that moves counts as another one

	// The lease is renewed when the address in it changes.
	l.moveHost(0, netip.MustParseAddr("172.31.9.21"))
	want := strings.Replace(before.value, "172.31.9.11", "172.31.9.21", 1)
	testkit.Eventually(t, "the lease is "+want, func() bool { return l.entry(0).value == want })
	if now := l.entry(0); now.lease == before.lease {
		t.Error("the lease was not extended")
	}
	testkit.Eventually(t, "host b reaches host a at its new address", func() bool { return pingOnce(l.pod(1), l.pod(0).Addr) == nil })
	for i, d := range l.daemons {
		if log := d.stderr.String(); strings.Contains(log, "lease lost") {
			t.Errorf("host %s reports its lease as lost:\n%s", l.Hosts[i].Letter, log)
		}
	}
}
