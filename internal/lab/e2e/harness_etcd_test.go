package e2e

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// etcdPrefix is flannel's default.
const etcdPrefix = "/coreos.com/network"

// etcdLab is a lab whose last host runs an etcd in the place of a daemon.
type etcdLab struct {
	*lab
	server  *etcdtest.Server
	members []*etcdtest.Server // of a cluster; server is the first
	host    *netlab.Host
	port    string           // of server
	client  *clientv3.Client // in the namespace of host
}

// newEtcdLab starts two nodes that have the subnets of their pods from etcd.
func newEtcdLab(t *testing.T) *etcdLab {
	t.Helper()
	l := idleEtcdLab(t, 2)
	l.grantAll()
	l.start()
	return l
}

// idleEtcdLab starts an etcd that has the network's config and no lease, and
// prepares daemons for the nodes.
func idleEtcdLab(t *testing.T, nodes int, flags ...string) *etcdLab {
	t.Helper()
	l := serveEtcd(t, newLab(t, labOptions{Options: netlab.Options{Hosts: nodes + 1}, nodes: nodes, idle: true, flags: flags}))
	l.put("config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`)
	for _, d := range l.daemons {
		d.readEtcd(l.endpoint())
	}
	return l
}

// serveEtcd starts an empty etcd on the last host.
func serveEtcd(t *testing.T, lab *lab) *etcdLab {
	t.Helper()
	return serveEtcdCluster(t, lab, 1, etcdtest.Options{})
}

// serveEtcdCluster starts an empty etcd of n members on the last host. o does
// not determine where it runs.
func serveEtcdCluster(t *testing.T, lab *lab, n int, o etcdtest.Options) *etcdLab {
	t.Helper()
	l := &etcdLab{lab: lab, host: lab.Hosts[len(lab.Hosts)-1]}
	o.Host = "::"
	o.Command = func(name string, args ...string) (*exec.Cmd, func() error) {
		c := l.host.NS.Command(context.Background(), name, args...)
		return c.Cmd, c.Start
	}
	l.members = etcdtest.StartCluster(t, n, o)
	l.server = l.members[0]
	u, err := url.Parse(l.server.Endpoint)
	testkit.Must(t, err)
	l.port = u.Port()
	l.client, err = clientv3.New(clientv3.Config{
		Endpoints: strings.Split(l.endpoint(), ","), Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return l.host.NS.Dial(ctx, "tcp", addr)
		})},
	})
	testkit.Must(t, err)
	t.Cleanup(func() { l.client.Close() })
	return l
}

// readEtcd makes a daemon that is not running yet get its lease from etcd.
func (d *daemon) readEtcd(endpoint string) {
	d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--lease-file=") })
	d.args = append(d.args, "--etcd-endpoints="+endpoint)
}

// endpoint is where the nodes reach etcd: one URL, or those of all members.
func (l *etcdLab) endpoint() string {
	var all []string
	for _, m := range l.members {
		all = append(all, l.endpointOf(m))
	}
	return strings.Join(all, ",")
}

func (l *etcdLab) endpointOf(m *etcdtest.Server) string {
	port := m.Endpoint[strings.LastIndexByte(m.Endpoint, ':')+1:]
	return "http://" + net.JoinHostPort(l.underlay(len(l.Hosts)-1).String(), port)
}

// grantAll creates a lease of its pods' subnet for each node, as a node that ran
// before finds it.
func (l *etcdLab) grantAll() {
	l.t.Helper()
	for i := range l.daemons {
		l.grant(i)
	}
}

// grant makes a lease for node number i, as grantAll does.
func (l *etcdLab) grant(i int) {
	l.t.Helper()
	granted := strings.Fields(l.etcdctl("lease", "grant", "3600"))
	l.etcdctl("put", "--lease="+granted[1], l.key(i), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, l.Hosts[i].Addr))
}

// key is where the lease of host number i is stored.
func (l *etcdLab) key(i int) string {
	return fmt.Sprintf("%s/subnets/%s-%d", etcdPrefix, l.Hosts[i].Subnet.Addr(), l.Hosts[i].Subnet.Bits())
}

