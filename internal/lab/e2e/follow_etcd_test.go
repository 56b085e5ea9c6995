package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	.11 → .21   └── etcd
func TestNewAddressReachesEtcdAndThePeers(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	c := l.talk()
	d, env := l.daemons[0], l.daemons[0].env()
	value := l.etcdctl("get", "--print-value-only", l.key(0))
	to := netip.MustParseAddr("172.31.9.21")
	l.moveHost(0, to)
	// The connection to etcd uses the address that is gone; it takes seconds until
	// this is noticed.
	testkit.Eventually(t, "the lease and the peer have the address", func() bool {
		doc := d.status()
		return doc.Waiting == "" && doc.Lease.PublicIP == to && l.daemons[1].status().Dataplane.Peers[0].PublicIP == to
	})
	want, got := strings.Replace(value, "172.31.9.11", "172.31.9.21", 1), l.etcdctl("get", "--print-value-only", l.key(0))
	if got != want {
		t.Errorf("etcd has %s, want %s", got, want)
	}
	if got := l.etcdctl("get", "--prefix", "--keys-only", "/coreos.com/network/subnets/"); len(strings.Fields(got)) != 2 {
		t.Errorf("leases: %s, want 2", got)
	}
	if err := ping(l.pod(1), l.pod(0).Addr, 1472); err != nil {
		t.Error(err)
	}
	c.goesOn(t)
	if got := d.env(); got != env {
		t.Errorf("subnet.env was\n%s\nand is\n%s", env, got)
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	MTU 1400    └── etcd, killed
func TestNewMTUIsFollowedWithoutEtcd(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	c := l.talk()
	l.server.Kill()
	for i, d := range l.daemons {
		testkit.Must(t, l.Hosts[i].NS.Netlink().LinkSetMTU(l.underlayLink(i), 1400))
		testkit.Eventually(t, "subnet.env has the MTU", func() bool { return strings.Contains(d.env(), "FLANNEL_MTU=1372\n") })
		d.waitReady()
	}
	testkit.Must(t, l.SetPodMTU(1372))
	c.goesOn(t)
	l.server.Restart(t)
	l.etcdctl("put", "/coreos.com/network/subnets/10.5.77.0-24", `{"PublicIP":"172.31.9.77","PublicIPv6":null}`)
	testkit.Eventually(t, "leases of the etcd that is back", func() bool { return l.daemons[0].status().Source.Leases == 3 })
}

// host a ─┬──────── host b, a clone of a but for its MAC
//
//	└── etcd
func TestSecondHostWithAPublicAddressWaitsAndTheFirstIsNotDisturbed(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	c := l.talk() // b has its own address so far
	a, b := l.daemons[0], l.daemons[1]
	before := l.etcdctl("get", "--print-value-only", l.key(0))
	clone := *b
	clone.stderr = new(testkit.Log)
	b.stop(syscall.SIGTERM)
	clone.args = append(slices.Clone(b.args), "--public-ip="+l.Hosts[0].Addr.String())
	clone.start()
	testkit.Eventually(t, "the clone waits for an address of its own", func() bool {
		return strings.Contains(clone.stderr.String(), `msg="another host has this node's public address" why="another host has the same public address 172.31.9.11 and holds its lease 10.5.1.0-24`)
	})
	if doc := clone.status(); !strings.HasPrefix(doc.Waiting, "a lease: another host has the same public address 172.31.9.11") || doc.Lease != nil || doc.AddressConflict == "" {
		t.Errorf("status of the clone: %+v", doc)
	}
	testkit.Eventually(t, "the lease is as before, and its node reports what is wrong", func() bool {
		doc := a.status()
		return l.etcdctl("get", "--print-value-only", l.key(0)) == before && strings.Contains(doc.AddressConflict, "172.31.9.11") && doc.Waiting == ""
	})
	clone.stop(syscall.SIGTERM)
	b.start()
	b.waitReady()
	c.goesOn(t)
}
