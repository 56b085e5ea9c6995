package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// manyLeases is the number of nodes of this test's network that do not run.
const manyLeases = 5000

// Times and sizes depend on the machine, so the test prints them; what it
// asserts is that all leases arrive and that no packet to a node whose lease
// does not change is lost.
//
//	pod-a ── host a ─┬─ host b ── pod-b
//	                 └─ etcd with 5,000 more leases
func TestFiveThousandLeasesAndAHundredChangesASecondDisturbNoPeer(t *testing.T) {
	t.Parallel()
	l := idleEtcdLab(t, 2)
	l.put("config", `{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "udp"}}`)
	l.grantAll()
	l.putMany(t)
	l.daemons[1].start()
	l.daemons[1].waitReady()
	d := l.daemons[0]
	begin := time.Now()
	d.start()
	// It is ready when its peers are in force. The status, which lists all of them,
	// would burden the daemon that is measured.
	testkit.Eventually(t, "the daemon is ready", func() bool { return strings.Contains(d.stderr.String(), "msg=ready") })
	t.Logf("start to a full table: %s", time.Since(begin).Round(time.Millisecond))
	t.Logf("resident memory with a full table: %s", d.memory())
	doc := d.status()
	t.Logf("after one status with all peers: %s", d.memory())
	if n := len(doc.Dataplane.Peers); n != manyLeases+1 {
		t.Errorf("%d peers, want %d", n, manyLeases+1)
	}
	testkit.Must(t, l.SetPodMTU(doc.Dataplane.MTU()))

	l.timeChanges(t, func(addr string) error {
		_, err := l.client.Put(context.Background(), etcdPrefix+"/subnets/10.200.0.0-24", fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, addr))
		return err
	})
	_, err := l.client.Delete(t.Context(), etcdPrefix+"/subnets/10.200.0.0-24")
	testkit.Must(t, err)
	l.seesInTheEnd(0, manyLeases+2)

	flows := l.steady(0, 1)
	flows.pass(t, 500)
	d.forgetPeak(t)
	cpu, begin := d.cpu(t), time.Now()
	const changes, pace = 6000, 10 * time.Millisecond // a minute
	last := l.changeOften(t, changes, pace)
	took := time.Since(begin)
	t.Logf("%d changes in %s, CPU of the daemon with 8 datagrams a millisecond: %.0f %%", changes, took.Round(time.Second),
		100*(d.cpu(t)-cpu).Seconds()/took.Seconds())
	t.Logf("resident memory after that: %s", d.memory())
	testkit.Eventually(t, "the last changes are in force", func() bool {
		found := 0
		for _, p := range d.status().Dataplane.Peers {
			if want, ok := last[p.Subnets[0].String()]; ok && p.PublicIP.String() == want {
				found++
			}
		}
		return found == len(last)
	})
	flows.stop(t)
	if n := len(d.status().Dataplane.Peers); n != manyLeases+1 {
		t.Errorf("%d peers after the changes, want %d", n, manyLeases+1)
	}
}

// manySubnet is the subnet of node number i of those that do not run.
func manySubnet(i int) string { return fmt.Sprintf("10.%d.%d.0/24", 16+i/256, i%256) }

// putMany makes the leases of nodes that do not run.
func (l *etcdLab) putMany(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	granted, err := l.client.Grant(ctx, 86400)
	testkit.Must(t, err)
	const batch = 100 // puts in a transaction; etcd accepts up to 128
	for i := 0; i < manyLeases; i += batch {
		var puts []clientv3.Op
		for j := i; j < i+batch; j++ {
			key := etcdPrefix + "/subnets/" + strings.Replace(manySubnet(j), "/", "-", 1)
			puts = append(puts, clientv3.OpPut(key, manyValue(j), clientv3.WithLease(granted.ID)))
		}
		_, err := l.client.Txn(ctx).Then(puts...).Commit()
		testkit.Must(t, err)
	}
}

func manyValue(i int) string {
	return fmt.Sprintf(`{"PublicIP":"172.31.%d.%d","PublicIPv6":null}`, 16+i/256, i%256)
}

// tryStatus is status, or nil while the daemon does not answer.
func (d *daemon) tryStatus() *status.Document {
	doc, err := status.Fetch(context.Background(), d.socket)
	if err != nil {
		return nil
	}
	return doc
}

