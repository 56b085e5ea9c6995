package e2e

import (
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// Fifty nodes start at the same time, in a network that has subnets for 63, so
// that many want the same one; then all of them fail and start again. Of 14 such
// nodes stock flannel lost 2.
//
//	host a, b, … x2 ── etcd
func TestFiftyNodesThatStartAtOnceAllHaveASubnetAndReachEachOther(t *testing.T) {
	t.Parallel()
	const nodes = 50
	lab := newLab(t, labOptions{
		Options: netlab.Options{Hosts: nodes + 1}, nodes: nodes, idle: true, flags: []string{"--thread-pairs=1"},
	})
	l := serveEtcd(t, lab)
	// Not that of the pods, which no daemon has.
	l.put("config", `{"Network": "10.200.0.0/16", "SubnetLen": 22, "Backend": {"Type": "udp"}}`)
	for _, d := range l.daemons {
		d.readEtcd(l.endpoint())
	}
	begin := time.Now()
	first := l.startAtOnce()
	t.Logf("%d nodes ready after %s", nodes, time.Since(begin).Round(time.Millisecond))

	owners := make(map[netip.Prefix]string)
	for i, doc := range first {
		subnet, letter := doc.Lease.Subnet, l.Hosts[i].Letter
		if other, taken := owners[subnet]; taken {
			t.Errorf("hosts %s and %s both have %s", other, letter, subnet)
		}
		owners[subnet] = letter
		gateway := netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
		if env := l.daemons[i].env(); !strings.Contains(env, "FLANNEL_SUBNET="+gateway.String()+"\n") {
			t.Errorf("subnet.env of host %s with %s:\n%s", letter, subnet, env)
		}
	}
	for i := range l.daemons {
		l.seesInTheEnd(i, nodes)
	}
	for i, doc := range first {
		from := &netlab.Pod{NS: l.Hosts[i].NS, Addr: doc.Lease.Subnet.Addr()} // the device's own
		if err := ping(from, first[(i+1)%nodes].Lease.Subnet.Addr(), doc.Dataplane.MTU()); err != nil {
			t.Errorf("host %s: %v", l.Hosts[i].Letter, err)
		}
	}

	for _, d := range l.daemons {
		testkit.Must(t, d.cmd.Process.Signal(syscall.SIGKILL))
	}
	for _, d := range l.daemons {
		d.wait()
	}
	for i, doc := range l.startAtOnce() {
		if doc.Lease.Subnet != first[i].Lease.Subnet {
			t.Errorf("host %s had %s and has %s", l.Hosts[i].Letter, first[i].Lease.Subnet, doc.Lease.Subnet)
		}
	}
	l.checkHistory()
}

// startAtOnce starts all daemons, waits until they are ready, and returns their
// status then.
func (l *etcdLab) startAtOnce() []*status.Document {
	l.t.Helper()
	for _, d := range l.daemons {
		d.start()
	}
	all := make([]*status.Document, len(l.daemons))
	for i, d := range l.daemons {
		if !testkit.Within(2*testkit.Patience, func() bool {
			doc := d.tryStatus()
			if doc == nil || doc.Waiting != "" {
				return d.ended()
			}
			all[i] = doc
			return true
		}) || all[i] == nil {
			l.t.Fatalf("host %s is not ready, or has exited", l.Hosts[i].Letter)
		}
	}
	return all
}
