package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/etcdtest"
	"github.com/twillnet/twill/internal/netlab"
)

// etcdLab is a lab whose last host runs an etcd in the place of a daemon.
type etcdLab struct {
	*lab
	server *etcdtest.Server
	host   *netlab.Host
	port   string
}

// newEtcdLab starts two nodes that have the subnets of their pods from etcd.
func newEtcdLab(t *testing.T) *etcdLab {
	t.Helper()
	l := &etcdLab{lab: newLab(t, labOptions{Options: netlab.Options{Hosts: 3}, nodes: 2, idle: true})}
	l.host = l.Hosts[2]
	l.server = etcdtest.Start(t, etcdtest.Options{
		Host: "0.0.0.0",
		Command: func(name string, args ...string) (*exec.Cmd, func() error) {
			c := l.host.NS.Command(context.Background(), name, args...)
			return c.Cmd, c.Start
		},
	})
	u, err := url.Parse(l.server.Endpoint)
	must(t, err)
	l.port = u.Port()
	l.etcdctl("put", "/coreos.com/network/config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`)
	for i, d := range l.daemons {
		// As a node finds its lease that was there before.
		granted := strings.Fields(l.etcdctl("lease", "grant", "3600"))
		l.etcdctl("put", "--lease="+granted[1], l.key(i), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, l.Hosts[i].Addr))
		d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--lease-file=") })
		d.args = append(d.args, fmt.Sprintf("--etcd-endpoints=http://%s:%s", l.host.Addr, l.port))
	}
	l.start()
	return l
}

// key is where the lease of host number i stands.
func (l *etcdLab) key(i int) string {
	return fmt.Sprintf("/coreos.com/network/subnets/%s-%d", l.Hosts[i].Subnet.Addr(), l.Hosts[i].Subnet.Bits())
}

func (l *etcdLab) etcdctl(args ...string) string {
	l.t.Helper()
	path, err := etcdtest.Binary("etcdctl")
	must(l.t, err)
	args = append([]string{"--endpoints=http://127.0.0.1:" + l.port}, args...)
	out, err := l.host.NS.Command(context.Background(), path, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	.11 → .21   └── etcd
func TestNewAddressReachesEtcdAndThePeers(t *testing.T) {
	l := newEtcdLab(t)
	c := l.talk()
	d, env := l.daemons[0], l.daemons[0].env()
	value := l.etcdctl("get", "--print-value-only", l.key(0))
	to := netip.MustParseAddr("172.31.9.21")
	l.moveHost(0, to)
	// The connection to etcd is one of the address that is gone, which it takes
	// seconds to find out.
	if !within(time.Minute, func() bool {
		doc := d.status()
		return doc.Waiting == "" && doc.Lease.PublicIP == to && l.daemons[1].status().Dataplane.Peers[0].PublicIP == to
	}) {
		t.Fatal("not within a minute: the lease and the peer know the address")
	}
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
	l := newEtcdLab(t)
	c := l.talk()
	l.server.Kill()
	for i, d := range l.daemons {
		must(t, l.Hosts[i].NS.Netlink().LinkSetMTU(l.underlayLink(i), 1400))
		eventually(t, "subnet.env has the MTU", func() bool { return strings.Contains(d.env(), "FLANNEL_MTU=1372\n") })
		d.waitReady()
	}
	must(t, l.SetPodMTU(1372))
	c.goesOn(t)
	l.server.Restart(t)
	l.etcdctl("put", "/coreos.com/network/subnets/10.5.77.0-24", `{"PublicIP":"172.31.9.77","PublicIPv6":null}`)
	if !within(time.Minute, func() bool { return l.daemons[0].status().Source.Leases == 3 }) {
		t.Error("not within a minute: leases of the etcd that is back")
	}
}