func (l *etcdLab) etcdctl(args ...string) string {
	l.t.Helper()
	path, err := etcdtest.Binary("etcdctl")
	testkit.Must(l.t, err)
	args = append([]string{"--endpoints=http://127.0.0.1:" + l.port}, args...)
	out, err := l.host.NS.Command(context.Background(), path, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("etcdctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// put writes a key under the prefix.
func (l *etcdLab) put(key, value string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	_, err := l.client.Put(ctx, etcdPrefix+"/"+key, value)
	testkit.Must(l.t, err)
}

// putLease makes a lease, of a node that does not run, that does not expire.
func (l *etcdLab) putLease(subnet, publicIP string) {
	l.t.Helper()
	l.put("subnets/"+strings.Replace(subnet, "/", "-", 1), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, publicIP))
}

// entries returns the leases in etcd: values by keys.
func (l *etcdLab) entries() map[string]string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	resp, err := l.client.Get(ctx, etcdPrefix+"/subnets/", clientv3.WithPrefix())
	testkit.Must(l.t, err)
	all := make(map[string]string)
	for _, kv := range resp.Kvs {
		all[string(kv.Key)] = string(kv.Value)
	}
	return all
}

// written returns a channel that receives the keys of leases that are written from
// now on.
func (l *etcdLab) written() <-chan string {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	watch := l.client.Watch(ctx, etcdPrefix+"/subnets/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	<-watch
	keys := make(chan string, 1000)
	go func() {
		for resp := range watch {
			for _, e := range resp.Events {
				if e.Type == clientv3.EventTypePut {
					keys <- string(e.Kv.Key)
				}
			}
		}
	}()
	return keys
}

// cutOff drops all packets between host number i and etcd until the function
// that it returns is called.
func (l *etcdLab) cutOff(i int) (heal func()) {
	l.t.Helper()
	nft := func(rules string) {
		l.t.Helper()
		cmd := l.Hosts[i].NS.Command(context.Background(), "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			l.t.Fatalf("nft: %v\n%s", err, out)
		}
	}
	nft(fmt.Sprintf(`table inet cutoff {
		chain in { type filter hook input priority 0; tcp sport %[1]s drop; }
		chain out { type filter hook output priority 0; tcp dport %[1]s drop; }
	}`, l.port))
	return func() { nft("delete table inet cutoff") }
}

// seesInTheEnd waits until host number i has n leases, its own included. A
// connection to etcd that was cut takes time to come back.
func (l *etcdLab) seesInTheEnd(i, n int) {
	l.t.Helper()
	testkit.Eventually(l.t, fmt.Sprintf("host %s has %d leases", l.Hosts[i].Letter, n), func() bool { return l.daemons[i].status().Source.Leases == n })
}

// reachesInTheEnd waits until the data plane of host number i has n peers, which may be some
// time after all of them are ready.
func (l *etcdLab) reachesInTheEnd(i, n int) {
	l.t.Helper()
	testkit.Eventually(l.t, fmt.Sprintf("host %s has %d peers", l.Hosts[i].Letter, n), func() bool { return len(l.daemons[i].status().Dataplane.Peers) == n })
}

// checkHistory fails the test if a subnet ever had two owners.
func (l *etcdLab) checkHistory() {
	l.t.Helper()
	if etcdtest.CheckHistory(l.t, l.client, etcdPrefix) == 0 {
		l.t.Error("etcd's log has no lease")
	}
}

// steadyFlows are flows between two pods, both ways.
type steadyFlows []*steadyFlow

func (l *lab) steady(i, j int) steadyFlows {
	l.t.Helper()
	return steadyFlows{
		startSteadyFlow(l.t, l.pod(i), l.pod(j), l.pod(j).Addr),
		startSteadyFlow(l.t, l.pod(j), l.pod(i), l.pod(i).Addr),
	}
}

// pass waits until n more datagrams have gone each way. There are at most four per
// millisecond.
func (s steadyFlows) pass(t testing.TB, n uint64) {
	t.Helper()
	for _, f := range s {
		before := f.received.Load()
		came := testkit.Within(testkit.Patience, func() bool { return f.received.Load() >= before+n || f.broken.Load() != nil })
		if err := f.broken.Load(); err != nil {
			t.Fatalf("%s: %v", f.name, *err)
		}
		if !came {
			t.Fatalf("%s: want %d more datagrams, there are %d", f.name, n, f.received.Load()-before)
		}
	}
}

// stop fails the test unless each datagram has arrived.
func (s steadyFlows) stop(t testing.TB) {
	t.Helper()
	for _, f := range s {
		if err := f.stop(); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}
