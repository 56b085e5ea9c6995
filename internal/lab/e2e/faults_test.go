package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, killed and started again
func TestPodsLoseNoPacketWhileEtcdIsKilledAndComesBack(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	flows := l.steady(0, 1)
	flows.pass(t, 500)
	l.server.Kill()
	for i, d := range l.daemons {
		testkit.Eventually(t, "host "+l.Hosts[i].Letter+" notices", func() bool { return strings.Contains(d.stderr.String(), "leases stay in force") })
	}
	flows.pass(t, 4000)
	l.server.Restart(t)
	l.putLease("10.5.77.0/24", "172.31.9.77")
	l.seesInTheEnd(0, 3)
	l.seesInTheEnd(1, 3)
	flows.pass(t, 500)
	flows.stop(t)
	l.checkHistory()
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	✂    └── etcd
func TestNodeCutOffFromEtcdKeepsForwardingAndRecoversByItself(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	flows := l.steady(0, 1)
	heal := l.cutOff(0)
	l.putLease("10.5.77.0/24", "172.31.9.77")
	l.seesInTheEnd(1, 3)
	flows.pass(t, 24000) // six seconds at least
	if n := l.daemons[0].status().Source.Leases; n != 2 {
		t.Errorf("host a has %d leases, want the 2 from before it was cut off", n)
	}
	heal()
	l.seesInTheEnd(0, 3)
	flows.stop(t)
	l.daemons[0].waitReady()
	l.checkHistory()
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	✂    └── etcd, compacted
func TestChangesCompactedAwayAreMadeUpForWithoutAFlap(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	l.putLease("10.5.76.0/24", "172.31.9.76")
	l.seesInTheEnd(0, 3)
	flows := l.steady(0, 1)
	// The end of etcd ends the connection: what a server has sent into one that is
	// only cut arrives when it is healed.
	l.server.Kill()
	heal := l.cutOff(0)
	l.server.Restart(t)
	l.putLease("10.5.77.0/24", "172.31.9.77")
	l.putLease("10.5.78.0/24", "172.31.9.78")
	l.etcdctl("del", etcdPrefix+"/subnets/10.5.76.0-24")
	resp, err := l.client.Get(t.Context(), etcdPrefix+"/config")
	testkit.Must(t, err)
	_, err = l.client.Compact(t.Context(), resp.Header.Revision, clientv3.WithCompactPhysical())
	testkit.Must(t, err)
	heal()
	want := []string{"10.5.2.0/24", "10.5.77.0/24", "10.5.78.0/24"}
	if !testkit.Within(testkit.Patience, func() bool { return slices.Equal(l.daemons[0].subnets(), want) }) {
		t.Errorf("peers of host a: %v, want %v", l.daemons[0].subnets(), want)
	}
	flows.stop(t)
	log := l.daemons[0].stderr.String()
	if !strings.Contains(log, "reading all leases again") {
		t.Error("host a missed no change, so this test proves nothing")
	}
	if strings.Contains(log, "lease lost") {
		t.Error("host a reports its own lease as lost")
	}
}

// subnets returns the subnets of the daemon's peers, in order.
func (d *daemon) subnets() (all []string) {
	d.t.Helper()
	for _, p := range d.status().Dataplane.Peers {
		for _, s := range p.Subnets {
			all = append(all, s.String())
		}
	}
	slices.Sort(all)
	return all
}

// One host is killed, again and again, and started again.
//
// host a ── etcd
func TestKilledDaemonTakesTheSameSubnetAgain(t *testing.T) {
	t.Parallel()
	l := idleEtcdLab(t, 1)
	d := l.daemons[0]
	writes := l.written()
	drained := func() {
		for {
			select {
			case <-writes:
			default:
				return
			}
		}
	}
	aWrite := func(t *testing.T) {
		t.Helper()
		select {
		case <-writes:
		case <-time.After(testkit.Patience):
			t.Fatal("etcd has no write of the lease")
		}
	}
	var key string
	// survives checks what a kill left behind.
	survives := func(t *testing.T, what string) {
		t.Helper()
		if code := d.stop(syscall.SIGKILL); code != -1 {
			t.Fatalf("%s: the daemon had exited before: %d\n%s", what, code, d.stderr)
		}
		keys := slices.Collect(maps.Keys(l.entries()))
		if len(keys) > 1 || key != "" && (len(keys) == 0 || keys[0] != key) {
			t.Fatalf("killed %s: leases %v, the node had %q", what, keys, key)
		}
		if len(keys) == 1 {
			key = keys[0]
		}
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 5 {
		// The first of them before there is a lease.
		drained()
		d.start()
		<-time.After(time.Duration(random.IntN(60)) * time.Millisecond) // less than or about what a start takes
		survives(t, "at a random moment of its start")

		drained()
		d.start()
		aWrite(t)
		survives(t, "as it acquires its lease")

		dir := filepath.Dir(d.subnetFile)
		before := dirNames(t, dir)
		d.start() // removes subnet.env
		deadline := time.Now().Add(testkit.Patience)
		for !strings.Contains(strings.Join(dirNames(t, dir), " "), "subnet") {
			if time.Now().After(deadline) {
				t.Fatalf("no subnet.env beside %v", before)
			}
		}
		survives(t, "as it writes subnet.env")
	}
	l.checkHistory() // in which a node that moves counts as another one
	// The address that the node announces is renewed with its lease.
	d.start()
	d.waitReady()
	drained()
	l.moveHost(0, netip.MustParseAddr("172.31.9.21"))
	aWrite(t)
	survives(t, "as it renews its lease")

	d.start()
	d.waitReady()
	if own := strings.Replace(d.status().Lease.Subnet.String(), "/", "-", 1); etcdPrefix+"/subnets/"+own != key {
		t.Errorf("the lease is %s, it was %s", own, key)
	}
}

func dirNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	testkit.Must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// stolenLab is three nodes, of which the first has lost its lease to another
// node while it was cut off from etcd, and traffic between the others.
//
//	pod-a ── host a ─✂─┬─ host b ── pod-b
//	                   ├─ host c ── pod-c
//	                   └─ etcd
func stolenLab(t *testing.T, flags ...string) (l *etcdLab, others steadyFlows) {
	t.Helper()
	l = idleEtcdLab(t, 3, flags...)
	l.grantAll()
	l.start()
	l.seesInTheEnd(1, 3)
	l.seesInTheEnd(2, 3)
	others = l.steady(1, 2)
	heal := l.cutOff(0)
	l.etcdctl("del", l.key(0))
	l.putLease(l.Hosts[0].Subnet.String(), "172.31.9.99")
	heal()
	return l, others
}

func TestNodeWhoseLeaseIsAnothersTakesAnotherSubnet(t *testing.T) {
	t.Parallel()
	l, others := stolenLab(t, "--on-lease-lost=reacquire")
	d, old := l.daemons[0], l.Hosts[0].Subnet
	testkit.Eventually(t, "host a has another lease", func() bool {
		doc := d.status()
		return doc.Waiting == "" && doc.Lease != nil && doc.Lease.Subnet != old
	}, func() string { return fmt.Sprintf("%+v", d.status().Lease) })
	now := d.status().Lease.Subnet
	gateway := netip.PrefixFrom(now.Addr().Next(), now.Bits())
	if env := d.env(); !strings.Contains(env, "FLANNEL_SUBNET="+gateway.String()+"\n") {
		t.Errorf("subnet.env of a node with %s:\n%s", now, env)
	}
	if got := l.entries()[l.key(0)]; !strings.Contains(got, "172.31.9.99") {
		t.Errorf("the lease of the other node is now %s", got)
	}
	for _, i := range []int{1, 2} {
		l.seesInTheEnd(i, 4)
	}
	others.stop(t)
	l.checkHistory()
}

func TestNodeWhoseLeaseIsAnothersEndsIfConfiguredTo(t *testing.T) {
	t.Parallel()
	l, others := stolenLab(t, "--on-lease-lost=exit")
	d := l.daemons[0]
	testkit.Eventually(t, "the daemon ends", d.ended)
	if code := d.wait(); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	log := strings.TrimSpace(d.stderr.String())
	if last := log[strings.LastIndex(log, "\n")+1:]; !strings.Contains(last, "172.31.9.99") || !strings.Contains(last, "10.5.1.0-24") {
		t.Errorf("the last line names neither the lease nor who has it: %s", last)
	}
	if got := l.entries()[l.key(0)]; !strings.Contains(got, "172.31.9.99") {
		t.Errorf("the lease of the other node is now %s", got)
	}
	others.stop(t)
	l.checkHistory()
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd
func TestDeletedLeaseIsTakenAgainUnderAConnection(t *testing.T) {
	t.Parallel()
	l := newEtcdLab(t)
	c := l.talk()
	writes := l.written()
	_, err := l.client.Delete(context.Background(), l.key(0))
	testkit.Must(t, err)
	select {
	case key := <-writes:
		if key != l.key(0) {
			t.Errorf("the node acquired %s, it had %s", key, l.key(0))
		}
	case <-time.After(testkit.Patience):
		t.Fatal("the node acquires no lease")
	}
	l.daemons[0].waitReady()
	c.goesOn(t)
	l.checkHistory()
}