// timeChanges moves the lease of 10.200.0.0/24 between two addresses, which put
// writes to the store, and measures how long it takes from the moment before that
// until a datagram with a packet of pod-a arrives at the other one. Sockets on host b
// stand for the two nodes.
func (l *lab) timeChanges(t *testing.T, put func(addr string) error) {
	t.Helper()
	const changes = 100
	var arrivals [2]chan uint64
	nodes := [2]netip.Addr{netip.MustParseAddr("172.31.9.31"), netip.MustParseAddr("172.31.9.32")}
	for i, addr := range nodes {
		addAddr(t, l.Hosts[1].NS, netlab.UnderlayLink, netip.PrefixFrom(addr, 24))
		conn, err := listenUDP(l.Hosts[1].NS, netip.AddrPortFrom(addr, udpPort))
		testkit.Must(t, err)
		t.Cleanup(func() { conn.Close() })
		arrivals[i] = make(chan uint64, 1)
		go latest(conn, arrivals[i])
	}
	probe, err := dialUDP(l.pod(0).NS, netip.MustParseAddrPort("10.200.0.1:2000"))
	testkit.Must(t, err)
	defer probe.Close()
	var number uint64
	var took []time.Duration
	for i := range changes {
		arrived := arrivals[i%2]
		stop := number // probes up to this were sent before the change
		begin := time.Now()
		changed := make(chan error, 1)
		go func() { changed <- put(nodes[i%2].String()) }()
		if !testkit.Within(testkit.Patience, func() bool {
			for range 20 { // within polls each 5 ms
				number++
				_, _ = probe.Write(binary.BigEndian.AppendUint64(nil, number)) // an error reports an ICMP message
				select {
				case n := <-arrived:
					if n > stop {
						took = append(took, time.Since(begin))
						return true
					}
				case <-time.After(200 * time.Microsecond):
				}
			}
			return false
		}) {
			t.Fatalf("change %d did not take effect", i)
		}
		testkit.Must(t, <-changed)
	}
	slices.Sort(took)
	t.Logf("from a change to the first packet that uses it, of %d: p50 %s, p99 %s, maximum %s", changes, took[changes/2], took[changes*99/100-1], took[changes-1])
}

// latest sends the numbers in the packets that conn receives to c, which holds
// the last one, until conn is closed.
func latest(conn *net.UDPConn, c chan uint64) {
	const headers = 28 // IPv4 and UDP
	buf := make([]byte, 64)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if n != headers+8 {
			continue
		}
		select {
		case <-c:
		default:
		}
		c <- binary.BigEndian.Uint64(buf[headers:])
	}
}

// changeOften changes the addresses of leases of nodes that do not run, one after each
// interval of pace, and returns the last address of each by subnet.
func (l *etcdLab) changeOften(t *testing.T, changes int, pace time.Duration) map[string]string {
	t.Helper()
	const changing = 50 // leases
	last := make(map[string]string)
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for i := range changes {
		<-tick.C
		subnet, addr := manySubnet(i%changing), fmt.Sprintf("172.31.%d.%d", 100+i%2, 1+i%changing)
		if i/changing%2 == 1 {
			addr = fmt.Sprintf("172.31.%d.%d", 102+i%2, 1+i%changing)
		}
		l.putLease(subnet, addr)
		last[subnet] = addr
	}
	return last
}

// memory is the daemon's resident memory, now and at its peak.
func (d *daemon) memory() string {
	d.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	testkit.Must(d.t, err)
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "VmRSS:") || strings.HasPrefix(line, "VmHWM:") {
			found = append(found, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(found, ", ")
}

// forgetPeak resets VmHWM, proc_pid_clear_refs(5).
func (d *daemon) forgetPeak(t *testing.T) {
	t.Helper()
	testkit.Must(t, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.cmd.Process.Pid), []byte("5"), 0))
}

// cpu is the CPU time that the daemon has used.
func (d *daemon) cpu(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	testkit.Must(t, err)
	// utime and stime, proc_pid_stat(5), counted after the name in parentheses;
	// in ticks of 10 ms.
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	testkit.Must(t, err)
	system, err := strconv.Atoi(f[12])
	testkit.Must(t, err)
	return time.Duration(user+system) * 10 * time.Millisecond
}
